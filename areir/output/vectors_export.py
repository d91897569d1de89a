"""The embeddings, paths and classes of a collection, for other programs."""

import os

import numpy as np
import pandas as pd

from areir.files import atomic_path, write_table


def export_vectors(collection, folder):
    """Write vectors.npy (N, D) float32 and images.csv, row for row; print the paths."""
    os.makedirs(folder, exist_ok=True)
    vectors_path = os.path.join(folder, 'vectors.npy')
    table_path = os.path.join(folder, 'images.csv')
    vectors = np.asarray(collection.embeddings, np.float32)
    with atomic_path(vectors_path) as temporary, open(temporary, 'wb') as file:
        np.save(file, vectors)
    table = pd.DataFrame(
        {
            'row': range(len(collection)),
            'path': collection.images,
            'class': collection.classes,
        }
    )
    write_table(table_path, table)
    count, dimensions = vectors.shape
    print(f'wrote {vectors_path} ({count:,} x {dimensions:,} float32) and {table_path}')

"""Shorten the vectors of an index whose network was not trained on such images.

The principal components of the folder itself, partly whitened, make the search better
and its vectors shorter; docs/search.md has the figures. They are fitted once the folder
has enough images, and again when the number of its images has doubled.
"""

import math
import os

import numpy as np
import torch

from areir.errors import UserError
from areir.gallery.matrix_file import write_blocks
from areir.gallery.vectors_file import VectorsFile
from areir.networks.projection import Projection, fit_projection

DIMENSIONS = 256
WHITENING = 0.75
LEAST_IMAGES = 1000
MOST_IMAGES = 16384  # that components are fitted to


def shorten_vectors(index_folder, table, earlier):
    """Write the shortened vectors of an IndexTable, and set its components in place.

    The table's full vectors must have been written. earlier: the IndexTable before it,
    or None. Its components and threshold are kept until the images have doubled.
    """
    vectors = VectorsFile(os.path.join(index_folder, table.vectors))
    if earlier:
        table.components, table.fitted = earlier.components, earlier.fitted
    if len(vectors) >= max(LEAST_IMAGES, 2 * table.fitted):
        fit_components(table, vectors)
    if table.components:
        path = os.path.join(index_folder, table.searched)
        projection = Projection(**table.components)
        table.checksums[table.searched] = write_shortened(path, vectors, projection)


def fit_components(table, vectors):
    """Fit the components of a table to its vectors.

    Scores change, so the threshold is dropped. Prints a notice of what has changed.
    """
    step = math.ceil(len(vectors) / MOST_IMAGES)
    sample = torch.from_numpy(np.array(vectors.rows()[::step]))
    try:
        projection = fit_projection(sample, DIMENSIONS, WHITENING)
    except UserError as error:
        print(f'notice: no principal components: {error}')
        return
    print_fitting(table, len(vectors))
    table.components, table.fitted = projection.to_state(), len(vectors)
    table.calibration = None


def print_fitting(table, count):
    """Print why components are fitted to `count` images, if that changes anything."""
    lost = ''
    if table.calibration:
        lost = '; the threshold no longer holds: run --calibrate again'
    if table.components:
        print(
            f'notice: the folder has grown from {table.fitted:,} to {count:,} images, '
            f'so the principal components are fitted again{lost}'
        )
    elif lost:
        print(f'notice: {count:,} images: vectors are shortened now{lost}')


def write_shortened(path, vectors, projection):
    """Project the vectors of a VectorsFile and write them to a new one.

    Returns what `write_blocks` does.
    """

    blocks = (
        projection(torch.from_numpy(rows)).numpy() for _, rows in vectors.blocks()
    )
    shape = len(vectors), projection.matrix.shape[1]
    return write_blocks(path, shape, VectorsFile.dtype, blocks)

"""Shorter vectors for an index whose network was not trained on such images.

The principal components of the folder itself, partly whitened, make the search better
and its vectors shorter; docs/search.md has the figures. They are fitted once there are
enough images, and again when the images have doubled.
"""

import os

import numpy as np
import torch

from areir.errors import UserError
from areir.retrieval.projection import Projection, fit_projection
from areir.retrieval.vectors_file import COPIED, VectorsFile, write_blocks

DIMENSIONS = 256
WHITENING = 0.75
LEAST_IMAGES = 1000
MOST_IMAGES = 16384  # that components are fitted to


def shorten(index_folder, table, earlier):
    """Write the shortened vectors of an IndexTable, and set its components in place.

    The table's vectors must be written. earlier: the table before it, whose components
    and threshold are kept until the images have doubled, or None.
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

    Prints what is lost by it. A threshold is, because scores change.
    """
    lost = ''
    if table.calibration:
        lost = '; the threshold no longer holds: run --calibrate again'
    if table.components:
        print(
            f'notice: the folder has grown from {table.fitted:,} to {len(vectors):,} '
            f'images, so the principal components are fitted again{lost}'
        )
    elif lost:
        print(f'notice: {len(vectors):,} images: vectors are shortened now{lost}')
    step = -(-len(vectors) // MOST_IMAGES)
    sample = torch.from_numpy(np.array(vectors.rows()[::step]))
    try:
        projection = fit_projection(sample, DIMENSIONS, WHITENING)
    except UserError as error:
        print(f'notice: no principal components: {error}')
        return
    table.components, table.fitted = projection.to_state(), len(vectors)
    table.calibration = None


def write_shortened(path, vectors, projection):
    """Write the vectors of a VectorsFile, projected, to a new one.

    Returns what `write_blocks` does.
    """

    def project(start):
        rows = vectors.rows(start, min(start + COPIED, len(vectors)))
        return projection(torch.from_numpy(rows)).numpy()

    blocks = map(project, range(0, len(vectors), COPIED))
    shape = len(vectors), projection.matrix.shape[1]
    return write_blocks(path, shape, blocks)

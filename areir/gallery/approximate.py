"""Approximate search by faiss, for folders that are too large for exact search.

faiss links each vector with near ones in a graph (HNSW), with one byte per number. The
images that it finds are scored with the original vectors. So scores are exact, but an
image may be missed. How often that happens is measured against exact search.
"""

import math

import numpy as np
import torch
from tqdm import tqdm

from areir.errors import UserError
from areir.evaluation.scores import CACHED, pair_scores, tolerance
from areir.files import atomic_path
from areir.gallery.index import locked, read_state, write_state
from areir.gallery.vectors import LARGEST_NORM, file_crc

LINKS, CONSTRUCTION = 16, 80  # M and efConstruction of HNSW
RECALL = 0.95  # share of the exact nearest images that is to be found
SAMPLE, NEAREST = 256, 8  # queries that measure the recall, and images of each
WIDEST = 1024  # largest efSearch; exact search is then as fast
ADDED = 16384  # vectors added to faiss at a time


def load_faiss():
    """Import faiss. Raises a UserError that says what to do if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            '--index faiss: faiss is not installed: pip install faiss-cpu, or leave '
            '--index out for exact search'
        ) from error
    return faiss


class ApproximateIndex:
    """A faiss index, and the VectorsFile that it was built from.

    measured: {efSearch, recall, nearest, queries}, as `measure` found them.
    """

    def __init__(self, faiss_index, vectors, measured):
        self.faiss_index, self.vectors, self.measured = faiss_index, vectors, measured
        self.array = vectors.mapped.numpy()  # indexed faster than a memmap

    def search(self, query, k, exclude=None):
        """Search as `VectorsFile.search` does, among what faiss finds.

        A query for which it finds fewer than k has scores of -inf and indices of -1
        last. NumPy does the work: a whole search may take less than 100 microseconds.
        """
        query = query.numpy()
        found = self.faiss_index.search(query, k + 1)[1]
        if exclude is not None:
            found[found == exclude.numpy()[:, None]] = -1  # as faiss marks missing ones
            last = (found < 0).argsort(axis=1, kind='stable')
            found = np.take_along_axis(found, last, axis=1)
        found = found[:, :k]
        scores = np.empty(found.shape, np.float32)
        step = max(1, CACHED // (k * query.shape[1]))
        for start in range(0, len(query), step):
            part = slice(start, start + step)
            scores[part] = self.score(query[part].astype(np.float64), found[part])
        order = np.lexsort((found, -scores))  # by score, then by index
        places = np.arange(len(query))[:, None], order
        return torch.from_numpy(scores[places]), torch.from_numpy(found[places])

    def score(self, query, found):
        """Return the scores (Q, k), float32, of images (Q, k); -inf for an image of -1.

        query: float64 (Q, D). As in `scores.round_products`, `pair_scores` computes the
        scores whose rounding the products leave open.
        """
        rows = self.array.take(found, axis=0, mode='clip').astype(np.float64)
        total = (rows @ query[:, :, None])[:, :, 0]
        norm = math.sqrt(np.vdot(query, query))  # at least that of each query
        error = tolerance(query.shape[1], norm * LARGEST_NORM, torch.float64)
        scores = (total - error).astype(np.float32)
        unsure = scores != (total + error).astype(np.float32)
        if unsure.any():  # it seldom is
            i, j = unsure.nonzero()
            pairs = torch.from_numpy(query[i]), torch.from_numpy(rows[i, j])
            own = torch.arange(len(i))
            scores[unsure] = pair_scores(*pairs, own, own)
        scores[found < 0] = -np.inf
        return scores

    def describe(self):
        """Return a sentence about how well the index searches."""
        return (
            'approximate index: it finds {recall:.2%} of the exact {nearest} nearest '
            'of {queries} images (efSearch {efSearch})'.format(**self.measured)
        )


def open_approximate(index):
    """Return the ApproximateIndex of an Index; build it if there is none yet."""
    faiss, path = load_faiss(), index.vectors.path.removesuffix('.f32') + '.faiss'
    with locked(index.folder) as database:
        state = read_state(database)
        measured = state.approximate
        if measured and file_crc(path) == measured['checksum']:
            return ApproximateIndex(faiss.read_index(path), index.vectors, measured)
        built = build(index.vectors)
        with atomic_path(path) as temporary:
            faiss.write_index(built.faiss_index, temporary)
        built.measured['checksum'] = file_crc(path)
        state.approximate = built.measured
        with database:
            write_state(database, state)
        return built


def build(vectors):
    """Return the ApproximateIndex of a VectorsFile; choose its efSearch by the recall.

    measured: efSearch, and the share found of the `nearest` exact nearest images,
    averaged over `queries` images.
    """
    faiss, rows = load_faiss(), vectors.mapped.numpy()
    kind = faiss.ScalarQuantizer.QT_8bit, LINKS, faiss.METRIC_INNER_PRODUCT
    faiss_index = faiss.IndexHNSWSQ(vectors.dimensions, *kind)
    faiss_index.hnsw.efConstruction = CONSTRUCTION
    faiss_index.train(rows[:: math.ceil(len(rows) / ADDED)])
    with tqdm(total=len(rows), desc='faiss', unit='img', delay=3) as bar:
        for start in range(0, len(rows), ADDED):
            faiss_index.add(rows[start : start + ADDED])
            bar.update(ADDED)
    index = ApproximateIndex(faiss_index, vectors, {})
    own = np.sort(np.random.default_rng(0).permutation(len(rows))[:SAMPLE])
    query, own = torch.from_numpy(rows[own]), torch.from_numpy(own)
    if len(rows) == 1:
        own = torch.tensor([-1])  # the only image can find only itself
    nearest = min(NEAREST, max(1, len(rows) - 1))
    # only rank 0 builds an index
    exact = vectors.search(query, nearest, own, shared=False)[1]
    width, recall = NEAREST / 2, 0
    while recall < RECALL and width < WIDEST:
        width = int(2 * width)
        faiss_index.hnsw.efSearch = width
        recall = measure_recall(index, query, own, exact)
    index.measured = {
        'efSearch': width,
        'recall': recall,
        'nearest': nearest,
        'queries': len(own),
    }
    return index


def measure_recall(index, query, own, exact):
    """Return the share of the exact nearest images (Q, k) that the index finds."""
    indices = index.search(query, exact.shape[1], own)[1]
    return (indices[:, :, None] == exact[:, None]).any(dim=1).double().mean().item()

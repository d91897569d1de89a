"""Approximate search by faiss, for folders that are too large for exact search.

faiss links each vector with near ones in a graph (HNSW), with one byte per number. The
images that it finds are scored with the original vectors. So scores are exact, but an
image may be missed. How often that happens is measured against exact search.
"""

import numpy as np
import torch

from areir import processes
from areir.errors import counted, optional
from areir.evaluation.scores import CACHED, pair_scores, tolerance
from areir.files import atomic_path
from areir.gallery.index import locked, read_state, write_state
from areir.gallery.vectors import LARGEST_NORM, file_crc

RECALL = 0.95  # share of the exact nearest images that is to be found
SAMPLE, NEAREST = 256, 8  # queries that measure it, and images of each


def load_faiss():
    """Return the package faiss; see `errors.optional`."""
    return optional('--index faiss', 'faiss', 'faiss-cpu')


class ApproximateIndex:
    """A faiss index of vectors (N, D), a plain array: a memmap is indexed slowly."""

    def __init__(self, faiss_index, vectors):
        self.faiss_index, self.vectors = faiss_index, vectors

    def search(self, query, k, exclude=None):
        """Search as `VectorsFile.search` does, among what faiss finds.

        If that is fewer than k images, scores of -inf and indices of -1 are last. NumPy
        does the work, because its calls take less time than those of torch.
        """
        query = query.numpy()
        found = self.faiss_index.search(query, k + 1)[1]
        if exclude is not None:
            found[found == exclude.numpy()[:, None]] = -1  # as faiss marks missing ones
        scores = np.empty(found.shape, np.float32)
        step = max(1, CACHED // found[0].size // query.shape[1])
        for start in range(0, len(query), step):
            part = slice(start, start + step)
            scores[part] = score(query[part], self.vectors, found[part])
        order = np.lexsort((found, -scores))[:, :k]  # by score, then by index
        order += np.arange(0, found.size, k + 1)[:, None]
        return torch.from_numpy(scores.take(order)), torch.from_numpy(found.take(order))


def score(query, vectors, found):
    """Return the exact scores (Q, n) of queries (Q, D) and the vectors found (Q, n)."""
    images = vectors.take(found, axis=0, mode='clip').astype(np.float64)
    total = (images @ query.astype(np.float64)[:, :, None])[:, :, 0]
    bound = np.linalg.norm(query) * LARGEST_NORM
    error = tolerance(query.shape[1], bound, torch.float64)
    scores = (total - error).astype(np.float32)
    unsure = scores != (total + error).astype(np.float32)  # seldom
    if np.count_nonzero(unsure):  # faster than unsure.any()
        pairs = query, vectors, unsure.nonzero()[0], found[unsure].clip(0)
        scores[unsure] = pair_scores(*map(torch.from_numpy, pairs))
    scores[found < 0] = -np.inf
    return scores


def open_approximate(index):
    """Return the ApproximateIndex of an Index, or build it; print how well it finds."""
    faiss, path = load_faiss(), index.vectors.path.removesuffix('.f32') + '.faiss'
    with locked(index.folder) as database:
        state = read_state(database)
        measured, rows = state.approximate, index.vectors.mapped.numpy()
        if measured and measured['checksum'] == file_crc(path):
            approximate = ApproximateIndex(faiss.read_index(path), rows)
        else:
            print('building the approximate index: minutes for a million images')
            approximate, measured = build(index.vectors)
            with atomic_path(path) as temporary:
                faiss.write_index(approximate.faiss_index, temporary)
            state.approximate = {**measured, 'checksum': file_crc(path)}
            with database:
                write_state(database, state)
    print(
        'approximate index: it finds {recall:.2%} of the exact {nearest} nearest of '
        '{images} (efSearch {efSearch})'.format(
            **measured, images=counted(measured['queries'], 'image')
        )
    )
    return approximate


def open_search(index):
    """Return what searches an Index approximately: rank 0 does, for all processes."""
    approximate = open_approximate(index) if processes.is_first() else None
    processes.wait_for_all()

    def search(queries, k, exclude):
        found = approximate and approximate.search(queries, k, exclude)
        return processes.from_first(found)

    return search


def build(vectors):
    """Return an ApproximateIndex, and {efSearch, recall, nearest, queries}.

    recall: the share of the `nearest` exact nearest of `queries` images that it finds.
    """
    faiss, rows = load_faiss(), vectors.mapped.numpy()
    kind = faiss.ScalarQuantizer.QT_8bit, 16, faiss.METRIC_INNER_PRODUCT
    faiss_index = faiss.IndexHNSWSQ(vectors.dimensions, *kind)
    faiss_index.hnsw.efConstruction = 80
    faiss_index.train(rows)
    faiss_index.add(rows)
    index = ApproximateIndex(faiss_index, rows)
    own = torch.from_numpy(np.random.default_rng(0).permutation(len(rows))[:SAMPLE])
    query = vectors.mapped[own]
    nearest = min(NEAREST, len(rows) - 1)
    exact = vectors.search(query, nearest, own, shared=False)[1]  # rank 0 is alone
    for width in (8, 16, 32, 64, 128, 256, 512, 1024):
        faiss_index.hnsw.efSearch = width
        found = index.search(query, nearest, own)[1]
        recall = (found[:, :, None] == exact[:, None]).any(dim=1).double().mean().item()
        if recall >= RECALL:
            break
    measured = {'recall': recall, 'nearest': nearest, 'queries': len(query)}
    return index, {'efSearch': width, **measured}

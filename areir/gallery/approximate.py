"""An approximate index by faiss, for folders that are too large for exact search.

Vectors are put into cells around centres, with one byte per number. A query looks into
the nearest cells, and the candidates there are scored again with the original vectors.
So scores are exact, but an image may be missed. How often that happens is measured
against exact search.
"""

import json
import math
import os
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from areir.errors import UserError
from areir.evaluation.scores import CACHED, pair_scores, tolerance
from areir.files import atomic_path, file_checksum, refuse_special, write_json
from areir.gallery.index import locked
from areir.gallery.vectors_file import LARGEST_NORM, VectorsFile
from areir.schemas import find_problem, is_count, is_number

RECALL = 0.95  # share of the exact nearest images that is to be found
CANDIDATES = 2  # images scored again for each image asked for
SAMPLE = 256  # queries that measure the recall
NEAREST = 8  # images of each of them
ADDED = 65536  # vectors added to faiss at a time
VECTORS_PER_CELL = 39  # faiss warns if a centre is placed by fewer
MEASURED = {
    'cells': is_count,
    'looked_into': is_count,
    'recall': lambda value: is_number(value) and 0 <= value <= 1,
    'nearest': is_count,
    'queries': is_count,
}


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


@dataclass
class ApproximateIndex:
    """A faiss index, and the vectors that it was built from.

    measured: {cells, looked_into, recall, nearest, queries}, as `measure` found them.
    """

    faiss_index: object
    vectors: VectorsFile
    measured: dict

    def search(self, query, k, exclude=None):
        """Search as `VectorsFile.search` does, among the candidates that faiss finds.

        A query with fewer candidates than k has scores of -inf and indices of -1 last.
        NumPy does the work, as its calls take less time than those of torch. A whole
        search may take less than 100 microseconds.
        """
        query = query.numpy()
        candidates = self.faiss_index.search(query, CANDIDATES * k + 1)[1]
        if exclude is not None:
            own = candidates == exclude.numpy()[:, None]
            candidates[own] = -1  # as faiss marks missing ones
        candidates.sort(axis=1)  # so the lower index is first among equal scores
        scores = self.score(query.astype(np.float64), candidates)
        best = (-scores).argsort(axis=1, kind='stable')[:, :k]
        places = np.arange(len(query))[:, None], best
        return torch.from_numpy(scores[places]), torch.from_numpy(candidates[places])

    def score(self, query, candidates):
        """Return the scores (Q, n), float32, of candidates (Q, n).

        query: float64 (Q, D). The score of a candidate of -1 is -inf. As in
        `scores.round_products`, `pair_scores` computes the scores whose rounding the
        float64 products leave open.
        """
        total = self.products(query, candidates)
        norm = math.sqrt(np.vdot(query, query))  # at least that of each query
        error = tolerance(query.shape[1], norm * LARGEST_NORM, torch.float64)
        scores = (total - error).astype(np.float32)
        highest = (total + error).astype(np.float32)
        if scores.tobytes() != highest.tobytes():  # they seldom differ
            unsure = scores != highest
            rows, images = unsure.nonzero()[0], candidates[unsure]
            pairs = torch.from_numpy(rows), torch.from_numpy(images)
            query = torch.from_numpy(query)
            scores[unsure] = pair_scores(query, self.vectors.mapped, *pairs)
        scores[candidates < 0] = -np.inf
        return scores

    def products(self, query, candidates):
        """Return the dot products (Q, n) of queries and their candidates, float64."""
        vectors = self.vectors.mapped.numpy()
        total = np.empty(candidates.shape)
        step = max(1, CACHED // (candidates.shape[1] * query.shape[1]))
        for start in range(0, len(query), step):
            part = slice(start, start + step)
            rows = vectors.take(candidates[part], axis=0).astype(np.float64)
            total[part] = (rows @ query[part, :, None])[:, :, 0]
        return total

    def describe(self):
        """Return a sentence about how well the index searches."""
        measured = self.measured
        return (
            f'approximate index: {measured["looked_into"]} of {measured["cells"]} '
            f'cells are searched; it finds {measured["recall"]:.2%} of the exact '
            f'{measured["nearest"]} nearest of {measured["queries"]} images'
        )


def open_approximate(index_folder, vectors):
    """Return the ApproximateIndex of a VectorsFile; build it if there is none yet."""
    name = os.path.basename(vectors.path).removesuffix('.npy')
    path = os.path.join(index_folder, f'{name}.faiss')
    load_faiss()
    with locked(index_folder):
        try:
            return read_approximate(path, vectors)
        except (OSError, RuntimeError, ValueError):
            pass  # it is missing or damaged
        except AttributeError:
            pass  # it is another kind of index
        return build(path, vectors)


def read_approximate(path, vectors):
    """Read an index and its measurements.

    Raises OSError, RuntimeError, ValueError or AttributeError if they cannot be used.
    """
    refuse_special(path)
    refuse_special(f'{path}.json')
    with open(f'{path}.json', encoding='utf-8') as file:
        saved = json.load(file)
    problem = find_problem(saved, MEASURED)
    if problem:
        raise ValueError(problem)
    measured = {name: saved[name] for name in MEASURED}
    if saved.get('checksum') != checksum(path, measured):
        raise ValueError('its checksum does not fit')
    faiss_index = load_faiss().read_index(path)
    shape = len(vectors), vectors.dimensions, measured['cells']
    if (faiss_index.ntotal, faiss_index.d, faiss_index.nlist) != shape:
        raise ValueError('an index of other vectors')
    if measured['looked_into'] > faiss_index.nlist:
        raise ValueError('impossible measurements')
    faiss_index.nprobe = measured['looked_into']
    return ApproximateIndex(faiss_index, vectors, measured)


def checksum(path, measured):
    """Return the CRC-32 of a file and of its measurements."""
    value = zlib.crc32(json.dumps(measured).encode())
    with open(path, 'rb') as file:
        return file_checksum(file, value=value)


def build(path, vectors):
    """Build an ApproximateIndex, choose how many cells it searches, and write it."""
    rng = np.random.default_rng(0)
    index = ApproximateIndex(build_faiss_index(vectors, rng), vectors, {})
    index.measured = measure(index, rng)
    with atomic_path(path) as temporary:
        load_faiss().write_index(index.faiss_index, temporary)
        saved = {**index.measured, 'checksum': checksum(temporary, index.measured)}
        write_json(f'{path}.json', saved)
    return index


def build_faiss_index(vectors, rng):
    """Return a faiss index that holds all vectors."""
    faiss = load_faiss()
    count, dimensions = len(vectors), vectors.dimensions
    number = max(1, min(int(4 * count**0.5), count // VECTORS_PER_CELL))
    faiss_index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dimensions),
        dimensions,
        number,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )
    faiss_index.cp.niter = 10
    faiss_index.cp.min_points_per_centroid = 1  # no warning about small folders
    drawn = np.sort(rng.permutation(count)[: max(64 * number, 256)])
    # faiss refuses memmaps if anything has imported faiss.contrib.torch_utils
    rows = vectors.mapped.numpy()
    with tqdm(total=count, desc='faiss', unit='img', delay=3) as bar:
        faiss_index.train(rows[drawn])
        for start in range(0, count, ADDED):
            stop = min(start + ADDED, count)
            faiss_index.add(rows[start:stop])
            bar.update(stop - start)
    return faiss_index


def measure(index, rng):
    """Double the number of cells that are searched until RECALL is reached.

    Returns {cells, looked_into, recall, nearest, queries}: the number of cells, how
    many are searched, and the share found of the `nearest` exact nearest images,
    averaged over `queries` images.
    """
    count = len(index.vectors)
    own = torch.from_numpy(np.sort(rng.permutation(count)[:SAMPLE]))
    query = torch.from_numpy(index.vectors.rows()[own.numpy()])
    if count == 1:
        own = torch.full_like(own, -1)  # it can find only itself
    nearest = min(NEAREST, max(1, count - 1))
    # only rank 0 builds an index
    exact = index.vectors.search(query, nearest, own, shared=False)[1]
    faiss_index = index.faiss_index
    faiss_index.nprobe = 1
    recall = measure_recall(index, query, own, exact)
    while recall < RECALL and faiss_index.nprobe < faiss_index.nlist:
        faiss_index.nprobe = min(faiss_index.nlist, 2 * faiss_index.nprobe)
        recall = measure_recall(index, query, own, exact)
    return {
        'cells': faiss_index.nlist,
        'looked_into': faiss_index.nprobe,
        'recall': recall,
        'nearest': nearest,
        'queries': len(own),
    }


def measure_recall(index, query, own, exact):
    """Return the share of the exact nearest images (Q, k) that the index finds."""
    indices = index.search(query, exact.shape[1], own)[1]
    return (indices[:, :, None] == exact[:, None]).any(dim=1).double().mean().item()

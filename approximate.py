"""An approximate index of a gallery, by faiss: for galleries that take too long to be read whole for every answer.

Vectors are put into cells around centres, a byte for each number. A query looks into the cells that are nearest to it,
and what it finds there is scored again with the vectors themselves: scores are exact, but an image may be missed. How
many are, is measured against exact search, and printed.
"""
import contextlib
import json
import os

import numpy as np
import torch
from tqdm import tqdm

import gallery
import retrieval
import utils

RECALL = 0.95    # of the exact nearest, that enough cells are looked into for
CANDIDATES = 8   # scored again for each image asked for
TOGETHER = 256   # queries at a time
SAMPLE = 256     # queries that recall is measured with
NEAREST = 8


def load_faiss():
    """The library. Raises ValueError with the way out if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError('--index faiss: faiss is not installed: pip install faiss-cpu, or leave --index out for '
                         'exact search') from error
    return faiss


def nearest(index, vectors, query, k, exclude=None):
    """As `gallery.search`, among the candidates that an index of faiss finds. Of a query with fewer candidates than k
    the last places are -inf and -1."""
    stored = gallery.mapped(vectors)
    parts = []
    for rows in torch.arange(len(query)).split(TOGETHER):
        found = torch.from_numpy(index.search(query[rows].numpy(), min(len(stored), CANDIDATES * k + 1))[1])
        if exclude is not None:
            found[found == exclude[rows, None]] = -1
        places = (found >= 0).nonzero(as_tuple=True)
        images, block = found[places].unique(return_inverse=True)
        scores = retrieval.pair_scores(query[rows], torch.from_numpy(stored[images.numpy()]), places[0], block)
        keys = torch.full((len(rows), max(k, found.shape[1])), retrieval.LAST)
        keys[places] = retrieval.to_keys(scores, found[places])
        parts.append(keys.sort(dim=1).values[:, :k])
    best = torch.cat(parts)
    none = best == retrieval.LAST
    return retrieval.to_scores(best).masked_fill(none, -torch.inf), (best & (2 ** 31 - 1)).masked_fill(none, -1)


def measured_recall(index, vectors, query, own, exact):
    """Share of the exact NEAREST that are found."""
    found = nearest(index, vectors, query, exact.shape[1], own)[1]
    return (found[:, :, None] == exact[:, None]).any(dim=1).double().mean().item()


def build(vectors, path):
    """Build the index, choose how many cells are looked into, and write both. Returns the index and what was measured:
    {cells, looked_into, recall, nearest, queries}."""
    faiss = load_faiss()
    rows = gallery.mapped(vectors)
    count, dimensions = rows.shape
    cells = max(1, min(int(4 * count ** 0.5), count // 39))  # faiss asks for 39 vectors to place a centre
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dimensions), dimensions, cells,
                                          faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.permutation(count)[:max(64 * cells, 256)])
    index.cp.niter = 10
    index.cp.min_points_per_centroid = 1  # no warning of small galleries
    with tqdm(total=count, desc='faiss', unit='img', delay=3) as bar:
        index.train(rows[drawn])
        for start in range(0, count, gallery.BLOCK):
            index.add(rows[start:start + gallery.BLOCK])
            bar.update(min(gallery.BLOCK, count - start))

    own = torch.from_numpy(np.sort(rng.permutation(count)[:SAMPLE]))
    query = torch.from_numpy(rows[own.numpy()])
    if count == 1:
        own = torch.full_like(own, -1)  # all that it can find is itself
    exact = gallery.search(vectors, query, min(NEAREST, max(1, count - 1)), own)[1]
    index.nprobe = 1
    while (recall := measured_recall(index, vectors, query, own, exact)) < RECALL and index.nprobe < cells:
        index.nprobe = min(cells, 2 * index.nprobe)
    found = {'cells': cells, 'looked_into': index.nprobe, 'recall': recall, 'nearest': exact.shape[1],
             'queries': len(own)}
    try:
        faiss.write_index(index, f'{path}.part')
    except RuntimeError as error:
        with contextlib.suppress(OSError):
            os.remove(f'{path}.part')
        raise OSError(f'{path} cannot be written, is the disk full?') from error
    utils.save_json(found, f'{path}.json')
    os.replace(f'{path}.part', path)
    return index, found


def opened(folder, vectors):
    """(index, what `build` measured) of a gallery: built if there is none for these vectors."""
    faiss = load_faiss()
    name = os.path.basename(vectors if isinstance(vectors, str) else vectors.name)
    path = os.path.join(folder, f'{name.removesuffix(".npy")}.faiss')
    with gallery.locked(folder):
        try:
            with open(f'{path}.json', encoding='utf-8') as file:
                found = json.load(file)
            index = faiss.read_index(path)
            stored = gallery.mapped(vectors)
            if (index.ntotal, index.d, index.nlist) != (*stored.shape, int(found['cells'])):
                raise ValueError('an index of other vectors')
            if not (1 <= found['looked_into'] <= index.nlist and 0 <= found['recall'] <= 1
                    and found['nearest'] > 0 < found['queries']):
                raise ValueError('not what was measured')
            index.nprobe = int(found['looked_into'])
            return index, found
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or damaged
            return build(vectors, path)

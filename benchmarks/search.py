"""Measure search in growing galleries: ours from a file, and faiss in memory.

    python benchmarks/search.py       # 10,000, 100,000 and 1,000,000 x 576: 25 minutes
    python benchmarks/search.py --sizes 10000 --methods exact,flat   # 30 seconds

Ours is exact or approximate. Every measurement is a process of its own. Times are of
queries one at a time and of 256 together, for the 8 nearest of each, the median of
several calls. Before that the file is read once, so it lies in the system's cache, and
all queries are answered once, so their pages are mapped. Memory is the peak of
anonymous memory, building included, and of mapped pages of the file, both beyond torch
itself. Recall is the share of the exact 8 nearest. All methods but exact need
`pip install -r benchmarks/requirements.txt`. The minutes above are estimates for 2
cores.
"""

import argparse
import json
import os
import shutil
import tempfile
import time

import common
import numpy as np
import torch
from torch.nn import functional as F

import utils
from areir.cli import types
from areir.errors import UserError
from areir.gallery.approximate import build, measure_recall
from areir.gallery.vectors import VectorsFile, write_codes

HEADS, META_CLASS_SIZE = 48, 12
SURFACE = 32  # dimensions near which all vectors lie
CLASS_SIZE = 10
WRITTEN = 10_000  # vectors at a time
NEAREST = 8
QUERIES = 256
CALLS = {'single': (1, 50), 'together': (QUERIES, 5)}  # queries of a call, calls
METHODS = {
    'exact': 'ours, exact, from the file',
    'approximate': 'ours, --index faiss',
    'flat': 'faiss.IndexFlatIP, in memory',
    'hnsw': 'faiss.IndexHNSWSQ, in memory',
}


# Synthetic galleries


def random_vectors(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


def make_embeddings(labels, seed):
    """Return embeddings (n, 576) of the model's form for images with these labels.

    Images lie around the centre of their class, and all near a surface of few
    dimensions, as the embeddings of a trained network do.
    """
    dimensions = HEADS * META_CLASS_SIZE
    surface = random_vectors(SURFACE, dimensions, seed=0) / SURFACE**0.5
    names, classes = labels.unique(return_inverse=True)
    centres = [random_vectors(SURFACE, seed=10 + name) for name in names.tolist()]
    generator = torch.Generator().manual_seed(seed)
    places = 0.5 * torch.randn(len(labels), SURFACE, generator=generator)
    places += torch.stack(centres)[classes]
    vectors = places @ surface
    vectors += 0.3 * torch.randn(vectors.shape, generator=generator)
    heads = F.normalize(vectors.view(-1, HEADS, META_CLASS_SIZE), dim=2)
    return heads.flatten(1) / HEADS**0.5


def open_vectors(path):
    return VectorsFile(path, HEADS * META_CLASS_SIZE)


def queries_path(path):
    return f'{path}.queries.npy'


def write_gallery(path, size):
    """Write vectors to a raw file, and queries of the same classes beside it."""
    with open(path, 'wb') as file:
        for start in range(0, size, WRITTEN):
            labels = torch.arange(start, min(start + WRITTEN, size)) // CLASS_SIZE
            vectors = make_embeddings(labels, 1_000_000 + start)
            file.write(vectors.numpy().tobytes())
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(size // CLASS_SIZE, (QUERIES,), generator=generator)
    np.save(queries_path(path), make_embeddings(labels, 2))


# What is compared; each has search(query, k, exclude=None) -> (scores, indices)


class FaissIndex:
    """An index of faiss in memory."""

    def __init__(self, index):
        self.index = index

    def search(self, query, k, exclude=None):
        scores, indices = self.index.search(query.numpy(), k)
        return torch.from_numpy(scores), torch.from_numpy(indices)


def open_method(method, vectors):
    """Return (what searches a VectorsFile by this method, its efSearch)."""
    if method == 'exact':
        write_codes(vectors)
        return vectors, ''
    if method == 'flat':
        import faiss

        index = faiss.IndexFlatIP(vectors.dimensions)
        for rows in vectors.blocks():
            index.add(np.asarray(rows))
        return FaissIndex(index), ''
    index = build(vectors)
    ours = index if method == 'approximate' else FaissIndex(index.faiss_index)
    return ours, index.measured['efSearch']


# Measurements


def queries_per_second(searcher, queries, batch, calls):
    """Return the median rate of `calls` searches of `batch` queries each."""
    seconds = []
    for call in range(calls):
        start = call * batch % QUERIES
        query = queries[start : start + batch]
        started = time.perf_counter()
        searcher.search(query, NEAREST)
        seconds.append(time.perf_counter() - started)
    return batch / common.median(seconds)


def measure(method, path):
    """Build, search, and return what that took."""
    queries = torch.from_numpy(np.load(queries_path(path)))
    vectors = open_vectors(path)
    vectors.rows().sum()  # read once
    if method != 'exact':
        import faiss  # here, so that its import is not part of building

        faiss.omp_set_num_threads(torch.get_num_threads())
    with common.PeakMemory() as memory_used:
        started = time.perf_counter()
        searcher, width = open_method(method, vectors)
        result = {'build': time.perf_counter() - started, 'efSearch': width}
        searcher.search(queries, NEAREST)  # warms up
        for name, (batch, calls) in CALLS.items():
            result[name] = queries_per_second(searcher, queries, batch, calls)
    exact = vectors.search(queries, NEAREST)[1]
    recall = measure_recall(searcher, queries, None, exact)
    return {**result, **memory_used.peak, 'recall': recall}


def print_header():
    print(common.describe_machine())
    print(
        f'{"images":>10}  {"":<30}{"build s":>9}{"1 query/s":>11}{"256 query/s":>13}'
        f'{"anon MB":>9}{"file MB":>9}{"recall":>9}  efSearch',
        flush=True,
    )


def print_row(size, method, path):
    """Measure a method in a process of its own and print its row."""
    beginning = f'{size:>10,}  {METHODS[method]:<30}'
    try:
        result = common.measure_apart(__file__, ['--measure', method, path])
    except UserError as error:
        print(f'{beginning} failed: {error}')
        return
    print(
        f'{beginning}{result["build"]:>9.1f}{result["single"]:>11.1f}'
        f'{result["together"]:>13.1f}{result["anonymous"]:>9,.0f}'
        f'{result["file"]:>9,.0f}{result["recall"]:>9.2%}  {result["efSearch"]}',
        flush=True,
    )


def get_args():
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description='Measure search in galleries.'
    )
    add = parser.add_argument
    default = '[default: %(default)s]'
    sizes = '10000,100000,1000000'
    add('--sizes', type=types.integers, default=sizes, help=f'images {default}')
    add('--methods', default=','.join(METHODS), help=default)
    add(
        '--folder',
        help='where the galleries are written, 2.3 GB for 1,000,000 '
        '[default: temporary]',
    )
    add('--measure', nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = get_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    print_header()
    folder = args.folder or tempfile.mkdtemp(prefix='areir-search-')
    os.makedirs(folder, exist_ok=True)
    try:
        for size in args.sizes:
            path = os.path.join(folder, f'vectors_{size}.f32')
            if not os.path.isfile(queries_path(path)):
                write_gallery(path, size)
            for method in args.methods.split(','):
                print_row(size, method, path)
    finally:
        if not args.folder:
            shutil.rmtree(folder)


if __name__ == '__main__':
    utils.run_script(main)

"""Measure search in growing galleries: ours from a file, and faiss in memory.

    python benchmarks/search.py     # 1,000, 100,000 and 1,000,000 x 256: 15 minutes
    python benchmarks/search.py --sizes 10000 --methods exact,flat   # 30 seconds
    python benchmarks/search.py --methods index     # opens the index of a folder

Ours is exact or approximate. Every measurement is a process of its own. Times are of
queries one at a time and of 256 together, for the 8 nearest of each, the median of
several calls. Before that the file is read once, so it lies in the system's cache, and
all queries are answered once, so their pages are mapped. `index` builds the index of a
folder of empty files, to which vectors are made up, and opens it again; its files are
given in bytes for each image. Memory is the peak of
anonymous memory, building included, and of mapped pages of the file, both beyond torch
itself. Recall is the share of the exact 8 nearest. All methods but exact need
`pip install -r benchmarks/requirements.txt`. 1,000,000 vectors take 1.3 GB below
TMPDIR. The minutes above are estimates for 2 cores.
"""

import os
import statistics
import tempfile
import time
from functools import partial
from unittest import mock

import common
import numpy as np
import torch
from torch.nn import functional as F

from areir.cli import types
from areir.gallery import index
from areir.gallery.approximate import build
from areir.gallery.vectors import VectorsFile, write_codes
from areir.scripts import utils

SURFACE = 32  # dimensions near which all vectors lie
CLASS_SIZE = 10
CLASS_FILES = 1000  # in a folder
WRITTEN = 10_000  # vectors at a time
NEAREST = 8
QUERIES = 256
CALLS = (('1 query/s', 1, 50), ('256 queries/s', QUERIES, 5))  # name, queries, calls
METHODS = {
    'exact': 'ours, exact, from the file',
    'approximate': 'ours, --index faiss',
    'flat': 'faiss.IndexFlatIP, in memory',
    'hnsw': 'faiss.IndexHNSWSQ, in memory',
    'index': 'ours, the index of a folder',
}


# Synthetic galleries


def random_vectors(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


def make_embeddings(labels, dimensions, seed):
    """Return unit vectors (n, dimensions) for images with these labels.

    Images lie around the centre of their class, and all near a surface of few
    dimensions, as the embeddings of a trained network do.
    """
    surface = random_vectors(SURFACE, dimensions, seed=0) / SURFACE**0.5
    names, classes = labels.unique(return_inverse=True)
    centres = [random_vectors(SURFACE, seed=10 + name) for name in names.tolist()]
    generator = torch.Generator().manual_seed(seed)
    places = 0.5 * torch.randn(len(labels), SURFACE, generator=generator)
    places += torch.stack(centres)[classes]
    vectors = places @ surface
    vectors += 0.3 * torch.randn(vectors.shape, generator=generator)
    return F.normalize(vectors)


def queries_path(path):
    return f'{path}.queries.npy'


def write_gallery(path, size, dimensions):
    """Write vectors to a raw file, and queries of the same classes beside it."""
    with open(path, 'wb') as file:
        for start in range(0, size, WRITTEN):
            labels = torch.arange(start, min(start + WRITTEN, size)) // CLASS_SIZE
            vectors = make_embeddings(labels, dimensions, 1_000_000 + start)
            file.write(vectors.numpy().tobytes())
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(size // CLASS_SIZE, (QUERIES,), generator=generator)
    np.save(queries_path(path), make_embeddings(labels, dimensions, 2))


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

        flat = faiss.IndexFlatIP(vectors.dimensions)
        for rows in vectors.blocks():
            flat.add(np.asarray(rows))
        return FaissIndex(flat), ''
    approximate, measured = build(vectors)
    if method == 'hnsw':
        approximate = FaissIndex(approximate.faiss_index)
    return approximate, measured['efSearch']


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
    return batch / statistics.median(seconds)


def measure(path, dimensions, method):
    """Build, search, and return what that took, as a row of the table."""
    queries = torch.from_numpy(np.load(queries_path(path)))
    vectors = VectorsFile(path, dimensions)
    vectors.array.sum()  # read once
    if method != 'exact':
        import faiss  # here, so that its import is not part of building

        faiss.omp_set_num_threads(torch.get_num_threads())
    with common.PeakMemory() as memory:
        started = time.perf_counter()
        searcher, width = open_method(method, vectors)
        row = {'build s': f'{time.perf_counter() - started:.1f}'}
        searcher.search(queries, NEAREST)  # warms up
        for name, batch, calls in CALLS:
            rate = queries_per_second(searcher, queries, batch, calls)
            row[name] = f'{rate:,.0f}'
    row['anon MB'] = f'{memory.peak["anonymous"]:,.0f}'
    row['file MB'] = f'{memory.peak["file"]:,.0f}'
    exact = vectors.search(queries, NEAREST)[1]
    found = searcher.search(queries, NEAREST)[1]
    recall = (found[:, :, None] == exact[:, None]).any(dim=1).double().mean()
    return {**row, 'recall': f'{recall:.2%}', 'efSearch': str(width)}


def update_index(folder):
    """Bring the index of a folder of empty files up to date."""
    index.update_index(f'{folder}/photos', f'{folder}/index', {}, None, None)


def build_index(folder, size, dimensions):
    """Write the index of `size` empty files; their vectors are made up."""
    for start in range(0, size, CLASS_FILES):
        os.makedirs(f'{folder}/photos/class_{start}')
        for number in range(start, min(start + CLASS_FILES, size)):
            open(f'{folder}/photos/class_{start}/photo_{number}.jpg', 'w').close()

    def embed_shares(files, *_):
        for start in range(0, len(files), WRITTEN):
            part = range(len(files))[start : start + WRITTEN]
            vectors = random_vectors(len(part), dimensions, seed=start)
            yield part, F.normalize(vectors).numpy(), {}

    with mock.patch.object(index, 'embed_shares', embed_shares):
        update_index(folder)


def measure_index(folder, size, dimensions):
    """Build an index, open it in this process, and return a row of the table."""
    common.apart(build_index, folder, size, dimensions)
    with common.PeakMemory() as memory:
        started = time.perf_counter()
        update_index(folder)
        row = {'open s': f'{time.perf_counter() - started:.1f}'}
    row['anon MB'] = f'{memory.peak["anonymous"]:,.0f}'
    row['file MB'] = f'{memory.peak["file"]:,.0f}'
    for file in os.scandir(f'{folder}/index'):
        ending = os.path.splitext(file.name)[1]
        row[f'{ending} bytes'] = f'{file.stat().st_size / size:.0f}'
    return row


def main():
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    sizes = '1000,100000,1000000'
    add('--sizes', type=types.integers, default=sizes, help='images')
    add('--dimensions', type=int, default=256, help='of each vector')
    add('--methods', default=','.join(METHODS), help='what to measure')
    args = parser.parse_args()
    print(common.describe_machine())
    for size in args.sizes:
        with tempfile.TemporaryDirectory(prefix='areir-search-') as folder:
            path = os.path.join(folder, 'vectors.f32')
            write_gallery(path, size, args.dimensions)
            rows = {}
            for method in args.methods.split(','):
                call = partial(measure, path, args.dimensions, method)
                if method == 'index':
                    call = partial(measure_index, folder, size, args.dimensions)
                rows[METHODS[method]] = common.apart(call)
        print(f'\n{size:,} images')
        common.print_table(rows)


if __name__ == '__main__':
    utils.run_script(main)

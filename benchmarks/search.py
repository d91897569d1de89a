"""Search in galleries of growing size: ours, exact and approximate, from a file, and faiss in memory. Prints a table.

    python benchmarks/search.py                                     # 10,000, 100,000 and 1,000,000 x 576
    python benchmarks/search.py --sizes 10000 --methods exact,flat

Every measurement is a process of its own; methods take turns. Times are of queries one at a time and 256 together, the
8 nearest of each, the median of several calls; the file is read once before, so it lies in the system's cache. Memory
is the peak of anonymous memory, building included, and of mapped pages of the file, beyond torch itself. Recall is of
the exact 8 nearest. faiss needs `pip install -r benchmarks/requirements.txt`.
"""
import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
import approximate
import gallery

HEADS, META, LATENT = 48, 12, 32
NEAREST, TOGETHER = 8, 256
METHODS = {'exact': 'ours, exact, from the file', 'approximate': 'ours, --index faiss',
           'flat': 'faiss.IndexFlatIP, in memory', 'ivf': 'faiss.IndexIVFFlat, in memory'}


def embeddings(labels, seed):
    """Of the model's form, (n, 576), every head's part of one length: images lie around the centre of their class, and
    all near a surface of 32 dimensions, as what a network has learnt does."""
    generator = torch.Generator().manual_seed(seed)
    surface = torch.randn(LATENT, HEADS * META, generator=torch.Generator().manual_seed(0)) / LATENT ** 0.5
    names, place = labels.unique(return_inverse=True)
    centres = torch.stack([torch.randn(LATENT, generator=torch.Generator().manual_seed(10 + label))
                           for label in names.tolist()])
    rows = (centres[place] + 0.5 * torch.randn(len(labels), LATENT, generator=generator)) @ surface
    rows += 0.3 * torch.randn(rows.shape, generator=generator)
    return F.normalize(rows.view(len(rows), HEADS, META), dim=2).flatten(1) / HEADS ** 0.5


def write_gallery(path, size):
    """Vectors of classes of 10 in a .npy file, and queries of the same classes beside it."""
    with open(path, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, {'descr': '<f4', 'fortran_order': False,
                                                    'shape': (size, HEADS * META)})
        for start in range(0, size, 10_000):
            labels = torch.arange(start, min(start + 10_000, size)) // 10
            file.write(embeddings(labels, 1_000_000 + start).numpy().tobytes())
    labels = torch.randint(size // 10, (TOGETHER,), generator=torch.Generator().manual_seed(1))
    np.save(f'{path}.queries.npy', embeddings(labels, 2))


class Peak(threading.Thread):
    """The peaks of anonymous and of file memory (MB) while it runs, from the system every 5 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.start_at, self.peak, self.running = self.read(), {'anonymous': 0, 'file': 0}, True

    @staticmethod
    def read():
        with open('/proc/self/status') as status:
            found = dict(line.split(':', 1) for line in status)
        return {name: int(found[key].split()[0]) / 1024
                for name, key in (('anonymous', 'RssAnon'), ('file', 'RssFile'))}

    def run(self):
        while self.running:
            for name, value in self.read().items():
                self.peak[name] = max(self.peak[name], value - self.start_at[name])
            time.sleep(0.005)


def measure(method, path):
    """One measurement, in this process, as a dict."""
    queries = torch.from_numpy(np.load(f'{path}.queries.npy'))
    np.load(path, mmap_mode='r').sum()  # read once
    if method in ('flat', 'ivf', 'approximate'):
        import faiss
        faiss.omp_set_num_threads(torch.get_num_threads())
    peak = Peak()
    peak.start()
    started = time.perf_counter()
    result = {}
    if method == 'exact':
        def find(query):
            return gallery.search(path, query, NEAREST)[1]
    elif method == 'approximate':
        index, found = approximate.opened(os.path.dirname(path), path)
        result['cells'] = f'{found["looked_into"]}/{found["cells"]}'

        def find(query):
            return approximate.nearest(index, path, query, NEAREST)[1]
    else:
        stored = np.load(path, mmap_mode='r')
        if method == 'flat':
            index = faiss.IndexFlatIP(stored.shape[1])
        else:
            cells = max(1, min(int(4 * len(stored) ** 0.5), len(stored) // 39))
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(stored.shape[1]), stored.shape[1], cells,
                                       faiss.METRIC_INNER_PRODUCT)
            index.train(stored[np.sort(np.random.default_rng(0).permutation(len(stored))[:64 * cells])])
        for start in range(0, len(stored), 65536):
            index.add(stored[start:start + 65536])
        if method == 'ivf':  # as many cells as 95 % recall takes, like ours
            exact = gallery.search(path, queries, NEAREST)[1]
            while (exact[:, :, None] == torch.from_numpy(index.search(queries.numpy(), NEAREST)[1])[:, None]).any(
                    dim=1).double().mean() < approximate.RECALL and index.nprobe < cells:
                index.nprobe = min(cells, 2 * index.nprobe)
            result['cells'] = f'{index.nprobe}/{cells}'

        def find(query):
            return torch.from_numpy(index.search(query.numpy(), NEAREST)[1])
    result['build'] = time.perf_counter() - started

    find(queries[:2])
    for name, batch, calls in (('single', 1, 9), ('together', TOGETHER, 3)):
        times = []
        for call in range(calls):
            query = queries[call * batch % TOGETHER:][:batch]
            started = time.perf_counter()
            found = find(query)
            times.append(time.perf_counter() - started)
        result[name] = batch / sorted(times)[calls // 2]
    peak.running = False
    result |= peak.peak
    exact = gallery.search(path, queries, NEAREST)[1]
    result['recall'] = (found[:, :, None] == exact[:, None]).any(dim=1).double().mean().item()
    return result


def main():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description='Measure search in galleries.')
    parser.add_argument('--sizes', default='10000,100000,1000000', help='images [default: %(default)s]')
    parser.add_argument('--methods', default=','.join(METHODS), help='[default: %(default)s]')
    parser.add_argument('--folder', help='where the galleries are written, 2.3 GB for 1,000,000 [default: temporary]')
    parser.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    with open('/proc/cpuinfo') as file:
        name = next((line.split(': ')[1].strip() for line in file if line.startswith('model name')), '')
    print(f'{name or platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}')
    print(f'{"images":>10}  {"":<30}{"build s":>9}{"1 query/s":>11}{"256 query/s":>13}{"anon MB":>9}{"file MB":>9}'
          f'{"recall":>9}  cells', flush=True)
    folder = args.folder or tempfile.mkdtemp(prefix='areir-search-')
    os.makedirs(folder, exist_ok=True)
    try:
        for size in map(int, args.sizes.split(',')):
            path = os.path.join(folder, f'vectors_{size}.npy')
            if not os.path.isfile(f'{path}.queries.npy'):
                write_gallery(path, size)
            for method in args.methods.split(','):
                done = subprocess.run([sys.executable, __file__, '--measure', method, path], capture_output=True,
                                      text=True)
                if done.returncode:
                    print(f'{size:>10,}  {METHODS[method]:<30} failed: {done.stderr.strip().splitlines()[-1:]}')
                    continue
                found = json.loads(done.stdout.splitlines()[-1])
                print(f'{size:>10,}  {METHODS[method]:<30}{found["build"]:>9.1f}{found["single"]:>11.1f}'
                      f'{found["together"]:>13.1f}{found["anonymous"]:>9,.0f}{found["file"]:>9,.0f}'
                      f'{found["recall"]:>9.2%}  {found.get("cells", "")}', flush=True)
    finally:
        if not args.folder:
            shutil.rmtree(folder)


if __name__ == '__main__':
    main()

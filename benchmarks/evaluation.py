"""Time and memory of Recall@1,10,100,1000 of N images: ours and what people reach for. Prints a table.

    python benchmarks/evaluation.py                                              # 6,000 images of 48 x 12 dimensions
    python benchmarks/evaluation.py --sizes 60502 --class_size 5 --methods ours,product,faiss
    python benchmarks/evaluation.py --sizes 5000,10000,20000,40000,60502 --class_size 5 --methods ours
    python benchmarks/evaluation.py --sizes 10000 --meta_class_size 500 --class_size 5 --methods ours,product

Every measurement is a process of its own; methods take turns. Memory is the peak beyond the embeddings. Times are
printed only where all methods found the same recall. faiss and pml need `pip install -r benchmarks/requirements.txt`.
"""
import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
import retrieval

KS = (1, 10, 100, 1000)


def synthetic(size, class_size, ensemble_size, meta_class_size):
    """Embeddings (size, E, M) as the model makes them, of classes that overlap, and labels in random order."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(size) // class_size)[torch.randperm(size, generator=generator)]
    centres = torch.randn(int(labels.max()) + 1, ensemble_size * meta_class_size, generator=generator)
    embeddings = torch.randn(size, ensemble_size * meta_class_size, generator=generator)
    for rows in torch.arange(size).split(1000):
        embeddings[rows] += 0.38 * centres[labels[rows]]
    embeddings = F.normalize(embeddings.view(size, ensemble_size, meta_class_size), dim=2)
    return embeddings.div_(math.sqrt(ensemble_size)), labels


def recall_of(neighbours, labels):
    """Recall at KS of neighbours (N, k), the query not among them."""
    right = labels[neighbours] == labels[:, None]
    return {f'recall@{k}': right[:, :k].any(dim=1).double().mean().item() for k in KS}


def ours(embeddings, labels):
    """Everything that train.py reports: recall, MAP@R, R-precision."""
    return retrieval.evaluate(embeddings.flatten(1), labels, KS)


def released(embeddings, labels):
    """As the code released with the method does: a similarity tensor of all heads, its mean, the nearest."""
    heads = embeddings.transpose(0, 1)
    similarity = (heads @ heads.mT).mean(dim=0)
    return recall_of(similarity.fill_diagonal_(-torch.inf).topk(max(KS)).indices, labels)


def topk(embeddings, labels):
    """topk on the full matrix of similarities."""
    embeddings = embeddings.flatten(1)
    similarity = embeddings @ embeddings.T
    return recall_of(similarity.fill_diagonal_(-torch.inf).topk(max(KS)).indices, labels)


def product(embeddings, labels):
    """The full matrix of similarities alone, 1,024 rows at a time, thrown away."""
    embeddings = embeddings.flatten(1)
    for rows in embeddings.split(1024):
        rows @ embeddings.T
    return {}


def faiss(embeddings, labels):
    import faiss as library
    embeddings = embeddings.flatten(1).numpy()
    index = library.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings)
    found = torch.from_numpy(index.search(embeddings, max(KS) + 1)[1])
    itself = found == torch.arange(len(found))[:, None]
    itself[~itself.any(dim=1), -1] = True
    return recall_of(found[~itself].view(len(found), max(KS)), labels)


def pml(embeddings, labels):
    """Precision at 1 is recall at 1; it has no recall at other K."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    calculator = AccuracyCalculator(include=('precision_at_1', 'r_precision', 'mean_average_precision_at_r'),
                                    k='max_bin_count')
    found = calculator.get_accuracy(embeddings.flatten(1), labels)
    return {'recall@1': found['precision_at_1'], 'map@r': found['mean_average_precision_at_r'],
            'r_precision': found['r_precision']}


METHODS = {function.__name__: function for function in (ours, released, topk, product, faiss, pml)}


def resident(field):
    """VmRSS (now) or VmHWM (peak) of this process in MB; Linux."""
    with open('/proc/self/status', encoding='ascii') as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def measure(method, *size):
    """Run one method in this process and print what it took as JSON."""
    warm, warm_labels = synthetic(1100, *size[1:])
    METHODS[method](warm, warm_labels)
    embeddings, labels = synthetic(*size)
    with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
        file.write('5')  # the peak starts here
    before, started = resident('VmRSS'), time.perf_counter()
    found = METHODS[method](embeddings, labels)
    seconds = time.perf_counter() - started
    print(json.dumps({'seconds': seconds, 'megabytes': resident('VmHWM') - before, 'found': found}))


def cpu_name():
    with open('/proc/cpuinfo', encoding='utf-8') as file:
        names = [line.split(':', 1)[1].strip() for line in file if line.startswith('model name')]
    return names[0] if names else platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--sizes', default='6000', help='numbers of images [default: %(default)s]')
    parser.add_argument('--class_size', type=int, default=60, help='images of a class [default: %(default)s]')
    parser.add_argument('--ensemble_size', type=int, default=48, help='heads [default: %(default)s]')
    parser.add_argument('--meta_class_size', type=int, default=12, help='dimensions of a head [default: %(default)s]')
    parser.add_argument('--methods', default=','.join(METHODS), help='[default: %(default)s]')
    parser.add_argument('--rounds', type=int, default=3, help='the median of so many counts [default: %(default)s]')
    parser.add_argument('--measure', help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = [(int(size), args.class_size, args.ensemble_size, args.meta_class_size) for size in args.sizes.split(',')]
    if args.measure:
        measure(args.measure, *sizes[0])
        return
    methods = args.methods.split(',')
    if not set(methods) <= set(METHODS):
        parser.error(f'--methods: choose from {", ".join(METHODS)}')

    print(f'{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}; '
          f'{args.ensemble_size * args.meta_class_size:,} dimensions, classes of {args.class_size}')
    print(f'{"images":>8}  {"method":<10}{"seconds":>9}{"x ours":>8}{"MB":>10}   recall@{",".join(map(str, KS))}')
    for size in sizes:
        runs = {method: [] for method in methods}
        for _ in range(args.rounds):
            for method in methods:
                command = [sys.executable, __file__, '--measure', method, '--sizes', str(size[0]), '--class_size',
                           str(size[1]), '--ensemble_size', str(size[2]), '--meta_class_size', str(size[3])]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    lines = done.stderr.strip().splitlines() or [f'ended by signal {-done.returncode}, out of memory?']
                    sys.exit(f'{method} with {size[0]:,} images: {lines[-1]}')
                runs[method].append(json.loads(done.stdout.splitlines()[-1]))
        reference = runs[methods[0]][0]['found']
        for method, results in runs.items():
            for name, value in results[0]['found'].items():
                # the other methods round scores by tile: a tie may fall the other way
                if name in reference and abs(value - reference[name]) > 2 / size[0]:
                    sys.exit(f'{method} with {size[0]:,} images: {name} is {value}, not {reference[name]}')
        medians = {method: sorted(run['seconds'] for run in results)[len(results) // 2]
                   for method, results in runs.items()}
        for method, results in runs.items():
            found = [results[0]['found'].get(f'recall@{k}') for k in KS]
            print(f'{size[0]:>8,}  {method:<10}{medians[method]:>9.2f}{medians[method] / medians[methods[0]]:>8.1f}'
                  f'{max(run["megabytes"] for run in results):>10,.0f}   '
                  + ' '.join('-' if value is None else f'{value:.4f}' for value in found), flush=True)


if __name__ == '__main__':
    main()

"""Measure time and memory of Recall@1,10,100,1000: ours and what people reach for.

    python benchmarks/evaluation.py                # 6,000 images of 48 x 12 dimensions
    python benchmarks/evaluation.py --sizes 60502 --class_size 5 \
        --methods ours,product,faiss
    python benchmarks/evaluation.py --sizes 5000,10000,20000,40000,60502 \
        --class_size 5 --methods ours
    python benchmarks/evaluation.py --sizes 10000 --meta_class_size 500 \
        --class_size 5 --methods ours,product

They take about 4, 7, 4 and 5 minutes on 2 cores (estimates). Every measurement is a
process of its own, and the methods take turns. Memory is the peak beyond the
embeddings. Times are printed only if all methods find the same recall. faiss and pml
need `pip install -r benchmarks/requirements.txt`.
"""

import math
import sys
import time
from functools import partial

import common
import torch
from torch.nn import functional as F

from areir.cli import types
from areir.retrieval import evaluate
from areir.scripts import utils

KS = (1, 10, 100, 1000)
WARM_UP = 1100  # images
ROWS = 1024  # of the product at a time


def synthetic(size, class_size, ensemble_size, meta_class_size):
    """Return embeddings (size, E, M) as the model makes them, and labels (size,).

    Classes overlap, and their images are in random order.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(size, generator=generator)
    labels = (torch.arange(size) // class_size)[order]
    dimensions = ensemble_size * meta_class_size
    classes = int(labels.max()) + 1
    centres = torch.randn(classes, dimensions, generator=generator)
    embeddings = torch.randn(size, dimensions, generator=generator)
    for rows in torch.arange(size).split(1000):
        embeddings[rows] += 0.38 * centres[labels[rows]]
    embeddings = embeddings.view(size, ensemble_size, meta_class_size)
    embeddings = F.normalize(embeddings, dim=2)
    return embeddings.div_(math.sqrt(ensemble_size)), labels


# Methods: from embeddings (N, E, M) and labels (N,) to {metric: value}


def ours(embeddings, labels):
    """Compute all that train.py reports: recall, MAP@R and R-precision."""
    return evaluate(embeddings.flatten(1), labels, KS)


def released(embeddings, labels):
    """Compute a similarity tensor of all heads, as the released code does."""
    heads = embeddings.transpose(0, 1)
    similarity = (heads @ heads.mT).mean(dim=0).fill_diagonal_(-torch.inf)
    return recall_of(similarity.topk(max(KS)).indices, labels)


def product(embeddings, labels):
    """Compute the full matrix of similarities alone, in blocks that are thrown away."""
    embeddings = embeddings.flatten(1)
    for rows in embeddings.split(ROWS):
        rows @ embeddings.T
    return {}


def by_faiss(embeddings, labels):
    """Search with faiss for one image more, since each finds itself."""
    import faiss

    embeddings = embeddings.flatten(1).numpy()
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings)
    neighbours = torch.from_numpy(index.search(embeddings, max(KS) + 1)[1])
    itself = neighbours == torch.arange(len(neighbours))[:, None]
    itself[~itself.any(dim=1), -1] = True
    others = neighbours[~itself].view(len(neighbours), max(KS))
    return recall_of(others, labels)


def by_pml(embeddings, labels):
    """Ask pytorch-metric-learning, which has no recall beyond K = 1."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = {
        'recall@1': 'precision_at_1',
        'map@r': 'mean_average_precision_at_r',
        'r_precision': 'r_precision',
    }
    calculator = AccuracyCalculator(include=tuple(names.values()), k='max_bin_count')
    values = calculator.get_accuracy(embeddings.flatten(1), labels)
    return {ours: values[theirs] for ours, theirs in names.items()}


METHODS = {
    'ours': ours,
    'released': released,
    'product': product,
    'faiss': by_faiss,
    'pml': by_pml,
}


def recall_of(neighbours, labels):
    """Return the recall at KS of neighbours (N, k), the query not among them."""
    right = labels[neighbours] == labels[:, None]
    hits = {k: right[:, :k].any(dim=1) for k in KS}
    return {f'recall@{k}': hit.double().mean().item() for k, hit in hits.items()}


# Measurements


def measure(size, shape, method):
    """Run a method; return its seconds, megabytes beyond the embeddings, metrics.

    shape: class size, heads, numbers of a head.
    """
    METHODS[method](*synthetic(WARM_UP, *shape))
    embeddings, labels = synthetic(size, *shape)
    with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
        file.write('5')  # the peak begins at what there is now
    before, started = common.memory('VmRSS'), time.perf_counter()
    metrics = METHODS[method](embeddings, labels)
    seconds = time.perf_counter() - started
    megabytes = common.memory('VmHWM') - before
    return {'seconds': seconds, 'megabytes': megabytes, 'metrics': metrics}


def check_agreement(runs, size):
    """Exit with one line if a method differs in a metric from the first method."""
    first = next(iter(runs.values()))[0]['metrics']
    for method, results in runs.items():
        metrics = results[0]['metrics']
        for name in metrics.keys() & first.keys():
            # other methods round scores by tile, so a tie may fall the other way
            if abs(metrics[name] - first[name]) > 2 / size:
                sys.exit(
                    f'{method} with {size:,} images: {name} is {metrics[name]}, '
                    f'not {first[name]}'
                )


def print_runs(runs):
    first = common.median_seconds(next(iter(runs.values())))
    rows = {}
    for method, results in runs.items():
        seconds = common.median_seconds(results)
        rows[method] = {
            'seconds': f'{seconds:.2f}',
            'x first': f'{seconds / first:.1f}',
            'MB': f'{common.highest(results, "megabytes"):,.0f}',
        }
        for k in KS:
            value = results[0]['metrics'].get(f'recall@{k}')
            rows[method][f'recall@{k}'] = '-' if value is None else f'{value:.4f}'
    common.print_table(rows)


def get_args():
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add('--sizes', type=types.integers, default='6000', help='numbers of images')
    add('--class_size', type=int, default=60, help='images of a class')
    add('--ensemble_size', type=int, default=48, help='heads')
    add('--meta_class_size', type=int, default=12, help='numbers of a head')
    add('--methods', default=','.join(METHODS), help='what to measure')
    add('--rounds', type=int, default=3, help='times to measure; medians are shown')
    return parser.parse_args()


def main():
    args = get_args()
    shape = args.class_size, args.ensemble_size, args.meta_class_size
    dimensions = args.ensemble_size * args.meta_class_size
    print(common.describe_machine())
    for size in args.sizes:
        measure_method = partial(common.apart, measure, size, shape)
        runs = common.take_turns(args.methods.split(','), args.rounds, measure_method)
        check_agreement(runs, size)
        print(f'\n{size:,} images in classes of {args.class_size}, {dimensions:,} each')
        print_runs(runs)


if __name__ == '__main__':
    utils.run_script(main)

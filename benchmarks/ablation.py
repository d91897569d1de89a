"""Change one part of the current recipe at a time, and measure what it is worth.

    python data_utils.py --data_name sample --image_size 64
    python benchmarks/ablation.py --data data/sample
    python benchmarks/ablation.py --data ../shared/data/grocery --weights lite0

Every change is trained for the same number of epochs with each seed, and tested on
classes that training never saw. The difference to the recipe is paired: the same
queries and seeds, with a 95 % interval over the classes. The interval does not cover
how results vary over seeds. With the sample and three seeds it takes 50 minutes on 2
cores.
"""

import argparse
import contextlib
import sys
import tempfile

import common
import quality_results
import quality_runs
from quality_results import MEASURES, TITLES, percent
from tqdm import tqdm

import utils
from areir import hardware
from areir.cli import types
from areir.evaluation.intervals import compare

RECIPE = 'the recipe'


def get_changes(classes, from_scratch):
    """Return {name: flags of train.py that differ from the recipe}.

    classes: the number of training classes; from_scratch: whether the weights are
    random.
    """
    changes = {
        RECIPE: {},
        'whole images instead of crops': {'crop_area': 1},
        'no label smoothing': {'label_smoothing': 0},
        'no warm-up': {'warmup': 0},
        # --warmup belongs to the cosine, so this has no warm-up either
        'learning rate in steps': {'schedule': 'step'},
        'no squeeze-and-excitation': {'with_se': 'no'},
        '1 head': {'ensemble_size': 1},
        '4 heads': {'ensemble_size': 4},
        '1 shared stage': {'shared_stages': 1},
        '2 shared stages': {'shared_stages': 2},
        'half as many meta-classes': {'meta_class_size': max(2, classes // 2)},
    }
    if from_scratch:
        changes['batches of 32, lr 1e-3'] = {'batch_size': 32, 'lr': 1e-3}
    else:
        changes['batch norm trained'] = {'freeze_bn': 'no'}
    return changes


def train_all(args, dataset):
    """Train each change with each seed.

    Returns {change: [(seconds, {measure: (N,)}) of each seed]}.
    """
    changes = get_changes(len(dataset.split.train.classes), args.weights == 'none')
    labels = dataset.images('test').labels
    results = {name: [] for name in changes}
    runs = [(seed, name) for seed in range(args.seeds) for name in changes]
    for seed, name in tqdm(runs, desc='runs'):
        ours = quality_runs.Ours('current', args.weights, changes[name])
        # stdout has the table alone
        with contextlib.redirect_stdout(sys.stderr):
            trained = ours.train(dataset, ours.default_lr, seed, args.epochs)
        values = quality_results.values_per_query(trained.outputs['embedding'], labels)
        results[name].append((trained.seconds, values))
        recall = percent(values['recall@1'].mean())
        tqdm.write(f'seed {seed}, {name}: Recall@1 {recall}', sys.stderr)
    return results


def mean_of_seeds(runs):
    """Return (seconds, {measure: (N,)}), means over the seeds of a change.

    runs: [(seconds, {measure: (N,)}) of each seed].
    """
    seconds = sum(seconds for seconds, _ in runs) / len(runs)
    means = {
        measure: sum(values[measure] for _, values in runs) / len(runs)
        for measure in MEASURES
    }
    return seconds, means


def describe_differences(values, others, labels):
    """Write the difference of two {measure: (N,)} in each measure, with its interval.

    labels (N,): the class of each query.
    """
    text = ''
    compared = compare(values, others, labels)
    for measure, (difference, low, high, _) in compared.items():
        limits = f'{100 * low:.1f} to {100 * high:.1f}'
        text += f'   {TITLES[measure]} {100 * difference:+.1f} ({limits})'
    return text


def print_table(results, labels):
    """Print the results of `train_all`; labels (N,): of the test images."""
    means = {name: mean_of_seeds(runs) for name, runs in results.items()}
    print(f'{"":<32}{"seconds":>8}{"Recall@1":>10}{"MAP@R":>7}   difference')
    for name, (seconds, values) in means.items():
        recall, map_at_r = (percent(values[measure].mean()) for measure in MEASURES)
        row = f'{name:<32}{seconds:>8.0f}{recall:>10}{map_at_r:>7}'
        if name != RECIPE:
            row += describe_differences(values, means[RECIPE][1], labels)
        print(row)


def get_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    quality_runs.add_data_flags(add)
    default = '[default: %(default)s]'
    add('--epochs', type=types.positive, default=8, help=f'of each run {default}')
    add('--seeds', type=types.positive, default=3, help=f'number of seeds {default}')
    args = parser.parse_args()
    quality_runs.fill_in_data_flags(args)
    return args


def main():
    args = get_args()
    hardware.keep_freed_memory()
    with tempfile.TemporaryDirectory() as root:
        with contextlib.redirect_stdout(sys.stderr):
            dataset = quality_runs.open_dataset(args, root, 'ablation', args.data)
        results = train_all(args, dataset)
        print(
            f'{args.data}, {args.epochs} epochs, {args.seeds} seeds, '
            f'{common.describe_machine()}'
        )
        print_table(results, dataset.images('test').labels)


if __name__ == '__main__':
    utils.run_script(main)

"""Measure Recall@1 and MAP@R on unseen classes: ours and pytorch-metric-learning's.

    python benchmarks/quality.py --data ../shared/data/grocery --seconds 240
    python benchmarks/quality.py --data ../shared/data/cars196 --weights lite0 \
        --seconds 400
    python benchmarks/quality.py --data ../shared/data/grocery --seconds 240 --table
    python benchmarks/quality.py --data ../shared/data/grocery --cost

Every method trains the same backbone on the same images for the same seconds on the
same cores: the time of an epoch is measured once and gives the number of epochs. Each
learning rate is the best of three on a third of the training classes, held out. The
test classes choose nothing.

A method takes 6 trainings, so all of them at 240 seconds take about 3 hours. They can
be interrupted: a second start skips what is in --results. The peers need
`pip install -r benchmarks/requirements.txt`.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
from functools import cached_property

import common
import peers
import quality_results
import quality_runs
from quality_results import METHODS

import utils
from areir import hardware
from areir.cli import types

TUNING_SEED = 0  # of the held-out classes and of the runs that choose a learning rate


# Arguments


def get_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    default = '[default: %(default)s]'
    add = parser.add_argument
    quality_runs.add_data_flags(add)
    add('--seconds', type=float, default=240, help=f'of each training {default}')
    add(
        '--tune_seconds',
        type=float,
        help='of each training that chooses a learning rate [default: --seconds]',
    )
    add('--seeds', type=types.positive, default=3, help=f'number of seeds {default}')
    add(
        '--crop_area',
        type=float,
        default=peers.CROP_AREA,
        help=f"least share of an image that a peer's random crop has {default}",
    )
    add('--methods', default=','.join(METHODS), help=f'which to train {default}')
    add('--table', action='store_true', help='print what is finished, train nothing')
    add(
        '--cost',
        action='store_true',
        help='print parameters and memory of the methods instead, trained for an epoch',
    )
    add('--measure', help=argparse.SUPPRESS)
    add(
        '--results',
        help='CSV of the finished runs; vectors lie in a folder beside it '
        '[default: results/quality_<data>_<weights>_<seconds>.csv]',
    )
    args = parser.parse_args()
    args.methods = args.methods.split(',')
    if not set(args.methods) <= set(METHODS):
        parser.error(f'--methods: choose from {", ".join(METHODS)}')
    if not 0 < args.crop_area <= 1:
        parser.error(f'--crop_area {args.crop_area}: must be above 0 and at most 1')
    fill_in_defaults(args)
    for name in ('seconds', 'tune_seconds'):
        value = getattr(args, name)
        if not 0 < value < math.inf:
            parser.error(f'--{name} {value}: must be a number above 0')
    if not args.results.endswith('.csv'):
        parser.error(f'--results {args.results}: must end in .csv')
    return args


def fill_in_defaults(args):
    """Set the arguments whose defaults depend on others, and name data and weights."""
    quality_runs.fill_in_data_flags(args)
    args.data_name = os.path.basename(os.path.abspath(args.data))
    args.weights_name = os.path.splitext(os.path.basename(args.weights))[0]
    if args.tune_seconds is None:
        args.tune_seconds = args.seconds
    if args.results is None:
        name = f'quality_{args.data_name}_{args.weights_name}_{args.seconds:g}.csv'
        args.results = os.path.join(common.REPOSITORY, 'results', name)


# Cost


def print_costs(args):
    """Print the parameters and the memory of each method, in processes of their own."""
    print(f'{"":<38}{"parameters":>12}{"MB":>7}')
    flags = common.flags_of(args, ('data', 'weights', 'image_size', 'crop_area'))
    labels = {}  # of the runs: several methods may share one
    for name in args.methods:
        labels.setdefault(METHODS[name].run, METHODS[name].label)
    for run, label in labels.items():
        cost = common.measure_apart(__file__, [*flags, '--measure', run])
        print(f'{label:<38}{cost["parameters"]:>12,}{cost["anonymous"]:>7.0f}')


def measure_cost(experiment, run):
    """Train for an epoch and test; return {parameters, anonymous and file: MB}.

    MB are the peak beyond what the libraries take.
    """
    dataset, trainer = experiment.whole, experiment.trainers[run]
    with common.PeakMemory() as memory:
        trained = trainer.train(dataset, trainer.lrs[0], seed=0, epochs=1)
    return {'parameters': trained.parameters, **memory.peak}


# The experiment


def make_trainers(args):
    """Return {run: what trains it}, by the names in METHODS."""
    trainers = {
        'pixels': quality_runs.Pixels(),
        'untrained': quality_runs.Untrained(args.weights),
    }
    for recipe in ('2019', 'current'):
        trainers[recipe] = quality_runs.Ours(recipe, args.weights)
    for loss in peers.LOSSES:
        trainers[loss] = quality_runs.Peer(loss, args.weights, args.crop_area)
    return trainers


class Experiment:
    """All runs on one dataset. Runs that `results` has are not repeated.

    root: a folder to prepare the dataset in.
    """

    def __init__(self, args, root):
        self.args, self.root = args, root
        self.trainers = make_trainers(args)
        settings = {
            'data': args.data_name,
            'weights': args.weights_name,
            'image_size': args.image_size,
            'crop_area': args.crop_area,
        }
        self.results = quality_results.Results(args.results, settings)

    # data

    def prepare(self, name, folder):
        return quality_runs.open_dataset(self.args, self.root, name, folder)

    @cached_property
    def whole(self):
        """The dataset with its own test classes."""
        return self.prepare('whole', self.args.data)

    @cached_property
    def tuning(self):
        """The training classes alone, a third of them as test classes."""
        folder = os.path.join(self.root, 'held_out')
        quality_runs.link_held_out(self.whole.split, folder, TUNING_SEED)
        return self.prepare('tuning', folder)

    # runs

    def budget(self, kind, method):
        """Return the seconds of a run as the results have them."""
        if method.group == 'untrained':
            return ''
        args = self.args
        return f'{args.tune_seconds if kind == "tuning" else args.seconds:g}'

    def epochs(self, kind, method):
        """Return how many epochs take the seconds of a run; the first time, try."""
        if method.group == 'untrained':
            return 0
        key = {'kind': 'timing', 'run': method.run}
        timings = self.results.find(machine=quality_results.machine(), **key)
        if timings:
            fixed = float(timings[0]['fixed_seconds'])
            seconds = float(timings[0]['seconds'])
        else:
            print(f'timing: an epoch of {method.run}')
            fixed, seconds = self.trainers[method.run].time_epoch(self.whole)
            times = {'fixed_seconds': f'{fixed:.3f}', 'seconds': f'{seconds:.3f}'}
            self.results.add(**key, epochs=1, **times)
        if kind == 'tuning':
            images = len(self.tuning.split.train), len(self.whole.split.train)
            seconds *= images[0] / images[1]
            fixed *= images[0] / images[1]
        return max(1, int((float(self.budget(kind, method)) - fixed) / seconds))

    def complete(self, kind, method, lr, seed):
        """Train with this learning rate and seed, unless the results have it."""
        budget = self.budget(kind, method)
        key = {'kind': kind, 'run': method.run, 'lr': lr, 'seed': seed}
        key['budget'] = budget
        if self.results.find(output=method.output, **key):
            return
        epochs = self.epochs(kind, method)
        print(f'{kind}: {method.run}, --lr {lr}, seed {seed}, {epochs} epochs')
        dataset = self.tuning if kind == 'tuning' else self.whole
        trainer = self.trainers[method.run]
        trained = trainer.train(dataset, lr, seed, epochs)
        key |= {'epochs': epochs, 'seconds': f'{trained.seconds:.1f}'}
        for output, vectors in trained.outputs.items():
            self.results.record(key, output, vectors, dataset.images('test'))

    def complete_all(self, names):
        """Choose the learning rates of these methods, then train them seed by seed."""
        methods = [METHODS[name] for name in names]
        for method in methods:
            candidates = self.candidates(method)
            for lr in candidates if len(candidates) > 1 else ():
                self.complete('tuning', method, lr, TUNING_SEED)
        for seed in range(self.args.seeds):
            for method in methods:
                if seed == 0 or self.depends_on_seed(method):
                    self.complete('final', method, self.best_lr(method), seed)

    def depends_on_seed(self, method):
        """Whether another seed gives another result."""
        return method.group != 'untrained' or (
            method.run == 'untrained' and self.args.weights == 'none'
        )

    # learning rates

    def candidates(self, method):
        """Return the learning rates to choose from."""
        trainer = self.trainers[method.run]
        return trainer.lrs if method.tuned else (trainer.default_lr,)

    def best_lr(self, method):
        """Return the learning rate that was best on held-out classes.

        None if there is nothing to choose, or if that is not finished.
        """
        candidates = self.candidates(method)
        if len(candidates) == 1:
            return candidates[0]
        recalls = {}
        key = {'run': method.run, 'output': method.output}
        key['budget'] = self.budget('tuning', method)
        for lr in candidates:
            for row in self.results.find(kind='tuning', lr=lr, **key):
                recalls[lr] = float(row['recall@1'])
        if len(recalls) < len(candidates):
            return None
        return max(recalls, key=recalls.get)

    # the table

    def lines(self):
        """Return {method's name: its Line, or None if no run is finished}."""
        lines = {}
        for name, method in METHODS.items():
            budget = self.budget('final', method)
            lr = self.best_lr(method)
            lines[name] = quality_results.read_line(self.results, method, lr, budget)
        return lines

    def print_ends(self):
        """Name the methods whose best learning rate is at an end of its list."""
        for method in METHODS.values():
            candidates, best = self.candidates(method), self.best_lr(method)
            if len(candidates) > 1 and best in (candidates[0], candidates[-1]):
                print(f'{method.label}: --lr {best:g} is at an end of its list')


def print_quality(args, experiment):
    """Train what is not finished, and print the table."""
    if not args.table:
        # stdout has the table alone
        with contextlib.redirect_stdout(sys.stderr):
            experiment.complete_all(args.methods)
    print(
        f'{args.data_name}, weights {args.weights_name}, images of '
        f'{args.image_size} pixels, {args.seconds:g} seconds of training, '
        f'{common.describe_machine()}'
    )
    lines = experiment.lines()
    quality_results.print_table(lines)
    experiment.print_ends()
    quality_results.print_comparison(lines)


def main():
    args = get_args()
    hardware.keep_freed_memory()
    with tempfile.TemporaryDirectory() as root:
        experiment = Experiment(args, root)
        if args.measure:
            print(json.dumps(measure_cost(experiment, args.measure)))
        elif args.cost:
            print_costs(args)
        else:
            print_quality(args, experiment)


if __name__ == '__main__':
    utils.run_script(main)

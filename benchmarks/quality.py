"""Measure the recall of trained and new classes: ours and pytorch-metric-learning's.

    python benchmarks/quality.py --data ../shared/data/grocery --seconds 240
    python benchmarks/quality.py --data ../shared/data/cars196 --seconds 400 \
        --model_type tf_efficientnet_lite0 --weights lite0.safetensors
    python benchmarks/quality.py --data ../shared/data/grocery --seconds 240 --table
    python benchmarks/quality.py --data ../shared/data/grocery --cost

Every method trains the same backbone on the same images for the same seconds on the
same cores: the time of an epoch is measured once and gives the number of epochs. Each
learning rate is the best of three on a third of the training classes, held out. The
test classes choose nothing. figures.py says what the figures are.

A method takes 6 trainings, so all of them at 240 seconds take about 3 hours. They can
be interrupted: a second start skips what is in the folder --results. It has the vectors
of every run, which evaluate.py reads, too. The peers need
`pip install -r benchmarks/requirements.txt`.
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property

import common
import figures
import methods
import numpy as np
import peers
import torch

from areir import hardware
from areir.cli import types
from areir.files import atomic_path, write_text
from areir.scripts import utils

TUNING_SEED = 0  # of the held-out classes and of the runs that choose a learning rate
PREFIXES = {'test': '', 'train': 'train_'}  # of the entries of a file of vectors
EQUAL = 'equal embedding'  # the group of peers that are read with our embedding


@dataclass(frozen=True)
class Method:
    """A row of the table. Several methods may share a run and differ in its output."""

    label: str
    run: str  # what is trained
    output: str = 'embedding'
    group: str = 'peers'  # or ours, untrained, or EQUAL
    tuned: bool = True  # whether the learning rate is chosen on held-out classes


METHODS = {
    'pixels': Method('raw pixels', 'pixels', group='untrained'),
    'untrained': Method('the weights, untrained', 'untrained', 'pooled', 'untrained'),
    'untrained_white': Method(
        'untrained, features whitened', 'untrained', 'whitened', 'untrained'
    ),
    'untrained_ours': Method(
        'untrained, our embedding', 'untrained', 'our_embedding', 'untrained'
    ),
    'multi_similarity': Method('multi-similarity', 'multi_similarity'),
    'proxy_anchor': Method('proxy-anchor', 'proxy_anchor'),
    'cosface': Method('CosFace', 'cosface'),
    'norm_softmax': Method('normalised softmax', 'norm_softmax'),
    'norm_softmax_white': Method(
        'normalised softmax, features whitened', 'norm_softmax', 'whitened'
    ),
    'norm_softmax_ours': Method(
        'plain classifier, our embedding', 'norm_softmax', 'our_embedding', EQUAL
    ),
    'ours': Method('ours', 'ours', group='ours'),
    'ours_no_flag': Method('ours, no flag', 'ours', group='ours', tuned=False),
}


def make_trainers(args):
    """Return {run: what trains it}, by the names in METHODS."""
    return {
        'pixels': methods.Pixels(),
        'untrained': methods.Untrained(args),
        'ours': methods.Ours(args),
        **{loss: methods.Peer(loss, args) for loss in peers.LOSSES},
    }


# The experiment


class Experiment:
    """All runs on one dataset. Runs that the folder of results has are not repeated.

    root: a folder to prepare the dataset in.
    """

    def __init__(self, args, root):
        self.args, self.root = args, root
        self.trainers = make_trainers(args)
        self.timings_path = os.path.join(args.results, 'timings.json')

    @cached_property
    def whole(self):
        """The dataset with its own test classes."""
        return methods.open_dataset(self.args, self.root, 'whole', self.args.data)

    @cached_property
    def tuning(self):
        """The training classes alone, a third of them as test classes."""
        folder = os.path.join(self.root, 'held_out')
        methods.link_held_out(self.whole.split, folder, TUNING_SEED)
        return methods.open_dataset(self.args, self.root, 'tuning', folder)

    # runs

    def path(self, kind, method, lr, seed):
        """Return the path of the vectors of a finished run, 'tuning' or 'final'."""
        name = f'{kind}_{method.run}_{method.output}'
        if method.group != 'untrained':
            name += f'_{lr:g}_{self.budget(kind):g}s'
        return os.path.join(self.args.results, f'{name}_seed{seed}.npz')

    def budget(self, kind):
        """Return the seconds of a run."""
        args = self.args
        return (kind == 'tuning' and args.tune_seconds) or args.seconds

    def epochs(self, kind, method):
        """Return how many epochs take the seconds of a run; the first time, try."""
        if method.group == 'untrained':
            return 0
        timings = {}
        if os.path.isfile(self.timings_path):
            with open(self.timings_path, encoding='utf-8') as file:
                timings = json.load(file)
        if method.run not in timings:
            print(f'timing: an epoch of {method.run}', file=sys.stderr)
            timings[method.run] = self.trainers[method.run].time_epoch(self.whole)
            write_text(self.timings_path, json.dumps(timings))
        seconds = timings[method.run]
        if kind == 'tuning':
            seconds *= len(self.tuning.split.train) / len(self.whole.split.train)
        return max(1, int(self.budget(kind) / seconds))

    def complete(self, kind, method, lr, seed):
        """Train with this learning rate and seed, unless the results have it."""
        if os.path.isfile(self.path(kind, method, lr, seed)):
            return
        epochs = self.epochs(kind, method)
        line = f'{kind}: {method.run}, --lr {lr}, seed {seed}, {epochs} epochs'
        print(line, file=sys.stderr)
        dataset = self.tuning if kind == 'tuning' else self.whole
        trained = self.trainers[method.run].train(dataset, lr, seed, epochs)
        for other in METHODS.values():
            if other.run != method.run or other.output not in trained.outputs:
                continue
            entries = {'epochs': epochs, 'seconds': trained.seconds}
            for part, prefix in PREFIXES.items():
                vectors = trained.outputs[other.output][part]
                entries[f'{prefix}embeddings'] = vectors.half().numpy()
                entries[f'{prefix}labels'] = dataset.labels(part).numpy()
                entries[f'{prefix}images'] = np.array(dataset.paths(part))
            path = self.path(kind, other, lr, seed)
            with atomic_path(path) as temporary, open(temporary, 'wb') as file:
                np.savez(file, **entries)

    def complete_all(self, names):
        """Choose the learning rates of these methods, then train them seed by seed."""
        chosen = [METHODS[name] for name in names]
        for method in chosen:
            rates = self.candidates(method)
            for lr in rates if len(rates) > 1 else ():
                self.complete('tuning', method, lr, TUNING_SEED)
        for seed in range(self.args.seeds):
            for method in chosen:
                random_start = self.args.weights == 'none' and method.run != 'pixels'
                if not seed or method.group != 'untrained' or random_start:
                    self.complete('final', method, self.best_lr(method), seed)

    # learning rates

    def candidates(self, method):
        """Return the learning rates to choose from."""
        trainer = self.trainers[method.run]
        return trainer.lrs if method.tuned else (trainer.default_lr,)

    def best_lr(self, method):
        """Return the learning rate that was best on held-out classes.

        None if there is nothing to choose, or if that is not finished.
        """
        rates = self.candidates(method)
        if len(rates) == 1:
            return rates[0]
        recalls = {}
        for lr in rates:
            runs = self.read('tuning', method, lr)
            if not runs:
                return None
            recalls[lr] = figures.mean(runs[0]['values'][figures.NEW])
        return max(recalls, key=recalls.get)

    # the table

    def read(self, kind, method, lr):
        """Return the finished runs with a learning rate, a dict for each seed."""
        runs = []
        for seed in range(self.args.seeds):
            path = self.path(kind, method, lr, seed)
            if os.path.isfile(path):
                with np.load(path) as file:
                    run = dict(file)
                vectors, labels = (
                    {
                        part: torch.from_numpy(run[f'{prefix}{entry}'])
                        for part, prefix in PREFIXES.items()
                    }
                    for entry in ('embeddings', 'labels')
                )
                values = figures.values_per_query(vectors, labels)
                runs.append({**run, 'labels': labels, 'values': values})
        return runs

    def print_table(self):
        """Print what the final runs of all methods found."""
        rows, values, labels = {}, {}, None
        for name, method in METHODS.items():
            rates, lr = self.candidates(method), self.best_lr(method)
            unfinished = lr is None and len(rates) > 1
            runs = [] if unfinished else self.read('final', method, lr)
            if runs:
                labels = runs[0]['labels']
                values[name] = figures.mean_values([run['values'] for run in runs])
                at_end = len(rates) > 1 and lr in (rates[0], rates[-1])
                row = {'lr': '' if lr is None else f'{lr:g}' + ' (an end)' * at_end}
                rows[method.label] = row | describe(runs, values[name])
        common.print_table(rows)
        for figure in (figures.NEW, figures.MEAN) if values else ():
            self.print_differences(figure, values, labels)

    def print_differences(self, figure, values, labels):
        """Print how far the methods are from the best peer and from the plain one.

        values: {method: its values}; labels: {part: (N,)}.
        """
        rows = {METHODS[name].label: {} for name in values}
        for group in ('peers', EQUAL):
            names = [name for name in values if METHODS[name].group == group]
            if not names:
                continue
            best = max(names, key=lambda name: figures.mean(values[name][figure]))
            column = f'{figure}, ahead of {METHODS[best].label}'
            for name in values:
                if name != best:
                    cells = figures.differences(values[name], values[best], labels)
                    rows[METHODS[name].label][column] = cells[figure]
        common.print_table(rows)


def describe(runs, values):
    """Return the cells of a method: {column: text}; values: means over the seeds."""
    seconds = sum(run['seconds'].item() for run in runs) / len(runs)
    seeds = [100 * figures.mean(run['values'][figures.NEW]) for run in runs]
    return {
        'numbers': str(runs[0]['embeddings'].shape[1]),
        'epochs': str(runs[0]['epochs'].item()),
        'seconds': f'{seconds:.0f}',
        **figures.describe(values, runs[0]['labels']),
        'each seed': ', '.join(f'{recall:.1f}' for recall in seeds),
    }


# Cost


def measure_cost(args, run):
    """Train for an epoch and test; return {parameters, anonymous and file: MB}.

    MB are the peak beyond what the libraries take.
    """
    hardware.keep_freed_memory()
    with tempfile.TemporaryDirectory() as root:
        experiment = Experiment(args, root)
        dataset, trainer = experiment.whole, experiment.trainers[run]
        with common.PeakMemory() as memory:
            trained = trainer.train(dataset, trainer.lrs[0], seed=0, epochs=1)
    return {'parameters': trained.parameters, **memory.peak}


def print_costs(args):
    """Print the parameters and the memory of each method, in processes of their own."""
    rows = {}
    for run in dict.fromkeys(METHODS[name].run for name in args.methods):
        cost = common.apart(measure_cost, args, run)
        parameters = f'{cost["parameters"]:,}'
        rows[run] = {'parameters': parameters, 'MB': f'{cost["anonymous"]:.0f}'}
    common.print_table(rows)


def get_args():
    parser = common.make_parser(__doc__)
    methods.add_data_flags(parser)
    add = parser.add_argument
    add('--seconds', type=float, default=240, help='of each training')
    add('--tune_seconds', type=float, help='to choose a learning rate, if different')
    add('--seeds', type=types.positive, default=3, help='number of seeds')
    add('--methods', default=','.join(METHODS), help='which to train')
    add('--table', action='store_true', help='print what is finished, train nothing')
    add('--cost', action='store_true', help='print parameters and memory instead')
    add(
        '--results',
        help='folder; default: results/quality_<data>_<network>_<weights>_<pixels>',
    )
    args = parser.parse_args()
    methods.fill_in_data_flags(args)
    args.methods = args.methods.split(',')
    if args.results is None:
        data = os.path.basename(os.path.abspath(args.data))
        weights = os.path.splitext(os.path.basename(args.weights))[0]
        name = f'quality_{data}_{args.model_type}_{weights}_{args.image_size}'
        args.results = os.path.join(common.REPOSITORY, 'results', name)
    return args


def main():
    args = get_args()
    if args.cost:
        print_costs(args)
        return
    hardware.keep_freed_memory()
    os.makedirs(args.results, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        experiment = Experiment(args, root)
        if not args.table:
            experiment.complete_all(args.methods)
        print(
            f'{args.data}, {args.model_type}, weights {args.weights}, images of '
            f'{args.image_size} pixels, {args.seconds:g} seconds of training, '
            f'{common.describe_machine()}'
        )
        experiment.print_table()


if __name__ == '__main__':
    utils.run_script(main)

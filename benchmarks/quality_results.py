"""What benchmarks/quality.py has finished: a CSV of runs, their vectors, the table.

Every finished run is a row of the CSV as soon as it has finished. The vectors of final
runs are .npz files in the folder beside it, which evaluate.py reads, too.
"""

import csv
import io
import os
from dataclasses import dataclass

import common
import numpy as np
import torch

from areir.evaluation.intervals import compare, confidence_intervals
from areir.evaluation.metrics import measures, rank_positives
from areir.files import atomic_path, write_text

MEASURES = ('recall@1', 'map@r')
TITLES = {'recall@1': 'Recall@1', 'map@r': 'MAP@R'}
COLUMNS = (
    *('kind', 'run', 'output', 'lr', 'seed', 'budget', 'epochs', 'seconds'),
    *('dimensions', *MEASURES, 'data', 'weights', 'image_size', 'crop_area'),
    *('fixed_seconds', 'machine', 'torch'),
)


@dataclass(frozen=True)
class Method:
    """A row of the table. Several methods may share a run and differ in its output."""

    label: str
    run: str  # what is trained
    output: str = 'embedding'
    group: str = 'peers'  # or ours, or untrained
    tuned: bool = True  # whether the learning rate is chosen on held-out classes


METHODS = {
    'pixels': Method('raw pixels', 'pixels', group='untrained'),
    'untrained': Method('the weights, untrained', 'untrained', group='untrained'),
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
        'normalised softmax, our embedding',
        'norm_softmax',
        'our_embedding',
        'equal embedding',
    ),
    'ours_2019': Method('ours, recipe of 2019', '2019', group='ours'),
    'ours': Method('ours', 'current', group='ours'),
    'ours_no_flag': Method('ours, no flag', 'current', group='ours', tuned=False),
}


def values_per_query(vectors, labels):
    """Return {measure: (N,)} of vectors (N, D), each querying all others.

    A diverged training, whose vectors are not finite, finds nothing.
    """
    if not torch.isfinite(vectors).all():
        return {name: torch.zeros(len(labels)).double() for name in MEASURES}
    values = measures(rank_positives(vectors.float(), labels), [1])
    return {name: values[name] for name in MEASURES}


def write_lr(lr):
    """Return a learning rate as the CSV has it; '' if there is none."""
    return '' if lr is None else f'{lr:g}'


def machine():
    """Return the CPU and the number of threads."""
    return f'{common.cpu_name()}, {torch.get_num_threads()} threads'


# Files


class Results:
    """The finished runs in a CSV, of which only those with these settings are used.

    settings: {column: value} of data, weights, image_size and crop_area.
    """

    def __init__(self, path, settings):
        self.path = path
        self.settings = {name: str(value) for name, value in settings.items()}
        self.folder = os.path.splitext(path)[0]

    def read(self):
        """Return all rows of the CSV, {column: text} each."""
        if not os.path.isfile(self.path):
            return []
        with open(self.path, newline='', encoding='utf-8') as file:
            return list(csv.DictReader(file))

    def find(self, **wanted):
        """Return the rows that have the settings and these values."""
        if 'lr' in wanted:
            wanted['lr'] = write_lr(wanted['lr'])
        wanted = {name: str(value) for name, value in wanted.items()}
        wanted |= self.settings
        return [row for row in self.read() if wanted.items() <= row.items()]

    def add(self, **values):
        """Append a row and write the file."""
        row = {**dict.fromkeys(COLUMNS, ''), **self.settings, **values}
        row['lr'] = write_lr(values.get('lr'))
        row['machine'], row['torch'] = machine(), torch.__version__
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows([*self.read(), row])
        os.makedirs(os.path.dirname(self.path) or '.', exist_ok=True)
        write_text(self.path, text.getvalue())

    def vectors_path(self, run, output, lr, budget, seed):
        """Return the path of the vectors of a final run; budget: its seconds, or ''."""
        parts = [run, output, write_lr(lr), budget and f'{budget}s', f'seed{seed}']
        name = '_'.join(part for part in parts if part)
        return os.path.join(self.folder, f'{name}.npz')

    def record(self, key, output, vectors, images):
        """Add the row of an output; write the vectors (N, D) of a final run first.

        key: {column: value} of kind, run, lr, seed, budget, epochs and seconds; images:
        the Images that the vectors describe.
        """
        if key['run'] != 'pixels':
            vectors = vectors.half()  # as they are written
        values = values_per_query(vectors, images.labels)
        if key['kind'] == 'final':
            rest = key['lr'], key['budget'], key['seed']
            path = self.vectors_path(key['run'], output, *rest)
            self.write_vectors(path, vectors, images, values)
        means = {name: value.mean().item() for name, value in values.items()}
        dimensions = vectors.shape[1]
        self.add(**key, output=output, dimensions=dimensions, **means)

    def write_vectors(self, path, vectors, images, values):
        """Write the vectors (N, D) of Images and their {measure: (N,)}.

        Raw pixels, which are in float32, are left out: they can be read again.
        """
        entries = {name: value.numpy() for name, value in values.items()}
        if vectors.dtype == torch.float16:
            entries['embeddings'] = vectors.numpy()
        entries['labels'] = images.labels.numpy()
        entries['images'] = np.array(images.paths)
        os.makedirs(self.folder, exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, 'wb') as file:
            np.savez(file, **entries)


# The table


@dataclass
class Line:
    """What the final runs of a method found."""

    method: Method
    rows: list  # of the CSV, one per seed
    labels: torch.Tensor  # (N,)
    values: dict  # {measure: (N,)}, means over the seeds

    def mean(self, name):
        """Return the mean of a measure over seeds and queries."""
        return self.values[name].mean().item()


def read_line(results, method, lr, budget):
    """Return the Line of a method trained with this learning rate, or None."""
    key = {'run': method.run, 'output': method.output, 'lr': lr}
    rows = results.find(kind='final', budget=budget, **key)
    rows = list({row['seed']: row for row in rows}.values())
    if not rows:
        return None
    files = []
    for row in rows:
        run = method.run, method.output
        path = results.vectors_path(*run, lr, budget, row['seed'])
        with np.load(path) as file:
            files.append({name: file[name] for name in (*MEASURES, 'labels')})
    values = {
        name: torch.tensor(np.mean([file[name] for file in files], axis=0))
        for name in MEASURES
    }
    return Line(method, rows, torch.tensor(files[0]['labels']), values)


def percent(value):
    return f'{100 * value:.2f}'


def print_table(lines):
    """Print the Lines of {method's name: Line or None}."""
    for line in list(filter(None, lines.values()))[:1]:
        classes = len(line.labels.unique())
        print(f'{len(line.labels):,} images of {classes} classes not trained on\n')
    header = f'{"":<38}{"length":>7}{"lr":>9}{"epochs":>8}{"seconds":>9}'
    for name in MEASURES:
        header += f'{TITLES[name]:>10}  {"95 % interval":<15}'
    print(header.rstrip())
    for name, line in lines.items():
        print(table_row(METHODS[name], line))
    print('\nRecall@1 of each seed')
    for line in filter(None, lines.values()):
        seeds = ' '.join(f'{percent(float(row["recall@1"])):>7}' for row in line.rows)
        print(f'{line.method.label:<38}{seeds}')


def table_row(method, line):
    """Return a row of the table, with nothing but its label if there is no Line."""
    if line is None:
        return method.label
    first = line.rows[0]
    seconds = np.mean([float(row['seconds']) for row in line.rows])
    row = f'{method.label:<38}{first["dimensions"]:>7}{first["lr"]:>9}'
    row += f'{first["epochs"]:>8}{seconds:>9.0f}'
    intervals = confidence_intervals(line.values, line.labels)
    for name, (low, high) in intervals.items():
        limits = f'{percent(low)} to {percent(high)}'
        row += f'{percent(line.mean(name)):>10}  {limits:<15}'
    return row.rstrip()


def print_comparison(lines):
    """Print the paired differences of the other Lines to the best peer's."""
    finished = [line for line in lines.values() if line]
    peers = [line for line in finished if line.method.group == 'peers']
    if not peers:
        return
    best = max(peers, key=lambda line: line.mean('recall@1'))
    print(f'\ndifference to the best peer, {best.method.label}, with 95 % interval, p')
    for line in finished:
        if line is best or not torch.equal(line.labels, best.labels):
            continue
        row = f'{line.method.label:<38}'
        compared = compare(line.values, best.values, line.labels)
        for name, (difference, low, high, p) in compared.items():
            limits = f'{percent(low)} to {percent(high)}'
            row += f'  {TITLES[name]} {100 * difference:+6.2f}  {limits:<15}{p:7.4f}'
        print(row)

"""Measure what each part of the current recipe is worth.

    python data_utils.py --data_name sample --image_size 64
    python benchmarks/recipe.py --data data/sample
    python benchmarks/recipe.py --data ../shared/data/grocery \
        --model_type tf_efficientnet_lite0 --weights lite0.safetensors

One part is changed at a time. Every change is trained for the same number of epochs
with each seed. The difference to the recipe is paired: the same queries and seeds, with
a 95 % interval over the classes. The interval does not cover how results vary over
seeds. With the sample and three seeds it takes 50 minutes on 2 cores.
"""

import sys
import tempfile

import common
import figures
import methods
from tqdm import tqdm

from areir import hardware
from areir.bars import progress_bar
from areir.cli import types
from areir.scripts import utils

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
        '4 heads': {'ensemble_size': 4},
        '1 shared stage': {'shared_stages': 1},
        '2 shared stages': {'shared_stages': 2},
        'half as many meta-classes': {'meta_class_size': max(2, classes // 2)},
    }
    if from_scratch:
        changes['2 heads'] = {'ensemble_size': 2}
        changes['batches of 32, lr 1e-3'] = {'batch_size': 32, 'lr': 1e-3}
    else:
        changes['1 head'] = {'ensemble_size': 1}
        changes['no frozen stage'] = {'frozen_stages': 0}
        changes['batch norm trained'] = {'freeze_bn': 'no'}
    return changes


def train_all(args, dataset):
    """Train each change with each seed.

    Returns {change: [(seconds, values) of each seed]}.
    """
    changes = get_changes(len(dataset.split.train.classes), args.weights == 'none')
    results = {name: [] for name in changes}
    runs = [(seed, name) for seed in range(args.seeds) for name in changes]
    for seed, name in progress_bar(runs, 'runs'):
        ours = methods.Ours(args, changes[name])
        trained = ours.train(dataset, ours.default_lr, seed, args.epochs)
        vectors, labels = trained.outputs['embedding'], dataset.all_labels
        values = figures.values_per_query(vectors, labels)
        results[name].append((trained.seconds, values))
        recall = figures.mean(values[figures.NEW])
        tqdm.write(f'seed {seed}, {name}: {recall:.2%}', sys.stderr)
    return results


def print_parts(results, labels):
    """Print the results of `train_all`; labels: {part: (N,)}."""
    rows, recipe = {}, None
    for name, runs in results.items():
        values = figures.mean_values([values for _, values in runs])
        seconds = sum(seconds for seconds, _ in runs) / len(runs)
        row = {'seconds': f'{seconds:.0f}'}
        row |= {name: f'{figures.mean(parts):.2%}' for name, parts in values.items()}
        cells = figures.differences(values, recipe, labels) if recipe else {}
        row |= {f'{name}, difference': cells[name] for name in cells}
        recipe = recipe or values  # it comes first
        rows[name] = row
    common.print_table(rows)


def main():
    parser = common.make_parser(__doc__)
    methods.add_data_flags(parser)
    add = parser.add_argument
    add('--epochs', type=types.positive, default=8, help='of each run')
    add('--seeds', type=types.positive, default=3, help='number of seeds')
    args = parser.parse_args()
    methods.fill_in_data_flags(args)
    hardware.keep_freed_memory()
    with tempfile.TemporaryDirectory() as root:
        dataset = methods.open_dataset(args, root, 'parts', args.data)
        results = train_all(args, dataset)
        print(
            f'{args.data}, {args.epochs} epochs, {args.seeds} seeds, '
            f'{common.describe_machine()}'
        )
        print_parts(results, dataset.all_labels)


if __name__ == '__main__':
    utils.run_script(main)

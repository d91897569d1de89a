"""Measure what each part of the current recipe is worth.

    python data_utils.py --data_name sample --image_size 64
    python benchmarks/recipe.py --data data/sample
    python benchmarks/recipe.py --data ../shared/data/grocery --weights lite0

--data: changes one part at a time. Every change is trained for the same number of
epochs with each seed, and tested on classes that training never saw. The difference to
the recipe is paired: the same queries and seeds, with a 95 % interval over the classes.
The interval does not cover how results vary over seeds. With the sample and three seeds
it takes 50 minutes on 2 cores.

    python train.py --data_name sample --weights none --image_size 64 --num_epochs 8 \
        --dimensions 4096
    python benchmarks/recipe.py --run results/sample_uncropped_resnet18_2_40

--run: the figures of a run by the length and whitening of its embeddings, in seconds.
Nothing is trained or embedded again: the stored embeddings are principal components, so
shorter ones are their first numbers, and another whitening is a factor for each number.
--dimensions 4096 is more than there are components, so the run keeps them all.
"""

import json
import sys
import tempfile

import common
import methods
import torch
from quality import TITLES, differences, mean_values, values_per_query
from torch.nn import functional as F
from tqdm import tqdm

import utils
from areir import hardware
from areir.cli import types
from areir.errors import UserError
from areir.evaluation.embeddings_file import read_embeddings
from areir.evaluation.metrics import evaluate
from areir.files import load_tensors

# One part at a time

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
    results = {name: [] for name in changes}
    runs = [(seed, name) for seed in range(args.seeds) for name in changes]
    for seed, name in tqdm(runs, desc='runs'):
        ours = methods.Ours('current', args.weights, changes[name])
        trained = ours.train(dataset, ours.default_lr, seed, args.epochs)
        vectors = trained.outputs['embedding']
        values = values_per_query(vectors, dataset.labels('test'))
        results[name].append((trained.seconds, values))
        tqdm.write(f'seed {seed}, {name}: {values["recall@1"].mean():.2%}', sys.stderr)
    return results


def print_parts(results, labels):
    """Print the results of `train_all`; labels (N,): of the test images."""
    rows, recipe = {}, None
    for name, runs in results.items():
        values = mean_values([values for _, values in runs])
        seconds = sum(seconds for seconds, _ in runs) / len(runs)
        row = {'seconds': f'{seconds:.0f}'}
        row |= {title: f'{values[name].mean():.2%}' for name, title in TITLES.items()}
        if recipe:
            row |= differences(values, recipe, labels)
        recipe = recipe or values  # it comes first
        rows[name] = row
    common.print_table(rows)


# Dimensions and whitening

DIMENSIONS = (16, 32, 64, 128, 256, 512)
WHITENINGS = (0, 0.25, 0.5, 0.75, 1)


def component_deviations(matrix, whitening):
    """Return the standard deviation of each component, (D,).

    matrix (L, D): of a Projection. Each column is a unit vector divided by the
    component's deviation to the power of `whitening`, which is above 0.
    """
    norms = torch.linalg.vector_norm(matrix.double(), dim=0)
    return (norms ** (-1 / whitening)).float()


def measure_dimensions(run):
    """Return {dimensions: {whitening: metrics}} of a run's test images."""
    with open(f'{run}_run.json', encoding='utf-8') as file:
        stored = json.load(file)['arguments']['whitening']
    projection = load_tensors(f'{run}_model.pth').get('projection')
    if not projection or not stored:
        raise UserError(f'{run}: train with --dimensions and a --whitening above 0')
    deviations = component_deviations(projection['matrix'], stored)
    file = read_embeddings(f'{run}_data_base.pth')
    sides = [file.query] + ([file.gallery] if file.gallery else [])
    lengths = [length for length in DIMENSIONS if length < len(deviations)]
    lengths.append(len(deviations))
    table = {length: {} for length in lengths}
    for whitening in WHITENINGS:
        factors = deviations ** (stored - whitening)
        for length in lengths:
            arguments = []
            for side in sides:
                vectors = side.embeddings[:, :length].float() * factors[:length]
                arguments += [F.normalize(vectors, dim=1), side.labels]
            query, labels, *gallery = arguments
            table[length][whitening] = evaluate(query, labels, [1], *gallery)
    return table


def print_dimensions(run):
    print('Recall@1 (MAP@R) by dimensions and --whitening')
    rows = {}
    for length, by_whitening in measure_dimensions(run).items():
        rows[length] = {
            str(whitening): f'{metrics["recall@1"]:.1%} ({metrics["map@r"]:.1%})'
            for whitening, metrics in by_whitening.items()
        }
    common.print_table(rows)


def main():
    parser = common.make_parser(__doc__)
    methods.add_data_flags(parser)
    add = parser.add_argument
    add('--epochs', type=types.positive, default=8, help='of each run')
    add('--seeds', type=types.positive, default=3, help='number of seeds')
    add('--run', help='results/<run>, to print its dimensions and whitening')
    args = parser.parse_args()
    if args.run:
        print_dimensions(args.run)
        return
    if not args.data:
        parser.error('which --data, or which --run?')
    methods.fill_in_data_flags(args)
    hardware.keep_freed_memory()
    with tempfile.TemporaryDirectory() as root:
        dataset = methods.open_dataset(args, root, 'parts', args.data)
        results = train_all(args, dataset)
        print(
            f'{args.data}, {args.epochs} epochs, {args.seeds} seeds, '
            f'{common.describe_machine()}'
        )
        print_parts(results, dataset.labels('test'))


if __name__ == '__main__':
    utils.run_script(main)

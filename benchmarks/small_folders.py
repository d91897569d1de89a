"""Measure what whitening is worth in small folders.

    python benchmarks/small_folders.py --data DIR --epochs 4 \
        --model_type tf_efficientnet_lite0 --weights lite0.safetensors
    python benchmarks/small_folders.py --data DIR --products 32 --photos 18

Products and their photographs are drawn from --data by the seed. Half of the products
are trained with train.py's defaults. The embedding is compared with that of the same
network without whitening and components, so nothing is trained twice. The interval of a
difference is paired and over products, at least 6 in each half. The lines of all seeds
count a product that was drawn twice as one. figures.py says what the figures are.
"""

import itertools
import os
import random
import tempfile

import common
import figures
import methods
import numpy as np
import torch

from areir import hardware
from areir.cli import types
from areir.data.crops import link_images
from areir.data.images import list_files
from areir.errors import UserError
from areir.scripts import utils


def draw(data, products, photos, seed, folder):
    """Link to photographs of products in folder/train and folder/test, half in each."""
    found = {}
    for path in list_files(data):
        product = os.path.basename(os.path.dirname(path))
        found.setdefault(product, []).append(os.path.abspath(f'{data}/{path}'))
    found = {name: paths for name, paths in found.items() if len(paths) >= photos}
    if len(found) < products:
        raise UserError(
            f'--data {data}: {len(found)} products have {photos} photographs; '
            f'--products {products} needs more'
        )
    rng = random.Random(seed)
    images, links = [], []
    for number, name in enumerate(rng.sample(sorted(found), products)):
        part = 'train' if number < products // 2 else 'test'
        for path in rng.sample(found[name], photos):
            images.append(path)
            links.append(os.path.join(folder, part, name, os.path.basename(path)))
    link_images(images, links)


def measure(args, products, photos, seed):
    """Train on a draw; return (values, values without whitening, names of products).

    The names are {part: (N,)}, one for each image.
    """
    with tempfile.TemporaryDirectory() as root:
        folder = os.path.join(root, 'drawn')
        draw(args.data, products, photos, seed, folder)
        dataset = methods.open_dataset(args, root, 'small', folder)
        ours = methods.Ours(args)
        outputs = ours.train(dataset, ours.default_lr, seed, args.epochs).outputs
    values = [
        figures.values_per_query(outputs[name], dataset.all_labels)
        for name in ('embedding', 'unprojected')
    ]
    names = {
        part: np.array(dataset.split.parts[part].classes)[labels]
        for part, labels in dataset.all_labels.items()
    }
    return *values, names


def describe(runs):
    """Return {figure: text} of what `measure` returned, all queries together."""
    *values, names = zip(*runs)
    ours, plain = (
        figures.combine(lambda *each: torch.cat(each), *of_runs) for of_runs in values
    )
    labels = {part: np.concatenate([run[part] for run in names]) for part in names[0]}
    differences = figures.differences(ours, plain, labels)
    return {
        figure: f'{100 * figures.mean(ours[figure]):.1f} - '
        f'{100 * figures.mean(plain[figure]):.1f} = {difference}'
        for figure, difference in differences.items()
    }


def main():
    parser = common.make_parser(__doc__)
    methods.add_data_flags(parser)
    add = parser.add_argument
    add('--products', type=types.positives, default=[8, 16, 32], help='in a folder')
    add('--photos', type=types.positives, default=[10, 18], help='of each product')
    add('--seeds', type=types.positive, default=3, help='draws of each kind of folder')
    add('--epochs', type=types.positive, default=8, help='of each training')
    args = parser.parse_args()
    methods.fill_in_data_flags(args)
    hardware.keep_freed_memory()
    print(
        f'{args.data}, {args.model_type}, weights {args.weights}, {args.epochs} '
        'epochs: with whitening - without = difference; '
        f'{common.describe_machine()}'
    )
    done = []
    for products, photos in itertools.product(args.products, args.photos):
        runs = [measure(args, products, photos, seed) for seed in range(args.seeds)]
        rows = {f'seed {seed}': describe([run]) for seed, run in enumerate(runs)}
        print(f'{products} products of {photos} photographs')
        common.print_table({**rows, 'all seeds': describe(runs)})
        done += runs
    common.print_table({'all folders': describe(done)})


if __name__ == '__main__':
    utils.run_script(main)

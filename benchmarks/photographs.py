"""Measure photographs of 12 megapixels: the index of a folder, and training on them.

    python benchmarks/photographs.py                    # 100 photographs: 3 minutes
    python benchmarks/photographs.py --other CHECKOUT   # beside another checkout
    python benchmarks/photographs.py --side 224         # thumbnails: nothing to gain

The photographs are drawn: shapes on a cluttered ground with noise, as JPEGs of about 4
MB. The network is a resnet18 of random weights: at 224 pixels for the index, at 64 for
5 epochs of training. The checkouts take turns. wait is the share of training that waits
for images from the second epoch on.
"""

import glob
import os
import subprocess
import sys
import tempfile
import time
from functools import partial

import common
import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from torchvision.models import resnet18

from areir.scripts import utils

CLASSES = 10
WEIGHTS = 'hub/checkpoints/resnet18-f37072fd.pth'  # in TORCH_HOME


def draw_photograph(label, number, side):
    """Draw a photograph of 4:3 whose longer side has `side` pixels."""
    size = side, side * 3 // 4
    rng, of_class = np.random.default_rng([label, number]), np.random.default_rng(label)
    ground = Image.fromarray(rng.integers(60, 200, (30, 40, 3), dtype=np.uint8))
    ground = ground.resize(size, Image.Resampling.BICUBIC)
    colours = [tuple(colour) for colour in of_class.integers(0, 255, (2, 3)).tolist()]
    left, top = (rng.uniform(0.05, 0.4, 2) * size[1]).tolist()
    reach = rng.uniform(0.3, 0.5) * side
    draw = ImageDraw.Draw(ground)
    shape = draw.ellipse if label % 2 else draw.rectangle
    shape((left, top, left + reach, top + reach), *colours, width=1 + side // 50)
    coarse = rng.normal(0, 9, (size[1] // 2, size[0] // 2)).repeat(2, 0).repeat(2, 1)
    noise = rng.normal(0, 5, (size[1], size[0])) + coarse
    pixels = np.asarray(ground) + noise[:, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_photographs(folder, count, side):
    """Write `count` photographs in class folders; return their mean size in MB."""
    sizes = []
    for number in range(count):
        path = f'{folder}/{number % CLASSES}/{number:04d}.jpg'
        os.makedirs(os.path.dirname(path), exist_ok=True)
        draw_photograph(number % CLASSES, number, side).save(path, quality=90)
        sizes.append(os.path.getsize(path) / 1e6)
    return sum(sizes) / len(sizes)


def make_hub(root):
    """Write the random weights of a resnet18 to a folder that is TORCH_HOME."""
    os.makedirs(os.path.dirname(f'{root}/{WEIGHTS}'))
    torch.save(resnet18().state_dict(), f'{root}/{WEIGHTS}')


def run(checkout, hub, script, *flags):
    """Run a script of a checkout; return its seconds and its stdout."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, script, *map(str, flags)],
        cwd=checkout,
        env={**os.environ, 'TORCH_HOME': hub},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f'{checkout}/{script}: {done.stderr}')
    return time.perf_counter() - started, done.stdout


def measure(root, photos, checkout):
    """Return {what: seconds} and the share of waiting of one checkout."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        call = partial(run, checkout, root)
        results = ['--results_root', folder]
        flags = ['--gallery', photos, '--model', 'resnet18', *results]
        _, output = call('inference.py', *flags)
        times = dict(
            part.rsplit(' ', 2)[:2]
            for line in output.splitlines()
            if line.startswith('times: ')
            for part in line.removeprefix('times: ').split(', ')
        )
        data = ['--data_name', 'photos', '--data_root', f'{folder}/data']
        flags = ['--data_path', photos, '--image_size', 64]
        prepared, _ = call('data_utils.py', *data, *flags)
        flags = ['--weights', 'none', '--image_size', 64, '--num_epochs', 5]
        trained, _ = call('train.py', *data, *flags, '--recalls', 1, *results)
        (path,) = glob.glob(f'{folder}/*_results.csv')
        table = pd.read_csv(path)
        later = table[table['epoch'] > 1]
        return {
            'index': float(times['index']),
            'preparation': prepared,
            'training': trained,
            'wait': later['data_wait'].mean(),
        }


def get_args():
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add('--other', help='another checkout, such as a git worktree')
    add('--count', type=int, default=100, help='photographs')
    add('--side', type=int, default=4000, help='pixels of their longer side')
    add('--rounds', type=int, default=2, help='times to measure; the best is shown')
    return parser.parse_args()


def main():
    args = get_args()
    checkouts = {'this checkout': common.REPOSITORY}
    if args.other:
        checkouts = {'other': os.path.abspath(args.other), **checkouts}
    with tempfile.TemporaryDirectory() as root:
        make_hub(root)
        photos = f'{root}/photos'
        megabytes = draw_photographs(photos, args.count, args.side)
        ways = checkouts.values()
        runs = common.take_turns(ways, args.rounds, partial(measure, root, photos))
    best = {name: pd.DataFrame(runs[path]).min() for name, path in checkouts.items()}
    size = f'{args.side} x {args.side * 3 // 4}'
    print(f'{common.describe_machine()}; {args.count} JPEGs of {size}, ', end='')
    print(f'{megabytes:.1f} MB each; seconds')
    rows = {
        name: {what: f'{value:.2f}' for what, value in row.items()}
        for name, row in best.items()
    }
    if args.other:
        ratio = best['other'] / best['this checkout']
        rows['x faster'] = {what: f'{ratio[what]:.2f}' for what in ratio.index[:3]}
    common.print_table(rows)


if __name__ == '__main__':
    utils.run_script(main)

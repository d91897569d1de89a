"""Measure Recall@1 on noise, which has no classes, by the two protocols.

    python benchmarks/noise.py           # some minutes on 2 cores

One network, trained for a few steps on noise, embeds other noise in four ways. If a
protocol reports more than chance, it does not read the class from the picture. Here it
reads it from the other images of the batch.
"""

import argparse

import common  # noqa: F401  it puts the repository on sys.path
import torch
from torch import nn
from tqdm import tqdm

import utils
from areir.evaluation.intervals import confidence_intervals
from areir.evaluation.metrics import measures, rank_positives
from areir.training.batches import TEST_BATCH as TEST_BATCHES
from areir.training.published import RandomWeights
from model import EnsembleLoss, EnsembleModel, assign_meta_classes

TEST_BATCH = TEST_BATCHES['published']


def train_on_noise(model, images, meta_labels, steps, generator):
    """Make some steps on random batches of images with their meta_labels (N, E)."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    loss = EnsembleLoss(nn.CrossEntropyLoss(), len(model.heads))
    bar = {'desc': 'training on noise', 'unit': 'step', 'disable': steps < 10}
    for _ in tqdm(range(steps), **bar):
        batch = torch.randint(len(images), (TEST_BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(model(images[batch]), meta_labels[batch]).backward()
        optimizer.step()


def recall(model, images, labels, order):
    """Return (Recall@1, its 95 % interval) of images embedded in the given order.

    A batch holds TEST_BATCH images.
    """
    batches = images[order].split(TEST_BATCH)
    embeddings = torch.cat([model.embed(batch) for batch in batches])
    values = measures(rank_positives(embeddings, labels[order]), [1])
    values = {'recall@1': values['recall@1']}
    interval = confidence_intervals(values, labels[order])['recall@1']
    return values['recall@1'].mean().item(), interval


def noise_floor(
    classes,
    images_per_class,
    ensemble_size,
    meta_class_size,
    image_size,
    steps,
    seed=0,
):
    """Return ({(protocol, order): (Recall@1, (low, high))}, the recall of chance).

    The test images are noise, and so are the training images.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(images_per_class)
    shape = 2, len(labels), 3, image_size, image_size
    train, test = torch.randn(shape, generator=generator)
    partition = assign_meta_classes(classes, meta_class_size, ensemble_size, seed)

    published = EnsembleModel('resnet18', ensemble_size, meta_class_size, seed=seed)
    RandomWeights(published, seed)
    train_on_noise(published, train, partition[:, labels].T, steps, generator)
    strict = EnsembleModel('resnet18', ensemble_size, meta_class_size)
    strict.load_state_dict(published.state_dict())

    shuffled = torch.randperm(len(labels), generator=generator)
    orders = {'in class order': torch.arange(len(labels)), 'shuffled': shuffled}
    results = {}
    for protocol, model in (('strict', strict), ('published', published)):
        for name, order in orders.items():
            results[protocol, name] = recall(model, test, labels, order)
    return results, (images_per_class - 1) / (len(labels) - 1)


def get_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--classes', type=int, default=20)
    add('--images_per_class', type=int, default=40)
    add('--ensemble_size', type=int, default=48)
    add('--meta_class_size', type=int, default=12)
    add('--image_size', type=int, default=64, help='pixels a side')
    add('--steps', type=int, default=20, help='training steps of 8 images')
    add('--seed', type=int, default=0)
    return parser.parse_args()


def main():
    args = get_args()
    results, chance = noise_floor(**vars(args))
    print(
        f'{args.classes} classes of {args.images_per_class} noise images, '
        f'{args.ensemble_size} heads; chance {chance:.1%}'
    )
    for (protocol, order), (value, (low, high)) in results.items():
        print(
            f'{protocol:<10} {order:<15} Recall@1 {value:6.1%}   '
            f'95 % interval {low:.1%} to {high:.1%}'
        )


if __name__ == '__main__':
    utils.run_script(main)

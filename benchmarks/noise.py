"""Recall@1 on pictures of pure noise, where nothing can be known, by the strict and by the published protocol.

    python benchmarks/noise.py

One network, trained for a few steps on noise, embeds other noise in four ways. A protocol that reports more than
chance reads the class from somewhere else than the picture: here, from the images that share its batch.
"""
import argparse
import os
import sys

import torch
from tqdm import tqdm

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
from model import EnsembleModel, assign_meta_classes, ensemble_loss
from published import TEST_BATCH, PublishedModel
from retrieval import confidence_intervals, measures, rank_positives


def recall(model, images, labels, order):
    """(Recall@1, its 95 % interval) of images embedded in batches of TEST_BATCH, in the order given."""
    embeddings = torch.cat([model.embed(batch) for batch in images[order].split(TEST_BATCH)])
    value = {'recall@1': measures(rank_positives(embeddings, labels[order]), [1])['recall@1']}
    return value['recall@1'].mean().item(), confidence_intervals(value, labels[order])['recall@1']


def noise_floor(classes, images_per_class, ensemble_size, meta_class_size, image_size, steps, seed=0):
    """{(protocol, order): (Recall@1, (low, high))} of test images that are noise, and the recall of chance."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(images_per_class)
    train, test = torch.randn(2, len(labels), 3, image_size, image_size, generator=generator)
    partition = assign_meta_classes(classes, meta_class_size, ensemble_size, seed)
    model = PublishedModel('resnet18', ensemble_size, meta_class_size, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    for _ in tqdm(range(steps), desc='training on noise', unit='step', disable=steps < 10):
        batch = torch.randint(len(labels), (TEST_BATCH,), generator=generator)
        optimizer.zero_grad()
        ensemble_loss(model(train[batch]), partition[:, labels[batch]].T).backward()
        optimizer.step()
    strict = EnsembleModel('resnet18', ensemble_size, meta_class_size)
    strict.load_state_dict(model.state_dict())
    orders = {'in class order': torch.arange(len(labels)),
              'shuffled': torch.randperm(len(labels), generator=generator)}
    results = {(protocol, name): recall(net, test, labels, order)
               for protocol, net in (('strict', strict), ('published', model)) for name, order in orders.items()}
    return results, (images_per_class - 1) / (len(labels) - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--classes', type=int, default=20)
    parser.add_argument('--images_per_class', type=int, default=40)
    parser.add_argument('--ensemble_size', type=int, default=48)
    parser.add_argument('--meta_class_size', type=int, default=12)
    parser.add_argument('--image_size', type=int, default=64, help='pixels a side')
    parser.add_argument('--steps', type=int, default=20, help='training steps of 8 images')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    results, chance = noise_floor(**vars(args))
    print(f'{args.classes} classes of {args.images_per_class} noise images, {args.ensemble_size} heads; '
          f'chance {chance:.1%}')
    for (protocol, order), (value, (low, high)) in results.items():
        print(f'{protocol:<10} {order:<15} Recall@1 {value:6.1%}   95 % interval {low:.1%} to {high:.1%}')


if __name__ == '__main__':
    main()

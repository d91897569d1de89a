"""An experiment on random embeddings, for tests of what a run measures and writes."""

import argparse

import torch
from torch.nn import functional as F

from areir.cli.recipes import RECIPES
from areir.data.images import PixelFormat
from areir.data.sample import draw_sample
from areir.data.splits import Part, Split
from areir.hardware import Hardware
from areir.scripts.model import assign_meta_classes
from areir.training.batches import parts_to_embed
from areir.training.record import Experiment

INFO = {
    'counts': {'train': (12, 6), 'test': (36, 6)},
    'warnings': ['2 images are very small'],
    'layout': 'folders of classes',
    'mean': [0.5, 0.4, 0.3],
    'std': [0.25, 0.2, 0.3],
}
PIXEL_FORMAT = PixelFormat(32, INFO['mean'], INFO['std'])
CLASSES = ['ant', 'bee', 'cat', 'dog', 'eel', 'fox']


def arguments(**changed):
    values = {
        **RECIPES['2019'],
        'recipe': '2019',
        'data_name': 'shoes',
        'crop_type': 'uncropped',
        'data_root': 'data',
        'results_root': 'results',
        'model_type': 'resnet18',
        'with_se': 'yes',
        'ensemble_size': 2,
        'meta_class_size': 3,
        'weights': 'none',
        'batch_size': 4,
        'num_epochs': 3,
        'lr': 1e-4,
        'image_size': 32,
        'select': 'last',
        'protocol': 'strict',
        'false_match_rate': 0.05,
        'threshold_from': None,
        'whole_gallery': 'no',
        'num_workers': 0,
        'seed': 3,
    }
    return argparse.Namespace(**{**values, **changed})


def part(images_per_class, classes, folder='test'):
    labels = torch.arange(len(classes)).repeat_interleave(images_per_class)
    images = [f'{folder}/{number}.png' for number in range(len(labels))]
    return Part(images, labels, classes)


def make_experiment(gallery=False, **changed):
    """Return an Experiment: 6 training classes, and 6 of 6 images each for the test.

    gallery: 2 images of each class are queries, 4 the gallery. With select='val' there
    are 2 classes of 4 images held out.
    """
    args = arguments(**changed)
    parts = {'train': part(2, list('uvwxyz'), 'train')}
    if gallery:
        parts |= {'query': part(2, CLASSES, 'q'), 'gallery': part(4, CLASSES, 'g')}
    else:
        parts['test'] = part(6, CLASSES)
    if args.select == 'val':
        parts['val'] = part(4, ['r', 's'], 'train')
    return Experiment(
        args,
        Split('data/shoes', INFO, 'abc', parts),
        [1, 2],
        assign_meta_classes(6, 3, 2, seed=0),
        PIXEL_FORMAT,
        Hardware(torch.device('cpu'), [], 'fp32', False),
        world=1,
        parameters=1_234_567,
        commit='c0ffee',
    )


def make_embeddings(experiment, seed=0, spread=1.0):
    """Return {part: unit vectors (N, 6)} of `parts_to_embed`, near their classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, 6, generator=generator)
    embeddings = {}
    for name, images in parts_to_embed(experiment.split, experiment.args).items():
        noise = torch.randn(len(images), 6, generator=generator)
        embeddings[name] = F.normalize(centres[images.labels] + spread * noise)
    return embeddings


# Images that are there


def draw_split(folder, side=32):
    """Draw 10 training and 10 test images of two classes each; return their Split."""
    sizes = {'train_classes': 2, 'test_classes': 2, 'images_per_class': 5}
    draw_sample(str(folder), **sizes, side=side)
    parts = {}
    for name in ('train', 'test'):
        images = sorted((folder / name).rglob('*.png'))
        names = [str(image.relative_to(folder)) for image in images]
        labels = torch.arange(2).repeat_interleave(5)
        parts[name] = Part(names, labels, ['a', 'b'])
    return Split(str(folder), INFO, 'abc', parts)


def paths_of(split, name):
    """Return the paths of a part's images."""
    return [f'{split.folder}/{image}' for image in split.parts[name].images]

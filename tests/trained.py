"""Models and databases for tests, made without training, and the sample, trained."""

import functools
from dataclasses import asdict

import torch
from torch import nn

from areir.data.images import PixelFormat, list_files, load_image
from areir.files import write_tensors
from areir.networks import backbones
from areir.scripts.model import EnsembleModel, rebuild

SIDE = 32
PIXEL_FORMAT = PixelFormat(SIDE, [0.5] * 3, [0.25] * 3)
MODEL_ARGS = {
    'model_type': 'resnet18',
    'ensemble_size': 2,
    'meta_class_size': 3,
    'with_se': True,
}
CALIBRATION = {
    'false_match_rate': 0.01,
    'gallery_size': 100,
    'threshold': 0.9,
    'low': 0.8,
    'high': 0.95,
    'found': 0.5,
    'realised': 0.02,
    'realised_low': 0.0,
    'realised_high': 0.04,
    'sizes': [1, 100],
    'thresholds': [0.5, 0.9],
    'queries': 100,
    'classes': 10,
    'confidence': None,
}


@functools.cache
def random_weights(seed, build_network):
    """Return the state dict of a model with random weights.

    build_network: what builds networks at the moment, slim ones or not.
    """
    return EnsembleModel(**MODEL_ARGS, seed=seed).state_dict()


@torch.no_grad()
def take_statistics(model, images):
    """Give batch norms the statistics of images, so that the model tells them apart."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1
    model.train()(images)
    return model.eval()


def save_model(path, seed=0, calibration=CALIBRATION, **changed):
    """Write a model file as train.py does, with random weights; return its contents."""
    saved = {
        'version': f'v{seed}',
        'state_dict': random_weights(seed, backbones.build_network),
        'model_args': MODEL_ARGS,
        'projection': None,
        'pixel_format': asdict(PIXEL_FORMAT),
        'calibration': calibration,
        'classes': ['ant', 'bee'],
        **changed,
    }
    write_tensors({str(path): saved})
    return saved


def embed(saved, paths):
    """Return the embeddings (N, 6) of image files by the contents of a model file."""
    model = rebuild(saved['model_args'], saved['state_dict'])
    return model.embed(read_images(paths, PixelFormat(**saved['pixel_format'])))


def read_images(paths, pixel_format=PIXEL_FORMAT):
    """Return the normalised images (N, 3, S, S) of files."""
    pixels = [pixel_format.to_pixels(load_image(path)) for path in paths]
    return pixel_format.normalise(torch.stack(pixels))


def save_database(path, folder, saved, model='none.pth', **changed):
    """Write a database of the images below `folder` as train.py does.

    The folder must be `<root of the database>/data/<name>` and hold class folders.
    saved: the contents of the model file. Returns the contents of the database.
    """
    images = list_files(str(folder))
    names = [image.split('/')[-2] for image in images]
    classes = sorted(set(names))
    database = {
        'embeddings': embed(saved, [folder / image for image in images]),
        'images': images,
        'labels': torch.tensor([classes.index(name) for name in names]),
        'classes': classes,
        'data_name': folder.name,
        'crop_type': 'uncropped',
        'data_root': 'data',
        'model': model,
        'version': saved['version'],
        'epoch': 1,
        'protocol': 'strict',
        'select': 'last',
        'ensemble_size': 2,
        'calibration': CALIBRATION,
        **changed,
    }
    write_tensors({str(path): database})
    return database


SAMPLE_RUN = 'sample_uncropped_resnet18_2_16_2019'
SAMPLE_FLAGS = [
    *('--data_name', 'sample', '--weights', 'none', '--image_size', 64),
    *('--ensemble_size', 2, '--meta_class_size', 16, '--batch_size', 16),
    *('--lr', '1e-3', '--num_epochs', 3, '--recalls', '1'),
    *('--recipe', '2019'),
]


def train_sample(project):
    """Prepare the sample dataset and train on it for a minute.

    The run is SAMPLE_RUN; project.output is what training printed.
    """
    project.succeed('data_utils.py', '--data_name', 'sample', '--image_size', 64)
    project.output = project.succeed('train.py', *SAMPLE_FLAGS)

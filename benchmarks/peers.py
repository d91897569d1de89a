"""Losses of pytorch-metric-learning, trained with our trainer, and untrained networks.

A peer is our network with one head, without squeeze-and-excitation, whose classifier
gives 512 numbers. The losses have the settings of their papers, which are the library's
defaults; their users train with AdamW and a higher learning rate for proxies and class
weights. Schedule, crops and flips are those of our recipe.
"""

import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from areir import hardware
from areir.bars import progress_bar
from areir.cli.recipes import RECIPES, current_recipe, default_projection
from areir.data.loading import make_loader
from areir.errors import UserError
from areir.networks.backbones import has_depthwise, is_transformer
from areir.networks.layers import folded
from areir.networks.projection import fit_projection, fit_whitening
from areir.scripts.model import EnsembleLoss, EnsembleModel
from areir.seeds import random_stream
from areir.training.batches import CropAndFlip, EpochSampler, training_batches
from areir.training.trainer import Trainer, learning_rate
from areir.training.weights import initial_weights

LOSSES = ('multi_similarity', 'proxy_anchor', 'norm_softmax', 'cosface')
WHITENED_LOSS = 'norm_softmax'  # the loss whose features are read, too
RECIPE = RECIPES['current']
DIMENSIONS = 512
WHITENED = 256  # numbers of whitened features
BATCH = 32
PER_CLASS = 4  # images of a class in a batch, for losses on pairs of images
LOSS_LR = 1e-2  # of proxies and class weights: 3 to 300 times the network's
WEIGHT_DECAY = 1e-4


class MinedLoss(nn.Module):
    """A criterion: a loss of pytorch-metric-learning on the pairs of a miner."""

    def __init__(self, loss, miner):
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings, labels):
        return self.loss(embeddings, labels, self.miner(embeddings, labels))


def make_criterion(name, classes):
    """Return one of LOSSES: criterion(embeddings (N, 512), labels (N,)) -> loss."""
    try:
        from pytorch_metric_learning import losses, miners
    except ModuleNotFoundError:
        raise UserError(
            f'{name} needs pip install -r benchmarks/requirements.txt'
        ) from None
    if name == 'multi_similarity':
        return MinedLoss(losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner())
    kinds = {
        'proxy_anchor': losses.ProxyAnchorLoss,
        'norm_softmax': losses.NormalizedSoftmaxLoss,
        'cosface': losses.CosFaceLoss,
    }
    return kinds[name](classes, DIMENSIONS)


def recipe_of(args):
    """Return {flag: value} of the current recipe for --model_type and --weights."""
    return current_recipe(args.weights == 'none', is_transformer(args.model_type))


def build_model(args, seed):
    """Return the network of a peer, of --model_type with --weights."""
    network, _ = initial_weights(args)
    model = EnsembleModel(
        args.model_type,
        1,
        DIMENSIONS,
        with_se=False,
        shared_stages=RECIPE['shared_stages'],
        seed=seed,
        image_size=args.image_size,
        network=network,
    )
    return model.to(hardware.local_device(), memory_format=torch.channels_last)


def choose_hardware(model):
    """Return the Hardware that train.py would choose for a model."""
    gpus = [0] if torch.cuda.is_available() else []
    return hardware.choose_hardware(gpus, 'auto', has_depthwise(model.model_type))


# Training


def class_order(labels, batch_size, seed):
    """Return a function of the epoch: an order with PER_CLASS images of each class."""
    from pytorch_metric_learning.samplers import MPerClassSampler

    def order(epoch):
        np.random.seed(seed + epoch)  # the sampler draws from the global generator
        sampler = MPerClassSampler(labels, PER_CLASS, batch_size, len(labels))
        return torch.tensor(list(sampler))

    return order


def make_batches(loss, dataset, seed):
    """Return the DataLoader of a Dataset's training images for a loss."""
    labels = dataset.labels('train')
    batch_size, order = min(BATCH, len(labels)), None
    if loss == 'multi_similarity':
        most = min(batch_size, PER_CLASS * len(labels.unique()))
        batch_size = most // PER_CLASS * PER_CLASS
        order = class_order(labels, batch_size, seed)
    sampler = EpochSampler(len(labels), batch_size, seed, order)
    pixel_format = dataset.pixel_format
    transform = CropAndFlip(len(labels), pixel_format, seed, RECIPE['crop_area'])
    workers = min(8, hardware.available_cores())
    paths = dataset.paths('train')
    return make_loader(paths, pixel_format, sampler, workers, transform=transform)


class Run:
    """The training of a loss on a Dataset for some epochs.

    With weights, batch norm keeps its statistics as in ours: those of small batches
    undo what was loaded.
    """

    def __init__(self, loss, args, dataset, lr, seed, epochs):
        self.lr, self.epochs, self.dataset = lr, epochs, dataset
        self.labels = dataset.labels('train')[:, None]  # of the only head
        self.loader = make_batches(loss, dataset, seed)
        self.model = build_model(args, seed)
        with random_stream(seed):
            criterion = make_criterion(loss, len(self.labels.unique()))
        self.trainer = Trainer(
            self.model,
            EnsembleLoss(criterion, 1),
            lr,
            choose_hardware(self.model),
            freeze_bn=args.weights != 'none',
            weight_decay=WEIGHT_DECAY,
            criterion_rate=LOSS_LR / lr,
        )

    def train_epoch(self, epoch):
        """Train for an epoch; return its seconds."""
        started = time.perf_counter()
        sampler = self.loader.batch_sampler
        sampler.set_epoch(epoch)
        self.trainer.begin_epoch(self.lr)
        batches = training_batches(self.loader, self.labels, self.trainer.device)
        bar = progress_bar(batches, f'epoch {epoch}', len(sampler), leave=False)
        for number, (images, labels) in enumerate(bar):
            done = epoch - 1 + (number + 0.5) / len(sampler)
            lr = learning_rate('cosine', self.lr, self.epochs, RECIPE['warmup'], done)
            self.trainer.begin_step(lr, epoch, number)
            self.trainer.step(images, labels)
        return time.perf_counter() - started


# Embedding


def read(model, dataset, **changes):
    """Return {part: vectors (N, D)} of all images.

    changes: attributes of the EnsembleModel, such as another embedding.
    """
    bf16 = choose_hardware(model).precision == 'bf16'
    net = folded(model, torch.bfloat16 if bf16 else torch.float32)
    for name, value in changes.items():
        setattr(net, name, value)
    return {part: dataset.embed(part, net.eval()) for part in ('train', 'test')}


def project(vectors, fit, *settings):
    """Project vectors {part: (N, L)} by fit(those of the training images, *settings).

    A diverged training, whose vectors are not finite, keeps them.
    """
    if not torch.isfinite(vectors['train']).all():
        return vectors
    projection = fit(vectors['train'], *settings)
    return {part: projection(vectors[part]) for part in vectors}


def read_features(model, dataset, args):
    """Return {output: {part: vectors (N, .)}} of all images, without the classifier.

    pooled: the features of the last stage; whitened: their WHITENED components, fitted
    without labels; our_embedding: as train.py embeds with these weights.
    """
    width = model.heads[0].fc.in_features
    features = read(model, dataset, embedding='features')
    pooled = {
        part: F.normalize(vectors[:, -width:], dim=1)
        for part, vectors in features.items()
    }
    recipe = recipe_of(args)
    changes = {'embedding': recipe['embedding'], 'mirror': recipe['mirror'] == 'yes'}
    described = read(model, dataset, **changes)
    labels = dataset.labels('train')
    settings = labels, *default_projection(len(labels), len(labels.unique()))
    return {
        'pooled': pooled,
        'whitened': project(pooled, fit_projection, WHITENED, 1),
        'our_embedding': project(described, fit_whitening, *settings),
    }

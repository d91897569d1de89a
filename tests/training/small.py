"""A trainer of a tiny ensemble, batches for it, and a run, without any images."""

from collections import OrderedDict

import torch
from torch import nn

from areir import hardware
from areir.scripts.model import EnsembleLoss
from areir.seeds import random_stream
from areir.training.run import Progress, Run
from areir.training.trainer import Trainer

HARDWARE = hardware.Hardware(torch.device('cpu'), [], 'fp32', False)
SETTINGS = {'lr': 1e-3, 'seed': 1, 'split_sha256': 'abc', 'precision': 'fp32'}


class TinyEnsemble(nn.Module):
    """A trunk and heads of one layer each, with the attributes of EnsembleModel."""

    def __init__(self, heads):
        super().__init__()
        self.ensemble_size, self.members = heads, list(range(heads))
        with random_stream(1):
            self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
            self.heads = nn.ModuleList(self.make_head() for _ in range(heads))

    def make_head(self):
        layers = nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(
            OrderedDict(body=nn.Sequential(*layers), fc=nn.Linear(8, 4))
        )


class Proxies(nn.Module):
    """A criterion with weights: logits and proxies of the classes, as in ProxyNCA."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits @ self.weight, labels)


def make_trainer(heads=3, criterion=None, **options):
    """Return a Trainer of a TinyEnsemble with 4 meta-classes."""
    loss = EnsembleLoss(criterion or nn.CrossEntropyLoss(), heads)
    return Trainer(TinyEnsemble(heads), loss, 1e-3, HARDWARE, **options)


def make_run(root, **settings):
    """Return a Run below root that was begun with SETTINGS."""
    return Run('small', str(root), {**SETTINGS, **settings})


def random_batches(count, heads=3, seed=0):
    """Return batches of 4 images of 64 pixels with their meta-labels (4, heads)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 4, 3, 64, 64, generator=generator)
    meta_labels = torch.randint(4, (count, 4, heads), generator=generator)
    return list(zip(images, meta_labels))


def train(trainer, batches):
    """Train on the batches."""
    trainer.begin_epoch(1e-3)
    for images, meta_labels in batches:
        trainer.step(images, meta_labels)


def equal_weights(one, other):
    """Whether two modules have the same weights and buffers, bit for bit."""
    others = other.state_dict()
    return all(
        torch.equal(value, others[name]) for name, value in one.state_dict().items()
    )


def interrupt(folder):
    """Return (run, batches) with checkpoints after 1 and 2 of 4 batches."""
    run, trainer, progress = make_run(folder), make_trainer(), Progress()
    batches = random_batches(4)
    for batch in batches[:2]:
        train(trainer, [batch])
        progress.batches += 1
        progress.loss += 1.0
        run.save_checkpoint(trainer, progress)
    return run, batches

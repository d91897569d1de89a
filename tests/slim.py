"""A backbone of a few thousand numbers, for tests of everything around the network.

A checkpoint of real heads holds hundreds of megabytes, one of these some kilobytes.
"""

import os
import signal
import time
from functools import partial

from torch import nn

import model
from areir.networks import pretrained
from areir.networks.backbones import cut

OVERRIDE = """

import sys
sys.path.append({tests!r})
import slim
from slim import build_backbone
slim.pause_training()
"""


class SlimBackbone(nn.Module):
    """Has the layers of a torchvision ResNet, each of them small."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(2)
        self.layer1 = slim_layer(8, 8, 1)
        self.layer2 = slim_layer(8, 8, 1)
        self.layer3 = slim_layer(8, 16, 2)
        self.layer4 = slim_layer(16, 32, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, num_classes)


def slim_layer(channels, out_channels, stride):
    convolution = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def build_network(model_type, num_classes=0, image_size=None):
    return SlimBackbone(num_classes)


def build_backbone(*arguments):
    return cut(build_network(*arguments))


def use_slim_backbone(patch):
    """Make models of this process slim; patch: a MonkeyPatch."""
    patch.setattr(model, 'build_backbone', build_backbone)
    patch.setattr(pretrained, 'build_network', build_network)


def note(arrived, handler, number, frame):
    """Handle a signal as before, and note that it has arrived."""
    arrived.append(number)
    if callable(handler):
        handler(number, frame)


def pause_training():
    """Let a run wait for a signal before its batch number PAUSE_AT, if that is set.

    It writes 'paused' to stderr first. SIGCONT only lets it go on.
    """
    if 'PAUSE_AT' not in os.environ:
        return
    from areir.training.trainer import Trainer

    def wait_for_signal():
        arrived = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            signal.signal(number, partial(note, arrived, signal.getsignal(number)))
        os.write(2, b'paused\n')  # sys.stderr is shown of rank 0 alone
        while not arrived:
            time.sleep(0.01)

    step, batches = Trainer.step, []

    def pause_and_step(trainer, *arguments):
        batches.append(1)
        if len(batches) == int(os.environ['PAUSE_AT']):
            wait_for_signal()
        return step(trainer, *arguments)

    Trainer.step = pause_and_step

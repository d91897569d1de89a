"""A backbone of a few thousand numbers, for tests of everything around the network.

A checkpoint of real heads holds hundreds of megabytes, one of these some kilobytes.
"""

import os
import signal
import time
from functools import partial

from torch import nn

from areir.networks import backbones, pretrained, weight_files

OVERRIDE = """

import sys
sys.path.append({tests!r})
import slim
slim.use_slim_backbone()
slim.pause_training()
"""
MODULES = backbones, pretrained, weight_files


class SlimBackbone(nn.Module):
    """A whole network like those of timm."""

    def __init__(self):
        super().__init__()
        self.pretrained_cfg = {'architecture': 'slim', 'input_size': (3, 64, 64)}
        names = [f'layer{number}' for number in (1, 2, 3, 4)]
        self.feature_info = [
            {'module': name, 'reduction': place} for place, name in enumerate(names)
        ]
        self.stem = nn.Sequential(slim_layer(3, 8, 2), nn.MaxPool2d(2))
        self.layer1 = slim_layer(8, 8, 1)
        self.layer2 = slim_layer(8, 8, 1)
        self.layer3 = slim_layer(8, 16, 2)
        self.layer4 = slim_layer(16, 32, 1)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward_features(self, images):
        features = self.layer2(self.layer1(self.stem(images)))
        return self.layer4(self.layer3(features))

    def forward_head(self, features):
        return self.pool(features)

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


def slim_layer(channels, out_channels, stride):
    convolution = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def build_network(model_type, image_size=None, weights=None):
    network = SlimBackbone()
    if weights:
        network.load_state_dict(weights['state_dict'])
    return network


def use_slim_backbone(patch=None):
    """Make models of this process slim; patch: a MonkeyPatch, to undo it later."""
    put = patch.setattr if patch else setattr
    for module in MODULES:
        put(module, 'build_network', build_network)


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

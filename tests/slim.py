"""A backbone of a few thousand numbers, for tests of everything around the network.

A checkpoint of real heads holds hundreds of megabytes, one of these some kilobytes.
"""

import os
import signal

from torch import nn

import model
from areir import processes
from areir.training import checkpoints

OVERRIDE = """

import sys
sys.path.append({tests!r})
from slim import build_backbone, stop_when_asked
stop_when_asked()
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


def build_backbone(model_type, num_classes):
    return SlimBackbone(num_classes)


def stop_when_asked():
    """Let a run stop, as by SIGSTOP, at the checkpoint AREIR_STOP_AT or the next one.

    So a test finds this checkpoint there, however busy the machine is.
    """
    write, name = checkpoints.write, os.environ.get('AREIR_STOP_AT')

    def write_and_stop(*arguments):
        folder = write(*arguments)
        if processes.is_first() and os.path.basename(folder) >= name:
            os.kill(os.getpid(), signal.SIGSTOP)
        return folder

    if name:
        checkpoints.write = write_and_stop


def use_slim_backbone(patch):
    """Make models of this process slim; patch: a MonkeyPatch."""
    patch.setattr(model, 'build_backbone', build_backbone)

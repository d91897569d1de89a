"""Find, download and load the weights of torchvision's networks and of ensembles.

What cannot be had or does not fit is a UserError. torchvision takes two seconds to
import, so it is imported where it is needed.
"""

import hashlib
import os

import torch

from areir.data.images import PixelFormat
from areir.errors import UserError
from areir.files import load_tensors
from areir.networks.backbones import CLASSIFIERS, model_types

OTHERWISE = 'give --weights FILE, or --weights none to start from random weights'
PUBLISHED = ('resnet18', 'resnet34', 'resnet50', 'resnext50_32x4d')  # in the tables


def find_weights(model_type, name):
    """Return torchvision's entry for --weights imagenet or imagenet_v2.

    imagenet means IMAGENET1K_V1 for the networks of the published tables, and the
    newest version for all others.
    """
    import torchvision

    entries = torchvision.models.get_model_weights(model_type)
    if name == 'imagenet':
        published = model_type in PUBLISHED
        return entries.IMAGENET1K_V1 if published else entries.DEFAULT
    if 'IMAGENET1K_V2' not in entries.__members__:
        raise UserError(
            f'--weights imagenet_v2: torchvision has one version for {model_type}; '
            'use --weights imagenet'
        )
    return entries.IMAGENET1K_V2


def read(name):
    """Return (network, its state dict, a version that changes with the weights).

    name: a network, whose ImageNet weights are downloaded, or a file of weights, whose
    name begins with that of the network. torchvision names its files in this way:
    `resnet18-f37072fd.pth`.
    """
    if not os.path.isfile(name):
        weights = imagenet_weights(name, otherwise='give --model FILE')
        return name, weights, str(find_weights(name, 'imagenet'))
    network = os.path.basename(name).split('-')[0].split('.')[0]
    if network not in model_types():
        raise UserError(
            f'{name}: {network!r} is no network that train.py takes; the name of a '
            'file of weights begins with that of its network, as in resnet18-mine.pth'
        )
    with open(name, 'rb') as file:
        version = hashlib.sha256(file.read()).hexdigest()
    return network, load_tensors(name), version


def pixel_format(model_type):
    """Return the PixelFormat of a network's weights."""
    transforms = find_weights(model_type, 'imagenet').transforms()
    return PixelFormat(
        transforms.crop_size[0],
        tuple(transforms.mean),
        tuple(transforms.std),
        transforms.interpolation.value,
    )


def imagenet_weights(model_type, name='imagenet', otherwise=OTHERWISE):
    """Return torchvision's state dict, downloaded once into its cache.

    otherwise: what a message offers instead of a download by hand.
    """
    weights = find_weights(model_type, name)
    file = weights.url.rsplit('/', 1)[1]
    cached = f'{torch.hub.get_dir()}/checkpoints/{file}'
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # offline, a broken cached file, a full disk
        reason = str(error).strip().split('\n')[0]
        raise UserError(
            f'no ImageNet weights for {model_type} ({reason}): download {weights.url} '
            f'to {cached}, or {otherwise}'
        ) from error


def is_state_dict(value):
    """Whether a value is a dict of named tensors."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in value.items()
    )


def load_weights(model, checkpoint, name):
    """Copy weights into an EnsembleModel.

    checkpoint: a torchvision state dict, whose stages go to the trunk and to every
    head, and whose classifier is not used; or the contents of a model file of train.py,
    which may have more heads. Its classifiers are left out if they have another number
    of meta-classes. name: what an error calls the weights.
    """
    ours = isinstance(checkpoint, dict) and 'state_dict' in checkpoint
    state = checkpoint['state_dict'] if ours else checkpoint
    parts = {'trunk.': model.trunk}
    parts |= {f'heads.{i}.': head for i, head in zip(model.members, model.heads)}
    try:
        check_finite(state)
        if ours:
            wanted = {key for key in state if key.startswith(tuple(parts))}
        else:
            wanted = {key for key in state if not key.startswith(CLASSIFIERS)}
            state = {key: state[key] for key in state if not key.startswith('fc.')}
        for prefix, module in parts.items():
            wanted -= copy_weights(module, state, prefix if ours else '')
        for key in sorted(wanted):
            raise ValueError(f'{key} has no place')
    except (ValueError, RuntimeError) as error:  # torch's for odd kinds of tensors
        reason = str(error).partition('\n')[0]
        known = isinstance(model.model_type, str)
        network = model.model_type if known else 'the model'
        raise UserError(f'{name}: weights do not fit {network}: {reason}') from error


def check_finite(state):
    """Raise ValueError unless `state` is a dict of tensors of finite numbers."""
    if not is_state_dict(state):
        raise ValueError('not a state dict')
    for key, tensor in state.items():
        # 40 times as fast as isfinite; aminmax returns NaN if any number is NaN
        if tensor.numel() and not all(end.isfinite() for end in tensor.aminmax()):
            raise ValueError(f'{key} holds NaN or infinity')


def copy_weights(module, state, prefix):
    """Copy the tensors of `state` that begin with `prefix`; return their names.

    A prefix is that of an ensemble's weights. Without it, the random weights of
    squeeze-and-excitation stay. Raises ValueError if names or shapes do not fit.
    """
    own = module.state_dict()
    taken = {name: state[prefix + name] for name in own if prefix + name in state}
    used = {prefix + name for name in taken}
    if 'fc.weight' in taken and taken['fc.weight'].shape != own['fc.weight'].shape:
        del taken['fc.weight']
        taken.pop('fc.bias', None)
    # old files lack num_batches_tracked, and nothing here reads it
    optional = ('fc.',) if prefix else ('fc.', 'se.')
    for name, value in own.items():
        if name not in taken:
            if not name.startswith(optional) and 'num_batches_tracked' not in name:
                raise ValueError(f'{prefix}{name} is missing')
        elif taken[name].shape != value.shape:
            shapes = f'{tuple(taken[name].shape)}, not {tuple(value.shape)}'
            raise ValueError(f'{prefix}{name} is {shapes}')
    module.load_state_dict(taken, strict=False)
    return used

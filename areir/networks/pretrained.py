"""Find, download and load the weights of torchvision's networks and of ensembles.

torchvision takes two seconds to import, so it is imported where it is needed.
"""

import hashlib
import os

import torch

from areir.errors import UserError
from areir.files import load_tensors
from areir.networks.backbones import CLASSIFIERS, model_types
from areir.schemas import is_floats, is_integers

OTHERWISE = 'give --weights FILE, or --weights none to start from random weights'
PUBLISHED = ('resnet18', 'resnet34', 'resnet50', 'resnext50_32x4d')  # in the tables


def find_weights(model_type, name):
    """Return torchvision's entry for --weights imagenet or imagenet_v2.

    imagenet means IMAGENET1K_V1 for the networks of the published tables, and the
    newest version for all others. Raises UserError if a network has no second version.
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

    name: a network, whose ImageNet weights are downloaded, or a file of weights, see
    `network_name`. Raises UserError if the weights cannot be had.
    """
    if not os.path.isfile(name):
        weights = imagenet_weights(name, otherwise='give --model FILE')
        return name, weights, str(find_weights(name, 'imagenet'))
    with open(name, 'rb') as file:
        version = hashlib.sha256(file.read()).hexdigest()
    return network_name(name), load_tensors(name), version


def network_name(name):
    """Return the network of a file of weights, which the file's name begins with.

    torchvision names its files in this way: `resnet18-f37072fd.pth` holds weights of
    resnet18. Raises UserError if the name begins with no known network.
    """
    network = os.path.basename(name).split('-')[0].split('.')[0]
    if network not in model_types():
        raise UserError(
            f'{name}: for which network are these weights? Rename the file so that '
            'its name begins with that of the network, such as resnet18-mine.pth'
        )
    return network


def preprocessing(model_type):
    """Return (mean, std, pixels per side) of the images of a network's weights."""
    transforms = find_weights(model_type, 'imagenet').transforms()
    return transforms.mean, transforms.std, transforms.crop_size[0]


def imagenet_weights(model_type, name='imagenet', otherwise=OTHERWISE):
    """Return torchvision's state dict, downloaded once into its cache.

    Raises UserError if it is not cached and cannot be downloaded. The message says how
    to download it by hand. otherwise: what the message offers instead.
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


def load_weights(model, checkpoint):
    """Copy weights into an EnsembleModel, in place.

    checkpoint: a torchvision state dict, or the contents of a model file of train.py.
    Raises UserError if names or shapes do not fit.
    """
    ours = isinstance(checkpoint, dict) and 'state_dict' in checkpoint
    state = checkpoint['state_dict'] if ours else checkpoint
    if not is_state_dict(state):
        raise weights_error('not a state dict')
    parts = {'trunk.': model.trunk}
    parts |= {f'heads.{i}.': head for i, head in zip(model.members, model.heads)}
    if ours:
        load_ensemble(parts, state)
    else:
        load_torchvision(parts, state)


def load_ensemble(parts, state):
    """Load the trunk and the heads of an ensemble into parts, {prefix: module}.

    The ensemble may have more heads. Its classifiers are left out if they have another
    number of meta-classes.
    """
    for prefix, module in parts.items():
        own = {k: v for k, v in state.items() if k.startswith(prefix)}
        used = fill(module, own, prefix, optional=('fc.',))
        refuse_spare(own.keys() - used)


def load_torchvision(parts, state):
    """Load a torchvision network into parts, {prefix: module}.

    Each part takes the stages that it has. Squeeze-and-excitation and classifiers stay
    random.
    """
    without_classifier = {k: v for k, v in state.items() if not k.startswith('fc.')}
    used = set()
    for module in parts.values():
        used |= fill(module, without_classifier, '', optional=('fc.', 'se.'))
    spare = state.keys() - used
    refuse_spare(name for name in spare if not name.startswith(CLASSIFIERS))


def load_named(model, weights, name):
    """Load weights as `load_weights` does; name: what an error calls them."""
    try:
        load_weights(model, weights)
    except UserError as error:
        raise UserError(f'{name}: {error}') from error


def is_state_dict(value):
    """Whether a value is a dict of named tensors."""
    if not isinstance(value, dict):
        return False
    named = all(isinstance(name, str) for name in value)
    return named and all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def fill(module, state, prefix, optional):
    """Load the entries of `state` that begin with `prefix`; return the names used.

    optional: the beginnings of names that may be missing. Classifiers of another size
    are left out.
    """
    own = module.state_dict()
    taken = {name: state[prefix + name] for name in own if prefix + name in state}
    used = {prefix + name for name in taken}
    if 'fc.weight' in taken and taken['fc.weight'].shape != own['fc.weight'].shape:
        del taken['fc.weight']
        taken.pop('fc.bias', None)
    for name, value in own.items():
        if name in taken and taken[name].shape != value.shape:
            shapes = f'{tuple(taken[name].shape)}, not {tuple(value.shape)}'
            raise weights_error(f'{prefix}{name} is {shapes}')
        check = is_floats if value.is_floating_point() else is_integers
        if name in taken and not check(taken[name]):
            raise weights_error(
                f'{prefix}{name} is not a plain tensor of finite numbers'
            )
        # old files lack num_batches_tracked, and nothing here reads it
        needed = not name.startswith(optional) and 'num_batches_tracked' not in name
        if name not in taken and needed:
            raise weights_error(f'{prefix}{name} is missing')
    module.load_state_dict(taken, strict=False)
    return used


def refuse_spare(names):
    """Raise UserError if there are weights that have no place in the model."""
    for name in sorted(names):
        raise weights_error(f'{name} has no place')


def weights_error(reason):
    """Return the UserError for weights that do not fit."""
    return UserError(f'weights do not fit the model: {reason}')

"""Where training starts: ImageNet weights, a weight file, or a smaller ensemble."""

import torch
import torchvision

from areir.backbones import CLASSIFIERS
from areir.errors import UserError
from areir.files import load_tensors
from areir.training.run import MODEL_ARGS_BEFORE, model_args

PUBLISHED = ('resnet18', 'resnet34', 'resnet50', 'resnext50_32x4d')


def find_weights(model_type, name):
    """Return torchvision's entry for --weights imagenet or imagenet_v2.

    imagenet is IMAGENET1K_V1 for the networks of the published tables, and the newest
    for all others. Raises UserError if a network has no second version.
    """
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


def imagenet_weights(model_type, name='imagenet'):
    """Return torchvision's state dict, downloaded once into its cache.

    Raises UserError saying what to do if it is not cached and cannot be downloaded.
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
            f'to {cached}, or give --weights FILE, or --weights none to start from '
            'random weights'
        ) from error


def initial_weights(args):
    """Return the state dict that --weights names, or None."""
    if args.weights == 'none':
        return None
    if args.weights in ('imagenet', 'imagenet_v2'):
        return imagenet_weights(args.model_type, args.weights)
    return load_tensors(args.weights)


def load_weights(model, checkpoint):
    """Copy weights into an EnsembleModel, in place.

    checkpoint: a torchvision state dict, or the contents of a model file of train.py.
    From a torchvision network the trunk and every head's stages are taken;
    squeeze-and-excitation and classifiers stay random. From an ensemble the trunk and
    the first heads are taken, and the classifiers if meta_class_size is the same.
    Raises UserError if names or shapes do not fit.
    """
    ours = isinstance(checkpoint, dict) and 'state_dict' in checkpoint
    state = checkpoint['state_dict'] if ours else checkpoint
    if not is_state_dict(state):
        raise misfit('not a state dict')
    parts = {'trunk.': model.trunk}
    parts |= {f'heads.{i}.': head for i, head in zip(model.members, model.heads)}
    used = set()
    without_classifier = {k: v for k, v in state.items() if not k.startswith('fc.')}
    for prefix, module in parts.items():
        if ours:
            own = {k: v for k, v in state.items() if k.startswith(prefix)}
            used |= fill(module, own, prefix, optional=('fc.',))
            refuse_spare(own.keys() - used)
        else:
            used |= fill(module, without_classifier, '', optional=('fc.', 'se.'))
    if not ours:
        spare = [name for name in state if name not in used]
        refuse_spare(name for name in spare if not name.startswith(CLASSIFIERS))


def is_state_dict(value):
    """Whether a value is a dict of named tensors."""
    if not isinstance(value, dict):
        return False
    named = all(isinstance(name, str) for name in value)
    return named and all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def fill(module, state, prefix, optional):
    """Load into module what state holds under prefix; return the names it used.

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
            raise misfit(f'{prefix}{name} is {shapes}')
        # old files lack num_batches_tracked, and nothing here reads it
        needed = not name.startswith(optional) and 'num_batches_tracked' not in name
        if name not in taken and needed:
            raise misfit(f'{prefix}{name} is missing')
    module.load_state_dict(taken, strict=False)
    return used


def refuse_spare(names):
    """Raise UserError if there are weights that have no place in the model."""
    for name in sorted(names):
        raise misfit(f'{name} has no place')


def misfit(reason):
    """Return the error for weights that do not fit."""
    return UserError(f'weights do not fit the model: {reason}')


def freeze_first_heads(model, state_dict, heads):
    """Copy the trunk and the first `heads` heads of a smaller ensemble; freeze them.

    heads: counted among those that `model` holds.
    """
    parts = {'trunk': model.trunk}
    for i in range(heads):
        parts[f'heads.{model.members[i]}'] = model.heads[i]
    for name, part in parts.items():
        names = part.state_dict()
        part.load_state_dict({key: state_dict[f'{name}.{key}'] for key in names})
        part.requires_grad_(False)


def is_model_file(value):
    """Whether a value has all that --extend needs of a model file."""
    if not isinstance(value, dict) or not isinstance(value.get('model_args'), dict):
        return False
    whole = {'state_dict', 'partition', 'classes'} <= value.keys()
    return whole and 'ensemble_size' in value['model_args']


def read_base(args, split, partition):
    """Return the contents of the model file of --extend, or None without it.

    Raises UserError if its heads cannot be the first heads of this run.
    """
    if not args.extend:
        return None
    base = load_tensors(args.extend)
    if not is_model_file(base):
        raise UserError(f'--extend {args.extend}: not a model of train.py')
    saved = {**base, **base['model_args']}
    wanted = {'image_size': args.image_size, 'protocol': args.protocol}
    wanted |= model_args(args)
    del wanted['ensemble_size']  # it may grow
    for name, value in wanted.items():
        begun = saved.get(name, MODEL_ARGS_BEFORE.get(name))
        if begun != value:
            raise UserError(
                f'--extend {args.extend}: --{name} is {value}, but that model has '
                f'{begun}'
            )
    heads = saved['ensemble_size']
    if heads >= args.ensemble_size:
        raise UserError(f'--extend {args.extend}: it has {heads} heads already')
    same = torch.equal(base['partition'], partition[:heads])
    if not same or base['classes'] != split.train.classes:
        raise UserError(
            f'--extend {args.extend}: trained with another --seed or on other classes'
        )
    return base

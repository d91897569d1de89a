"""Where training starts: a network's weights, a model, or a smaller ensemble."""

import torch

from areir.data.images import PixelFormat
from areir.errors import UserError, counted
from areir.files import load_own
from areir.networks import pretrained
from areir.networks.backbones import PUBLISHED, timm_config
from areir.networks.weight_files import (
    check_finite,
    fill,
    misfits,
    read_state_dict,
)
from areir.training.run import model_args

NEEDED = 'state_dict', 'model_args', 'pixel_format', 'partition', 'classes', 'protocol'


def initial_format(args, split, base=None):
    """Return the PixelFormat of the images of a run.

    It is that of the model of --extend, or that of the network's weights; the dataset's
    own for random weights and for the networks of the published tables.
    """
    if base:
        return PixelFormat(**base['pixel_format'])
    if args.weights == 'none' or args.model_type in PUBLISHED:
        return split.pixel_format(args.image_size)
    return pretrained.pixel_format(args.model_type, args.image_size)


def initial_weights(args):
    """Return what --weights names: (a whole network or None, an ensemble's or None).

    An ensemble's weights are the state dict in a model file of train.py.
    """
    if args.weights == 'none':
        return None, None
    if args.weights == 'pretrained':
        return pretrained.download(args.model_type, args.image_size), None
    content, flag = read_state_dict(args.weights), f'--weights {args.weights}'
    if 'format' in content:
        advice = '--weights needs a model file of train.py'
        load_own(args.weights, ('state_dict', 'pixel_format'), advice, content)
        size = content['pixel_format']['image_size']
        if size != args.image_size and timm_config(args.model_type).fixed_input_size:
            raise UserError(
                f'{flag}: a model of other images: give --image_size {size}'
            )
        return None, content['state_dict']
    return fill(args.model_type, content, flag, args.image_size), None


def load_ensemble(model, state, name, old_heads=None):
    """Copy the weights of an ensemble, which may have more heads, to an EnsembleModel.

    Its classifiers are left out if they have another number of meta-classes. name: what
    an error calls the weights. old_heads: of an ensemble of fewer heads, their number;
    then the trunk and these heads are frozen.
    """
    check_finite(state, name)
    parts = {'trunk.': model.trunk}
    for member, head in zip(model.members, model.heads):
        if old_heads is None or member < old_heads:
            parts[f'heads.{member}.'] = head
    for prefix, part in parts.items():
        own = [key for key in state if key.startswith(prefix)]
        weights = {key.removeprefix(prefix): state[key] for key in own}
        classifier = weights.get('fc.weight')
        if classifier is not None and classifier.shape != part.fc.weight.shape:
            weights |= part.fc.state_dict(prefix='fc.')
        try:
            part.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f'{name}: not weights of {model.model_type}: {prefix[:-1]}: '
                f'{misfits(error, [])}'
            ) from error
        if old_heads is not None:
            part.requires_grad_(False)


def read_base(args, split, partition):
    """Return the contents of the model file of --extend, or None without it.

    Raises UserError if its heads cannot be the first heads of this run.
    """
    if not args.extend:
        return None
    flag, advice = f'--extend {args.extend}', '--extend needs a model file of train.py'
    base = load_own(args.extend, NEEDED, advice, mmap=True)
    saved = {**base, **base['pixel_format'], **base['model_args']}
    wanted = {'image_size': args.image_size, 'protocol': args.protocol}
    wanted |= model_args(args)
    del wanted['ensemble_size']  # it may grow
    for name, value in wanted.items():
        if saved[name] != value:
            raise UserError(
                f'{flag}: --{name} is {value}, but that model has {saved[name]}'
            )
    heads = saved['ensemble_size']
    if heads >= args.ensemble_size:
        raise UserError(f'{flag}: it has {counted(heads, "head")} already')
    same = torch.equal(base['partition'], partition[:heads])
    if not same or base['classes'] != split.train.classes:
        raise UserError(f'{flag}: trained with another --seed or on other classes')
    return base

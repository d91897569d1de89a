"""Where training starts: ImageNet weights, a weight file, or a smaller ensemble."""

import torch

from areir.errors import UserError
from areir.files import load_own, load_tensors
from areir.networks.pretrained import imagenet_weights
from areir.training.run import model_args

NEEDED = 'state_dict', 'model_args', 'pixel_format', 'partition', 'classes', 'protocol'


def initial_weights(args):
    """Return the state dict that --weights names."""
    if args.weights in ('imagenet', 'imagenet_v2'):
        return imagenet_weights(args.model_type, args.weights)
    return load_tensors(args.weights)


def freeze_old_heads(model, state_dict, old_heads):
    """Copy the trunk and the heads of a smaller ensemble; freeze them.

    old_heads: how many heads the smaller ensemble has, the first ones of `model`.
    """
    parts = {'trunk': model.trunk}
    for member, head in zip(model.members, model.heads):
        if member < old_heads:
            parts[f'heads.{member}'] = head
    for name, part in parts.items():
        weights = {key: state_dict[f'{name}.{key}'] for key in part.state_dict()}
        part.load_state_dict(weights)
        part.requires_grad_(False)


def read_base(args, split, partition):
    """Return the contents of the model file of --extend, or None without it.

    Raises UserError if its heads cannot be the first heads of this run.
    """
    if not args.extend:
        return None
    base = load_own(args.extend, NEEDED, '--extend needs a model file of train.py')
    saved = {**base, **base['pixel_format'], **base['model_args']}
    wanted = {'image_size': args.image_size, 'protocol': args.protocol}
    wanted |= model_args(args)
    del wanted['ensemble_size']  # it may grow
    for name, value in wanted.items():
        if saved[name] != value:
            raise UserError(
                f'--extend {args.extend}: --{name} is {value}, but that model has '
                f'{saved[name]}'
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

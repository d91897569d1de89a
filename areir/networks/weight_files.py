"""Read the weights of a network from the files that other programs save."""

import re

import torch

from areir.errors import UserError
from areir.files import load_tensors
from areir.networks.backbones import build_network, timm_config

SAVED_UNDER = 'state_dict_ema', 'model_ema', 'teacher', 'state_dict', 'model'
# prefixes of a network's names in files that also hold others, such as those of a head
WRAPPERS = '_orig_mod module teacher encoder_q base_encoder model backbone visual.trunk'
# prefixes that all names of some networks of timm have, and keep
PARTS = 'features', 'body', 'encoder', 'visual'
# prefixes of what SwAV, SimSiam, VICReg and MAE train beside a network
HEADS = 'projection_head.', 'prototypes.', 'predictor.', 'projector.', 'decoder'
NAMED = 3  # weights of a kind that a message names
# layers that classify in files of other programs; timm says which does in its own
CLASSIFIERS = 'fc', 'fc.0', 'fc.2', 'head', 'classifier', 'head.bn', 'head_dist.bn'


def read_state_dict(path):
    """Return {name: tensor} of the network in a file, floats as float32.

    Reads safetensors and files of torch.save. Of several state dicts an average of the
    weights is preferred, then the largest. Prefixes of all names are removed; a
    projection head or a text tower is left out. CLIP's own names keep `visual.`, by
    which timm knows them. A file of this program, which has a 'format', is returned as
    it is. Raises UserError as `load_tensors` does, or if there are no weights.
    """
    content = load_tensors(path)
    if isinstance(content, dict) and isinstance(content.get('format'), int):
        return content
    state = unwrap(find_state(content))
    if not state:
        raise UserError(
            f'{path} holds no weights of a network: give a .safetensors file, or a '
            'state dict written by torch.save'
        )
    return {n: v.float() if v.is_floating_point() else v for n, v in state.items()}


def find_state(content):
    """Return the state dict of a network in what a program saved, or an empty dict."""
    if not isinstance(content, dict):
        return {}
    for name in SAVED_UNDER:
        if state := find_state(content.get(name)):
            return state
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    own = {n: v.detach() for n, v in named.items() if isinstance(v, torch.Tensor)}
    if any(name.endswith('.weight') for name in own):
        return own
    states = map(find_state, named.values())
    return max(states, key=lambda s: sum(v.numel() for v in s.values()), default={})


def unwrap(state):
    """Return a state dict without the prefixes of the network's names."""
    first = next(iter(state), '').partition('.')[0]
    shared = first not in PARTS and all(n.startswith(f'{first}.') for n in state)
    for wrapper in [first] * shared + WRAPPERS.split():
        front = f'{wrapper}.'
        inner = {n[len(front) :]: v for n, v in state.items() if n.startswith(front)}
        if inner:
            return unwrap(inner)
    towers = {n: v for n, v in state.items() if n.startswith('visual.')}
    return towers or {n: v for n, v in state.items() if not n.startswith(HEADS)}


# Into a network


def fill(model_type, state, name, image_size=None):
    """Return a whole network without a classifier, with the weights of a state dict.

    timm converts names and position embeddings. name: what an error calls the weights.
    """
    check_finite(state, name)
    layer = timm_config(model_type).classifier or ()
    layers = {*CLASSIFIERS, *([layer] if isinstance(layer, str) else layer)}
    for classes in (0, -1):  # timm is strict if this is the network's number, 0
        source = {'state_dict': dict(state), 'num_classes': classes}
        try:
            network = build_network(model_type, image_size, source)
            break
        except (RuntimeError, LookupError, AttributeError) as error:  # timm converts
            reason = misfits(error, layers)
            if reason or classes:
                own = build_network(model_type, image_size).state_dict()
                by_names = some('missing', sorted(own.keys() - state.keys()))
                by_names += some('left over', sorted(state.keys() - own.keys()))
                reason = reason or '; '.join(by_names) or repr(error)
                raise UserError(
                    f'{name}: not weights of {model_type}: {reason}'
                ) from error
    return network


def misfits(error, layers):
    """Return what torch's error says of weights, except those of some layers."""
    reasons = []
    for line in str(error).split('\n\t')[1:]:
        names = re.findall('"(.+?)"', line)
        names = [name for name in names if name.rpartition('.')[0] not in layers]
        reasons += some('missing' if line.startswith('Missing') else 'left over', names)
        if line.startswith('size'):
            reasons.append(line.strip())
    return '; '.join(reasons[:NAMED])


def some(kind, names):
    """Return [kind: the first names], or [] if there are none."""
    more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
    return [f'{kind}: {", ".join(names[:NAMED])}{more}'] if names else []


def check_finite(state, name):
    """Raise UserError if a state dict holds NaN or infinity."""
    for key, tensor in state.items():
        # 40 times as fast as isfinite; aminmax returns NaN if any number is NaN
        if tensor.numel() and not all(end.isfinite() for end in tensor.aminmax()):
            raise UserError(f'{name}: {key} holds NaN or infinity')

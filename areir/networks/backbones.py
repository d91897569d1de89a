"""Backbones: four ResNets of torchvision and the networks of timm, cut into stages.

The ResNets of the published tables are torchvision's; any other name, and one with a
tag, is timm's. A network can be cut where all that follows is a chain: each module
takes what the one before returned. To find out, it sees one black image, and the
modules that it calls are noted. The first stage is the network itself up to the first
cut, with whatever it computes between its modules; the other stages are modules of the
chain; the pooling is the network's own.
timm takes seconds to import, so a search in a database does without it.
"""

import copy
import difflib
import logging
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from areir.errors import UserError
from areir.networks.layers import (
    Block,
    ChannelsFirst,
    ClassToken,
    Layout,
    MeanPool,
    Pass,
    Pool,
    Stem,
)

PUBLISHED = ('resnet18', 'resnet34', 'resnet50', 'resnext50_32x4d')  # in the tables
STAGES = 4  # at most
CLASS_TOKEN, CHANNELS_FIRST = 'class_token', 'channels_first'  # between two modules


@dataclass
class Backbone:
    """A network in stages, which run one after the other.

    stages: {name: module} of each; layouts: of what each returns; tail: {name: module}
    of the pooling, which returns vectors (N, width); classifier: the network's own.
    """

    stages: list
    layouts: list
    tail: dict
    width: int
    classifier: nn.Linear | None = None


def is_network(name):
    """Whether this is the name of a network, with or without a tag of its weights."""
    import timm

    return timm.is_model(name.partition('.')[0])


def timm_config(model_type):
    """Return timm's description of a network. Raises UserError if there is none."""
    import timm

    logging.getLogger('timm').setLevel(logging.ERROR)
    if not is_network(model_type):
        similar = difflib.get_close_matches(model_type, timm.list_models(), 6, 0.4)
        raise UserError(
            f'--model_type {model_type}: no network of timm has this name; similar '
            f'ones: {", ".join(similar) or "none"}'
        )
    try:
        return timm.get_pretrained_cfg(model_type) or timm.models.PretrainedCfg()
    except RuntimeError as error:  # the tag
        raise UserError(f'--model_type {model_type}: {error}') from error


def build_network(model_type, num_classes=0, image_size=None, **options):
    """Return a whole network of torchvision or timm on the default device.

    num_classes: 0 for none, in a network of timm; image_size: pixels per side, for
    networks of a fixed size, by default their own; options: of timm.create_model,
    without which the weights are random.
    """
    if model_type in PUBLISHED:
        import torchvision

        return torchvision.models.get_model(model_type, num_classes=num_classes)
    import timm

    if timm_config(model_type).fixed_input_size:
        options['img_size'] = image_size
    return timm.create_model(model_type, num_classes=num_classes, **options)


def layers_of(model_type):
    """Return the layers of a network, without memory for their weights."""
    with torch.device('meta'):
        return list(build_network(model_type, 1).modules())


def has_depthwise(model_type):
    """Whether a network convolves each channel by itself."""
    layers = (layer for layer in layers_of(model_type) if isinstance(layer, nn.Conv2d))
    return any(layer.groups == layer.in_channels > 1 for layer in layers)


def is_transformer(model_type):
    """Whether a network trains like a transformer: with layer norm, not batch norm."""
    layers = layers_of(model_type)
    batch_norm = any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    return not batch_norm or any(isinstance(layer, nn.LayerNorm) for layer in layers)


def own_size(model_type):
    """Return the pixels per side of the images that a network was made for."""
    return 256 if model_type in PUBLISHED else timm_config(model_type).input_size[-1]


def check_image_size(image_size, model_type):
    """Raise UserError if a network cannot be cut or images of this size do not fit."""
    if model_type in PUBLISHED:
        return
    with torch.device('meta'):
        build_backbone(model_type, 0)
        if takes(model_type, image_size):
            return
        sizes = range(14, 2 * image_size, 2)  # patches and windows are even
        nearest = sorted(sizes, key=lambda size: abs(size - image_size))
        fitting = (size for size in nearest[:64] if takes(model_type, size))
        raise UserError(
            f'--image_size {image_size}: does not fit --model_type {model_type}; the '
            f'nearest that does is {next(fitting, own_size(model_type))}'
        )


def takes(model_type, image_size):
    """Whether images of this size fit a network, which is on the meta device."""
    try:
        network = build_network(model_type, 0, image_size)
        patch = getattr(getattr(network, 'patch_embed', None), 'patch_size', [1])
        network(torch.zeros(2, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError):  # whatever a network says
        return False
    return image_size % patch[0] == 0


def build_backbone(model_type, num_classes, image_size=None):
    """Return the Backbone of a network with random weights, on the default device."""
    classes = num_classes if model_type in PUBLISHED else 0
    return cut(build_network(model_type, classes, image_size), image_size)


def cut_resnet(network):
    """Return the Backbone of a ResNet of torchvision."""
    children = dict(network.named_children())
    fc, _ = children.pop('fc'), children.pop('avgpool')
    stages, layouts = [{}], []
    for name, layer in children.items():
        stages[-1][name] = layer
        if name.startswith('layer'):
            inner = layer.modules()
            *_, last = (conv for conv in inner if isinstance(conv, nn.Conv2d))
            layouts.append(Layout(last.out_channels))
            stages.append({})
    tail = {'pool': MeanPool()}
    return Backbone(stages[:-1], layouts, tail, last.out_channels, fc)


# Networks of timm


@dataclass
class Call:
    """A call of a module. after: how many calls had begun when it ended."""

    name: str
    module: nn.Module
    arguments: tuple
    named: dict
    result: object = None
    after: int = 0


def note_calls(network, image_size):
    """Return the Calls of a network for features and for pooling, and both results."""
    calls, running, hooks = [], [], []
    names = {module: name for name, module in network.named_modules()}

    def begin(module, arguments, named):
        running.append(Call(names[module], module, arguments, named))
        calls.append(running[-1])

    def end(module, arguments, result):
        call = running.pop()
        call.result, call.after = result, len(calls)

    for module in list(names)[1:]:  # but not of the network itself
        hooks.append(module.register_forward_pre_hook(begin, with_kwargs=True))
        hooks.append(module.register_forward_hook(end))
    network.eval()
    with torch.no_grad():
        features = network.forward_features(torch.zeros(1, 3, image_size, image_size))
        count = len(calls)
        vectors = network.forward_head(features) if is_tensor(features) else None
    network.train()
    for hook in hooks:
        hook.remove()
    return calls[:count], calls[count:], features, vectors


def is_tensor(value):
    return isinstance(value, torch.Tensor)


def stage_ends(network):
    """Return the names of the modules at which stages end, but for the last stage.

    timm lists them. Where all blocks have one resolution, they divide these into equal
    parts; else the last ones count.
    """
    info = getattr(network.feature_info, 'info', network.feature_info)
    count = len(info)
    if count > STAGES and len({entry['reduction'] for entry in info}) < 3:
        places = [round(count * part / STAGES) for part in range(1, STAGES)]
    else:
        places = range(max(1, count - STAGES + 1), count)
    return [info[place - 1]['module'] for place in places]


def cut(network, image_size=None):
    """Return the Backbone of a whole network, which is taken apart.

    image_size: pixels per side, by default its own. Raises UserError if it cannot be
    cut.
    """
    if not hasattr(network, 'forward_features'):
        return cut_resnet(network)  # torchvision's
    side = image_size or network.pretrained_cfg['input_size'][-1]
    calls, pooling, features, vectors = note_calls(network, side)
    ends = [call for end in stage_ends(network) for call in calls if call.name == end]
    chains = [find_chain(network, calls, end, features) for end in ends]
    if not any(chains) or not is_tensor(vectors) or vectors.ndim != 2:
        raise UserError(
            f'--model_type {network.pretrained_cfg["architecture"]}: it cannot be '
            'divided into trunk and heads, because its modules do not form a chain'
        )
    chain, end = next((chain, end) for chain, end in zip(chains, ends) if chain)
    results = [end.result, *(result for _, _, result in chain)]
    places = [
        place
        for place, result in enumerate(results[:-1])
        if any(result is end.result for end in ends)
    ]
    stages, layouts = [], []
    for start, stop in pairwise([*places, len(chain)]):
        stages.append({name: module for name, module, _ in chain[start:stop]})
        layouts.append(layout_of(network, results[start], chain[start:]))
    layouts.append(layout_of(network, features, []))
    for name in dict.fromkeys(name for stage in stages for name in stage):
        if name != CLASS_TOKEN and name != CHANNELS_FIRST:
            network.set_submodule(name, Pass(keeps=name == chain[0][0]))
    # one copy of the rest computes the first stage, and the other pools
    pool = copy.deepcopy(network)
    used = {call.name.partition('.')[0] for call in calls}
    pools = {call.name.partition('.')[0] for call in pooling}
    for name, _ in list(network.named_children()):
        if name not in pools:
            setattr(pool, name, nn.Identity())
        elif name not in used:
            setattr(network, name, nn.Identity())
    for name, _ in list(pool.named_parameters(recurse=False)):
        setattr(pool, name, None)
    stages.insert(0, {'stem': Stem(network, chain[0][0])})
    return Backbone(stages, layouts, {'pool': Pool(pool)}, vectors.shape[1])


def find_chain(network, calls, end, features):
    """Return (name, module, its result) of all that leads to the features, or None.

    end: the call that it begins after. Between two modules a class token may join the
    others, or channels move to the front.
    """
    output, place, chain = end.result, end.after, []
    while output is not features:
        if not is_tensor(output):
            return None
        rest = (call for call in calls[place:] if call.arguments)
        call = next((call for call in rest if call.arguments[0] is output), None)
        if call:
            named = {
                name: value for name, value in call.named.items() if is_tensor(value)
            }
            if named.keys() - {'rope'} or any(map(is_tensor, call.arguments[1:])):
                return None
            module = call.module
            if named or call.arguments[1:]:
                rope = network.rope if named else None
                module = Block(
                    module,
                    call.arguments[1:],
                    rope,
                    call.name,
                    network.num_prefix_tokens,
                )
            chain.append((call.name, module, call.result))
            output, place = call.result, call.after
            continue
        following = calls[place].arguments[0] if place < len(calls) else features
        tokens = output.flatten(1, -2)
        if not chain or not is_tensor(following):
            return None
        if following.shape[1:] == (tokens.shape[1] + 1, tokens.shape[2]):
            chain.append((CLASS_TOKEN, ClassToken(network.cls_token), following))
        elif output.ndim == 4 and following.shape == output.permute(0, 3, 1, 2).shape:
            chain.append((CHANNELS_FIRST, ChannelsFirst(), following))
        else:
            return None
        output = following
    return chain


def layout_of(network, features, chain):
    """Return the Layout of features of square images, before a chain of modules."""
    shape = features.shape
    if len(shape) == 3:
        joins = any(name == CLASS_TOKEN for name, _, _ in chain)
        own = hasattr(network, 'cls_token')
        prefix = 0 if joins else getattr(network, 'num_prefix_tokens', int(own))
        return Layout(shape[2], (1,), prefix)
    last = getattr(network, 'output_fmt', '') == 'NHWC' or shape[2] != shape[3]
    return (
        Layout(shape[3], (1, 2)) if last and shape[1] == shape[2] else Layout(shape[1])
    )

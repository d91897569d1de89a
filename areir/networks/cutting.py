"""A network of timm, cut into stages.

It can be cut where all that follows is a chain: each module takes what the one before
returned. To find out, the network sees one black image, and the modules that it calls
are noted. The first stage is the network itself up to the first cut, with whatever it
computes between its modules; the others are modules of the chain; the pooling is its
own.
"""

import contextlib
import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import is_tensor, nn

from areir.errors import UserError
from areir.networks.layers import Block, ClassToken, Layout, Pass, Pool, Stem

STAGES = 4  # at most


@dataclass
class Backbone:
    """A network in stages, which run one after the other.

    layouts: of what each stage returns; pool: turns the last into vectors (N, width);
    image_size: pixels per side of the images that it takes.
    """

    stages: list
    layouts: list
    pool: nn.Module
    width: int
    image_size: int


def cut(network, image_size=None):
    """Return the Backbone of a whole network of timm, which is taken apart.

    image_size: pixels per side, by default those of its weights. Raises UserError if it
    cannot be cut.
    """
    side = image_size or network.pretrained_cfg['input_size'][-1]
    calls, pooling, features, vectors = note_calls(network, side)
    ends = [call for end in stage_ends(network) for call in calls if call.name == end]
    chains = [find_chain(network, calls, end, features) for end in ends]
    chain = max(chains, key=lambda chain: len(find_starts(chain, ends)), default=[])
    starts = find_starts(chain, ends)
    if not starts or not is_tensor(vectors) or vectors.ndim != 2:
        raise UserError(
            f'--model_type {network.pretrained_cfg["architecture"]}: it cannot be '
            'divided into trunk and heads, because its modules do not form a chain'
        )
    stages, layouts = [], []
    for start, stop in pairwise([*starts, len(chain)]):
        stages.append(nn.Sequential(*(call.module for call in chain[start:stop])))
        layouts.append(find_layout(network, chain[start - 1].result, chain[start:]))
    layouts.append(find_layout(network, features, []))
    moved = [call.name for call in chain[starts[0] :] if call.name]
    for name in moved:
        network.set_submodule(name, Pass(keeps=name == moved[0]))
    # one copy of the rest computes the first stage, and the other pools
    pool = copy.deepcopy(network)
    # the children of the network that are called for features, and for pooling
    used, pools = (
        {call.name.partition('.')[0] for call in part} for part in (calls, pooling)
    )
    for name, _ in list(network.named_children()):
        if name not in pools:
            setattr(pool, name, nn.Identity())
        elif name not in used:
            setattr(network, name, nn.Identity())
    for name, _ in list(pool.named_parameters(recurse=False)):
        setattr(pool, name, None)
    stages.insert(0, nn.Sequential(Stem(network, moved[0])))
    return Backbone(stages, layouts, Pool(pool), vectors.shape[1], side)


@dataclass
class Call:
    """A call of a module.

    after: how many calls had begun when it ended. torch counts changes in place by a
    version; taken: that of the first argument when it began; version: that of the
    result when it ended.
    """

    name: str
    module: nn.Module
    arguments: tuple = ()
    named: dict = field(default_factory=dict)
    taken: int = 0
    result: object = None
    after: int = 0
    version: int = 0


def note_calls(network, image_size):
    """Return the Calls of a network for features and for pooling, and both results."""
    calls, running = [], []
    names = {module: name for name, module in network.named_modules() if name}

    def begin(module, arguments, named):
        taken = getattr(arguments[0], '_version', 0) if arguments else 0
        running.append(Call(names[module], module, arguments, named, taken))
        calls.append(running[-1])

    def end(module, arguments, result):
        call = running.pop()
        call.result, call.after = result, len(calls)
        call.version = getattr(result, '_version', 0)

    network.eval()
    with torch.no_grad(), contextlib.ExitStack() as hooks:
        for module in names:
            before = module.register_forward_pre_hook(begin, with_kwargs=True)
            hooks.enter_context(before)
            hooks.enter_context(module.register_forward_hook(end))
        features = network.forward_features(torch.zeros(1, 3, image_size, image_size))
        count = len(calls)
        vectors = None
        with contextlib.suppress(NotImplementedError):  # some networks only encode
            vectors = network.forward_head(features) if is_tensor(features) else None
    network.train()
    return calls[:count], calls[count:], features, vectors


def stage_ends(network):
    """Return the names of the modules that end the stages before the last.

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


def find_chain(network, calls, end, features):
    """Return the Calls that lead from that of `end` to the features, or [].

    Modules that take more than features become Blocks. Where a class token joins, a
    ClassToken without a name is added.
    """
    chain, place = [end], end.after
    while chain[-1].result is not features:
        before = chain[-1]
        output = before.result
        rest = [call for call in calls[place:] if call.arguments]
        call = next((call for call in rest if call.arguments[0] is output), None)
        following = rest[0].arguments[0] if rest else features
        if call:
            named = [name for name in call.named if is_tensor(call.named[name])]
            extras, module = call.arguments[1:], call.module
            known = ['rope'] if hasattr(network, 'rope') else []
            if named not in ([], known) or any(map(is_tensor, extras)):
                return []
            if named or extras:
                module = Block(module, extras, network if named else None, call.name)
            chain.append(replace(call, module=module))
            place = call.after
            later = [value for one in calls[place:] for value in one.arguments]
            branches = call.result is not output and any(v is output for v in later)
            if branches or call.taken != before.version:
                return []  # something is added to what the module before returned
        elif joined(output) == getattr(following, 'shape', ()):
            token = ClassToken(network.cls_token)
            chain.append(Call('', token, result=following))
        else:
            return []
    return chain


def find_starts(chain, ends):
    """Return the places in a chain of the Calls with which a new stage begins."""
    ended = [id(end.result) for end in ends]
    return [
        place
        for place, call in enumerate(chain[:-1], 1)
        if id(call.result) in ended
        and chain[place].name
        # a tensor that no later module has changed in place
        and is_tensor(call.result)
        and call.result._version == call.version
    ]


def joined(features):
    """Return the shape (N, L + 1, C) of tokens or maps after a class token joins."""
    if not is_tensor(features) or features.ndim < 3:
        return None
    tokens = features.flatten(1, -2)
    return (len(tokens), tokens.shape[1] + 1, tokens.shape[2])


def find_layout(network, features, chain):
    """Return the Layout of features of square images; chain: the Calls after them."""
    _, *sizes, channels = features.shape
    if len(sizes) == 1:
        own = int(hasattr(network, 'cls_token'))
        prefix = getattr(network, 'num_prefix_tokens', own)
        joins = any(not call.name for call in chain)
        return Layout(channels, (1,), 0 if joins else prefix)
    last = getattr(network, 'output_fmt', '') == 'NHWC'  # if all three are equal
    if sizes[0] == sizes[1] and (last or sizes[1] != channels):
        return Layout(channels, (1, 2))
    return Layout(sizes[0])

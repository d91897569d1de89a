"""Stages of named blocks, pooling and attention; faster copies of trained networks."""

import copy
from dataclasses import dataclass
from itertools import chain, pairwise
from math import isqrt

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


@dataclass(frozen=True)
class Layout:
    """What the dimensions of features are.

    space: those of space, (2, 3) for (N, C, H, W), (1, 2) for (N, H, W, C), and (1,)
    for tokens (N, L, C); channels: C; prefix: how many of the tokens come before those
    of the patches.
    """

    channels: int
    space: tuple = (2, 3)
    prefix: int = 0

    def mean(self, features):
        """Return the means over space (N, C), in float32 at least, of the patches."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        return features[:, self.prefix :].mean(dim=self.space, dtype=dtype)

    def scale(self, features, gates):
        """Multiply features by gates (N, C)."""
        for dim in self.space:
            gates = gates.unsqueeze(dim)
        return features * gates

    def maps(self, features):
        """Return the features of the patches as (N, C, H, W)."""
        if self.space == (1,):
            patches = features[:, self.prefix :]
            side = isqrt(patches.shape[1])
            features = patches.unflatten(1, (side, side))
        return features if self.space == (2, 3) else features.permute(0, 3, 1, 2)


class Stages(nn.Module):
    """Runs stages one after the other, and then a tail.

    stages: the blocks {dotted name: module} of each; tail: its blocks. Weights are
    named as in the network that the blocks are from. stage_names and tail_names hold
    the names of these blocks.
    """

    def __init__(self, stages, tail=None):
        super().__init__()
        tail = tail or {}
        self.stage_names = [list(stage) for stage in stages]
        self.tail_names = list(tail)
        for part in (*stages, tail):
            for path, block in part.items():
                *parents, name = path.split('.')
                home = self
                for parent in parents:
                    if not hasattr(home, parent):
                        home.add_module(parent, nn.Module())
                    home = home.get_submodule(parent)
                home.add_module(name, block)

    def run(self, names, features):
        for name in names:
            features = self.get_submodule(name)(features)
        return features

    def outputs(self, features):
        """Return a list of the features of each stage."""
        outputs = []
        for names in self.stage_names:
            features = self.run(names, features)
            outputs.append(features)
        return outputs

    def forward(self, features):
        for names in (*self.stage_names, self.tail_names):
            features = self.run(names, features)
        return features


# Parts of a network of timm


class Pass(nn.Module):
    """In the place of a module that runs elsewhere: returns its features.

    keeps: whether it also keeps them, until they are taken.
    """

    def __init__(self, keeps):
        super().__init__()
        self.keeps, self.kept = keeps, None

    def forward(self, features, *others, **named):
        if self.keeps:
            self.kept = features
        return features

    def take(self):
        features, self.kept = self.kept, None
        return features


class Stem(nn.Module):
    """Runs a network up to its module `end`, a Pass that keeps."""

    def __init__(self, network, end):
        super().__init__()
        self.network, self.end = network, end

    def forward(self, images):
        self.network.forward_features(images)
        return self.network.get_submodule(self.end).take()


class Pool(nn.Module):
    """Runs the pooling of a network, in float32 at least: features -> (N, width)."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, features):
        dtype = torch.promote_types(features.dtype, torch.float32)
        return self.network.forward_head(features.to(dtype))


class Block(nn.Module):
    """A block that takes more than features.

    numbers: its other arguments; rope: the rotary position embedding of the network
    (arXiv 2104.09864), or None; name: ends with the number of the block, for a rope
    with one for each; prefix: how many tokens are not rotated.
    """

    def __init__(self, block, numbers, rope, name, prefix):
        super().__init__()
        self.block, self.numbers, self.rope = block, numbers, copy.deepcopy(rope)
        self.place, self.prefix = name.rpartition('.')[2], prefix

    def forward(self, features):  # (N, L, C)
        if self.rope is None:
            return self.block(features, *self.numbers)
        side = isqrt(features.shape[1] - self.prefix)
        cached = getattr(self.rope, 'feat_shape', None)
        rope = self.rope.get_embed() if cached else self.rope.get_embed([side, side])
        if rope.ndim > 2:
            rope = rope[int(self.place)]
        return self.block(features, *self.numbers, rope=rope)


class ClassToken(nn.Module):
    """Puts a class token before the tokens of the patches."""

    def __init__(self, token):  # (1, 1, C)
        super().__init__()
        self.token = nn.Parameter(token.detach().clone())

    def forward(self, features):  # (N, L, C) or (N, H, W, C)
        tokens = features.flatten(1, -2)
        return torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)


class ChannelsFirst(nn.Module):
    """Turns (N, H, W, C) into (N, C, H, W)."""

    def forward(self, features):
        return features.permute(0, 3, 1, 2)


class MeanPool(nn.Module):
    """Means over space of (N, C, H, W), in float32 at least."""

    def forward(self, features):
        return Layout(features.shape[1]).mean(features)


class SqueezeExcitation(nn.Module):
    """Channel attention (arXiv 1709.01507): each gate depends on all channels.

    A gate is sigmoid(x), from 0 to 1. neutral: it is 2 sigmoid(x), and every x is 0 at
    the start, so that features pass unchanged. layout: of the features.
    """

    def __init__(self, layout, reduction=8, neutral=False):
        super().__init__()
        self.layout, channels = layout, layout.channels
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)
        self.gain = 2 if neutral else 1
        if neutral:
            nn.init.zeros_(self.excite.weight)

    def forward(self, features):
        means = features.mean(dim=self.layout.space)  # (N, C)
        gates = torch.sigmoid(self.excite(F.relu(self.squeeze(means))))
        if self.gain > 1:
            gates = gates * self.gain
        return self.layout.scale(features, gates)


# A faster copy of a trained network


def fold_batch_norms(model):
    """Return a copy whose convolutions hold the batch norms after them."""
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        layers = list(parent.named_children())
        for (name, layer), (norm_name, norm) in pairwise(layers):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                # timm's batch norm may end with an activation
                setattr(parent, norm_name, getattr(norm, 'act', nn.Identity()))
    return model


def folded(model, dtype):
    """Return a copy of a model that embeds faster, and cannot be trained.

    Batch norms are folded, and all layers before the pooling are in `dtype`.
    """
    model = fold_batch_norms(model)
    model.trunk.to(dtype, memory_format=torch.channels_last)
    for head in model.heads:
        for name in chain.from_iterable(head.stage_names):
            head.get_submodule(name).to(dtype, memory_format=torch.channels_last)
    return model

"""Layers that torch does not have: chains of named blocks, pooling, attention."""

import copy
from itertools import chain, pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Chain(nn.Module):
    """Runs blocks one after the other. blocks: {dotted name: module}.

    Weights are named as in the network that the blocks are from.
    """

    def __init__(self, blocks):
        super().__init__()
        self.order = list(blocks)
        for path, block in blocks.items():
            *parents, name = path.split('.')
            home = self
            for parent in parents:
                if not hasattr(home, parent):
                    home.add_module(parent, nn.Module())
                home = home.get_submodule(parent)
            home.add_module(name, block)

    def run(self, names, features):
        """Run the blocks with these names."""
        for name in names:
            features = self.get_submodule(name)(features)
        return features

    def forward(self, features):
        return self.run(self.order, features)


class Stages(Chain):
    """A chain of stages, with a tail after the last one.

    stages: the blocks {dotted name: module} of each; tail: its blocks. The attributes
    `stages` and `tail` hold the names of these blocks.
    """

    def __init__(self, stages, tail=None):
        tail = tail or {}
        blocks = {}
        for part in (*stages, tail):
            blocks |= part
        super().__init__(blocks)
        self.stages = [list(stage) for stage in stages]
        self.tail = list(tail)

    def outputs(self, features):
        """Return a list of the features (N, C, H, W) of each stage."""
        outputs = []
        for stage in self.stages:
            features = self.run(stage, features)
            outputs.append(features)
        return outputs


class MeanPool(nn.Module):
    """Means over space, in float32 at least."""

    def forward(self, features):  # (N, C, H, W)
        dtype = torch.promote_types(features.dtype, torch.float32)
        return features.mean(dim=(2, 3), keepdim=True, dtype=dtype)  # (N, C, 1, 1)


class SqueezeExcitation(nn.Module):
    """Channel attention (arXiv 1709.01507): each gate depends on all channels.

    A gate is sigmoid(x), from 0 to 1. neutral: it is 2 sigmoid(x), and every x is 0 at
    the start, so that features pass unchanged.
    """

    def __init__(self, channels, reduction=8, neutral=False):
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)
        self.gain = 2 if neutral else 1
        if neutral:
            nn.init.zeros_(self.excite.weight)

    def forward(self, features):  # (N, C, H, W)
        means = features.mean(dim=(2, 3))  # (N, C)
        gates = torch.sigmoid(self.excite(F.relu(self.squeeze(means))))
        if self.gain > 1:
            gates = gates * self.gain
        return features * gates[:, :, None, None]


# A faster copy of a trained network


def fold_batch_norms(model):
    """Return a copy of a module, each batch norm folded into the convolution before it.

    The copy cannot be trained.
    """
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for (name, module), (norm_name, norm) in pairwise(
            list(parent.named_children())
        ):
            pair = isinstance(module, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            if pair:
                setattr(parent, name, fuse_conv_bn_eval(module, norm))
                setattr(parent, norm_name, nn.Identity())
    return model


def folded(model, dtype):
    """Return a copy of a model that is faster to embed with.

    Batch norms are folded, and all layers before the pooling are in `dtype`. The copy
    cannot be trained.
    """
    model = fold_batch_norms(model)
    model.trunk.to(dtype, memory_format=torch.channels_last)
    for head in model.heads:
        for name in chain.from_iterable(head.stages):
            head.get_submodule(name).to(dtype, memory_format=torch.channels_last)
    return model

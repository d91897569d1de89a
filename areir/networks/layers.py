"""Stages of named blocks, pooling and attention; faster copies of trained networks."""

import copy
from itertools import chain, pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Stages(nn.Module):
    """Runs stages one after the other, and then a tail.

    stages: the blocks {dotted name: module} of each; tail: its blocks. Weights are
    named as in the network that the blocks are from. The attributes `stages` and `tail`
    hold the names of these blocks.
    """

    def __init__(self, stages, tail=None):
        super().__init__()
        tail = tail or {}
        self.stages, self.tail = [list(stage) for stage in stages], list(tail)
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
        """Return a list of the features (N, C, H, W) of each stage."""
        outputs = []
        for names in self.stages:
            features = self.run(names, features)
            outputs.append(features)
        return outputs

    def forward(self, features):
        for names in (*self.stages, self.tail):
            features = self.run(names, features)
        return features


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
    """Return a copy whose convolutions hold the batch norms after them."""
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        layers = list(parent.named_children())
        for (name, layer), (norm_name, norm) in pairwise(layers):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                setattr(parent, norm_name, nn.Identity())
    return model


def folded(model, dtype):
    """Return a copy of a model that embeds faster, and cannot be trained.

    Batch norms are folded, and all layers before the pooling are in `dtype`.
    """
    model = fold_batch_norms(model)
    model.trunk.to(dtype, memory_format=torch.channels_last)
    for head in model.heads:
        for name in chain.from_iterable(head.stages):
            head.get_submodule(name).to(dtype, memory_format=torch.channels_last)
    return model

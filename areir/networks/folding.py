"""A faster copy of a trained network, to embed with, and one to export."""

import copy
from itertools import chain, pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


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

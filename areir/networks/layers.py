"""Parts of networks in stages; faster copies of trained networks."""

import copy
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from math import isqrt

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

BATCH_NORMS = nn.BatchNorm2d, nn.SyncBatchNorm  # of maps


def run_stages(stages, features):
    """Return a list of what each stage returns; each takes what the one before did."""
    outputs = accumulate(stages, lambda value, stage: stage(value), initial=features)
    return list(outputs)[1:]


@dataclass(frozen=True)
class Layout:
    """What the dimensions of features are.

    space: those of space, (2, 3) for (N, C, H, W), (1, 2) for (N, H, W, C), and (1,)
    for tokens (N, L, C); channels: C; prefix: how many tokens come before those of the
    patches, 0 for maps.
    """

    channels: int
    space: tuple = (2, 3)
    prefix: int = 0

    def mean(self, features):
        """Return the means over space (N, C), in float32 at least, of the patches."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        return features[:, self.prefix :].mean(dim=self.space, dtype=dtype)

    def maps(self, features):
        """Return the features of the patches as (N, C, H, W)."""
        if self.space == (2, 3):
            return features
        if self.space == (1,):
            patches = features[:, self.prefix :]
            features = patches.unflatten(1, [isqrt(patches.shape[1])] * 2)
        return features.permute(0, 3, 1, 2)


# Parts of a network of timm


class Pass(nn.Module):
    """Takes the place of a module that runs elsewhere, and returns its input.

    keeps: whether it also keeps that, for each thread, until `Stem` takes it.
    """

    def __init__(self, keeps):
        super().__init__()
        self.keeps, self.kept = keeps, {}

    def forward(self, features, *others, **named):
        if self.keeps:
            self.kept[threading.get_ident()] = features
        return features


class Stem(nn.Module):
    """Runs a network up to its module `end`, a Pass that keeps."""

    def __init__(self, network, end):
        super().__init__()
        self.network, self.end = network, end

    def forward(self, images):
        self.network.forward_features(images)
        end = self.network.get_submodule(self.end)
        return end.kept.pop(threading.get_ident())


class Pool(nn.Module):
    """Runs the pooling of a network, in float32 at least: features -> (N, width)."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, features):
        dtype = torch.promote_types(features.dtype, torch.float32)
        return self.network.forward_head(features.to(dtype))


class Block(nn.Module):
    """A block that takes more than features: extras, or a rotary position embedding.

    extras: the same for all images; network: what the embedding (arXiv 2104.09864) is
    copied from, or None; name: ends with the block's number, by which it may differ.
    """

    def __init__(self, block, extras, network, name):
        super().__init__()
        self.block, self.extras, self.rope = block, extras, None
        if network:
            self.rope = copy.deepcopy(network.rope)
            self.prefix, self.place = network.num_prefix_tokens, name.rpartition('.')[2]

    def forward(self, features):  # (N, L, C)
        if self.rope is None:
            return self.block(features, *self.extras)
        side = isqrt(features.shape[1] - self.prefix)
        known = getattr(self.rope, 'feat_shape', None)
        rope = self.rope.get_embed(None if known else [side, side])
        if rope.ndim > 2:
            rope = rope[int(self.place)]
        return self.block(features, *self.extras, rope=rope)


class ClassToken(nn.Module):
    """Puts a class token before the others: (N, L, C) or (N, H, W, C) -> (N, L, C)."""

    def __init__(self, token):  # (1, 1, C)
        super().__init__()
        self.token = nn.Parameter(token.detach().clone())

    def forward(self, features):
        tokens = features.flatten(1, -2)
        return torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], dim=1)


# A faster copy of a trained network


@torch.no_grad()
def fold_batch_norms(model):
    """Return a copy whose convolutions hold the batch norms of what they return.

    One random image shows which norms are given what a convolution has returned. If the
    copy then computes something else, because other layers take that as well, the batch
    norms stay.
    """
    model = copy.deepcopy(model).eval()
    names = {module: name for name, module in model.named_modules()}
    if not any(isinstance(module, BATCH_NORMS) for module in names):
        return model
    results, pairs = {}, []

    def note(module, arguments, result):
        if isinstance(module, nn.Conv2d):
            results[id(result)] = module, result  # which keeps its id
        elif id(arguments[0]) in results:
            pairs.append((results[id(arguments[0])][0], module))

    image = random_image(model)
    with ExitStack() as hooks:
        for module in names:
            if isinstance(module, (nn.Conv2d, *BATCH_NORMS)):
                hooks.enter_context(module.register_forward_hook(note))
        wanted = model.describe(image)
    for convolution, norm in pairs:
        model.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, norm))
        # timm's batch norm may end with an activation
        model.set_submodule(names[norm], getattr(norm, 'act', nn.Identity()))
    parts = zip(model.describe(image), wanted)
    if all((part - old).abs().max() <= 1e-3 * old.abs().max() for part, old in parts):
        return model
    for convolution, norm in pairs:
        model.set_submodule(names[convolution], convolution)
        model.set_submodule(names[norm], norm)
    return model


def random_image(model):
    """Return normal noise (1, 3, S, S) as a model takes it."""
    weight, size = next(model.parameters()), model.image_size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return image.to(weight)


@torch.no_grad()
def folded(model, dtype):
    """Return a copy of a model that embeds faster, and cannot be trained.

    Batch norms are folded, and all layers before the pooling are in `dtype`, or in
    float32 if torch lacks one of them in `dtype`.
    """
    copied = fold_batch_norms(model)
    for stages in (copied.trunk, *(head.stages for head in copied.heads)):
        stages.to(dtype, memory_format=torch.channels_last)
    try:
        copied.describe(random_image(copied))
    except NotImplementedError:
        return folded(model, torch.float32)
    return copied

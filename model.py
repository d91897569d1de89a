"""The ensemble: a shared ResNet trunk and heads that each learn their own random meta-classes.

    python model.py                        # parameters of all variants, without allocating them
    python model.py --model_type resnet50 --ensemble_size 8 --meta_class_size 12
"""
import argparse
import copy
import math
from collections import OrderedDict
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

MODEL_TYPES = ('resnet18', 'resnet34', 'resnet50', 'resnext50_32x4d')
TRUNK_LAYERS = ('conv1', 'bn1', 'relu', 'maxpool', 'layer1')
TRUNK, HEAD, PARTITION, ORDER = range(4)  # what a random stream is for; see derive_seed


def derive_seed(seed, purpose, index=0):
    """An independent 64-bit seed for each (seed, purpose, index), so that one head can be drawn alone."""
    return int(np.random.SeedSequence([seed, purpose, index]).generate_state(1, np.uint64)[0])


def assign_meta_classes(num_classes, meta_class_size, ensemble_size, seed):
    """Draw each head's random map from classes to meta-classes.

    Returns int64 (ensemble_size, num_classes). In a row every meta-class occurs, and their sizes differ
    by at most one. Row h depends only on (seed, h), num_classes and meta_class_size.
    Raises ValueError if there are more meta-classes than classes, or if a size is below one.
    """
    for name, value in (('meta_class_size', meta_class_size), ('ensemble_size', ensemble_size)):
        if value < 1:
            raise ValueError(f'{name} {value}: at least 1 is needed')
    if meta_class_size > num_classes:
        raise ValueError(f'meta_class_size {meta_class_size} is more than the {num_classes} training classes')
    balanced = torch.arange(num_classes) % meta_class_size
    rows = []
    for head in range(ensemble_size):
        generator = torch.Generator().manual_seed(derive_seed(seed, PARTITION, head))
        rows.append(balanced[torch.randperm(num_classes, generator=generator)])
    return torch.stack(rows)


@contextmanager
def random_stream(seed):
    """What is initialised inside is drawn from `seed`; the global random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def build_backbone(model_type, num_classes):
    """A torchvision network with random weights."""
    if model_type not in MODEL_TYPES:
        raise ValueError(f'model_type {model_type}: choose from {", ".join(MODEL_TYPES)}')
    return getattr(torchvision.models, model_type)(weights=None, num_classes=num_classes)


class SqueezeExcitation(nn.Module):
    """Channel attention (arXiv 1709.01507): scale each channel by a gate computed from all channel means."""

    def __init__(self, channels, reduction=8):
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, features):                                 # (N, C, H, W)
        means = features.mean(dim=(2, 3))                        # (N, C)
        gates = torch.sigmoid(self.excite(F.relu(self.squeeze(means))))
        return features * gates[:, :, None, None]


class Head(nn.Module):
    """One member of the ensemble: the trunk's features to logits over its own meta-classes."""

    def __init__(self, model_type, meta_class_size, with_se):
        super().__init__()
        backbone = build_backbone(model_type, meta_class_size)
        self.layer2 = backbone.layer2
        # layer2 has a quarter of layer4's channels
        self.se = SqueezeExcitation(backbone.fc.in_features // 4) if with_se else nn.Identity()
        self.layer3 = backbone.layer3
        self.layer4 = backbone.layer4
        self.fc = backbone.fc

    def forward(self, features):                                 # (N, C, H, W)
        features = self.se(self.layer2(features))
        features = self.layer4(self.layer3(features))
        return self.fc(features.mean(dim=(2, 3), dtype=self.fc.weight.dtype))  # (N, M)


class EnsembleModel(nn.Module):
    """A trunk shared by `ensemble_size` heads. Weights are random: trunk from seed, head h from (seed, h).

    images are normalised floats (N, 3, H, W); E = ensemble_size, M = meta_class_size. With `members`, a list of
    head numbers, only these heads of the ensemble are here, and E in what follows is their number.
    Raises ValueError for an unknown model_type and for sizes below one.
    """

    def __init__(self, model_type, ensemble_size, meta_class_size, with_se=True, seed=0, members=None):
        super().__init__()
        if ensemble_size < 1 or meta_class_size < 1:
            raise ValueError(f'ensemble_size {ensemble_size}, meta_class_size {meta_class_size}: at least 1 is needed')
        with random_stream(derive_seed(seed, TRUNK)):
            backbone = build_backbone(model_type, 1)
        self.trunk = nn.Sequential(OrderedDict((name, getattr(backbone, name)) for name in TRUNK_LAYERS))
        self.heads = nn.ModuleList()
        self.ensemble_size = ensemble_size
        self.members = list(range(ensemble_size) if members is None else members)
        for head in self.members:
            with random_stream(derive_seed(seed, HEAD, head)):
                self.heads.append(Head(model_type, meta_class_size, with_se))

    def forward(self, images):
        """Logits of every head, (N, E, M)."""
        features = self.trunk(images)
        return torch.stack([head(features) for head in self.heads], dim=1)

    @torch.no_grad()
    def embed(self, images):
        """Unit vectors (N, E * M): each head's logits L2-normalised, side by side, divided by sqrt(ensemble_size).

        The dot product of two of them is the mean over heads of the heads' cosine similarities. Batch
        statistics are never used, so an image's embedding does not depend on its batch. Of a model that has some
        of the heads they are the columns of those heads.
        """
        training = self.training
        self.eval()
        logits = self(images.to(self.trunk.conv1.weight.dtype)).float()
        self.train(training)
        return F.normalize(logits, dim=2).flatten(1) / math.sqrt(self.ensemble_size)


def folded(model, dtype):
    """A copy of a model for `embed` alone: each batch norm folded into the convolution before it, all but the
    classifiers in `dtype`."""
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for (name, module), (next_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(module, norm))
                setattr(parent, next_name, nn.Identity())
    model.to(dtype, memory_format=torch.channels_last)
    for head in model.heads:
        head.fc.float()
    return model


def ensemble_loss(logits, meta_labels):
    """Cross-entropy of logits (N, E, M) against meta_labels (N, E), averaged over heads and images."""
    return F.cross_entropy(logits.float().flatten(0, 1), meta_labels.flatten())


def imagenet_weights(model_type):
    """torchvision's IMAGENET1K_V1 state dict, from its cache or downloaded into it.

    Raises ValueError with the way out when neither works.
    """
    weights = torchvision.models.get_model_weights(model_type).IMAGENET1K_V1
    cached = f'{torch.hub.get_dir()}/checkpoints/{weights.url.rsplit("/", 1)[1]}'
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # offline, a broken cached file, a full disk: the way out is the same
        reason = str(error).strip().split('\n')[0]
        raise ValueError(f'no ImageNet weights for {model_type} ({reason}): download {weights.url} to {cached}, '
                         'or give --weights FILE, or --weights none to start from random weights') from error


def load_weights(model, checkpoint):
    """Copy weights into `model`, in place: a torchvision state dict, or a checkpoint of ours.

    From a torchvision network the trunk and every head's layer2-4 are taken; squeeze-and-excitation and
    classifier stay random. From an ensemble the trunk and the first heads are taken, and the classifiers
    where meta_class_size is the same. Raises ValueError where names or shapes do not fit.
    """
    ours = isinstance(checkpoint, dict) and 'state_dict' in checkpoint
    state = checkpoint['state_dict'] if ours else checkpoint
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError('weights do not fit the model: not a state dict')
    used = set()
    parts = {'trunk.': model.trunk, **{f'heads.{i}.': head for i, head in zip(model.members, model.heads)}}
    for part, module in parts.items():
        prefix = part if ours else ''
        own = module.state_dict()
        taken = {name: state[prefix + name] for name in own if prefix + name in state}
        used.update(prefix + name for name in taken)
        if 'fc.weight' in taken and taken['fc.weight'].shape != own['fc.weight'].shape:
            del taken['fc.weight'], taken['fc.bias']
        # files older than num_batches_tracked do not have it, and nothing here reads it
        optional = ('fc.',) if ours else ('fc.', 'se.')
        unfit = [f'{name} is missing' for name in own if name not in taken
                 and not name.startswith(optional) and not name.endswith('num_batches_tracked')]
        unfit += [f'{name} is {tuple(taken[name].shape)}, not {tuple(own[name].shape)}' for name in taken
                  if taken[name].shape != own[name].shape]
        unfit += [f'{name[len(prefix):]} has no place' for name in state
                  if ours and name.startswith(prefix) and name not in used]
        if unfit:
            raise ValueError(f'weights do not fit the model: {prefix}{unfit[0]}')
        module.load_state_dict(taken, strict=False)
    spare = [] if ours else [name for name in state if name not in used and not name.startswith('fc.')]
    if spare:
        raise ValueError(f'weights do not fit the model: {spare[0]} has no place')


def count_parameters(model_type, ensemble_size, meta_class_size, with_se):
    """Trainable parameters (trunk, one head, total), counted on the meta device: nothing is allocated."""
    with torch.device('meta'):
        model = EnsembleModel(model_type, 1, meta_class_size, with_se)
    trunk, head = (sum(p.numel() for p in part.parameters()) for part in (model.trunk, model.heads[0]))
    return trunk, head, trunk + ensemble_size * head


def main():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS,
                                     description='Print the number of trainable parameters, without allocating them.')
    parser.add_argument('--model_type', choices=MODEL_TYPES, help='backbone [default: all]')
    parser.add_argument('--with_se', choices=['yes', 'no'], help='squeeze-and-excitation [default: both]')
    parser.add_argument('--ensemble_size', type=int, default=48, help='number of heads [default: %(default)s]')
    parser.add_argument('--meta_class_size', type=int, nargs='+', default=[12, 192, 500],
                        help='meta-classes per head [default: 12 (CARS196, CUB200), 192 (In-shop), 500 (SOP)]')
    args = parser.parse_args()
    if min([args.ensemble_size, *args.meta_class_size]) < 1:
        parser.error('--ensemble_size and --meta_class_size: at least 1 is needed')
    print(f'{"model":<19}{"heads":>6}{"meta_classes":>14}{"trunk":>12}{"one head":>14}{"total":>16}')
    for meta_class_size in args.meta_class_size:
        for with_se in [args.with_se == 'yes'] if args.with_se else [False, True]:
            for model_type in [args.model_type] if args.model_type else MODEL_TYPES:
                trunk, head, total = count_parameters(model_type, args.ensemble_size, meta_class_size, with_se)
                name = 'se-' * with_se + model_type
                print(f'{name:<19}{args.ensemble_size:>6}{meta_class_size:>14}{trunk:>12,}{head:>14,}{total:>16,}')


if __name__ == '__main__':
    main()

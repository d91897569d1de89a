"""Show which networks of timm can be cut into trunk and heads, and check the parts.

    python benchmarks/backbones.py             # with pretrained weights: 15 minutes
    python benchmarks/backbones.py --check     # computes with the smaller ones: hours
    python benchmarks/backbones.py --check vit_tiny_patch16_224 resnet18

A row has the number of stages; the layout of the last features and how many tokens come
before those of the patches; the image size, and pixels per side of a patch; millions of
parameters of trunk and head with --shared_stages 3, without attention.
--check compares features of two random images, with random weights and the batch
statistics of these images, with timm's own: those of trunk and head (cosine 0.999999),
the same folded in float32 (0.9999) and in bf16 (0.99, or at most twice as far from 1 as
timm's own in bf16). The model rebuilt from its weights must be equal to the last bit.
"""

import copy

import common
import timm
import torch
from torch.nn import functional as F

from areir.networks.backbones import build_network, own_size
from areir.scripts import utils
from areir.scripts.model import EnsembleModel, folded, rebuild

LAYOUTS = {(2, 3): 'NCHW', (1, 2): 'NHWC', (1,): 'NLC'}
OPTIONS = {'ensemble_size': 1, 'meta_class_size': 1, 'with_se': False}
OPTIONS |= {'shared_stages': 3, 'embedding': 'pooled'}


def describe(name):
    """Return the columns of a network, and its millions of parameters."""
    with torch.device('meta'):
        model = EnsembleModel(name, **OPTIONS)
        info = build_network(name).feature_info
    layouts = model.heads[0].layouts
    prefix = f'+{layouts[-1].prefix}' * (layouts[-1].prefix > 0)
    trunk, head, total = (count / 1e6 for count in model.count_parameters())
    return [
        str(len(layouts)),
        LAYOUTS[layouts[-1].space] + prefix,
        f'{own_size(name)}/{info[-1]["reduction"]}',
        f'{trunk:.2f}',
        f'{head:.2f}',
    ], total


@torch.no_grad()
def settle(network, images):
    """Draw what is constant in a new network; give batch norms the images' statistics.

    Else zeros and small scales would hide that a module is missing.
    """
    for weight in network.parameters():
        if weight.ndim not in (2, 4):  # neither matrix nor kernel
            weight += 0.1 * torch.randn_like(weight)
    for layer in network.modules():
        if hasattr(layer, 'running_mean'):
            layer.momentum = 1
    network.train()(images)
    network.eval()


def cosine(features, wanted):
    """Return the lowest cosine, without what all images share."""
    pair = (vectors - vectors.mean(dim=0) for vectors in (features, wanted))
    return F.cosine_similarity(*pair, dim=1).min().item()


@torch.no_grad()
def check(name):
    """Return the cosines of trunk and head, and of both folded copies.

    Raises ValueError if one is too low, or if the rebuilt model differs.
    """
    torch.manual_seed(0)
    images = F.interpolate(torch.randn(2, 3, 8, 8), own_size(name), mode='bicubic')
    network = build_network(name)
    settle(network, images)
    wanted = network(images)
    rounded = copy.deepcopy(network).bfloat16()(images.bfloat16()).float()
    model = EnsembleModel(name, **OPTIONS, network=network).eval()
    again = rebuild({'model_type': name, **OPTIONS}, model.state_dict())
    if not torch.equal(model.describe(images)[0], again.describe(images)[0]):
        raise ValueError('the rebuilt model differs')
    parts = model, folded(model, torch.float32), folded(model, torch.bfloat16)
    cosines = [cosine(part.describe(images)[0], wanted) for part in parts]
    texts = [f'{found:.6f}' for found in cosines]
    bars = 0.999999, 0.9999, min(0.99, 2 * cosine(rounded, wanted) - 1)
    if not all(found >= bar for found, bar in zip(cosines, bars)):
        raise ValueError(f'cosines {", ".join(texts)}')
    return texts


def main():
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add('names', nargs='*', help='networks; by default those with pretrained weights')
    add('--all', action='store_true', help='all networks')
    add('--check', action='store_true', help='compare features with those of timm')
    add('--most', type=float, default=40, help='million parameters to --check')
    args = parser.parse_args()
    listed = timm.list_models(pretrained=not args.all)
    names = args.names or sorted({name.partition('.')[0] for name in listed})
    cut = 0
    for name in names:
        try:
            row, total = describe(name)
            row += check(name) if args.check and total <= args.most else []
            cut += 1
        except Exception as error:  # whatever a network or our code says
            row = [f'no: {error}'.replace(f'--model_type {name}: ', '')]
        print(f'{name:<48}', *(f'{text:>9}' for text in row), flush=True)
    print(f'{cut} of {len(names)} networks: {100 * cut / len(names):.1f}%')


if __name__ == '__main__':
    utils.run_script(main)

"""Heat maps: their cells, the overlay, and the sheet of pairs."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from areir.networks.layers import run_stages
from areir.networks.projection import fit_projection
from areir.output.heat_maps import overlay, similarity_maps
from areir.scripts.model import EnsembleModel


@pytest.mark.parametrize(
    ('shared', 'embedding', 'side', 'cells'),
    [
        (1, 'logits', 64, 8),  # of layer2
        (1, 'logits', 256, 8),  # of layer4
        (1, 'logits', 16, 4),  # of the trunk: no stage has enough
        (3, 'features', 256, 8),
    ],
)
def test_heat_has_the_cells_of_the_last_stage_with_enough(
    shared, embedding, side, cells
):
    options = {'embedding': embedding, 'mirror': True, 'shared_stages': shared}
    model = EnsembleModel('resnet18', 2, 3, **options)
    images = torch.randn(2, 3, side, side)
    model.projection = fit_projection(model.embed(torch.randn(5, 3, 32, 32)), 3, 0.5)
    heat = similarity_maps(model, images)
    assert heat.shape == (2, cells, cells) and not heat.requires_grad
    assert heat.min() >= 0 and heat.isfinite().all()
    assert heat.amax(dim=(1, 2)).tolist() == pytest.approx([1, 1])
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize('embedding', ['logits', 'features', 'stages'])
def test_heat_by_hand(slim_backbone, embedding):
    """Gradient times features, summed over channels and heads: HiResCAM.

    Of images of 64 pixels the slim trunk has 16 x 16 cells and its last stage 8 x 8.
    """
    shared = 2 if embedding == 'stages' else 1
    options = {'embedding': embedding, 'shared_stages': shared}
    model = EnsembleModel('resnet18', 2, 3, **options).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    wanted = 0
    for index, head in enumerate(model.heads):
        with torch.no_grad():
            vectors = model.describe(images)
            stages = run_stages(head.stages, model.trunk(images))
        last = stages[-1].requires_grad_()
        if embedding == 'logits':
            vectors[index] = head.logits(last)
        else:
            # the parts of earlier stages do not depend on the last one
            place = (index + 1) * len(vectors) // 2 - 1
            vectors[place] = last.mean(dim=(2, 3))
        unit = torch.cat([F.normalize(vector, dim=1) for vector in vectors], dim=1)
        similarity = (unit[0] * unit[1]).sum() / len(vectors)
        (gradient,) = torch.autograd.grad(similarity, last)
        wanted = wanted + (gradient * last).sum(dim=1).clamp(min=0)
    wanted = (wanted / wanted.amax(dim=(1, 2), keepdim=True)).detach()
    heat = similarity_maps(model, images)
    torch.testing.assert_close(heat, wanted, atol=1e-3, rtol=1e-2)


def test_heat_of_tokens_by_hand():
    """The class token leaves no gradient on the patches of the last stage."""
    options = {'shared_stages': 3, 'embedding': 'pooled'}
    model = EnsembleModel('test_vit', 1, 3, **options)
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    (head,) = model.eval().heads
    tokens = model.trunk(images).detach().requires_grad_()  # (2, 1 + 10 * 10, C)
    query, retrieved = F.normalize(head.pool(head.stages(tokens)), dim=1)
    (gradient,) = torch.autograd.grad(query @ retrieved, tokens)
    wanted = (gradient * tokens).sum(dim=2)[:, 1:].clamp(min=0).reshape(2, 10, 10)
    wanted = (wanted / wanted.amax(dim=(1, 2), keepdim=True)).detach()
    assert wanted.max() == 1
    torch.testing.assert_close(similarity_maps(model, images), wanted)


def test_heat_of_channels_last():
    model = EnsembleModel('test_mambaout', 1, 3, shared_stages=3, embedding='features')
    heat = similarity_maps(model, torch.randn(2, 3, 160, 160))
    assert heat.shape == (2, 10, 10) and heat.max() == 1


def test_an_overlay_dims_what_is_cold():
    image = Image.new('RGB', (40, 40), (100, 100, 100))
    heat = np.zeros((2, 2))
    heat[:, 1] = 1
    colours = np.asarray(overlay(image, heat), int)
    cold, hot = colours[20, 2], colours[20, 37]
    assert cold.max() < 80 and hot[0] > 130 and hot[2] < hot[0] - 30

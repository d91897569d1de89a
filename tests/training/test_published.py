"""The protocol of the published tables: a random weight per head and batch."""

import math

import pytest
import torch
from torch.nn import functional as F

from areir.scripts.model import EnsembleModel
from areir.training.published import RandomWeights

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def weighed_logits(model, weights):
    """Return logits (N, E, M) of a model whose heads' inputs are weighed by hand."""
    features = model.trunk(IMAGES)
    heads = [head(features * weight) for head, weight in zip(model.heads, weights)]
    return torch.stack(heads, dim=1)


@pytest.fixture
def noisy():
    """A model of three heads with random weights from the seed 5."""
    model = EnsembleModel('resnet18', 3, 2, seed=5).eval()
    return model, RandomWeights(model, 5)


def test_each_batch_draws_weights_that_multiply_the_heads_inputs(noisy):
    """They sum to one; logits and embeddings depend on them."""
    model, random_weights = noisy
    plain = EnsembleModel('resnet18', 3, 2, seed=5).eval()
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        weights = torch.rand(3, generator=generator).softmax(dim=0)
        wanted = F.normalize(weighed_logits(plain, weights), dim=2).flatten(1)
        embeddings = model.embed(IMAGES)
        assert torch.allclose(embeddings, wanted / math.sqrt(3), atol=1e-6)
        assert torch.equal(random_weights.weights, weights)
    weights = torch.rand(3, generator=generator).softmax(dim=0)
    with torch.no_grad():
        logits = model(IMAGES)
    assert torch.allclose(logits, weighed_logits(plain, weights), atol=1e-5)


def test_some_members_take_the_weights_of_the_whole_ensemble(noisy):
    whole, _ = noisy
    some = EnsembleModel('resnet18', 3, 2, seed=5, members=[0, 2]).eval()
    RandomWeights(some, 5)
    columns = whole.embed(IMAGES).view(2, 3, 2)[:, [0, 2]].flatten(1)
    assert torch.allclose(some.embed(IMAGES), columns, atol=1e-6)

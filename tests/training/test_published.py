"""The protocol of the published tables: a random weight per head and batch."""

import math

import pytest
import torch
from torch.nn import functional as F

from areir.training.published import RandomWeights
from model import EnsembleModel

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def drawn(heads, seed, batches=1):
    """Return the weights of the last of some batches, drawn without the model."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        noise = torch.rand(heads, generator=generator)
    return noise.softmax(dim=0)


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


@pytest.fixture(scope='module')
def plain():
    """The same model without random weights."""
    return EnsembleModel('resnet18', 3, 2, seed=5).eval()


def test_weights_are_drawn_for_every_batch_and_sum_to_one(noisy, plain):
    model, weights = noisy
    assert torch.equal(plain.embed(IMAGES), plain.embed(IMAGES))
    first = model.embed(IMAGES)
    assert weights.weights.sum().item() == pytest.approx(1)
    assert torch.equal(weights.weights, drawn(3, 5))
    assert not torch.allclose(first, model.embed(IMAGES))
    assert torch.equal(weights.weights, drawn(3, 5, batches=2))


def test_each_head_multiplies_its_input_by_its_weight(noisy, plain):
    model, _ = noisy
    logits = weighed_logits(plain, drawn(3, 5))
    wanted = F.normalize(logits, dim=2).flatten(1) / math.sqrt(3)
    assert torch.allclose(model.embed(IMAGES), wanted, atol=1e-6)


def test_logits_depend_on_the_batch_too(noisy, plain):
    model, _ = noisy
    for batches in (1, 2):
        with torch.no_grad():
            logits = model(IMAGES)
        wanted = weighed_logits(plain, drawn(3, 5, batches))
        assert torch.allclose(logits, wanted, atol=1e-5)


def test_some_members_take_the_weights_of_the_whole_ensemble(noisy):
    whole, _ = noisy
    some = EnsembleModel('resnet18', 3, 2, seed=5, members=[0, 2]).eval()
    RandomWeights(some, 5)
    columns = whole.embed(IMAGES).view(2, 3, 2)[:, [0, 2]].flatten(1)
    assert torch.allclose(some.embed(IMAGES), columns, atol=1e-6)


def test_the_generator_can_be_set_back(noisy):
    model, weights = noisy
    model.embed(IMAGES)
    state = weights.generator.get_state()
    second = model.embed(IMAGES)
    weights.generator.set_state(state)
    assert torch.equal(model.embed(IMAGES), second)

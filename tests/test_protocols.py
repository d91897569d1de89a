"""What a protocol reports where nothing can be known: pictures of noise."""
import os
import sys

import pytest
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'benchmarks'))
from noise import noise_floor

from model import EnsembleModel
from published import PublishedModel


@pytest.fixture(scope='module')
def floor():
    return noise_floor(classes=10, images_per_class=24, ensemble_size=16, meta_class_size=5, image_size=32, steps=8)


def test_strict_reports_chance(floor):
    results, chance = floor
    value, (low, high) = results['strict', 'in class order']
    assert low <= chance <= high and low <= value <= high


def test_the_order_of_images_changes_nothing_in_strict(floor):
    results, _ = floor
    assert results['strict', 'in class order'][0] == results['strict', 'shuffled'][0]


def test_published_reads_the_class_from_the_batch(floor):
    results, chance = floor
    value, (low, _) = results['published', 'in class order']
    assert low > chance and value > 1.5 * results['strict', 'in class order'][0]
    _, (low, high) = results['published', 'shuffled']
    assert low <= chance <= high


def test_published_weights_are_drawn_for_every_batch_and_sum_to_one():
    model, plain = PublishedModel('resnet18', 3, 2, seed=5), EnsembleModel('resnet18', 3, 2, seed=5)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.embed(images), plain.embed(images))
    first, second = model.embed(images), model.embed(images)
    assert not torch.allclose(first, second)

    weights = torch.rand(3, generator=torch.Generator().manual_seed(5)).softmax(dim=0)
    plain.eval()
    with torch.no_grad():
        features = plain.trunk(images)
        logits = torch.stack([head(features * weight) for head, weight in zip(plain.heads, weights)], dim=1)
    assert torch.allclose(first, torch.nn.functional.normalize(logits, dim=2).flatten(1) / 3 ** 0.5, atol=1e-6)

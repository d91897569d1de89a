"""Intervals hold the true value, and comparisons find what is there."""

import math

import numpy as np
import pytest
import torch
from retrieval_cases import generator

from areir.evaluation.intervals import (
    LEAST_CLASSES,
    compare,
    confidence_intervals,
)


def draw_results(rng, classes, spread=1.5):
    """Hits and labels of uneven classes, of random shares of hits around 1/2."""
    sizes = rng.integers(2, 30, size=classes)
    share = 1 / (1 + np.exp(-spread * rng.standard_normal(classes)))
    labels = np.repeat(np.arange(classes), sizes)
    hits = (rng.random(len(labels)) < share[labels]).astype(float)
    return torch.from_numpy(hits), torch.from_numpy(labels)


@pytest.mark.slow
@pytest.mark.parametrize('classes', [30, 100])
def test_intervals_hold_the_true_value(classes):
    rng, held = np.random.default_rng(0), 0
    for draw in range(200):
        hits, labels = draw_results(rng, classes)
        limits = confidence_intervals({'recall@1': hits}, labels, seed=draw)
        low, high = limits['recall@1']
        assert low <= hits.mean() <= high
        held += low <= 0.5 <= high
    assert 180 <= held <= 198


def test_intervals_by_seed():
    hits, labels = draw_results(np.random.default_rng(0), 30)
    values = {'recall@1': hits, 'map@r': hits / 2}
    limits = confidence_intervals(values, labels)
    assert limits == confidence_intervals(values, labels, seed=0)
    assert limits != confidence_intervals(values, labels, seed=1)
    halves = [limit / 2 for limit in limits['recall@1']]
    assert limits['map@r'] == pytest.approx(halves)


def test_intervals_do_not_depend_on_the_numbers_or_order_of_classes():
    hits, labels = draw_results(np.random.default_rng(0), 30)
    labels[:40] = 0  # classes of unequal sizes
    order = torch.randperm(len(labels), generator=generator(0))
    numbers = torch.randperm(30, generator=generator(1))
    expected = confidence_intervals({'recall@1': hits}, labels)['recall@1']
    others = confidence_intervals({'map': -hits, 'recall@1': hits}, numbers[labels])
    assert others['recall@1'] == expected
    shuffled = confidence_intervals({'recall@1': hits[order]}, labels[order].tolist())
    assert shuffled['recall@1'] == pytest.approx(expected)


def test_images_of_a_class_are_not_independent():
    labels = torch.arange(20).repeat_interleave(50)
    hits = (torch.arange(20) % 2).repeat_interleave(50).double()
    low, high = confidence_intervals({'recall@1': hits}, labels)['recall@1']
    assert high - low > 0.35  # as for 20 draws; 1000 independent ones have 0.06


@pytest.mark.parametrize('classes', [1, 5, 6, 9])
def test_few_classes_have_no_interval(classes):
    """Six class means enclose the true mean in 1 - 2 / 2**6 of all draws, five less."""
    assert 1 - 2 / 2**LEAST_CLASSES > 0.95 > 1 - 2 / 2 ** (LEAST_CLASSES - 1)
    labels = torch.arange(18) % classes
    values = {'recall@1': torch.rand(18), 'map@r': torch.rand(18)}
    for low, high in confidence_intervals(values, labels).values():
        if classes < LEAST_CLASSES:
            assert math.isnan(low) and math.isnan(high)
        else:
            assert low < high


@pytest.mark.slow
@pytest.mark.parametrize('classes', [LEAST_CLASSES, 12])
def test_intervals_of_a_dozen_classes_hold_the_true_value(classes):
    rng, held, labels = np.random.default_rng(0), 0, torch.arange(classes)
    for draw in range(300):
        values = {'map@r': torch.from_numpy(rng.standard_normal(classes))}
        low, high = confidence_intervals(values, labels, seed=draw)['map@r']
        held += low <= 0 <= high
    assert 270 <= held <= 295


@pytest.mark.slow
def test_p_is_uniform_where_whole_classes_differ_by_chance():
    rng, ps = np.random.default_rng(1), []
    labels = torch.arange(30).repeat_interleave(20)
    for draw in range(200):
        one = torch.from_numpy(rng.random(30))[labels]
        other = torch.from_numpy(rng.random(30))[labels]
        result = compare({'map@r': one}, {'map@r': other}, labels, 1000, seed=draw)
        ps.append(result['map@r'][3])
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.11


def test_a_clear_difference_is_found_in_both_directions():
    hits, labels = draw_results(np.random.default_rng(0), 60)
    more = (torch.rand(len(hits), generator=generator(0)) < 0.4).double()
    plain, better = {'recall@1': hits}, {'recall@1': torch.maximum(hits, more)}
    gain, low, high, p = compare(better, plain, labels)['recall@1']
    expected = (better['recall@1'] - hits).mean().item()
    assert gain == pytest.approx(expected) and 0 < low < gain < high and p < 0.001
    loss = compare(plain, better, labels)['recall@1']
    assert loss == pytest.approx((-gain, -high, -low, p), rel=1e-9)

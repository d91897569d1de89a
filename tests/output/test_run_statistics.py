"""What the page of a run shows: classes, queries, heads, scores."""

import math

import pytest
import torch

from areir.output import run_statistics


def four_images():
    """Images at 0, 90, 180 and 53 degrees, of the classes 0, 1, 1, 0."""
    database = {
        'embeddings': torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]]),
        'labels': torch.tensor([0, 1, 1, 0]),
        'images': list('abcd'),
    }
    return run_statistics.SearchedImages(database)


# Classes and queries


def test_lowest_classes():
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
    rank = torch.tensor([1, 2, 5, 1, 3, 1, 1, 0])  # class 3 has nothing to find
    nearest = torch.tensor([0, 1, 1, 1, 2, 2, 2, 0])
    scores = torch.tensor([0.9, 0.5, 0.6, 0.9, 0.4, 0.9, 0.9, 0.9])
    first, second = run_statistics.lowest_classes(labels, rank, nearest, scores)
    third = pytest.approx(1 / 3)
    assert first == run_statistics.ClassRecall(0, 3, third, [(1, 2)], example=2)
    assert second == run_statistics.ClassRecall(1, 2, 0.5, [(2, 1)], example=4)


def test_pick():
    values = torch.tensor([5.0, math.inf, 8.0, 7.0, 6.0])
    labels = torch.tensor([1, 0, 0, 0, 1])
    everything = torch.ones(5, dtype=torch.bool)
    assert run_statistics.pick(values, labels, everything) == [1, 2, 4, 0]
    assert run_statistics.pick(values, labels, everything, count=1) == [1]
    assert run_statistics.pick(values, labels, everything, per_class=1) == [1, 4]
    assert run_statistics.pick(values, labels, labels == 1) == [4, 0]


# Scores


def test_score_statistics():
    statistics = run_statistics.score_statistics(four_images())
    best = statistics.best
    assert best.best_right.tolist() == pytest.approx([0.6, 0, 0, 0.6])
    assert best.nearest_right.tolist() == [3, 2, 1, 0]
    assert best.best_wrong.tolist() == pytest.approx([0, 0.8, -0.6, 0.8])
    assert statistics.margin.tolist() == pytest.approx([0.6, -0.8, 0.6, -0.2])
    right, wrong = statistics.pair_shares['right'], statistics.pair_shares['wrong']
    assert statistics.sampled == 4
    assert right.sum() == pytest.approx(1) and wrong.sum() == pytest.approx(1)
    assert right[50] == 2 / 4  # of score 0: the pair 1, 2, twice
    assert wrong[0] == wrong[50] == 2 / 8  # 0 and 2 are opposite, 0 and 1 orthogonal
    assert statistics.best_shares['right'][50] == 2 / 4


def test_score_statistics_of_a_sample(monkeypatch):
    every = run_statistics.score_statistics(four_images())
    monkeypatch.setattr(run_statistics, 'SCORED_QUERIES', 3)
    few = run_statistics.score_statistics(four_images())
    assert few.sampled == 3 and few.pair_shares['right'].sum() == pytest.approx(1)
    assert few.best.best_wrong.equal(every.best.best_wrong)


def test_histogram():
    scores = torch.tensor([-1.0, -0.999, 0.0, 0.001, 1.0, 1.0001, -math.inf])
    counts = run_statistics.histogram(scores)
    assert counts[0] == counts[50] == counts[99] == 2 and counts.sum() == 6


# Heads


def test_heads_search_a_gallery_of_its_own():
    """The first head points at the wrong image, both heads at the right one."""
    query = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    gallery = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.9, 0.1, 0.0, 1.0]])
    database = {'embeddings': gallery, 'labels': torch.tensor([0, 1])}
    database |= {'images': list('ab'), 'query_embeddings': query}
    database |= {'query_labels': torch.tensor([1]), 'query_images': ['q']}
    recalls, ranks = run_statistics.rank_heads(
        run_statistics.SearchedImages(database), 2
    )
    assert [row.value for row in recalls] == [0, 1] and ranks['rank'].tolist() == [1]
    assert math.isnan(recalls[0].low)  # one class has no interval


def test_ignored_images_and_distractors():
    """Query a ignores its camera's image b and finds the distractor, then d."""
    database = {
        'embeddings': torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.6, 0.8]]),
        'labels': torch.tensor([0, -1, 0]),
        'images': list('bcd'),
        'groups': torch.tensor([5, -1, 6]),
        'query_embeddings': torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        'query_labels': torch.tensor([0, -1]),
        'query_images': list('ax'),
        'query_groups': torch.tensor([5, 5]),
    }
    images = run_statistics.SearchedImages(database)
    assert images.query_images == ['a']
    ranks = images.rank(slice(0, 2))
    assert ranks['rank'].tolist() == [1] and ranks['positives'].tolist() == [1]
    _, indices = images.nearest(2)
    assert indices.tolist() == [[2, 1]]
    statistics = run_statistics.score_statistics(images)
    assert statistics.best.best_right.tolist() == pytest.approx([0.6])
    assert statistics.best.best_wrong.tolist() == [0]
    # each queries all others: the distractor does not query
    alone = {name: database[name] for name in ('embeddings', 'labels', 'images')}
    images = run_statistics.SearchedImages(alone)
    assert images.query_images == ['b', 'd'] and images.own.tolist() == [0, 2]
    assert images.rank(slice(0, 2))['rank'].tolist() == [1, 1]

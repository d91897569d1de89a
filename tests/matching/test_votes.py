"""The vote of the nearest images, and the confidence in it."""

import math

import pytest
import torch

from areir.matching.calibration import LabelledVectors
from areir.matching.votes import (
    VOTERS,
    Vote,
    calibrate_confidence,
    confidence_of,
    fit_confidence,
    vote,
)


@pytest.mark.parametrize(
    ('scores', 'labels', 'threshold', 'expected'),
    [
        ([0.9, 0.8, 0.7], 'abb', 0.5, ('b', 1.5 / 2.4, -0.1)),  # votes weigh as scores
        ([0.9, 0.8, 0.7], 'abb', 0.75, ('a', 0.9 / 1.7, 0.1)),
        ([0.9, 0.8, 0.7], 'aab', 0.5, ('a', 1.7 / 2.4, 0.2)),  # ahead of class b
        ([0.9, 0.8, 0.4], 'aab', 0.5, ('a', 1.0, 0.4)),  # ahead of the threshold
        ([0.8, 0.8], 'ba', 0.5, ('b', 0.5, 0.0)),  # the first of equals
        ([0.9] * VOTERS + [0.8] * 20, 'a' * VOTERS + 'b' * 20, 0.5, ('a', 1.0, 0.4)),
        ([0.9, 0.8], [None, 'a'], 0.5, ('a', 1.0, 0.3)),
        ([-0.1, -0.2], 'ab', -0.5, ('a', 0.5, 0.1)),
        ([0.4], 'a', 0.5, (None, 0.0, 0.0)),
        ([], '', 0.5, (None, 0.0, 0.0)),
    ],
)
def test_a_vote(scores, labels, threshold, expected):
    """Label, share of the votes, and lead of the winner."""
    label, *numbers = vote(scores, list(labels), threshold)
    assert (label, *numbers) == (expected[0], *map(pytest.approx, expected[1:]))


def test_confidence_is_the_share_of_right_votes(seed):
    """Votes that are right with a known probability."""
    generator = torch.Generator().manual_seed(seed)
    shares, leads = torch.rand(2, 40_000, generator=generator)
    chances = torch.sigmoid(-2 + 3 * shares + 2 * leads)
    right = torch.rand(40_000, generator=generator) < chances
    votes = [Vote('a', *pair) for pair in zip(shares.tolist(), leads.tolist())]
    curve = fit_confidence(votes, right.tolist())
    for share, lead in ((0.1, 0.2), (0.5, 0.5), (0.9, 0.1), (0.9, 0.9)):
        wanted = 1 / (1 + math.exp(2 - 3 * share - 2 * lead))
        found = confidence_of(Vote('a', share, lead), curve)
        assert found == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize(('right', 'wanted'), [(True, 11 / 12), (False, 1 / 12)])
def test_few_equal_votes_do_not_make_it_certain(right, wanted):
    """Platt's targets: (10 + 1) / (10 + 2) for ten right votes."""
    votes = [Vote('a', 1.0, 0.1)] * 10
    curve = fit_confidence(votes, [right] * 10)
    assert confidence_of(votes[0], curve) == pytest.approx(wanted, abs=1e-3)


def brute_force(vectors, labels, threshold):
    """Return the Votes and outcomes of leave-one-out votes, image by image."""
    votes, right = [], []
    for query in range(len(vectors)):
        if (labels == labels[query]).sum() == 1:
            continue
        scores = vectors @ vectors[query]
        scores[query] = -2
        order = scores.argsort(descending=True)[:VOTERS]
        result = vote(scores[order].tolist(), labels[order].tolist(), threshold)
        if result.label is not None:
            votes.append(result)
            right.append(bool(result.label == labels[query]))
    return votes, right


def test_confidence_of_embeddings_equals_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) // 4
    labels[-1] = 99  # the only image of its class
    centres = torch.randn(100, 4, generator=generator)
    vectors = centres[labels] + 0.6 * torch.randn(60, 4, generator=generator)
    vectors = torch.nn.functional.normalize(vectors)
    images = LabelledVectors(vectors, labels, vectors, labels, torch.arange(60))
    best_right = torch.where(labels == 99, -torch.inf, 0.5)
    curve = calibrate_confidence(images, best_right, 0.3)
    wanted = fit_confidence(*brute_force(vectors, labels, 0.3))
    assert curve == pytest.approx(wanted, rel=1e-2)

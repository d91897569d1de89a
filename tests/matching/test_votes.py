"""The vote of the nearest images, and the confidence in it."""

import math

import pytest
import torch

from areir.matching.calibration import LabelledVectors, calibrate
from areir.matching.votes import (
    VOTERS,
    Vote,
    calibrate_confidence,
    confidence_of,
    fit_confidence,
    vote,
)


def test_votes_are_weighted_by_score():
    result = vote([0.9, 0.8, 0.7], ['a', 'b', 'b'], 0.5)
    assert result.label == 'b' and result.share == pytest.approx(1.5 / 2.4)
    assert vote([0.9, 0.8, 0.7], ['a', 'b', 'b'], 0.75)[:2] == ('a', 0.9 / 1.7)


def test_the_lead_is_that_over_the_next_class():
    assert vote([0.9, 0.8, 0.7], ['a', 'b', 'b'], 0.5).lead == pytest.approx(-0.1)
    assert vote([0.9, 0.8, 0.7], ['a', 'a', 'b'], 0.5).lead == pytest.approx(0.2)


def test_without_another_class_the_lead_is_that_over_the_threshold():
    assert vote([0.9, 0.8, 0.4], ['a', 'a', 'b'], 0.5).lead == pytest.approx(0.4)


def test_the_first_of_equal_classes_wins():
    assert vote([0.8, 0.8], ['b', 'a'], 0.5) == ('b', 0.5, 0.0)


@pytest.mark.parametrize(
    ('scores', 'labels'), [([0.4], ['a']), ([], []), ([0.9], [None])]
)
def test_nobody_votes(scores, labels):
    assert vote(scores, labels, 0.5) == (None, 0.0, 0.0)


def test_only_the_nearest_vote():
    scores = [0.9] * VOTERS + [0.8] * 20
    label, share, _ = vote(scores, ['a'] * VOTERS + ['b'] * 20, 0.5)
    assert (label, share) == ('a', 1.0)


def test_images_without_a_class_do_not_count():
    assert vote([0.9, 0.8], [None, 'a'], 0.5)[:2] == ('a', 1.0)


def test_negative_scores_above_a_negative_threshold_still_vote():
    assert vote([-0.1, -0.2], ['a', 'b'], -0.5).label == 'a'


# Confidence


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


def test_without_votes_there_is_no_confidence():
    assert fit_confidence([], []) is None


# On embeddings


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
    assert curve == pytest.approx(wanted, rel=1e-3)


def test_a_calibration_has_the_confidence():
    vectors = torch.nn.functional.normalize(torch.randn(40, 8))
    calibration = calibrate(vectors, torch.arange(40) // 4)
    curve = calibration['confidence']
    assert curve is None or (len(curve) == 3 and all(map(math.isfinite, curve)))


def test_a_gallery_of_one_image_calibrates():
    query = torch.eye(4)
    images = LabelledVectors(
        query, torch.arange(4), query[:1], torch.zeros(1).long(), torch.full((4,), -1)
    )
    assert calibrate_confidence(images, torch.zeros(4), 0.5) is not None

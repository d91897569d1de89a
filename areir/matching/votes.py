"""Predict the class of a query by a vote of its nearest images, with a confidence.

Of the VOTERS nearest images, those that reach the threshold vote for their class with
their score. A logistic curve turns the share of the votes that the winner has, and its
lead, into a confidence. It is fitted to votes whose outcome is known (Platt,
"Probabilistic Outputs for Support Vector Machines", 1999). The confidence is the
probability that the class is right if the gallery has the query's class.
"""

import math
from typing import NamedTuple

import numpy as np

from areir.evaluation.metrics import DISTRACTOR
from areir.evaluation.ranking import search

VOTERS = 8
PENALTY = 1e-4  # on the slopes, which equal votes would leave undetermined


def images_to_find(number, available):
    """Return how many nearest images to search: those to show, and all voters.

    number: of images to show; available: how many there are.
    """
    return min(max(number, VOTERS), available)


class Vote(NamedTuple):
    """The result of a vote."""

    label: object  # of the class with the most votes, or None if nobody votes
    share: float = 0.0  # of the votes that it has
    lead: float = 0.0  # of its best score over another class's, or over the threshold


def vote(scores, labels, threshold):
    """Return the Vote of the nearest images.

    scores, labels: of images, the best first. Images without a label, None, do not
    vote.
    """
    sums, best = {}, {}
    for score, label in zip(scores[:VOTERS], labels):
        if score >= threshold and label is not None:
            weight = max(score, 1e-9)  # the threshold, and so a score, may be negative
            sums[label] = sums.get(label, 0.0) + weight
            best.setdefault(label, score)
    if not sums:
        return Vote(None)
    winner = max(sums, key=sums.get)
    others = [score for label, score in best.items() if label != winner]
    lead = best[winner] - max(others, default=threshold)
    return Vote(winner, sums[winner] / sum(sums.values()), lead)


def fit_confidence(votes, right):
    """Return [intercept, slope of the share, slope of the lead] of the logistic curve.

    votes: Vote of each query; right: whether its class was right. Returns None without
    votes. The targets are Platt's, which keep the confidence below 1.
    """
    from scipy import optimize

    if not votes:
        return None
    evidence = np.array([[1.0, vote.share, vote.lead] for vote in votes])
    right = np.asarray(right, bool)
    high = (right.sum() + 1) / (right.sum() + 2)
    low = 1 / ((~right).sum() + 2)
    targets = np.where(right, high, low)

    def loss(curve):
        logits = evidence @ curve
        losses = np.logaddexp(0, logits) - targets * logits
        return losses.mean() + PENALTY * (curve[1:] ** 2).sum()

    return optimize.minimize(loss, np.zeros(3)).x.tolist()


def confidence_of(vote, curve):
    """Return the confidence of a Vote; curve: what `fit_confidence` returns."""
    intercept, share, lead = curve
    logit = intercept + share * vote.share + lead * vote.lead
    return 1 / (1 + math.exp(-logit))


def calibrate_confidence(images, best_right, threshold):
    """Return what `fit_confidence` finds for votes at a threshold.

    images: calibration.LabelledVectors; best_right (Q,): the highest score of a right
    image, -inf for queries without one, which are left out.
    """
    k = min(VOTERS, len(images.gallery) - int((images.own >= 0).any()))
    scores, indices = search(images.query, images.gallery, k, images.own)
    labels = images.gallery_labels[indices].tolist()
    labels = [[None if one == DISTRACTOR else one for one in row] for row in labels]
    votes, right = [], []
    for wanted, best, *row in zip(
        images.query_labels.tolist(), best_right.tolist(), scores.tolist(), labels
    ):
        result = vote(*row, threshold)
        if best > -math.inf and result.label is not None:
            votes.append(result)
            right.append(result.label == wanted)
    return fit_confidence(votes, right)

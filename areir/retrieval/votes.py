"""Predict the class of a query by a vote of its nearest images, with a confidence.

Of the VOTERS nearest images, those that reach the threshold vote for their class with
their score. A logistic curve turns the share of the votes that the winner has into a
confidence. It is fitted to votes whose outcome is known (Platt, "Probabilistic Outputs
for Support Vector Machines", 1999). The confidence is the probability that the class is
right if the gallery has the query's class.
"""

import math

import numpy as np

from areir.retrieval.ranking import search

VOTERS = 8
PENALTY = 1e-4  # on the slope, which equal shares would leave undetermined


def vote(scores, labels, threshold):
    """Return (label, share of the votes) of the winning class.

    scores, labels: those of the nearest images, the best first; a label may be None.
    Returns (None, 0.0) if no image votes.
    """
    votes = {}
    for score, label in zip(scores[:VOTERS], labels):
        if score >= threshold and label is not None:
            weight = max(score, 1e-9)  # the threshold, and so a score, may be negative
            votes[label] = votes.get(label, 0.0) + weight
    if not votes:
        return None, 0.0
    winner = max(votes, key=votes.get)
    return winner, votes[winner] / sum(votes.values())


def fit_confidence(shares, right):
    """Return [intercept, slope] of the logistic curve from shares to confidence.

    shares (Q,): the winners' shares of the votes; right (Q,): whether the winner was
    the query's class. Returns None if there are no votes. The targets are Platt's,
    which keep the confidence below 1.
    """
    from scipy import optimize

    shares, right = np.asarray(shares, float), np.asarray(right, bool)
    if not len(shares):
        return None
    high = (right.sum() + 1) / (right.sum() + 2)
    low = 1 / ((~right).sum() + 2)
    targets = np.where(right, high, low)

    def loss(curve):
        logits = curve[0] + curve[1] * shares
        losses = np.logaddexp(0, logits) - targets * logits
        return losses.mean() + PENALTY * curve[1] ** 2

    curve = optimize.minimize(loss, np.zeros(2)).x
    return [float(value) for value in curve]


def calibrate_confidence(images, best_right, threshold):
    """Return the curve of `fit_confidence` for votes at a threshold, or None.

    images: calibration.LabelledVectors; best_right (Q,): the highest score of an image
    of the query's class, -inf if there is none. Such queries are left out.
    """
    in_gallery = bool((images.own >= 0).any())  # each query is one of its images
    k = min(VOTERS, len(images.gallery) - in_gallery)
    scores, indices = search(images.query, images.gallery, k, images.own)
    labels = images.gallery_labels[indices].tolist()
    wanted, best = images.query_labels.tolist(), best_right.tolist()
    shares, right = [], []
    for query, row in enumerate(zip(scores.tolist(), labels)):
        label, share = vote(*row, threshold)
        if label is not None and best[query] > -math.inf:
            shares.append(share)
            right.append(label == wanted[query])
    return fit_confidence(shares, right)


def confidence_of(share, curve):
    """Return the confidence of a share of the votes; curve: [intercept, slope]."""
    intercept, slope = curve
    return 1 / (1 + math.exp(-(intercept + slope * share)))

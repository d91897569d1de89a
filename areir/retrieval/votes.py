"""The class of a query: a vote of its nearest images, and how sure it is.

The images among the VOTERS nearest that reach the threshold vote for their class with
their score. The share that the first class has of all votes is turned into a confidence
by a logistic curve, fitted to votes whose outcome is known (Platt, "Probabilistic
Outputs for Support Vector Machines", 1999). It is the probability that the class is
right if the gallery has the query's class.
"""

import math

import numpy as np

from areir.retrieval.ranking import search

VOTERS = 8
PENALTY = 1e-4  # on the slope, which equal shares would leave undetermined


def vote(scores, labels, threshold):
    """Return (label, share) of the class with the most votes, or (None, 0.0).

    scores, labels: of the nearest images, the best first; labels may be None.
    """
    votes = {}
    for score, label in zip(scores[:VOTERS], labels):
        if score >= threshold and label is not None:
            votes[label] = votes.get(label, 0.0) + max(score, 1e-9)
    if not votes:
        return None, 0.0
    first = max(votes, key=votes.get)
    return first, votes[first] / sum(votes.values())


def fit_confidence(shares, right):
    """Return [intercept, slope] of the logistic curve from shares to confidence.

    shares (Q,): of votes; right (Q,): whether the class was right. Returns None without
    votes. The targets are Platt's, which keep the confidence below 1.
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
    """Return what `fit_confidence` finds for votes at a threshold.

    images: calibration.LabelledVectors; best_right (Q,): the highest score of a right
    image, -inf for queries without one, which are left out.
    """
    k = min(VOTERS, len(images.gallery) - int((images.own >= 0).any()))
    scores, indices = search(images.query, images.gallery, k, images.own)
    labels = images.gallery_labels[indices].tolist()
    shares, right = [], []
    for wanted, best, *row in zip(
        images.query_labels.tolist(), best_right.tolist(), scores.tolist(), labels
    ):
        label, share = vote(*row, threshold)
        if best > -math.inf and label is not None:
            shares.append(share)
            right.append(label == wanted)
    return fit_confidence(shares, right)


def confidence_of(share, curve):
    """Return the confidence of a vote; curve: what `fit_confidence` returns."""
    intercept, slope = curve
    return 1 / (1 + math.exp(-(intercept + slope * share)))

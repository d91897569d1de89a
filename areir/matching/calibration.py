"""Set the score at which the nearest image is a match, on classes never trained on.

When the gallery has no image of the query's class, the search should say so. Such a
query is a false match if its nearest image still scores at or above the threshold. The
false-match rate is the share of these queries that are false matches. It grows with the
gallery: among more wrong images, the best one scores higher. So thresholds are set for
a series of gallery sizes.

The wanted rate is small and classes are few, so hardly any scores were observed where
the threshold lies. Among points in a space of dimension m, the number within a small
distance d grows as d ** m, and so does the share of queries with a wrong image that
near, where d = 1 - score. A line in -log d is therefore fitted to the upper TAIL of the
queries by their mean excess (Hill, The Annals of Statistics 3(5), 1975), and the
threshold is read from it instead of from the one or two highest scores.

Scores are those of unit vectors, from -1 to 1.
"""

from typing import NamedTuple

import numpy as np
import torch

from areir.errors import UserError
from areir.evaluation.intervals import (
    LEAST_CLASSES,
    class_sums,
    confidence_intervals,
    resampled_means,
)
from areir.evaluation.scores import BestScores, score_blocks
from areir.matching.votes import calibrate_confidence

STEP = 0.01  # in -log d, between the thresholds that are considered
GRID = torch.arange(-70, 1151) * STEP  # -log d of these: scores from -1 to 0.99999
HIGHEST = 0.99999  # the highest threshold
TAIL = 0.25  # share of the queries that the line is fitted to
MOST_QUERIES = 2048  # used at most, drawn from all
BLOCK = 64  # queries whose scores are held at a time
HALVINGS = 5  # of the classes, in `cross_check`


class LabelledVectors(NamedTuple):
    """Queries and a gallery of unit vectors; the arguments of `score_blocks`."""

    query: torch.Tensor  # (Q, D)
    query_labels: torch.Tensor  # (Q,)
    gallery: torch.Tensor  # (N, D)
    gallery_labels: torch.Tensor  # (N,)
    own: torch.Tensor  # (Q,) each query's index in the gallery, or -1


def calibrate(
    query, query_labels, gallery, gallery_labels, false_match_rate=0.01, own=None
):
    """Set the threshold for embeddings of unseen classes.

    query (Q, D), query_labels (Q,), gallery (N, D), gallery_labels (N,): as in
    `rank_positives`, but unit vectors. own (Q,): each query's index in the gallery, or
    -1; by default -1 for all. The gallery may hold classes that no query has, such as
    those of training.

    Returns None if there are fewer than two classes, else a dict of plain numbers,
    which is saved with the model or the index:

        false_match_rate      the wanted rate
        gallery_size          wrong images that a query was compared with, on average
        threshold             for that size
        low, high             its 95 % interval over classes; None with fewer than
                              LEAST_CLASSES classes
        sizes, thresholds     for all sizes, see `thresholds.threshold_for`
        found                 share of the queries with a right image whose nearest
                              image is right and at or above the threshold
        realised, realised_low, realised_high   the rate measured on classes that did
                              not set the threshold, with its 95 % interval; None with
                              fewer than LEAST_CLASSES classes
        queries, classes      how many set the threshold
        confidence            the curve for `votes.confidence_of`, or None
    """
    images = draw_queries(query, query_labels, gallery, gallery_labels, own)
    wrong, best = count_wrong(images)
    labels = images.query_labels.cpu()
    classes = len(labels.unique())
    if classes < 2 or not wrong.number.all():
        return None

    full = int(wrong.number.double().mean())
    sizes, thresholds = thresholds_by_size(wrong, full, false_match_rate)
    threshold = thresholds[sizes.index(full)]
    low, high = threshold_interval(wrong.rates(full), labels, false_match_rate)
    is_found = (best.best_right > best.best_wrong) & (best.best_right >= threshold)
    with_right = int((best.best_right > -torch.inf).sum())
    rates = cross_check(images, false_match_rate)
    checked, realised = labels[~rates.isnan()], [None] * 3
    rates = rates[~rates.isnan()]
    if len(checked.unique()) >= LEAST_CLASSES:
        interval = confidence_intervals({'rate': rates}, checked)['rate']
        realised = [rates.mean().item(), *interval]
    return {
        'false_match_rate': false_match_rate,
        'gallery_size': full,
        'threshold': threshold,
        'low': low,
        'high': high,
        'found': int(is_found.sum()) / max(1, with_right),
        **dict(zip(('realised', 'realised_low', 'realised_high'), realised)),
        'sizes': sizes,
        'thresholds': thresholds,
        'queries': len(labels),
        'classes': classes,
        'confidence': calibrate_confidence(images, best.best_right, threshold),
    }


def draw_queries(query, query_labels, gallery, gallery_labels, own):
    """Return LabelledVectors of at most MOST_QUERIES queries, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(len(query), generator=generator)[:MOST_QUERIES]
    drawn = drawn.sort().values.to(query.device)
    query_labels = torch.as_tensor(query_labels, device=query.device)
    if own is None:
        own = torch.full((len(query),), -1)
    own = torch.as_tensor(own, device=query.device)
    gallery_labels = torch.as_tensor(gallery_labels, device=query.device)
    return LabelledVectors(
        query[drawn], query_labels[drawn], gallery, gallery_labels, own[drawn]
    )


# Wrong images and false matches


class WrongImages(NamedTuple):
    """How many wrong images each query has, and how high they score."""

    above: torch.Tensor  # (Q, len(GRID)): those whose -log d is at least GRID[t]
    number: torch.Tensor  # (Q,): all

    def rates(self, size):
        """Return the false-match rates (Q, len(GRID)) in a gallery of `size` images.

        A rate is the probability that at least one of `size` wrong images, drawn from
        all without replacement (hypergeometric), scores at or above the threshold. A
        query that has fewer wrong images is compared with all of them.
        """
        above, count = self.above.double(), self.number.double()[:, None]
        drawn = count.clamp(max=size)
        below = count - above
        # (below choose drawn) / (count choose drawn), as logarithms
        log_none = torch.lgamma(below + 1)
        log_none -= torch.lgamma((below - drawn).clamp(min=0) + 1)
        log_none -= torch.lgamma(count + 1)
        log_none += torch.lgamma(count - drawn + 1)
        none_above = torch.where(below >= drawn, log_none, -torch.inf).exp()
        return (1 - none_above) * (above > 0)


def count_wrong(images):
    """Return (WrongImages, BestScores) of LabelledVectors, on the CPU."""
    count = len(images.query)
    best = BestScores(count)
    above = torch.empty(count, len(GRID), dtype=torch.int64)
    wrong = torch.empty(count, dtype=torch.int64)
    for block in score_blocks(*images, BLOCK):
        rows = block.rows.cpu()
        above[rows] = count_above(block.scores, block.wrong).cpu()
        wrong[rows] = block.wrong.sum(dim=1).cpu()
        best.add(block)
    return WrongImages(above, wrong), best


def count_above(scores, wrong):
    """Return (n, len(GRID)): wrong images whose -log d is at least GRID[t].

    scores (n, N); wrong (n, N): which of them count.
    """
    closeness = (1 - scores).clamp_(min=1e-9).log_().neg_()  # -log d
    places = closeness.sub_(GRID[0]).div_(STEP).floor_().long()
    places.clamp_(0, len(GRID) - 1)
    rows = torch.arange(len(scores), device=scores.device)[:, None]
    places += rows * len(GRID)
    counts = torch.bincount(places[wrong], minlength=len(scores) * len(GRID))
    counts = counts.view(len(scores), len(GRID))
    return counts.flip(1).cumsum(1).flip(1)


# Thresholds


def threshold_at(rates, wanted):
    """Return the score (...) at which the false-match rate falls to `wanted`.

    rates (..., len(GRID)) fall from 1. If `wanted` is TAIL or more, the score is the
    measured one. If it is lower, it lies on the line fitted to the tail.
    """
    rates = rates.double()
    start = (rates > max(TAIL, wanted)).sum(dim=-1, keepdim=True)  # of the tail
    start = start.clamp(max=len(GRID) - 1)
    share = rates.gather(-1, start)  # of the queries, in the tail
    tail = rates * (torch.arange(len(GRID)) > start)
    excess = tail.sum(dim=-1, keepdim=True) * STEP / share.clamp(min=1e-12)
    beyond = torch.zeros_like(share)
    if wanted < TAIL:
        beyond = (share / wanted).clamp(min=1).log()
    scores = 1 - (-(GRID[start] + excess * beyond)).exp()
    return scores.clamp(max=HIGHEST)[..., 0]


def thresholds_by_size(wrong, full, wanted):
    """Return (gallery sizes 1, 2, 5, 10, ... `full` and more, a threshold for each).

    wrong: WrongImages; full: the size that was measured; wanted: the false-match rate.
    A larger gallery consists of several galleries of that size. Its rate is at most the
    sum of theirs, so each of them may have its share of the wanted rate. Sizes double
    from `full` as long as this share is at least one query, the smallest that can be
    observed. A larger size never has a lower threshold.
    """
    sizes = [digit * 10**power for power in range(12) for digit in (1, 2, 5)]
    sizes = [size for size in sizes if size < full] + [full]
    share = wanted / 2
    while share * len(wrong.number) >= 1:
        sizes.append(2 * sizes[-1])
        share /= 2
    thresholds = []
    for size in sizes:
        rates = wrong.rates(size).mean(dim=0)
        threshold = threshold_at(rates, wanted * min(1, full / size))
        thresholds.append(threshold.item())
    return sizes, np.maximum.accumulate(thresholds).tolist()


def threshold_interval(rates, labels, wanted):
    """Return the 95 % interval (low, high) of the threshold, or None for both.

    rates (Q, len(GRID)), labels (Q,). Classes are resampled.
    """
    sums, sizes = class_sums(dict(enumerate(rates.T)), labels)
    if len(sizes) < LEAST_CLASSES:
        return None, None
    means, shares = resampled_means(sums, sizes)
    thresholds = threshold_at(torch.from_numpy(means), wanted)
    return np.quantile(thresholds, shares).tolist()


# The check on classes that did not set the threshold


def cross_check(images, wanted):
    """Return the false-match rate (Q,) on classes that did not set the threshold.

    One half of the queries' classes sets the threshold, and the rate is measured on the
    other half in a gallery of its own; then the halves change roles. Classes that no
    query has are in both galleries. Rates are means of HALVINGS random halvings, NaN
    for queries that could not be measured.
    """
    classes = images.query_labels.unique()
    is_shared = ~torch.isin(images.gallery_labels, classes)
    generator = torch.Generator().manual_seed(0)
    matches, measured = torch.zeros(2, len(images.query), dtype=torch.float64)
    for _ in range(HALVINGS):
        order = torch.randperm(len(classes), generator=generator).to(classes.device)
        halves = []
        for part in classes[order].tensor_split([len(classes) // 2]):
            asked = torch.isin(images.query_labels, part)
            searched = torch.isin(images.gallery_labels, part) | is_shared
            half = LabelledVectors(
                images.query[asked],
                images.query_labels[asked],
                images.gallery[searched],
                images.gallery_labels[searched],
                torch.full_like(images.own[asked], -1),  # only wrong images matter
            )
            if len(half.query) and len(half.gallery):
                halves.append((asked.cpu(), *count_wrong(half)))
        if len(halves) < 2:
            continue
        for (_, wrong, _), (asked, _, best) in (halves, halves[::-1]):
            size = max(1, int(wrong.number.max()))
            threshold = threshold_at(wrong.rates(size).mean(dim=0), wanted)
            matches[asked] += (best.best_wrong >= threshold).double()
            measured[asked] += 1
    return matches / measured


# A folder


def calibrate_folder(collection, false_match_rate):
    """Return the calibration of a FolderCollection by its class folders.

    Images outside class folders are left out, and of identical files all but one.
    Classes that trained the model are in the gallery but do not query: it has learned
    to tell them apart, so they say nothing about unknown products. Raises UserError
    unless two other classes are left.
    """
    from areir.matching.duplicates import find_identical  # imports what few need

    copies = {row for rows in find_identical(collection) for row in rows[1:]}
    known = [
        row
        for row, name in enumerate(collection.classes)
        if name is not None and row not in copies
    ]
    names = [collection.classes[row] for row in known]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    trained = {str(name) for name in collection.trained.trained_classes}
    own = torch.tensor([row for row, name in enumerate(names) if name not in trained])
    calibration = None
    if len(numbers.keys() - trained) > 1:
        gallery = torch.from_numpy(np.asarray(collection.embeddings[known]))
        labels = torch.tensor([numbers[name] for name in names])
        query = gallery[own], labels[own]
        calibration = calibrate(*query, gallery, labels, false_match_rate, own)
    if not calibration:
        besides = f' besides those that trained {collection.trained.path}'
        raise UserError(
            f'--calibrate: put the images of {collection.folder} into a folder for '
            f'each class, at least two{besides if trained & numbers.keys() else ""}'
        )
    return calibration

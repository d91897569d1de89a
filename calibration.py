"""When is the nearest image a match? A threshold on the score, set on classes that were not trained on.

A query of which the gallery has nothing should be told so. A false match is such a query whose nearest image still
scores at or above the threshold; the false-match rate is their share. It grows with the gallery: the more wrong images
there are, the better the best of them. So thresholds are set for a row of gallery sizes.

The rate that is asked for is small and classes are few, so it lies where hardly any have been seen. Of points in a
space of some dimension m, those within a small distance d grow as d ** m; so does the share of the queries with a wrong
image that near, d = 1 - score. The threshold is read from this line, fitted to the upper TAIL of the queries by their
mean excess in -log d (Hill, The Annals of Statistics 3(5), 1975), not from the one or two highest scores.

Pure functions of tensors. Scores are those of unit vectors, from -1 to 1.
"""
import math

import numpy as np
import torch

from retrieval import class_sums, confidence_intervals, resampled_means

STEP = 0.01                                        # in -log d, between the thresholds that are considered
GRID = torch.arange(-70, 1151) * STEP              # -log d of these: scores from -1 to 0.99999
TAIL = 0.25
QUERIES = 2048                                     # calibrated with, at most, drawn from all
BLOCK = 64                                         # queries whose scores are held at a time
HALVINGS = 5


def wrong_and_right(query, query_labels, gallery, gallery_labels, own):
    """What the scores of queries (Q, D) with a gallery (N, D) say of wrong and right answers:

        above        (Q, len(GRID)) wrong images whose -log d is at least GRID[t]
        wrong        (Q,) images of other classes
        best_wrong, best_right   (Q,) highest score of each kind, -inf where there is none
    own (Q,) is the query's own place in the gallery, or -1.
    """
    parts = []
    for rows in torch.arange(len(query), device=query.device).split(BLOCK):
        scores = query[rows].float() @ gallery.float().T
        right = query_labels[rows, None] == gallery_labels
        itself = torch.arange(len(gallery), device=query.device) == own[rows, None]
        bins = (((-(1 - scores).clamp(min=1e-9).log() - GRID[0]) / STEP).floor().long().clamp(0, len(GRID) - 1)
                + torch.arange(len(rows), device=query.device)[:, None] * len(GRID))
        counts = torch.bincount(bins[~right], minlength=len(rows) * len(GRID)).view(len(rows), -1)
        parts.append((counts.flip(1).cumsum(1).flip(1), (~right).sum(dim=1),
                      scores.masked_fill(right, -torch.inf).amax(dim=1),
                      scores.masked_fill(~right | itself, -torch.inf).amax(dim=1)))
    return [torch.cat(part).cpu() for part in zip(*parts)]


def false_matches(above, wrong, size):
    """The probability (Q, len(GRID)) that a gallery of `size` wrong images holds one at or above the threshold.

    It is drawn from all of these without replacement (hypergeometric); `size` does not count beyond `wrong`.
    """
    above, wrong = above.double(), wrong.double()[:, None]
    drawn = wrong.clamp(max=size)
    rest = wrong - above
    none = torch.where(rest >= drawn, torch.lgamma(rest + 1) - torch.lgamma((rest - drawn).clamp(min=0) + 1)
                       - torch.lgamma(wrong + 1) + torch.lgamma(wrong - drawn + 1), -torch.inf).exp()
    return (1 - none) * (above > 0)


def threshold_at(rates, wanted):
    """The score (...) at which rates (..., len(GRID)), falling from 1, come down to the rate wanted.

    As measured for a rate of TAIL or more, along the line fitted to the tail for a lower one.
    """
    rates = rates.double()
    start = (rates > max(TAIL, wanted)).sum(dim=-1, keepdim=True).clamp(max=len(GRID) - 1)
    share = rates.gather(-1, start)
    excess = (rates * (torch.arange(len(GRID)) > start)).sum(dim=-1, keepdim=True) * STEP / share.clamp(min=1e-12)
    beyond = (share / wanted).clamp(min=1).log() if wanted < TAIL else torch.zeros_like(share)
    return (1 - (-(GRID[start] + excess * beyond)).exp()).clamp(max=0.99999)[..., 0]


def threshold_interval(rates, labels, wanted):
    """95 % interval of the threshold: the bootstrap over classes that `retrieval.confidence_intervals` makes."""
    means, shares = resampled_means(*class_sums(dict(enumerate(rates.T)), labels))
    return np.quantile(threshold_at(torch.from_numpy(means), wanted), shares).tolist()


def cross_check(query, query_labels, gallery, gallery_labels, wanted, seed):
    """The false-match rate on classes that did not set the threshold, for each query (Q,): half of the classes sets
    it, the others are measured in a gallery of their own, and the reverse; the mean of several halvings. NaN for
    queries that no halving could measure."""
    classes = torch.cat([query_labels, gallery_labels]).unique()
    generator = torch.Generator().manual_seed(seed)
    found, measured = torch.zeros(2, len(query), dtype=torch.float64)
    for _ in range(HALVINGS):
        first = classes[torch.randperm(len(classes), generator=generator).to(classes.device)[:len(classes) // 2]]
        halves = []
        for inside in (True, False):
            asked = (torch.isin(query_labels, first) == inside).nonzero().flatten()
            there = (torch.isin(gallery_labels, first) == inside).nonzero().flatten()
            if len(asked) and len(there):
                halves.append((asked, *wrong_and_right(query[asked], query_labels[asked], gallery[there],
                                                       gallery_labels[there], torch.full_like(asked, -1))[:3]))
        if len(halves) < 2:
            continue
        for (_, above, wrong, _), (asked, _, _, best_wrong) in (halves, halves[::-1]):
            threshold = threshold_at(false_matches(above, wrong, max(1, int(wrong.max()))).mean(dim=0), wanted)
            found[asked.cpu()] += (best_wrong >= threshold).double()
            measured[asked.cpu()] += 1
    return found / measured


def calibrate(query, query_labels, gallery=None, gallery_labels=None, false_match_rate=0.01, seed=0):
    """The threshold for embeddings of unseen classes, as plain numbers that are saved with the model; arguments as of
    `retrieval.evaluate`. None if there are fewer than two classes.

        false_match_rate      asked for: of queries without an image of their class in the gallery, the share whose
                              nearest image scores at or above the threshold
        gallery_size          images in the gallery that it was set with
        threshold, low, high  for that size, with its 95 % interval (bootstrap over classes)
        sizes, thresholds     the same for other sizes, see `threshold_for`
        found                 share of the queries whose nearest image is of their class and at or above `threshold`
        realised, realised_low, realised_high   the rate measured on classes that did not set the threshold, with its
                              interval; None with fewer than four classes
        queries, classes      that it was set with
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(query), generator=generator)[:QUERIES].sort().values.to(query.device)
    query_labels = torch.as_tensor(query_labels, device=query.device)
    own = torch.full_like(drawn, -1)
    if gallery is None:
        gallery, gallery_labels, own = query, query_labels, drawn
    gallery_labels = torch.as_tensor(gallery_labels, device=query.device)
    query, query_labels = query[drawn], query_labels[drawn]
    above, wrong, best_wrong, best_right = wrong_and_right(query, query_labels, gallery, gallery_labels, own)
    labels = query_labels.cpu()
    if len(labels.unique()) < 2 or not wrong.all():
        return None

    full = int(wrong.double().mean())
    sizes = [size for digit in (1, 2, 5) for size in (digit * 10 ** power for power in range(12)) if size < full]
    # a larger one consists of galleries of this size, and its rate is at most the sum of theirs; no further than to
    # the smallest share of the queries that could be seen
    sizes += [full * 2 ** power for power in range(32) if false_match_rate / 2 ** power * len(labels) >= 1 or not power]
    sizes.sort()
    thresholds = [threshold_at(false_matches(above, wrong, size).mean(dim=0),
                               false_match_rate * min(1, full / size)).item() for size in sizes]
    thresholds = np.maximum.accumulate(thresholds).tolist()
    threshold = thresholds[sizes.index(full)]
    low, high = threshold_interval(false_matches(above, wrong, full), labels, false_match_rate)
    has_right = best_right > -torch.inf
    found = ((best_right > best_wrong) & (best_right >= threshold))[has_right].double()
    realised, interval = None, (None, None)
    if len(labels.unique()) >= 4:
        rates = cross_check(query, query_labels, gallery, gallery_labels, false_match_rate, seed)
        known = ~rates.isnan()
        if len(labels[known].unique()) > 1:
            realised = rates[known].mean().item()
            interval = confidence_intervals({'rate': rates[known]}, labels[known])['rate']
    return {'false_match_rate': false_match_rate, 'gallery_size': full, 'threshold': threshold, 'low': low,
            'high': high, 'found': found.mean().item() if len(found) else 0.0, 'realised': realised,
            'realised_low': interval[0], 'realised_high': interval[1], 'sizes': sizes, 'thresholds': thresholds,
            'queries': len(labels), 'classes': len(labels.unique())}


def check(calibration):
    """Raise ValueError unless it is None, or what `calibrate` returns."""
    numbers = ('false_match_rate', 'gallery_size', 'threshold', 'low', 'high', 'found', 'queries', 'classes')
    optional = ('realised', 'realised_low', 'realised_high')
    try:
        fits = calibration is None or (
            all(math.isfinite(calibration[name]) for name in numbers)
            and all(calibration[name] is None or isinstance(calibration[name], float) for name in optional)
            and len(calibration['sizes']) == len(calibration['thresholds']) > 0
            and all(math.isfinite(number) for number in (*calibration['sizes'], *calibration['thresholds']))
            and min(calibration['sizes']) >= 1)
    except (KeyError, TypeError, IndexError):
        fits = False
    if not fits:
        raise ValueError('its calibration is not one of train.py')


def threshold_for(calibration, gallery_size):
    """(threshold, whether the calibration reaches so far) for a gallery of so many images: between the sizes that were
    calibrated linear in their logarithm, beyond the last one that of the last."""
    sizes = calibration['sizes']
    threshold = np.interp(math.log(max(1, gallery_size)), np.log(sizes), calibration['thresholds'])
    return float(threshold), gallery_size <= sizes[-1]

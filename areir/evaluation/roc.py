"""Verification: do two images show the same class? Counted from the scores of pairs.

A pair is a query and an image that it does not ignore. Of all right pairs, true matches
are those that score at or above a threshold; of all wrong pairs, false matches. The
share of true matches at a share S of false ones is 1 - FNMR@FMR of
open-metric-learning at FMR = S.

Pairs are counted in bins of equal relative width of the distance d from the highest
score: the leading bits of d as a float. Between the edges of a bin the curve is taken
as straight.
"""

import math

import numpy as np
import torch

from areir.evaluation.intervals import LEAST_CLASSES, draw_classes

SHIFT = 16  # bits of d that are dropped: bins are 1/256 to 1/128 of d wide
NEAREST, FARTHEST = 2.0**-20, 4.0  # d
FIRST, LAST = np.array([NEAREST, FARTHEST], np.float32).view(np.int32) >> SHIFT
IGNORED = int(LAST - FIRST + 1)  # the bin of ignored pairs; those before it count
FALSE_SHARES = 0.01, 0.001, 0.0001
AT_ONCE = 50  # resamples


class PairCounter:
    """Counts pairs by score and by the query's class; `add` takes tiles of scores.

    images: LabelledImages; top: the highest score that is possible, of all queries or
    of each (Q,).
    """

    def __init__(self, images, top):
        self.images = images
        self.top = torch.as_tensor(top).expand(len(images.query))
        classes = int(images.query_class.max()) + 2  # from -1, that of distractors
        # all pairs, and the right ones
        shape, device = (2, classes, IGNORED + 1), images.query.device
        self.counts = torch.zeros(shape, dtype=torch.int32, device=device)

    def add(self, scores, row, column):
        """Count the scores (n, m) of queries from row with images from column."""
        n, m = scores.shape
        top = self.top[row : row + n, None].to(scores)
        distances = (top - scores) / (self.images.bound or 1)
        bits = distances.float().clamp(NEAREST, FARTHEST).view(torch.int32)
        bins = (bits >> SHIFT) - int(FIRST)
        bins[scores == -torch.inf] = IGNORED
        own = self.images.query_class[row : row + n]
        places = (own[:, None] + 1) * (IGNORED + 1) + bins
        right = own[:, None] == self.images.gallery_class[column : column + m]
        for counts, part in zip(self.counts, (places.flatten(), places[right])):
            one = torch.ones_like(part, dtype=torch.int32)
            counts.view(-1).index_add_(0, part, one)

    def result(self):
        """Return the counts (2, classes, BINS) of wrong and right pairs.

        Classes without right pairs are left out: they query nothing.
        """
        right_pairs = self.counts[1, :, :IGNORED].sum(dim=1)
        every, right = self.counts[:, right_pairs > 0, :IGNORED].cpu()
        return torch.stack([every - right, right]).float()


def is_coarse(counts):
    """Whether a third of many wrong pairs lies in one bin: scores are too alike."""
    wrong = counts[0].double().sum(dim=0)
    return wrong.sum() > 1 / FALSE_SHARES[0] and wrong.max() > wrong.sum() / 3


def verification(counts):
    """Return {name: (value, low, high)} of the counts of a PairCounter.

    true_matches@S for each of FALSE_SHARES: the share of true matches at a share S of
    false ones, NaN if there are fewer than 1 / S wrong pairs. equal_error_rate: the
    share of false matches where that of missed right pairs is the same.
    The intervals are those of `confidence_intervals`.
    """
    sums = counts.double().sum(dim=1)  # (2, BINS)
    wrong, right = sums.sum(dim=1).tolist()
    (values,) = figures(*sums[:, None])
    low = high = np.full(len(values), math.nan)
    if counts.shape[1] >= LEAST_CLASSES:
        times, quantiles = draw_classes(counts.shape[1])
        moments = counts.double() @ torch.arange(IGNORED).double()
        counts = counts[:, np.lexsort(moments.numpy())]  # whatever their numbers are
        drawn = [
            figures(part @ counts[0], part @ counts[1])
            for part in torch.from_numpy(times).float().split(AT_ONCE)
        ]
        low, high = np.quantile(np.concatenate(drawn), quantiles, axis=0)
    names = [f'true_matches@{share:g}' for share in FALSE_SHARES] + ['equal_error_rate']
    needed = [*(1 / share for share in FALSE_SHARES), 1]
    rows = zip(values.tolist(), low.tolist(), high.tolist())
    return {
        name: row if right and wrong >= least else (math.nan,) * 3
        for name, row, least in zip(names, rows, needed)
    }


def curves(counts):
    """Return the shares (..., 1 + BINS) of counts (..., BINS), summed from the left."""
    sums = counts.double().cumsum(dim=-1)
    sums = torch.cat([torch.zeros_like(sums[..., :1]), sums], dim=-1)
    return sums / sums[..., -1:].clamp(min=1)


def figures(wrong, right):
    """Return the values (R, 4) of `verification` from counts (R, BINS)."""
    return np.array(
        [
            # where the false matches are as many as the missed right pairs, 1 - true
            [*np.interp(FALSE_SHARES, false, true), np.interp(1, false + true, false)]
            for false, true in zip(curves(wrong).numpy(), curves(right).numpy())
        ]
    )

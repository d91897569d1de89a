"""How sure a metric is: intervals over classes, and paired comparison of two results.

Images of a class are not independent, so whole classes are resampled, not images.
"""

import math

import numpy as np
import torch

SWAPS = 100  # randomisations drawn at a time by `compare`


def class_sums(values, labels):
    """Sum values {measure: (N,)} over the queries of each class.

    Returns (sums (classes, measures), sizes (classes,)), NumPy arrays.
    """
    labels = np.asarray(labels)
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sums = []
    for value in values.values():
        sums.append(np.bincount(classes, np.asarray(value)))
    return np.stack(sums, axis=1), sizes


def resampled_means(sums, sizes, resamples=1000, seed=0):
    """Bootstrap the means of what `class_sums` returns, of at least two classes.

    Classes are drawn with replacement, and the mean is taken over all queries of those
    drawn. Returns the means (resamples, measures) and the two quantiles that bound
    their 95 % interval. The quantiles are widened for few classes (expanded
    percentile interval, Hesterberg, arXiv 1411.5279, section 5).
    """
    from scipy import special  # takes half a second, and a search does without it

    count = len(sizes)
    rng = np.random.default_rng(seed)
    times = np.empty((resamples, count), dtype=np.int64)  # each class is drawn
    for row in times:
        row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    means = times @ sums / (times @ sizes)[:, None]
    widening = math.sqrt(count / (count - 1))
    share = special.ndtr(widening * special.stdtrit(count - 1, 0.025))
    return means, (share, 1 - share)


def confidence_intervals(values, labels, resamples=1000, seed=0):
    """Return {measure: (low, high)}, 95 % intervals of the means of {measure: (N,)}.

    labels (N,): the class of each query. They are quantiles of `resampled_means`,
    (nan, nan) if there is only one class.
    """
    values = {measure: value.cpu() for measure, value in values.items()}
    sums, sizes = class_sums(values, torch.as_tensor(labels).cpu())
    if len(sizes) == 1:
        return dict.fromkeys(values, (math.nan, math.nan))
    means, shares = resampled_means(sums, sizes, resamples, seed)
    limits = np.quantile(means, shares, axis=0).T  # (measures, 2)
    return dict(zip(values, limits.tolist()))


def compare(values, others, labels, resamples=10_000, seed=0):
    """Compare two results of the same queries, {measure: (N,)} each.

    Returns {measure: (difference of the means, low, high, p)}. low and high bound the
    95 % interval of `confidence_intervals` for the difference. p is two-sided, from a
    randomisation test that swaps the two results of whole classes.
    """
    differences = {name: values[name].cpu() - others[name].cpu() for name in values}
    sums, sizes = class_sums(differences, torch.as_tensor(labels).cpu())
    rng = np.random.default_rng(seed)
    swapped = []
    for _ in range(resamples // SWAPS):
        signs = rng.choice([-1.0, 1.0], size=(SWAPS, len(sizes)))
        swapped.append(signs @ sums)
    swapped = np.concatenate(swapped)
    observed = sums.sum(axis=0)
    as_large = (abs(swapped) >= abs(observed) - 1e-9).sum(axis=0)
    p = (1 + as_large) / (1 + len(swapped))
    limits = confidence_intervals(differences, labels, seed=seed)
    return {
        name: (observed[i] / sizes.sum(), *limits[name], p[i])
        for i, name in enumerate(differences)
    }


def known(numbers):
    """Return numbers as JSON has them: None for NaN."""
    return [None if math.isnan(number) else float(number) for number in numbers]

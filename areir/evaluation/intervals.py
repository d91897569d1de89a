"""How sure a metric is: intervals over classes, and paired comparison of two results.

Images of a class are not independent, so whole classes are resampled, not images.

The bootstrap of n classes never leaves the range of their n means, which holds the true
mean of a symmetric distribution with a probability of 1 - 2 / 2**n. So n must be at
least LEAST_CLASSES for a 95 % interval.
"""

import math

import numpy as np
import torch

LEAST_CLASSES = 6  # 1 - 2 / 2**6 is above 95 %
NO_INTERVAL = f'no interval below {LEAST_CLASSES} classes'
RESAMPLES = 1000  # of the classes, for an interval
SWAPS = 100  # randomisations drawn at a time by `compare`


def class_sums(values, labels):
    """Sum values {measure: (N,)} over the queries of each class.

    Returns (sums (classes, measures), sizes (classes,)), NumPy arrays.
    """
    labels = np.asarray(labels.cpu() if torch.is_tensor(labels) else labels)
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    values = [torch.as_tensor(value).cpu().numpy() for value in values.values()]
    return np.stack([np.bincount(classes, value) for value in values], axis=1), sizes


def sort_classes(sums, sizes):
    """Return sums (classes, measures) in the order of sizes (classes,) and values.

    What is drawn then depends on no class's number, nor on other measures. Signs do not
    count: a comparison the other way round is drawn alike.
    """
    columns = [column[np.lexsort([abs(column), sizes])] for column in sums.T]
    return np.stack(columns, axis=1), np.sort(sizes)


def resampled_means(sums, sizes, seed=0):
    """Bootstrap the means of what `class_sums` returns, of at least two classes.

    The mean is taken over all queries of the classes drawn. Returns the means
    (RESAMPLES, measures) and the two quantiles of `draw_classes`.
    """
    times, shares = draw_classes(len(sizes), seed)
    return times @ sums / (times @ sizes)[:, None], shares


def draw_classes(count, seed=0):
    """Draw `count` of as many classes with replacement, at least two.

    Returns how often each is drawn, int64 (RESAMPLES, count), and the two quantiles
    that bound the 95 % interval of what is computed from these draws. They are widened
    for few classes (expanded percentile interval, Hesterberg, arXiv 1411.5279, section
    5).
    """
    from scipy import special  # takes half a second, and a search does without it

    rng = np.random.default_rng(seed)
    times = np.empty((RESAMPLES, count), dtype=np.int64)
    for row in times:
        row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    freedom = count - 1
    widening = math.sqrt(count / freedom)
    share = special.ndtr(widening * special.stdtrit(freedom, 0.025))
    return times, (share, 1 - share)


def class_means(values, labels):
    """Return {measure: mean over the classes of their means} of {measure: (N,)}.

    A large class counts as much as a small one.
    """
    sums, sizes = class_sums(values, labels)
    means = (sums / sizes[:, None]).mean(axis=0)
    return dict(zip(values, means.tolist()))


def confidence_intervals(values, labels, seed=0, per_class=False):
    """Return {measure: (low, high)}, 95 % intervals of the means of {measure: (N,)}.

    labels (N,): the class of each query; per_class: whether the means are those of
    `class_means`. NaN with fewer than LEAST_CLASSES classes.
    """
    sums, sizes = class_sums(values, labels)
    if per_class:
        sums, sizes = sums / sizes[:, None], np.ones_like(sizes)
    if len(sizes) < LEAST_CLASSES:
        return dict.fromkeys(values, (math.nan, math.nan))
    means, shares = resampled_means(*sort_classes(sums, sizes), seed)
    limits = np.quantile(means, shares, axis=0).T  # (measures, 2)
    return dict(zip(values, limits.tolist()))


def compare(values, others, labels, resamples=10_000, seed=0):
    """Compare two results of the same queries, {measure: (N,)} each.

    Returns {measure: (difference of the means, low, high, p)}. low and high bound the
    95 % interval of `confidence_intervals` for the difference. p is two-sided, from a
    randomisation test that swaps the two results of whole classes.
    """
    differences = {name: values[name].cpu() - others[name].cpu() for name in values}
    sums, sizes = sort_classes(*class_sums(differences, labels))
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


def describe_interval(low, high, form='{:.2%}'):
    """Write '95 % interval ... to ...', or why there is none.

    low, high: both None or NaN if there is none; form: of a number, for str.format.
    """
    if low is None or math.isnan(low):
        return NO_INTERVAL
    low, high = form.format(low), form.format(high)
    return f'95 % interval {low} to {high}'


def nan_to_none(value):
    """Return numbers, and lists and dicts of them, as JSON has them: None for NaN."""
    if isinstance(value, dict):
        return {key: nan_to_none(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [nan_to_none(entry) for entry in value]
    return None if value != value else value

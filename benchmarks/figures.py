"""The figures of an embedding, with intervals and paired differences.

New classes are searched among themselves. In the whole gallery, every image of the
trained and the new classes is searched among all others. Vectors and labels are dicts
of 'train', the images of trained classes, and 'test', those of new classes. Values are
{figure: {part: (N,)}}: those of each query. The figure is the mean over its queries; if
it has two parts, it is the mean of both means.
"""

import common  # noqa: F401  puts the repository on sys.path
import numpy as np
import torch

from areir.evaluation.intervals import (
    LEAST_CLASSES,
    class_sums,
    resampled_means,
    sort_classes,
)
from areir.evaluation.metrics import measures, rank_positives

NEW = 'new among new'  # Recall@1, as all others but MAP_R
MAP_R = 'MAP@R'  # of new among new
TRAINED, NEW_IN_ALL = 'whole gallery: trained', 'whole gallery: new'
MEAN = 'whole gallery: mean'


def values_per_query(vectors, labels):
    """Return the values of vectors {part: (N, D)} with labels {part: (N,)}.

    A diverged training, whose vectors are not finite, finds nothing.
    """
    new, whole = vectors['test'].float(), torch.cat([vectors['test'], vectors['train']])
    finite = torch.isfinite(whole).all()
    if not finite:
        new, whole = torch.zeros_like(new), torch.zeros_like(whole)
    both = torch.cat([labels['test'], labels['train'] + labels['test'].max() + 1])
    among_new = measures(rank_positives(new, labels['test']), [1])
    among_all = measures(rank_positives(whole.float(), both), [1])['recall@1'] * finite
    test, train = among_all.split([len(new), len(whole) - len(new)])
    return {
        NEW: {'test': among_new['recall@1'] * finite},
        MAP_R: {'test': among_new['map@r'] * finite},
        TRAINED: {'train': train},
        NEW_IN_ALL: {'test': test},
        MEAN: {'train': train, 'test': test},
    }


def combine(function, *values):
    """Return what a function of tensors (N,) makes of several values, part by part."""
    return {
        figure: {part: function(*(v[figure][part] for v in values)) for part in parts}
        for figure, parts in values[0].items()
    }


def mean_values(runs):
    """Return the means of the values of several seeds."""
    return combine(lambda *each: sum(each) / len(each), *runs)


def mean(parts):
    """Return a figure, from {part: (N,)}."""
    return sum(values.mean().item() for values in parts.values()) / len(parts)


def interval(parts, labels):
    """Return (low, high), the 95 % interval of a figure; see areir's intervals.

    labels: {part: (N,)}, the classes, which are drawn part by part. NaN if a part has
    fewer than LEAST_CLASSES.
    """
    means = []
    for seed, (part, values) in enumerate(parts.items()):
        sums, sizes = class_sums({part: values}, labels[part])
        if len(sizes) < LEAST_CLASSES:
            return np.nan, np.nan
        drawn, shares = resampled_means(*sort_classes(sums, sizes), seed=seed)
        means.append(drawn)
    return np.quantile(sum(means) / len(means), shares)


def describe(values, labels):
    """Return {figure: text} with intervals, in per cent."""
    return {
        figure: f'{mean(parts):.2%}' + limits('{:.1f}', parts, labels)
        for figure, parts in values.items()
    }


def differences(values, others, labels):
    """Return {figure: text}: paired differences with intervals, in points."""
    return {
        figure: f'{100 * mean(parts):+.1f}' + limits('{:+.1f}', parts, labels)
        for figure, parts in combine(torch.sub, values, others).items()
    }


def limits(form, parts, labels):
    """Return ' (low to high)' of an interval, or nothing; form: of the numbers."""
    low, high = interval(parts, labels)
    if np.isnan(low):
        return ''
    return f' ({form.format(100 * low)} to {form.format(100 * high)})'

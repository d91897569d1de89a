"""Recall@K, MAP@R and R-precision, exact, from the ranks of each query's positives.

The positives of a query are the gallery images of its class, and R is their number.
Images that a query ignores are taken out of the gallery before it is ranked.
"""

import math
from numbers import Integral

import torch

from areir.errors import UserError
from areir.evaluation.counting import AheadCounter, LabelledImages, positive_keys
from areir.evaluation.scores import TILE, check_pair, full_precision

SLOTS = 2**21  # positives whose ranks are counted at a time
DISTRACTOR = -1  # the label of an image that is searched and never right


def check_ks(ks, available):
    """Raise UserError unless each K of Recall@K is from 1 to `available`."""
    for k in ks:
        if not isinstance(k, Integral) or not 1 <= k <= available:
            raise UserError(
                f'recall@{k}: choose K from 1 to {available}, '
                'the images that can be retrieved'
            )


def summary(ranks, ks):
    """Return the metrics of `retrieval.evaluate` from what `rank_positives` returns."""
    with_positive = int((ranks['rank'] > 0).sum())
    return {
        **means(ranks, ks),
        'mean_rank': ranks['rank'].sum().item() / (with_positive or math.nan),
        'queries_without_positive': len(ranks['rank']) - with_positive,
    }


def means(ranks, ks):
    """Return {name: mean} of `measures`, NaN of no queries."""
    count = len(ranks['rank']) or math.nan
    values = measures(ranks, ks)
    return {name: math.fsum(value.tolist()) / count for name, value in values.items()}


def without_lone_queries(ranks, ks):
    """Return (queries, their `means`) of the queries with a positive.

    `summary` counts the others as misses; AccuracyCalculator of
    pytorch-metric-learning leaves them out, see
    https://kevinmusgrave.github.io/pytorch-metric-learning/accuracy_calculation/
    """
    ranks = {name: values[ranks['rank'] > 0] for name, values in ranks.items()}
    return len(ranks['rank']), means(ranks, ks)


def query_indices(labels):
    """Return the indices (Q,) of the images that query: those without DISTRACTOR."""
    return (labels != DISTRACTOR).nonzero().flatten()


def measures(ranks, ks):
    """Return {name: (Nq,) float64} of recall@k for every k, map@r, r_precision, map."""
    rank = ranks['rank']
    recalls = {f'recall@{k}': ((rank > 0) & (rank <= k)).double() for k in ks}
    others = ('map@r', 'r_precision', 'map')
    return {**recalls, **{name: ranks[name] for name in others if name in ranks}}


def rank_positives(
    query, query_labels, gallery=None, gallery_labels=None, tile=TILE, **marks
):
    """Return what `measures` needs to know of every query, exact for every `tile`.

    The arguments are those of `retrieval.evaluate`, as tensors on one device: labels in
    one numbering of the classes, and marks, which are groups, gallery_groups, files and
    gallery_files, are int64; DISTRACTOR is no class, and -1 no group or file.

    Returns a dict of tensors (Nq,), without the distractors among the queries:

        positives    R, int64
        rank         rank of the nearest positive from 1, int64; 0 if R = 0
        map@r, r_precision, and with groups map   as in `measures`, float64
    """
    images = label_images(query, query_labels, gallery, gallery_labels, **marks)
    return rank_images(images, tile, all_ranks=marks.get('groups') is not None)


def label_images(
    query,
    query_labels,
    gallery=None,
    gallery_labels=None,
    groups=None,
    gallery_groups=None,
    files=None,
    gallery_files=None,
):
    """Check the arguments of `rank_positives`; return them as LabelledImages."""
    leave_one_out = gallery is None
    if leave_one_out != (gallery_labels is None):
        raise UserError('gallery and gallery_labels are given together or not at all')
    if leave_one_out:
        gallery, gallery_labels = query, query_labels
        gallery_groups, gallery_files = groups, files
    bound = check_pair(query, gallery)
    query_labels = check_labels('labels', query_labels, query)
    gallery_labels = check_labels('gallery_labels', gallery_labels, gallery)
    distractors = query_labels == DISTRACTOR
    if distractors.all():
        raise UserError('labels: they are of distractors only, which do not query')
    labels = torch.cat([query_labels, gallery_labels])
    classes = labels.unique(return_inverse=True)[1].split([len(query), len(gallery)])
    classes = classes[0].masked_fill(distractors, -1), classes[1]
    ignored = []
    if groups is not None:
        pair = numbered('groups', groups, gallery_groups, query, gallery)
        ignored.append(combined(classes, pair))
    if files is not None or (ignored and leave_one_out):
        if files is None:
            files = gallery_files = torch.full((len(query),), -1)
        pair = numbered('files', files, gallery_files, query, gallery)
        if leave_one_out:
            pair = [number_files(pair[1])] * 2
        ignored.append(pair)
    return LabelledImages(
        query, gallery, *classes, leave_one_out, bound, tuple(ignored)
    )


def rank_images(images, tile=TILE, all_ranks=False, pairs=None):
    """Return the ranks of `rank_positives` for LabelledImages.

    all_ranks: whether map is wanted; pairs: a PairCounter of the same images, or None.
    """
    positives = images.number_of_positives()

    # in groups of about SLOTS positives: one group, unless classes are huge
    group = (positives.cumsum(0) - positives) // SLOTS
    sizes = group.unique_consecutive(return_counts=True)[1].tolist()
    results, first = [], 0
    with full_precision(images.query.device):
        for part in positives.split(sizes):
            results.append(rank_group(images, first, part, tile, all_ranks, pairs))
            first += len(part)
    ranks = {'positives': positives}
    for name in results[0]:
        ranks[name] = torch.cat([result[name] for result in results])
    queries = images.query_class >= 0  # no distractors
    return {name: values[queries] for name, values in ranks.items()}


def check_labels(name, labels, embeddings):
    """Return labels as int64 on the embeddings' device, one per image.

    name: what messages call them.
    """
    labels = [] if labels is None else labels
    labels = torch.as_tensor(labels, dtype=torch.int64, device=embeddings.device)
    if labels.shape != (len(embeddings),):
        raise UserError(
            f'{name} must be one per image ({len(embeddings)},), '
            f'not {tuple(labels.shape)}'
        )
    return labels


def numbered(name, marks, gallery_marks, query, gallery):
    """Return checked marks of queries and gallery; no query's equals -1 of an image."""
    if gallery_marks is None:
        raise UserError(f'{name} and gallery_{name} are given together or not at all')
    marks = check_labels(name, marks, query)
    gallery_marks = check_labels(f'gallery_{name}', gallery_marks, gallery)
    return torch.where(marks < 0, -2, marks), gallery_marks.clamp(min=-1)


def number_files(files):
    """Return files (N,) with a number of its own for each image that has none, -1."""
    own = files.max() + 1 + torch.arange(len(files), device=files.device)
    return torch.where(files < 0, own, files)


def combined(classes, groups):
    """Return a number per class and group, of queries and gallery."""
    sizes = [len(part) for part in groups]
    classes, groups = torch.cat(classes), torch.cat(groups)
    pairs = torch.stack([classes, groups], dim=1)
    numbers = pairs.unique(dim=0, return_inverse=True)[1]
    query, gallery = torch.where(groups < 0, groups, numbers).split(sizes)
    return query, gallery


def rank_group(images, first, positives, tile, all_ranks=False, pairs=None):
    """Return {name: (n,)} of `rank_positives`, of the queries first, first + 1, ...

    positives (n,): R of each of these queries; all_ranks, pairs: of `rank_images`.
    """
    keys = positive_keys(images, first, positives)
    ahead = AheadCounter(images, first, positives, keys, all_ranks).count(tile, pairs)

    # for each positive: its query, its place among the positives, its rank among all
    queries = torch.arange(len(positives), device=keys.device)
    query = queries.repeat_interleave(positives)
    start = positives.cumsum(0) - positives
    place = torch.arange(1, len(query) + 1, device=keys.device) - start[query]
    before = torch.cat([ahead.new_zeros(1), ahead.cumsum(0)])
    rank = before[1:] - before[start][query] + place

    hit = rank <= positives[query]
    precision = place / rank.double()
    sums = torch.zeros(3, len(positives), dtype=torch.float64, device=keys.device)
    sums[0].index_add_(0, query, precision * hit)
    sums[1].index_add_(0, query, hit.double())
    sums[2].index_add_(0, query, precision)
    names = ('map@r', 'r_precision', 'map')[: 2 + all_ranks]
    means = dict(zip(names, sums / positives.clamp(min=1)))

    nearest = torch.zeros_like(positives)
    some = positives > 0
    nearest[some] = rank[start[some]]
    return {'rank': nearest, **means}

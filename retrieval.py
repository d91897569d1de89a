"""Exact retrieval and its metrics on embeddings, as pure functions of tensors.

    python retrieval.py FILE                    # evaluates embeddings, anybody's
    python retrieval.py FILE --compare OTHER    # and compares them with others of the same images

The score of a pair is the dot product of its two embeddings: of their float32 values, summed in float64, rounded to
float32. Gallery images are ordered by score, then by gallery index, here and in every metric. With no gallery given,
each image queries all others.

Whole tiles of scores come from float32 products, which depend on shapes and hardware in the last bits. They are off
by no more than `tolerance`, so only the comparisons that this could turn are made again, with the scores themselves.
"""
import argparse
import json
import math
import os
import sys
import warnings
from contextlib import contextmanager
from numbers import Integral

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

TILE = 1024          # images a side of a tile of scores
CHUNK = 384          # most dimensions summed by one product: bounds its rounding error
SLOTS = 2 ** 21      # positives whose ranks are counted at a time
WORKSPACE = 2 ** 21  # numbers widened at a time
LAST = 2 ** 63 - 1   # key behind all images


# Checks


def blocks(embeddings):
    """Rows of embeddings, at most WORKSPACE numbers at a time."""
    return embeddings.split(max(1, WORKSPACE // max(1, embeddings.shape[1])))


def check_embeddings(name, embeddings):
    """Raise ValueError unless embeddings is a non-empty matrix, finite in float32; the text names rows at fault."""
    if not isinstance(embeddings, torch.Tensor):
        raise ValueError(f'{name} must be a tensor, not {type(embeddings).__name__}')
    if embeddings.dim() != 2 or not embeddings.numel():
        raise ValueError(f'{name} must be a non-empty (images, dimensions) matrix, not {tuple(embeddings.shape)}')
    if not torch.is_floating_point(embeddings):
        raise ValueError(f'{name} must be floating point, not {embeddings.dtype}')
    finite = torch.cat([torch.isfinite(rows.float()).all(dim=1) for rows in blocks(embeddings)])
    bad = (~finite).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f'{name} holds NaN or infinity in {len(bad)} images: {", ".join(map(str, bad[:10]))}')


def check_pair(query, gallery, tile, norm=None):
    """Raise ValueError unless query and gallery are embeddings of one dimension, with scores that float32 holds, and
    tile is a size. With `norm`, which none of the gallery's exceeds, the gallery itself is not read.

    Returns the largest product of a query's norm and a gallery image's, which no score exceeds.
    """
    largest = [] if norm is None else [norm]
    for name, embeddings in (('query', query), ('gallery', gallery))[:2 - len(largest)]:
        check_embeddings(name, embeddings)
        largest.append(max(torch.linalg.vector_norm(rows.double(), dim=1).max().item()
                           for rows in blocks(embeddings)))
    if not isinstance(tile, Integral) or tile < 1:
        raise ValueError(f'tile = {tile}: at least 1 is needed')
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(f'query has {query.shape[1]} dimensions, gallery {gallery.shape[1]}')
    if math.prod(largest) > 1e38:
        raise ValueError('query and gallery: scores beyond float32, normalise the embeddings')
    return math.prod(largest)


def check_labels(name, labels, embeddings):
    """Labels as int64 on the embeddings' device. Raises ValueError unless they are one integer per image."""
    try:
        labels = torch.as_tensor(labels, device=embeddings.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f'{name}_labels must be integers ({error})') from error
    if labels.shape != (len(embeddings),):
        raise ValueError(f'{name}_labels must be one per image ({len(embeddings)},), not {tuple(labels.shape)}')
    if labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise ValueError(f'{name}_labels must be integers, not {labels.dtype}')
    return labels.to(torch.int64)


# Scores and their order


@contextmanager
def full_precision(device):
    """Float32 products are computed in float32, whatever the caller allows (autocast, TF32, bfloat16)."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = 'ieee'
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision


def chunks(dimensions):
    return math.ceil(dimensions / CHUNK)


def tolerance(dimensions, bound, dtype):
    """The most by which `products` in dtype can differ from the score of a pair whose norms multiply to `bound`.

    A sum of n products is off by at most n unit roundoffs times that, whatever its order (Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.1). The rest is for the sum of `pair_scores` itself, in pairs, for
    rounding it and for rounding what it is compared with.
    """
    info = torch.finfo(dtype)
    roundings = math.ceil(dimensions / chunks(dimensions)) + chunks(dimensions) + dimensions.bit_length() + 4
    return 1.01 * roundings * info.eps / 2 * bound + dimensions * info.tiny


def products(query, gallery, rows, columns, dtype):
    """Dot products (..., n, m) of query[rows] and gallery[columns], widened to dtype chunk by chunk."""
    total = None
    for left, right in zip(query.chunk(chunks(query.shape[1]), dim=1), gallery.chunk(chunks(query.shape[1]), dim=1)):
        left, right = left[rows].float().to(dtype), right[columns].float().to(dtype).mT
        if total is None:
            total = left @ right
        else:
            total = total.addmm_(left, right) if total.dim() == 2 else total.baddbmm_(left, right)
    return total


def pair_scores(query, gallery, rows, columns):
    """The scores (n,) of the pairs query[rows], gallery[columns], float32, added in one fixed order."""
    scores = torch.empty(len(rows), dtype=torch.float32, device=query.device)
    size = max(1, WORKSPACE // query.shape[1])
    for part in torch.arange(len(rows), device=query.device).split(size):
        terms = query[rows[part]].float().double().mul_(gallery[columns[part]].float().double())
        while terms.shape[1] > 1:
            half = (terms.shape[1] + 1) // 2
            terms[:, :terms.shape[1] - half] += terms[:, half:]
            terms = terms[:, :half]
        scores[part] = terms[:, 0].float()
    return scores


def rounded(total, query, gallery, rows, columns, error):
    """The scores of pairs from their float64 products `total`, which are off by at most `error`.

    Where that could turn the rounding to float32, the pair is added by itself.
    """
    scores = total.float()
    unsure = (total - error).float() != (total + error).float()
    scores[unsure] = pair_scores(query, gallery, rows.expand_as(total)[unsure], columns.expand_as(total)[unsure])
    return scores


def to_keys(scores, index):
    """int64 keys of finite scores and gallery indices; ascending, they are in the order of retrieval."""
    bits = (scores + 0.0).view(torch.int32).long()  # -0 becomes 0; of one sign, floats are ordered as their bits
    return (torch.where(bits < 0, bits & 0x7fffffff, -bits) << 31) + index


def to_scores(keys):
    """The scores of keys, float32."""
    bits = keys >> 31
    return bits.abs().to(torch.int32).view(torch.float32) * torch.where(bits > 0, -1, 1)


def scores_at(query, gallery, rows, columns, i, j, error):
    """The scores (p,) of the pairs rows[i], columns[j] of a tile: singly where they are few."""
    if len(i) * 100 < len(rows) * len(columns):
        return pair_scores(query, gallery, rows[i], columns[j])
    total = products(query, gallery, rows, columns, torch.float64)[i, j]
    return rounded(total, query, gallery, rows[i], columns[j], error)


def search(query, gallery, k, exclude=None, tile=TILE, norm=None):
    """The k best gallery images of every query.

    query (Nq, D), gallery (Ng, D), any float type; exclude: one gallery index per query, or -1 for none.
    Returns (scores, indices), float32 and int64, both (Nq, k), in the order score, then gallery index; they do not
    depend on `tile`, the images a side of what is computed at a time. `norm`: a bound of the gallery's norms, if it
    is known to be finite; it saves reading all of the gallery before the search.
    Raises ValueError for embeddings that are not finite or do not fit, and for a k below 1 or beyond the gallery.
    """
    bound = check_pair(query, gallery, tile, norm)
    device = query.device
    if exclude is None:
        exclude = torch.full((len(query),), -1)
    exclude = torch.as_tensor(exclude, dtype=torch.int64, device=device)
    if exclude.shape != (len(query),):
        raise ValueError(f'exclude must have one index per query ({len(query)},), not {tuple(exclude.shape)}')
    if exclude.min() < -1 or exclude.max() >= len(gallery):
        raise ValueError(f'exclude must lie in -1 ... {len(gallery) - 1}')
    available = len(gallery) - int((exclude >= 0).any())
    if not isinstance(k, Integral) or not 1 <= k <= available:
        raise ValueError(f'k = {k}: choose from 1 to {available}, the images that can be retrieved')

    slack, error = (tolerance(query.shape[1], bound, dtype) for dtype in (torch.float32, torch.float64))
    height, width = max(1, min(tile, WORKSPACE // k)), 4 * tile
    steps = [(row, column) for row in range(0, len(query), height) for column in range(0, len(gallery), width)]
    best = torch.full((len(query), k), LAST, device=device)
    with full_precision(device):
        for row, column in tqdm(steps, desc='searching', unit='tile', delay=3, leave=False):
            rows = torch.arange(row, min(row + height, len(query)), device=device)
            columns = torch.arange(column, min(column + width, len(gallery)), device=device)
            scores = products(query, gallery, slice(row, row + height), slice(column, column + width), torch.float32)
            inside = ((exclude[rows] >= column) & (exclude[rows] < column + width)).nonzero().flatten()
            scores[inside, exclude[rows][inside] - column] = -torch.inf

            # whatever could be among the k best, seen so far or in this tile, gets its score
            kth = best[rows, -1]
            floor = torch.where(kth == LAST, -torch.inf, to_scores(kth) - slack)
            active = (scores.amax(dim=1) >= floor).nonzero().flatten()
            rows, scores, floor = rows[active], scores[active], floor[active]
            if not len(rows):
                continue
            if k < len(columns):
                floor = torch.maximum(floor, scores.topk(k).values[:, -1] - 2 * slack)
            wanted = (scores >= floor[:, None]) & (scores > -torch.inf)
            i, j = wanted.nonzero(as_tuple=True)
            count = wanted.sum(dim=1)
            place = torch.arange(len(i), device=device) - (count.cumsum(0) - count)[i]
            keys = torch.full((len(rows), int(count.max())), LAST, device=device)
            keys[i, place] = to_keys(scores_at(query, gallery, rows, columns, i, j, error), columns[j])
            best[rows] = torch.cat([best[rows], keys], dim=1).sort(dim=1).values[:, :k]
    return to_scores(best), best & (2 ** 31 - 1)


# Metrics


def positive_keys(query, gallery, query_class, gallery_class, positives, first, alone, error):
    """The keys of all positives of the queries first ... first + len(positives) - 1, each query's in order, in one
    row; positives (n,) is how many each query has."""
    device = query.device
    slots = torch.empty(int(positives.sum()), dtype=torch.int64, device=device)
    starts = positives.cumsum(0) - positives
    members = []                                   # of each side: images in order of class, first, number
    for classes in (query_class[first:first + len(positives)], gallery_class):
        number = torch.bincount(classes, minlength=int(torch.maximum(query_class.max(), gallery_class.max())) + 1)
        members.append((classes.argsort(stable=True), number.cumsum(0) - number, number))
    (queries, query_start, query_number), (images, image_start, image_number) = members
    sizes = torch.stack([query_number, image_number], dim=1)
    for n, m in sizes[(query_number > 0) & (image_number > alone)].unique(dim=0).tolist():
        same_size = ((query_number == n) & (image_number == m)).nonzero().flatten()  # classes, many at a time
        height = max(1, min(n, WORKSPACE // max(m, CHUNK)))
        for classes in same_size.split(max(1, WORKSPACE // (height * m + (height + m) * CHUNK))):
            columns = images[image_start[classes, None] + torch.arange(m, device=device)]
            for part in torch.arange(n, device=device).split(height):
                own = queries[query_start[classes, None] + part]
                total = products(query, gallery, first + own, columns, torch.float64)
                rows = first + own[:, :, None]
                keys = to_keys(rounded(total, query, gallery, rows, columns[:, None], error), columns[:, None])
                if alone:
                    keys[rows == columns[:, None]] = LAST
                place = torch.arange(m - alone, device=device)
                slots[starts[own][:, :, None] + place] = keys.sort(dim=2).values[:, :, :m - alone]
    return slots


def count_ahead(query, gallery, query_class, gallery_class, slots, positives, first, alone, bound, tile):
    """How many gallery images are retrieved ahead of the positives of the queries first, first + 1, ...

    slots: their keys, from `positive_keys`. Returns (len(slots),) int64: the images between a positive and the one
    before it, of the same query. A positive that has as many images ahead as its query has positives is in no
    metric, unless it is the query's nearest; it may be given up, and its number is then too small, but large enough
    to tell. Every tile is computed once, counted, and thrown away.
    """
    device = query.device
    slack, error = (tolerance(query.shape[1], bound, dtype) for dtype in (torch.float32, torch.float64))
    starts = (positives.cumsum(0) - positives).clamp(max=max(0, len(slots) - 1))
    ahead = torch.zeros_like(slots)
    live = positives.clone()             # positives not given up, the nearest ones
    passed = torch.zeros_like(positives)  # images found ahead of the last of these
    upper, lower = torch.full((2, len(positives)), torch.inf, dtype=torch.float32, device=device)
    some = positives > 0
    upper[some] = to_scores(slots[starts[some]]) + slack  # certainly ahead of all positives
    lower[some] = to_scores(slots[(starts + live - 1)[some]]) - slack  # certainly behind those that are live

    def place(queries, i, keys):
        """How many live positives of queries[i] are not behind keys; i is ascending."""
        many = torch.bincount(i, minlength=len(queries))
        column = torch.arange(len(i), device=device) - (many.cumsum(0) - many)[i]
        wanted = torch.full((len(queries), int(many.max())), LAST, device=device)
        wanted[i, column] = keys
        rank = torch.arange(int(live[queries].max()), device=device)
        own = slots[(starts[queries, None] + rank).clamp(max=len(slots) - 1)]
        own.masked_fill_(rank >= live[queries, None], LAST)
        return torch.searchsorted(own, wanted, right=True)[i, column]

    def tally(scores, row, column):
        """Count a tile: queries from row on, gallery images from column on."""
        active = (scores.amax(dim=1) >= lower[row:row + len(scores)]).nonzero().flatten()
        if not len(active):
            return
        if 2 * len(active) > len(scores):
            active, found = torch.arange(len(scores), device=device), scores
        else:
            found = scores[active]
        queries = row + active
        certain, wanted = found > upper[queries, None], found >= lower[queries, None]
        sure = certain.sum(dim=1, dtype=torch.int32).long()
        doubtful = wanted.sum(dim=1, dtype=torch.int32) - sure
        if (doubtful[live[queries] > 1].sum() > wanted.numel() // 16
                and scores.shape[1] > max(32, 2 * int(positives[queries].max()))):
            for half in torch.arange(scores.shape[1], device=device).chunk(2):
                tally(scores[:, half[0]:half[-1] + 1], row, column + int(half[0]))  # the first gives up for the next
            return
        ahead.index_add_(0, starts[queries], sure)
        passed[queries] += sure
        some = doubtful.nonzero().flatten()
        i, j = (certain[some] ^ wanted[some]).nonzero(as_tuple=True)
        other = query_class[first + queries[some[i]]] != gallery_class[column + j]  # positives are in order already
        i, j = i[other], j[other]
        if len(i):
            some, about = queries[some], found[some[i], j]
            between = place(some, i, to_keys(about + slack, torch.zeros_like(j)))
            unsure = between != place(some, i, to_keys(about - slack, torch.full_like(j, 2 ** 31 - 1)))
            if unsure.any():
                i_unsure, j_unsure = i[unsure], j[unsure]
                columns = torch.arange(column, column + scores.shape[1], device=device)
                exact = scores_at(query, gallery, first + some, columns, i_unsure, j_unsure, error)
                between[unsure] = place(some, i_unsure, to_keys(exact, columns[j_unsure]))
            own = some[i]
            inside = between < live[own]
            own, between = own[inside], between[inside]
            ahead.index_add_(0, starts[own] + between, torch.ones_like(own))
            passed.index_add_(0, own, torch.ones_like(own))
        due = queries[(passed[queries] + live[queries] > positives[queries]) & (live[queries] > 1)]
        if len(due):
            rank = torch.arange(int(live[due].max()), device=device)
            counted = ahead[(starts[due, None] + rank).clamp(max=len(slots) - 1)].cumsum(dim=1)
            kept = (counted + rank < positives[due, None]) & (rank < live[due, None])
            live[due] = kept.sum(dim=1).clamp(min=1)
            passed[due] = counted.gather(1, live[due, None] - 1)[:, 0]
            lower[due] = to_scores(slots[starts[due] + live[due] - 1]) - slack

    symmetric = alone and len(positives) == len(query)
    steps = [(row, column) for row in range(0, len(positives), tile)
             for column in range(row if symmetric else 0, len(gallery), tile)]
    for row, column in tqdm(steps, desc='ranking', unit='tile', delay=3, leave=False):
        stop = min(row + tile, len(positives))
        scores = products(query, gallery, slice(first + row, first + stop), slice(column, column + tile), torch.float32)
        if alone:
            scores.diagonal(first + row - column).fill_(-torch.inf)
        tally(scores, row, column)
        if symmetric and row != column:
            tally(scores.T, column, row)
    return ahead


def rank_positives(query, query_labels, gallery=None, gallery_labels=None, tile=TILE):
    """What `measures` needs to know of every query, exact and independent of `tile`.

    Arguments as of `evaluate`. Returns a dict of tensors (Nq,), R being the gallery images of the query's class:

        positives    R
        rank         1 + the images ahead of the nearest of them; 0 if R = 0
        map@r        1/R * sum over i <= R of (precision at i if the i-th nearest is one of them, else 0)
        r_precision  the share of them among the R nearest

    Recall needs no sorted list: the images ahead of a query's nearest positive are counted, tile by tile, and in the
    same way those ahead of its other positives, as far as R. Without a gallery scores are symmetric, and each
    tile counts for both of its sides. Raises ValueError as `evaluate` does.
    """
    alone = int(gallery is None)
    if alone != (gallery_labels is None):
        raise ValueError('gallery and gallery_labels are given together or not at all')
    if alone:
        gallery, gallery_labels = query, query_labels
    bound = check_pair(query, gallery, tile)
    labels = torch.cat([check_labels('query', query_labels, query), check_labels('gallery', gallery_labels, gallery)])
    names, classes = labels.unique(return_inverse=True)
    query_class, gallery_class = classes.split([len(query), len(gallery)])
    positives = torch.bincount(gallery_class, minlength=len(names))[query_class] - alone
    error = tolerance(query.shape[1], bound, torch.float64)

    # as many queries at a time as have SLOTS positives together: all, unless classes are huge
    groups = ((positives.cumsum(0) - positives) // SLOTS).unique_consecutive(return_counts=True)[1].tolist()
    parts, first = [], 0
    with full_precision(query.device):
        for size in groups:
            own = positives[first:first + size]
            slots = positive_keys(query, gallery, query_class, gallery_class, own, first, alone, error)
            ahead = count_ahead(query, gallery, query_class, gallery_class, slots, own, first, alone, bound, tile)
            of = torch.arange(size, device=query.device).repeat_interleave(own)       # each positive's query
            starts = own.cumsum(0) - own
            before = torch.cat([ahead.new_zeros(1), ahead.cumsum(0)])
            place = torch.arange(1, len(of) + 1, device=query.device) - starts[of]     # among the positives
            rank = before[1:] - before[starts][of] + place                            # among all images
            hit = rank <= own[of]
            precision = place / rank.double()
            sums = torch.zeros(2, size, dtype=torch.float64, device=query.device)
            sums[0].index_add_(0, of, precision * hit)
            sums[1].index_add_(0, of, hit.double())
            nearest = torch.zeros_like(own)
            nearest[own > 0] = rank[starts[own > 0]]
            parts.append((nearest, *sums / own.clamp(min=1)))
            first += size
    rank, average_precision, r_precision = (torch.cat(part) for part in zip(*parts))
    return {'positives': positives, 'rank': rank, 'map@r': average_precision, 'r_precision': r_precision}


def measures(ranks, ks):
    """{name: (Nq,) float64} whose means are the metrics: recall@k for every k, map@r, r_precision."""
    rank = ranks['rank']
    return {**{f'recall@{k}': ((rank > 0) & (rank <= k)).double() for k in ks},
            'map@r': ranks['map@r'], 'r_precision': ranks['r_precision']}


def evaluate(query, query_labels, ks, gallery=None, gallery_labels=None, tile=TILE):
    """Recall@K, MAP@R and R-precision, means over all queries, as fractions.

    query (Nq, D) and query_labels (Nq,); the same for the gallery, in one numbering of the classes. Without
    a gallery every image queries all others. With R the number of gallery images of the query's class:

        recall@k     1 if one of them is among the k nearest, else 0 (arXiv 1511.06452)
        r_precision  the share of them among the R nearest (arXiv 2003.08505)
        map@r        1/R * sum over i <= R of (precision at i if the i-th nearest is one of them, else 0)
                     (arXiv 2003.08505)
        mean_rank    place of the nearest of them, mean over the queries that have one; 0 if none has

    A query without any (R = 0) counts as 0 in the first three; their number is queries_without_positive.
    Raises ValueError for embeddings that are not finite, shapes that do not fit and a k beyond the gallery.
    """
    ks = list(ks)
    check_embeddings('query', query)
    if gallery is not None:
        check_embeddings('gallery', gallery)
    check_ks(ks, len(query) - 1 if gallery is None else len(gallery))
    return summary(rank_positives(query, query_labels, gallery, gallery_labels, tile), ks)


def check_ks(ks, available):
    for k in ks:
        if not isinstance(k, Integral) or not 1 <= k <= available:
            raise ValueError(f'recall@{k}: choose K from 1 to {available}, the images that can be retrieved')


def summary(ranks, ks):
    """The metrics of `evaluate` from the ranks of `rank_positives`."""
    found = ranks['rank'] > 0
    return {**{name: math.fsum(values.tolist()) / len(found) for name, values in measures(ranks, ks).items()},
            'mean_rank': ranks['rank'].sum().item() / max(1, int(found.sum())),
            'queries_without_positive': int((~found).sum())}


# Uncertainty


def class_sums(values, labels):
    """Sums over the queries of each class: (classes, measures) of values {measure: (N,)}, and (classes,) of 1."""
    _, classes, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return np.stack([np.bincount(classes, np.asarray(value)) for value in values.values()], axis=1), sizes


def resampled_means(sums, sizes, resamples=1000, seed=0):
    """Means (resamples, measures) of what `class_sums` returns of two classes or more, and the two percentiles that
    bound their 95 % interval.

    Bootstrap over the queries' classes, because images of a class are not independent: classes are drawn with
    replacement, and the mean is taken over the images of those drawn. The percentiles are widened for few classes
    (expanded percentile interval, Hesterberg, arXiv 1411.5279, section 5).
    """
    count = len(sizes)
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(resamples)])
    share = stats.norm.cdf(math.sqrt(count / (count - 1)) * stats.t.ppf(0.025, count - 1))
    return drawn @ sums / (drawn @ sizes)[:, None], (share, 1 - share)


def confidence_intervals(values, labels, resamples=1000, seed=0):
    """95 % intervals of the means of values {measure: (N,)}: {measure: (low, high)}; (nan, nan) for one class.

    They are percentiles of `resampled_means`.
    """
    sums, sizes = class_sums({name: value.cpu() for name, value in values.items()}, torch.as_tensor(labels).cpu())
    if len(sizes) == 1:
        return dict.fromkeys(values, (math.nan, math.nan))
    means, shares = resampled_means(sums, sizes, resamples, seed)
    return dict(zip(values, np.quantile(means, shares, axis=0).T.tolist()))


def compare(values, others, labels, resamples=10_000, seed=0):
    """Paired comparison on the same queries: {measure: (difference of the means, low, high, p)}.

    The 95 % interval is that of `confidence_intervals` for the difference. p is two-sided, from a randomisation
    test that swaps the two results of whole classes.
    """
    differences = {name: values[name].cpu() - others[name].cpu() for name in values}
    sums, sizes = class_sums(differences, torch.as_tensor(labels).cpu())
    rng = np.random.default_rng(seed)
    swapped = np.concatenate([rng.choice([-1.0, 1.0], size=(100, len(sizes))) @ sums for _ in range(resamples // 100)])
    seen = sums.sum(axis=0)
    p = (1 + (abs(swapped) >= abs(seen) - 1e-9).sum(axis=0)) / (1 + len(swapped))
    low_high = confidence_intervals(differences, labels, seed=seed)
    return {name: (seen[i] / sizes.sum(), *low_high[name], p[i]) for i, name in enumerate(differences)}


# Files


KEYS = ('protocol', 'select', 'ensemble_size', *(part + name for part in ('', 'query_', 'gallery_')
                                for name in ('embeddings', 'labels', 'images')))


def load_file(path):
    """{name: array, tensor or list} of a .npz file or a file of torch.save; nothing in it is executed.

    Raises ValueError naming the file if it is missing, damaged, or holds objects where arrays or tensors belong.
    """
    try:
        if path.endswith('.npz'):
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] if name in KEYS else None for name in file.files}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch warns of some files before it refuses them
            found = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # numpy and torch raise many kinds for a damaged file
        reason = 'no such file' if not os.path.exists(path) else 'a folder' if os.path.isdir(path) else \
            'damaged, or holds objects; save plain arrays with numpy.savez, or tensors with torch.save'
        raise ValueError(f'{path}: {reason}') from error
    if not isinstance(found, dict):
        raise ValueError(f'{path}: not a dict of embeddings and labels')
    return found


def read_embeddings(path):
    """A file's embeddings as a dict: query, query_labels and, if it has queries of its own, gallery, gallery_labels
    (the arguments of `evaluate`); images and gallery_images: a name for each, or None; names: what the file calls
    the arguments; notes: what it says of protocol and selection; ensemble_size: its heads, or None.

    The file holds `embeddings` and `labels`; where queries are not the gallery, one of the two is under
    `query_embeddings`, `query_labels` or `gallery_embeddings`, `gallery_labels`, or both are. Labels are integers or
    texts; `images` and `query_images` may name the images. Raises ValueError naming the file and what is missing.
    """
    file = load_file(path)
    query, gallery = (prefix if f'{prefix}embeddings' in file else '' for prefix in ('query_', 'gallery_'))
    parts = [query, gallery] if query != gallery else ['']
    missing = [part + name for part in parts for name in ('embeddings', 'labels') if part + name not in file]
    if missing:
        raise ValueError(f'{path}: {", ".join(missing)} not in it, only {", ".join(map(str, file)) or "nothing"}')
    try:
        embeddings = [torch.as_tensor(file[part + 'embeddings']) for part in parts]
        labels = [np.asarray(file[part + 'labels']) for part in parts]
        if any(label.dtype.kind in 'US' for label in labels):  # texts, in one numbering
            labels = np.split(np.unique(np.concatenate(labels), return_inverse=True)[1], [len(labels[0])])
        labels = [torch.as_tensor(label) for label in labels[:len(parts)]]
        ensemble_size = int(file['ensemble_size']) if 'ensemble_size' in file else None
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f'{path}: embeddings and labels must be arrays ({error})') from error
    images = [file.get(part + 'images') for part in parts]
    for index, (part, given, label) in enumerate(zip(parts, images, labels)):
        if given is not None:
            try:
                images[index] = np.asarray(getattr(given, 'tolist', lambda given=given: given)()).astype(str).tolist()
            except ValueError:  # lists of different lengths in it
                images[index] = []
            if np.shape(images[index]) != (len(label),):
                raise ValueError(f'{path}: {part}images must be one name per image ({len(label)})')
    found = {'query': embeddings[0], 'query_labels': labels[0], 'images': images[0], 'gallery_images': None,
             'ensemble_size': ensemble_size,
             'names': {'query': parts[0] + 'embeddings', 'query_labels': parts[0] + 'labels'},
             'notes': {name: str(file[name]) for name in ('protocol', 'select') if name in file}}
    if len(parts) == 2:
        found |= {'gallery': embeddings[1], 'gallery_labels': labels[1], 'gallery_images': images[1]}
        found['names'] |= {'gallery': parts[1] + 'embeddings', 'gallery_labels': parts[1] + 'labels'}
    return found


def rank_file(path, device, heads=None):
    """(contents as of `read_embeddings` without the embeddings, ranks). Errors name the file.

    With `heads`, of the first so many heads: the embedding of an ensemble contains those of smaller ones.
    """
    contents = read_embeddings(path)
    if heads is not None:
        ensemble_size = contents['ensemble_size'] or 0
        if not 1 <= heads <= ensemble_size:
            raise ValueError(f'--evaluate_heads {heads}: {path} has {ensemble_size or "an unknown number of"} heads')
        for name in ('query', 'gallery'):
            if name in contents:
                contents[name] = contents[name][:, :contents[name].shape[-1] // ensemble_size * heads]
    names = [name for name in ('query', 'query_labels', 'gallery', 'gallery_labels') if name in contents]
    try:
        arguments = {name: contents[name].to(device) for name in names}
        ranks = {name: values.cpu() for name, values in rank_positives(**arguments).items()}
    except (ValueError, RuntimeError) as error:
        name, *rest = str(error).splitlines()[0].split(' ')
        raise ValueError(f'{path}: {" ".join([contents["names"].get(name, name), *rest])}') from error
    gallery = contents.pop('gallery', None)
    query = contents.pop('query')
    contents['dimensions'] = query.shape[1]
    contents['available'] = len(query) - 1 if gallery is None else len(gallery)
    if not contents['available']:
        raise ValueError(f'{path}: a single image, there is nothing that it could retrieve')
    contents['how'] = 'each queries all others, itself excluded by its index' if gallery is None else \
        f'they query a gallery of {len(gallery):,}'
    return contents, ranks


def aligned(path, contents, ranks, other_path, other, other_ranks):
    """For each query of contents its place in other. Raises ValueError unless both have the same queries and
    retrieve from the same gallery: as many images, of the same names, as many of each query's class."""
    both = f'{path} and {other_path}'
    here, there = contents['images'], other['images']
    if here is not None and there is not None:
        if len(set(here)) < len(here):
            raise ValueError(f'{path}: several images of one name')
        if sorted(here) != sorted(there):
            raise ValueError(f'{both}: not results of the same images')
        places = {image: place for place, image in enumerate(there)}
        order = torch.tensor([places[image] for image in here])
    else:
        order = torch.arange(len(contents['query_labels']))
    labels, other_labels = contents['query_labels'], other['query_labels']
    pairs = [labels.long(), other_labels[order].long()] if len(labels) == len(other_labels) else [labels, labels[:0]]
    if len(pairs[0]) != len(pairs[1]) or not (len(torch.stack(pairs, dim=1).unique(dim=0))
                                              == len(labels.unique()) == len(other_labels.unique())):
        raise ValueError(f'{both}: the queries are not of the same classes, or not in the same order')
    galleries = [one['gallery_images'] for one in (contents, other)]
    if (('gallery_labels' in contents) != ('gallery_labels' in other) or contents['available'] != other['available']
            or not torch.equal(ranks['positives'], other_ranks['positives'][order])
            or (None not in galleries and sorted(galleries[0]) != sorted(galleries[1]))):
        raise ValueError(f'{both}: the queries do not retrieve from the same gallery')
    return order


def integers(text):
    """argparse type: '1,2,4' as [1, 2, 4]."""
    try:
        return [int(part) for part in text.split(',')]
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of integers such as 1,2,4') from None


def known(numbers):
    """Numbers as JSON has them: None for NaN."""
    return [None if math.isnan(number) else float(number) for number in numbers]


def print_report(report):
    def share(value):
        return '       -' if value is None else f'{value:8.2%}'

    print(f'{report["file"]}: {report["queries"]:,} images of {report["classes"]:,} classes, {report["dimensions"]:,} '
          f'dimensions; {report["how"]}')
    for result in (report, report.get('other', {})):
        if result.get('protocol', 'strict') != 'strict' or result.get('select', 'last') == 'test':
            print(f'{result["file"]}: protocol {result.get("protocol", "unknown")}, epoch selected by '
                  f'{result.get("select", "unknown")}: not comparable with strict figures')
    print(f'{"":<14}{"":>8}   95 % interval (classes)')
    for name, interval in report['intervals'].items():
        print(f'{name:<14}{share(report["metrics"][name])}   {" ".join(map(share, interval))}')
    print(f'{"mean rank":<14}{report["metrics"]["mean_rank"]:8.1f}   of the nearest image of the class')
    print(f'{"no positive":<14}{report["metrics"]["queries_without_positive"]:8,}   queries, counted as misses')
    if 'heads' in report:
        print('\nrecall@1 of the first heads')
        for heads, found in report['heads'].items():
            print(f'{heads:<14}{share(found["recall@1"])}   {" ".join(map(share, found["interval"]))}')
    if 'other' in report:
        print(f'\ncompared with {report["other"]["file"]}, on the same queries')
        print(f'{"":<14}{"other":>8}{"difference":>12}   95 % interval (classes)        p')
        for name, found in report['difference'].items():
            print(f'{name:<14}{share(report["other"]["metrics"][name])}{share(found["difference"]):>12}   '
                  f'{share(found["low"])} {share(found["high"])}{found["p"]:14.4f}')


def main():
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description='Evaluate embeddings, exactly, with 95 % intervals over classes.')
    parser.add_argument('file', help='a database of train.py, or a .npz or .pt file that holds embeddings and labels, '
                                     'and for queries of their own query_embeddings and query_labels')
    parser.add_argument('--recalls', type=integers,
                        help="K of Recall@K [default value is '1,2,4,8,10,20,30,40,50,100,1000', as far as there are "
                             'images]')
    parser.add_argument('--compare', metavar='OTHER', help='a second file of the same images, to compare with')
    parser.add_argument('--evaluate_heads', type=integers, default=[], metavar='1,2,4',
                        help='Recall@1 of the first so many heads of a database of train.py')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='cpu or cuda [default value is %(default)s]')
    args = parser.parse_args()
    try:
        torch.empty(0, device=args.device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has several for one that is not there
        parser.error(f'--device {args.device}: {str(error).splitlines()[0]}')
    try:
        contents, ranks = rank_file(args.file, args.device)
        ks = args.recalls or [k for k in (1, 2, 4, 8, 10, 20, 30, 40, 50, 100, 1000) if k <= contents['available']]
        check_ks(ks, contents['available'])
        values, labels = measures(ranks, ks), contents['query_labels']
        metrics, intervals = summary(ranks, ks), confidence_intervals(values, labels)
        report = {'file': args.file, 'queries': len(labels), 'classes': len(labels.unique()),
                  'dimensions': contents['dimensions'], 'how': contents['how'], **contents['notes'],
                  'metrics': metrics, 'intervals': {name: known(pair) for name, pair in intervals.items()}}
        for heads in args.evaluate_heads:
            value = {'recall@1': measures(rank_file(args.file, args.device, heads)[1], [1])['recall@1']}
            report.setdefault('heads', {})[heads] = {
                'recall@1': value['recall@1'].mean().item(),
                'interval': known(confidence_intervals(value, labels)['recall@1'])}
        if args.compare is not None:
            other, other_ranks = rank_file(args.compare, args.device)
            order = aligned(args.file, contents, ranks, args.compare, other, other_ranks)
            other_values = {name: value[order] for name, value in measures(other_ranks, ks).items()}
            report['other'] = {'file': args.compare, **other['notes'], 'metrics': summary(other_ranks, ks)}
            report['difference'] = {name: dict(zip(('difference', 'low', 'high', 'p'), known(found)))
                                    for name, found in compare(values, other_values, labels).items()}
    except (ValueError, OSError) as error:
        parser.error(' '.join(str(error).split('\n')))
    except KeyboardInterrupt:
        parser.exit(130, 'retrieval.py: interrupted\n')
    try:
        if args.json:
            print(json.dumps(report, indent=2, ensure_ascii=False))
        else:
            print_report(report)
        sys.stdout.flush()
    except OSError as error:  # a full disk, or `| head` that has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            parser.error(f'the report cannot be written: {error}')


if __name__ == '__main__':
    main()

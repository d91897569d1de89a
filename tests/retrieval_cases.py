"""Embeddings, labels and definitions that the tests of retrieval share."""

import numpy as np
import torch
from torch.nn import functional as F

from areir.evaluation import counting, metrics, ranking, scores

N = 22
TILES = [1, 5, N - 1, N, 1024]
CONSTANTS = {
    f'{module.__name__.split(".")[-1]}.{name}': (module, name, value)
    for module, name, value in [
        (scores, 'CHUNK', 3),
        (scores, 'WORKSPACE', 50),
        (scores, 'CACHED', 1),
        (metrics, 'SLOTS', 3),
        (counting, 'BLOCK', 1),
    ]
}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def vectors(count, seed=0, dimensions=6):
    """Small dyadic numbers, whose scores are exact and often equal."""
    shape = (count, dimensions)
    return torch.randint(-4, 5, shape, generator=generator(seed)).float() / 8


def labels_of(count, classes, seed=0):
    return torch.randint(0, classes, (count,), generator=generator(seed))


def duplicates(count, copies, dimensions=6, seed=0):
    return F.normalize(normal(count, dimensions, seed=seed), dim=1).repeat(copies, 1)


def make_embeddings(kind, seed=0):
    """Return embeddings (N, D) of a kind that is easy or hard to rank."""
    half = N // 2
    random = normal(N, 6, seed=seed)
    if kind == 'ties':
        return vectors(N, seed)
    if kind == 'negative':
        return torch.cat([random[:half].abs(), -random[half:].abs()])
    if kind == 'duplicates':
        return duplicates(half, 2, seed=seed)
    if kind == 'equal':
        return torch.ones(N, 6) / 3
    if kind == 'collapsed':
        return 1 + 1e-4 * random
    if kind == 'zero':
        return random * (torch.arange(N) % 3 > 0)[:, None]
    if kind == 'wide':
        powers = torch.randint(-12, 12, (N, 1), generator=generator(seed))
        return random * 10.0**powers
    if kind == 'subnormal':
        return random * 1e-39
    if kind == 'one dimension':
        return random[:, :1]
    return random


FEW_KINDS = ['random', 'ties', 'collapsed', 'wide']
KINDS = [
    *(*FEW_KINDS, 'negative', 'duplicates', 'equal', 'zero'),
    *('subnormal', 'one dimension'),
]


def bad_row(value, dtype=torch.float32):
    embeddings = vectors(6).to(dtype)
    embeddings[4, 2] = value
    return embeddings


def patch_products(monkeypatch, function):
    """Replace `products` wherever it is called."""
    for module in (scores, ranking, counting):
        monkeypatch.setattr(module, 'products', function)


# Definitions


def defined_scores(query, gallery):
    query, gallery = query.float().double(), gallery.float().double()
    return (query[:, None] * gallery[None]).sum(dim=2).float()


def expected_search(query, gallery, k, leave_one_out=False):
    found = defined_scores(query, gallery)
    order = found.argsort(dim=1, descending=True, stable=True)
    if leave_one_out:
        other = order != torch.arange(len(query))[:, None]
        order = order[other].view(len(query), -1)
    return found.gather(1, order[:, :k]), order[:, :k]


def same_search(result, expected):
    return all(torch.equal(one, other) for one, other in zip(result, expected))


def brute_force(
    query,
    query_labels,
    ks,
    gallery=None,
    gallery_labels=None,
    groups=None,
    gallery_groups=None,
    files=None,
    gallery_files=None,
):
    """The definitions, one query at a time: sort by score, then by gallery index."""
    leave_one_out = gallery is None
    if leave_one_out:
        gallery, gallery_labels = query, query_labels
        gallery_groups, gallery_files = groups, files
    query_labels, gallery_labels = list(query_labels), list(gallery_labels)
    no_marks = [-1] * (len(query) + len(gallery))
    groups, gallery_groups = groups or no_marks, gallery_groups or no_marks
    files, gallery_files = files or no_marks, gallery_files or no_marks

    def is_ignored(i, j):
        same_class = gallery_labels[j] == query_labels[i]
        return (
            (leave_one_out and i == j)
            or (same_class and groups[i] == gallery_groups[j] != -1)
            or files[i] == gallery_files[j] != -1
        )

    rows, ranks = [], []
    for i, row in enumerate(defined_scores(query, gallery).tolist()):
        if query_labels[i] == -1:
            continue
        order = sorted((-score, j) for j, score in enumerate(row))
        images = [j for _, j in order if not is_ignored(i, j)]
        right = [int(gallery_labels[j]) == int(query_labels[i]) for j in images]
        recalls = (any(right[:k]) for k in ks)
        rows.append([*recalls, map_at_r(right), r_precision(right)])
        if groups is not no_marks:
            rows[-1].append(average_precision(right))
        if any(right):
            ranks.append(right.index(True) + 1)
    names = [*(f'recall@{k}' for k in ks), 'map@r', 'r_precision', 'map']
    return {
        **dict(zip(names, np.mean(np.array(rows, float), axis=0).tolist())),
        'mean_rank': sum(ranks) / len(ranks) if ranks else np.nan,
        'queries_without_positive': len(rows) - len(ranks),
    }


def average_precision(right):
    """As eval_market1501 of torchreid/metrics/rank.py (deep-person-reid)."""
    cumulated = np.cumsum(right) / np.arange(1, len(right) + 1)
    return (cumulated * right).sum() / max(1, sum(right))


def map_at_r(right):
    total = sum(right)
    precisions = [sum(right[: i + 1]) / (i + 1) for i in range(total) if right[i]]
    return sum(precisions) / max(1, total)


def r_precision(right):
    total = sum(right)
    return sum(right[:total]) / max(1, total)

"""Exact retrieval and its metrics on embeddings, as pure functions of tensors.

The score of a pair is the dot product of its embeddings in float32. Gallery images are ordered by score,
then by gallery index, here and in every metric. With no gallery given, each image queries all others.
"""
import torch

BLOCK = 2 ** 24  # scores held at a time


def check_embeddings(name, embeddings):
    """Raise ValueError unless embeddings is a non-empty, finite matrix; the text names the rows at fault."""
    if embeddings.dim() != 2 or not embeddings.numel():
        raise ValueError(f'{name} must be a non-empty (images, dimensions) matrix, not {tuple(embeddings.shape)}')
    if not torch.is_floating_point(embeddings):
        raise ValueError(f'{name} must be floating point, not {embeddings.dtype}')
    bad = (~torch.isfinite(embeddings)).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f'{name} holds NaN or infinity in {len(bad)} images: {", ".join(map(str, bad[:10]))}')


def check_pair(query, gallery):
    """Raise ValueError unless query and gallery are embeddings of one dimension."""
    check_embeddings('query', query)
    check_embeddings('gallery', gallery)
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(f'query has {query.shape[1]} dimensions, gallery {gallery.shape[1]}')


def ranked_blocks(query, gallery, exclude):
    """Yield (rows, scores, order) for blocks of queries: both (n, Ng), best first, ties by gallery index.

    `exclude` holds one gallery index per query, or -1: that image is ranked last, with a score of -inf.
    """
    gallery = gallery.float()
    size = max(1, BLOCK // len(gallery))
    for start in range(0, len(query), size):
        rows = torch.arange(start, min(start + size, len(query)), device=query.device)
        scores = query[rows].float() @ gallery.T
        left_out = (exclude[rows] >= 0).nonzero().flatten()
        scores[left_out, exclude[rows][left_out]] = -torch.inf
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        yield rows, scores, order


def search(query, gallery, k, exclude=None):
    """The k best gallery images of every query.

    query (Nq, D), gallery (Ng, D); exclude: one gallery index per query, or -1 for none.
    Returns (scores, indices), float32 and int64, both (Nq, k), in the order score, then gallery index.
    Raises ValueError for embeddings that are not finite or do not fit, and for a k below 1 or beyond the gallery.
    """
    check_pair(query, gallery)
    if exclude is None:
        exclude = torch.full((len(query),), -1)
    exclude = torch.as_tensor(exclude, dtype=torch.int64, device=query.device)
    if exclude.shape != (len(query),):
        raise ValueError(f'exclude must have one index per query ({len(query)},), not {tuple(exclude.shape)}')
    if exclude.min() < -1 or exclude.max() >= len(gallery):
        raise ValueError(f'exclude must lie in -1 ... {len(gallery) - 1}')
    available = len(gallery) - int((exclude >= 0).any())
    if k not in range(1, available + 1):
        raise ValueError(f'k = {k}: choose from 1 to {available}, the images that can be retrieved')
    blocks = [(scores[:, :k], order[:, :k]) for _, scores, order in ranked_blocks(query, gallery, exclude)]
    return torch.cat([scores for scores, _ in blocks]), torch.cat([order for _, order in blocks])


def evaluate(query, query_labels, ks, gallery=None, gallery_labels=None):
    """Recall@K, MAP@R and R-precision (arXiv 2003.08505), as fractions, means over all queries.

    query (Nq, D) and query_labels (Nq,); the same for the gallery, in one numbering of the classes. Without
    a gallery every image queries all others. With R the number of gallery images of the query's class:

        recall@k     1 if one of them is among the k nearest, else 0
        r_precision  the share of them among the R nearest
        map@r        1/R * sum over i <= R of (precision at i if the i-th nearest is one of them, else 0)

    A query without any (R = 0) counts as 0 in all of them; their number is queries_without_positive.
    Raises ValueError for embeddings that are not finite, shapes that do not fit and a k beyond the gallery.
    """
    leave_one_out = gallery is None
    if leave_one_out != (gallery_labels is None):
        raise ValueError('gallery and gallery_labels are given together or not at all')
    if leave_one_out:
        gallery, gallery_labels = query, query_labels
    check_pair(query, gallery)
    labels = {}
    for name, values, embeddings in (('query', query_labels, query), ('gallery', gallery_labels, gallery)):
        labels[name] = torch.as_tensor(values, device=query.device).to(torch.int64)
        if labels[name].shape != (len(embeddings),):
            raise ValueError(f'{name}_labels must be one per image ({len(embeddings)},), '
                             f'not {tuple(labels[name].shape)}')
    available = len(gallery) - leave_one_out
    hits = dict.fromkeys(ks, 0)  # each K once
    for k in hits:
        if k not in range(1, available + 1):
            raise ValueError(f'recall@{k}: choose K from 1 to {available}, the images that can be retrieved')

    exclude = torch.arange(len(query)) if leave_one_out else torch.full((len(query),), -1)
    map_at_r = r_precision = without_positive = 0
    for rows, scores, order in ranked_blocks(query, gallery, exclude.to(query.device)):
        positive = (labels['gallery'][order] == labels['query'][rows, None]) & (scores > -torch.inf)  # (n, Ng)
        count = positive.sum(dim=1)                                                                   # R of each
        for k in hits:
            hits[k] += positive[:, :k].any(dim=1).sum().item()
        positive = positive[:, :max(1, int(count.max()))].double()
        place = torch.arange(1, positive.shape[1] + 1, device=query.device)
        positive = positive * (place <= count[:, None])                                 # only the first R count
        precision = positive.cumsum(dim=1) / place
        r_precision += (positive.sum(dim=1) / count.clamp(min=1)).sum().item()
        map_at_r += ((precision * positive).sum(dim=1) / count.clamp(min=1)).sum().item()
        without_positive += (count == 0).sum().item()
    return {**{f'recall@{k}': hits[k] / len(query) for k in hits}, 'map@r': map_at_r / len(query),
            'r_precision': r_precision / len(query), 'queries_without_positive': without_positive}

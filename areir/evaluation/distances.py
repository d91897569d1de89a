"""Turn vectors into those whose dot products rank images by a metric."""

import torch

from areir.data.lists import shorten
from areir.errors import UserError, counted
from areir.evaluation.scores import by_rows

SAME_LENGTH = 1.004  # longest to shortest of a side; bfloat16 rounds by less


def apply_metric(file, metric, device):
    """Return [query, gallery], or [query] alone, whose dot products rank by a metric.

    metric: cosine, dot, euclidean, or None: cosine, for which vectors of one length
    stay as they are. The embeddings of the EmbeddingsFile are given up. Raises
    UserError that names the images whose vectors cannot be ranked.
    """
    vectors = [side.embeddings.to(device) for side in file.sides]
    norms = [by_rows(part, lambda rows: rows.norm(dim=1)) for part in vectors]
    for side, part in zip(file.sides, norms):
        side.embeddings = None
        needs_direction = metric in (None, 'cosine')
        bad = ~part.isfinite() | ((part == 0) & needs_direction)
        rows = bad.nonzero().flatten().tolist()
        if rows:
            what = (
                'NaN, infinity or zeros only' if needs_direction else 'NaN or infinity'
            )
            raise UserError(
                f'{file.path}: {side.names["embeddings"]} holds {what} in '
                f'{counted(len(rows), "image")}: {shorten(list(map(str, rows)))}; '
                'leave them out'
            )
    if metric == 'dot':
        return vectors
    if metric == 'euclidean':
        return euclidean(vectors)
    if metric is None:
        if all(part.max() <= part.min() * SAME_LENGTH for part in norms):
            return vectors
        low, high = torch.cat(norms).aminmax()
        file.notices.append(
            f'the vectors are not of unit length ({low:.2g} to {high:.2g}), so they '
            'are normalised: --metric dot or euclidean ranks them otherwise'
        )
    return [
        by_rows(part, lambda rows, norms: (rows / norms[:, None]).float(), norm)
        for part, norm in zip(vectors, norms)
    ]


def euclidean(vectors):
    """Return [query, gallery] whose dot products descend with the Euclidean distance.

    -|q - g|^2 / 2 is q . g - |g|^2 / 2 and a number of the query, so the gallery gets
    dimensions of -|g|^2 / 2, in two float32 numbers, and the query ones. Distances to
    the gallery's mean, at most 1, are small numbers, which float32 rounds least.
    """
    gallery = vectors[-1]
    total = by_rows(gallery, lambda part: part.sum(dim=0, keepdim=True)).sum(dim=0)
    mean = total / len(gallery)
    farthest = by_rows(gallery, lambda part: (part - mean).norm(dim=1)).max()
    scale = farthest.clamp(min=1e-30)
    query, gallery = (
        by_rows(part, lambda rows: ((rows - mean) / scale).float())
        for part in (vectors[0], gallery)
    )
    half = by_rows(gallery, lambda rows: rows.square().sum(dim=1, keepdim=True) / -2)
    coarse = half.float()
    gallery = torch.cat([gallery, coarse, (half - coarse).float()], dim=1)
    return [torch.cat([query, query.new_ones(len(query), 2)], dim=1), gallery]

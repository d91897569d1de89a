"""The score of a pair of embeddings, and the order of images that follows from it.

The score is the dot product of two embeddings: their float32 values are multiplied and
summed in float64, and the sum is rounded to float32. Images of a gallery are ordered by
score, then by their index.

Whole tiles of scores come from float32 products, which are fast, but whose last bits
depend on shapes and hardware. They differ from the scores by at most `tolerance`. Where
that difference could change the outcome of a comparison, the scores themselves are
computed.
"""

import math
from contextlib import contextmanager
from typing import NamedTuple

import torch

from areir.errors import UserError, counted

TILE = 1024  # images per side of a tile of scores
CHUNK = 384  # most dimensions summed by one product; bounds its rounding error
WORKSPACE = 2**21  # numbers widened to float64 at a time
CACHED = 2**17  # the same for pairs, so that they stay in the cache
LAST = 2**63 - 1  # a key behind those of all images
LARGEST = 1e38  # a score that float32 still holds


# Checks


def check_embeddings(name, embeddings):
    """Raise UserError unless embeddings is a non-empty matrix, finite in float32.

    name: what the message calls them. It lists the first rows that are not finite.
    """
    if embeddings.dim() != 2 or not embeddings.numel():
        shape = tuple(embeddings.shape)
        raise UserError(
            f'{name} must be a non-empty (images, dimensions) matrix, not {shape}'
        )
    if not torch.is_floating_point(embeddings):
        raise UserError(f'{name} must be floating point, not {embeddings.dtype}')
    blocks = embeddings.split(rows_at_once(embeddings.shape[1]))
    finite = [torch.isfinite(block.float()).all(dim=1) for block in blocks]
    bad = (~torch.cat(finite)).nonzero().flatten().tolist()
    if bad:
        rows = ', '.join(map(str, bad[:10]))
        raise UserError(
            f'{name} holds NaN or infinity in {counted(len(bad), "image")}: {rows}'
        )


def check_pair(query, gallery, norm=None):
    """Check that query and gallery fit together.

    norm: an upper bound on the gallery's norms. If given, the gallery is not scanned.
    Returns the largest product of a query's and a gallery image's norm, which bounds
    the scores. Raises UserError, also if float32 could not hold the scores.
    """
    check_embeddings('query', query)
    largest_query = largest_norm(query)
    if norm is None:
        check_embeddings('gallery', gallery)
        norm = largest_norm(gallery)
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f'query has {query.shape[1]} dimensions, gallery {gallery.shape[1]}'
        )
    if largest_query * norm > LARGEST:
        raise UserError(
            'query and gallery: the scores exceed float32; normalise the embeddings'
        )
    return largest_query * norm


def largest_norm(embeddings):
    """Return the largest norm of a row, computed in float64."""
    return by_rows(embeddings, lambda rows: rows.norm(dim=1)).max().item()


def by_rows(embeddings, function, *others):
    """Return function(block in float64, ...) of all blocks of rows, as one tensor."""
    size = rows_at_once(embeddings.shape[1])
    parts = zip(*(values.split(size) for values in (embeddings, *others)))
    return torch.cat([function(part.double(), *rest) for part, *rest in parts])


# Scores


@contextmanager
def full_precision(device):
    """Compute float32 products in float32, even under autocast, TF32 or bfloat16."""
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


def rows_at_once(numbers):
    """Return how many rows of this length may be widened at a time."""
    return max(1, WORKSPACE // numbers)


def tolerance(dimensions, bound, dtype):
    """Return the largest difference between `products` in dtype and the score.

    bound: product of the two norms. A sum of n products is off by at most n unit
    roundoffs times that bound, in whatever order it is taken (Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.1). The other roundings are those of
    the pairwise sum in `pair_scores`, of its result, and of the number that the
    score is compared with.
    """
    info = torch.finfo(dtype)
    chunks = math.ceil(dimensions / CHUNK)
    roundings = math.ceil(dimensions / chunks) + chunks
    roundings += dimensions.bit_length() + 4
    return 1.01 * roundings * info.eps / 2 * bound + dimensions * info.tiny


def products(query, gallery, rows, columns, dtype):
    """Return the dot products (..., n, m) of query[rows] and gallery[columns].

    The embeddings are converted to dtype chunk by chunk.
    """
    chunks = math.ceil(query.shape[1] / CHUNK)
    total = None
    for left, right in zip(query.chunk(chunks, dim=1), gallery.chunk(chunks, dim=1)):
        left = left[rows].float().to(dtype)  # (..., n, d)
        right = right[columns].float().to(dtype).mT  # (..., d, m)
        if total is None:
            total = left @ right
        elif total.dim() == 2:
            total.addmm_(left, right)
        else:
            total.baddbmm_(left, right)
    return total


def pair_scores(query, gallery, rows, columns):
    """Return the scores (n,) of the pairs query[rows], gallery[columns], float32.

    The products are added in one fixed order, so the result depends on nothing else.
    """
    scores = torch.empty(len(rows), dtype=torch.float32, device=query.device)
    pairs = torch.arange(len(rows), device=query.device)
    for batch in pairs.split(max(1, CACHED // query.shape[1])):
        terms = query[rows[batch]].float().double()
        terms.mul_(gallery[columns[batch]].float().double())
        while terms.shape[1] > 1:
            half = (terms.shape[1] + 1) // 2
            terms[:, : terms.shape[1] - half] += terms[:, half:]
            terms = terms[:, :half]
        scores[batch] = terms[:, 0].float()
    return scores


def round_products(total, query, gallery, rows, columns, error):
    """Return the scores of pairs from their float64 products `total`.

    rows, columns: the pairs; they broadcast to the shape of total. error: by how much
    total may be off. Where that could change the rounding to float32, the score is
    computed by `pair_scores`.
    """
    scores = total.float()
    unsure = (total - error).float() != (total + error).float()
    rows, columns = rows.expand_as(total)[unsure], columns.expand_as(total)[unsure]
    scores[unsure] = pair_scores(query, gallery, rows, columns)
    return scores


def tile_scores(query, gallery, rows, columns, i, j, error):
    """Return the scores (p,) of the pairs rows[i], columns[j] of a tile.

    error: the tolerance of float64 products, as in `round_products`.
    """
    if len(i) * 100 < len(rows) * len(columns):  # few
        totals, pairs = [], torch.arange(len(i), device=i.device)
        for own in pairs.split(max(1, CACHED // query.shape[1])):
            left = query[rows[i[own]]].float().double()
            right = gallery[columns[j[own]]].float().double()
            totals.append(torch.linalg.vecdot(left, right))
        total = torch.cat(totals)
    else:
        total = products(query, gallery, rows, columns, torch.float64)[i, j]
    return round_products(total, query, gallery, rows[i], columns[j], error)


# Keys: a score and an index in one integer


def to_keys(scores, index):
    """Return int64 keys, which ascend in the order of retrieval."""
    bits = (scores + 0.0).view(torch.int32).long()  # + 0.0 turns -0 into 0
    # the bits of two floats of the same sign are ordered like the floats
    descending = torch.where(bits < 0, bits & 0x7FFFFFFF, -bits)
    return (descending << 31) + index


def to_scores(keys):
    """Return the scores of keys, float32."""
    bits = keys >> 31
    magnitude = bits.abs().to(torch.int32).view(torch.float32)
    return magnitude * torch.where(bits > 0, -1, 1)


def to_indices(keys):
    """Return the gallery indices of keys, int64."""
    return keys & (2**31 - 1)


def by_row(i, keys, rows):
    """Return (matrix (rows, m), column (n,)) of keys (n,): key n is in row i[n].

    i (n,): ascending. Rows with fewer keys than m end with LAST.
    """
    count = torch.bincount(i, minlength=rows)
    column = torch.arange(len(i), device=i.device) - (count.cumsum(0) - count)[i]
    matrix = torch.full((rows, int(count.max())), LAST, device=i.device)
    matrix[i, column] = keys
    return matrix, column


# Each query's best right and best wrong image


class ScoreBlock(NamedTuple):
    """The scores of n queries with all N images of a gallery.

    An image is right for a query if it has the same label and is not the query itself,
    and wrong if it has another label.
    """

    rows: torch.Tensor  # (n,) indices of the queries
    scores: torch.Tensor  # (n, N) float32
    right: torch.Tensor  # (n, N) bool
    wrong: torch.Tensor  # (n, N) bool


def score_blocks(
    query, query_labels, gallery, gallery_labels, own, block, is_ignored=None
):
    """Yield a ScoreBlock for every `block` queries.

    query (Q, D), gallery (N, D): unit vectors; own (Q,): each query's index in the
    gallery, or -1. All are on one device. is_ignored: of `LabelledImages`; what it says
    is neither right nor wrong.
    """
    images = gallery.float().T
    for rows in torch.arange(len(query), device=query.device).split(block):
        with full_precision(query.device):
            scores = query[rows].float() @ images
        wrong = query_labels[rows, None] != gallery_labels
        right = ~wrong
        inside = (own[rows] >= 0).nonzero().flatten()
        right[inside, own[rows[inside]]] = False
        if is_ignored:
            kept = ~is_ignored(rows[:, None], torch.arange(len(gallery)).to(rows))
            right, wrong = right & kept, wrong & kept
        yield ScoreBlock(rows, scores, right, wrong)


class BestScores:
    """Collects each query's best scores from the ScoreBlocks given to `add`.

    best_right, best_wrong (Q,): the highest score of a right and of a wrong image, -inf
    if there is none. nearest_right (Q,): the index of the former, 0 if there is none.
    """

    def __init__(self, count):
        self.best_right = torch.full((count,), -torch.inf)
        self.best_wrong = self.best_right.clone()
        self.nearest_right = torch.zeros(count, dtype=torch.int64)

    def add(self, block):
        rows = block.rows.cpu()
        best, nearest = torch.where(block.right, block.scores, -torch.inf).max(dim=1)
        self.best_right[rows], self.nearest_right[rows] = best.cpu(), nearest.cpu()
        wrong = torch.where(block.wrong, block.scores, -torch.inf)
        self.best_wrong[rows] = wrong.amax(dim=1).cpu()

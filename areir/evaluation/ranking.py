"""Exact search: the k best gallery images of every query."""

from numbers import Integral

import torch

from areir.bars import progress_bar
from areir.errors import UserError
from areir.evaluation.scores import (
    LAST,
    TILE,
    by_row,
    check_pair,
    full_precision,
    products,
    rows_at_once,
    tile_scores,
    to_indices,
    to_keys,
    to_scores,
    tolerance,
)
from areir.hardware import cpu_has_any

NARROWEST, WIDEST = 4, 32  # columns of a tile, in multiples of its most rows
FLOAT32 = torch.finfo(torch.float32)
LARGEST_CODE = 127
MOST_CODES = 2**31 // LARGEST_CODE**2  # the sum of their products fits in 32 bits
# CPU instructions that multiply 8-bit codes and add in 32 bits
INSTRUCTIONS = 'avx512_vnni', 'avx_vnni', 'amx_int8'


def search(query, gallery, k, exclude=None, tile=TILE):
    """Return (scores, indices) as `retrieval.search` does, of tensors on one device."""
    best = BestImages(query, gallery, k, exclude)
    best.add_tiles(best.tiles(tile))
    return to_scores(best.keys), to_indices(best.keys)


class BestImages:
    """The k best images of each query in the tiles given to `add_tiles`.

    Arguments and errors are those of `search`. norm: an upper bound on the gallery's
    norms, which is then not scanned; codes: `VectorsFile.codes` of the gallery, for a
    faster first pass, which needs `norm`.
    keys (Nq, k): the best images so far, as ordered keys; LAST where there are fewer.
    """

    def __init__(self, query, gallery, k, exclude=None, norm=None, codes=None):
        bound = check_pair(query, gallery, norm)
        self.query, self.gallery, self.k = query, gallery, k
        self.exclude = torch.full((len(query),), -1, device=query.device)
        if exclude is not None:
            exclude = torch.as_tensor(exclude, device=query.device)
            fits = exclude.shape == (len(query),)
            if not fits or exclude.min() < -1 or exclude.max() >= len(gallery):
                raise UserError(
                    'exclude must be one index of the gallery per query, or -1'
                )
            self.exclude[:] = exclude
        available = len(gallery) - int((self.exclude >= 0).any())
        if not isinstance(k, Integral) or not 1 <= k <= available:
            raise UserError(
                f'k = {k}: choose from 1 to {available}, the images that can be '
                'retrieved'
            )
        self.first_pass = FloatPass(query, gallery, bound)
        if codes:
            self.first_pass = CodePass(query, *codes, norm)
        self.error = tolerance(query.shape[1], bound, torch.float64)
        self.keys = torch.full((len(query), k), LAST, device=query.device)

    def tiles(self, tile):
        """Divide all pairs into tiles (rows, columns); the fewer rows, the wider."""
        queries, images = len(self.query), len(self.gallery)
        height = min(tile, rows_at_once(self.k), queries)
        width = tile * min(WIDEST, max(NARROWEST, tile // height))
        return [
            (
                slice(row, min(row + height, queries)),
                slice(column, min(column + width, images)),
            )
            for column in range(0, images, width)
            for row in range(0, queries, height)
        ]

    def add_tiles(self, tiles):
        """Search tiles (rows, columns): query[rows] in gallery[columns]."""
        bar = progress_bar(tiles, 'searching', unit='tile', delay=3, leave=False)
        with full_precision(self.query.device):
            for rows, columns in bar:
                approximate = self.first_pass(rows, columns)
                exclude = self.exclude[rows]
                inside = (exclude >= columns.start) & (exclude < columns.stop)
                inside = inside.nonzero().flatten()
                approximate[inside, exclude[inside] - columns.start] = -torch.inf
                floor = self.floor(approximate, rows)
                i, j = (approximate >= floor[:, None]).nonzero(as_tuple=True)
                if len(i):
                    self.add_pairs(i, j, rows, columns)

    def floor(self, approximate, rows):
        """Return the lowest approximate score (n,) that one of the k best can have.

        approximate (n, m): the scores of a tile; rows: its queries.
        """
        slack, kth = self.first_pass.slack[rows], self.keys[rows, -1]
        floor = to_scores(kth) - slack
        empty = (kth == LAST).nonzero().flatten()
        if len(empty):
            count = min(self.k, approximate.shape[1])
            kth_here = approximate[empty].topk(count).values[:, -1]
            floor[empty] = kth_here - 2 * slack[empty]
            if count < self.k:
                floor[empty] = -torch.inf
        return floor.clamp(min=FLOAT32.min)  # excluded images are below it

    def add_pairs(self, i, j, rows, columns):
        """Score the pairs (i, j) of a tile exactly and merge them into the keys."""
        device = self.query.device
        rows = torch.arange(rows.start, rows.stop, device=device)
        columns = torch.arange(columns.start, columns.stop, device=device)
        scores = tile_scores(self.query, self.gallery, rows, columns, i, j, self.error)
        keys, _ = by_row(i, to_keys(scores, columns[j]), len(rows))
        merged = torch.cat([self.keys[rows], keys], dim=1).sort(dim=1).values
        self.keys[rows] = merged[:, : self.k]


# Approximate scores of whole tiles, with a bound on their error


class FloatPass:
    """Products in float32; bound: the largest product of a query's and image's norm."""

    def __init__(self, query, gallery, bound):
        self.query, self.gallery = query, gallery
        slack = tolerance(query.shape[1], bound, torch.float32)
        self.slack = torch.full((len(query),), slack, device=query.device)

    def __call__(self, rows, columns):
        return products(self.query, self.gallery, rows, columns, torch.float32)


class CodePass:
    """Products of 8-bit codes, which are exact integers, times the scales.

    query (Q, D): float32; codes (N, D), scales (N,): the gallery as `encode` returns
    it; error: the gallery's largest error; norm: an upper bound on its norms.
    """

    def __init__(self, query, codes, scales, error, norm):
        self.codes, self.scales = codes, scales
        self.query, self.query_scales, errors = encode(query)
        norms = torch.linalg.vector_norm(query.double(), dim=1)
        # a query q = a + e and an image x = b + f, with codes a, b and errors e, f:
        # qx - ab = qf + eb, where |b| is at most norm + error
        coding = norms * error + errors * (norm + error)
        rounding = 8 * FLOAT32.eps * (norms + errors) * (norm + error)
        self.slack = (coding + rounding + FLOAT32.tiny).float()

    def __call__(self, rows, columns):
        approximate = torch._int_mm(self.query[rows], self.codes[columns].T).float()
        approximate *= self.scales[columns]
        approximate *= self.query_scales[rows, None]
        return approximate


def encode(vectors):
    """Encode finite vectors (n, D) in 8 bits per number.

    Returns int8 codes (n, D), float32 scales (n,) and errors (n,). A code times its
    scale approximates a vector, and the error bounds the norm of the difference.
    """
    scales = vectors.abs().amax(dim=1) / LARGEST_CODE
    scales = torch.where(scales > 0, scales, 1)
    codes = (vectors / scales[:, None]).round()
    codes = codes.clamp(-LARGEST_CODE, LARGEST_CODE)
    difference = codes.double() * scales[:, None].double()
    difference -= vectors
    errors = torch.linalg.vector_norm(difference, dim=1)
    errors *= 1.000001  # so that rounding to float32 keeps it a bound
    return codes.to(torch.int8), scales, errors.float()


def has_fast_codes(dimensions):
    """Whether this CPU multiplies codes (n, dimensions) exactly and fast.

    torch 2.14 is wrong for vectors of a single number, and with too many dimensions the
    sum exceeds 32 bits. Without INSTRUCTIONS, oneDNN adds pairs of products in 16 bits,
    which can overflow: https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html
    """
    return 1 < dimensions < MOST_CODES and cpu_has_any(*INSTRUCTIONS)

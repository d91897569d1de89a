"""Exact search: the k best gallery images of every query."""

from numbers import Integral

import torch
from tqdm import tqdm

from areir.errors import UserError
from areir.retrieval.scores import (
    LAST,
    TILE,
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


def search(query, gallery, k, exclude=None, tile=TILE, norm=None):
    """Return the k best gallery images of every query.

    query (Nq, D), gallery (Ng, D): any float type; exclude (Nq,): a gallery index that
    a query must not retrieve, such as its own, or -1; tile: images per side of a
    tile of scores, which does not change the result; norm: an upper bound on the
    gallery's norms. If given, the gallery is not scanned before the search.

    Returns (scores, indices), float32 and int64, both (Nq, k), ordered by score, then
    by gallery index. Raises UserError for embeddings that are not finite or do not
    fit, and for a k below 1 or beyond the images that can be retrieved.
    """
    bound = check_pair(query, gallery, tile, norm)
    exclude = check_exclude(exclude, query, gallery)
    check_k(k, len(gallery) - int((exclude >= 0).any()))

    best = BestImages(query, gallery, k, exclude, bound)
    height = min(tile, rows_at_once(k))
    width = 4 * tile
    tiles = [
        (row, column)
        for row in range(0, len(query), height)
        for column in range(0, len(gallery), width)
    ]
    with full_precision(query.device):
        for row, column in tqdm(
            tiles, desc='searching', unit='tile', delay=3, leave=False
        ):
            best.add_tile(
                slice(row, min(row + height, len(query))),
                slice(column, min(column + width, len(gallery))),
            )
    return to_scores(best.keys), to_indices(best.keys)


def check_exclude(exclude, query, gallery):
    """Return `exclude` as a tensor (Nq,) on the query's device."""
    if exclude is None:
        return torch.full((len(query),), -1, device=query.device)
    exclude = torch.as_tensor(exclude, dtype=torch.int64, device=query.device)
    if exclude.shape != (len(query),):
        raise UserError(
            f'exclude must have one index per query ({len(query)},), '
            f'not {tuple(exclude.shape)}'
        )
    if exclude.min() < -1 or exclude.max() >= len(gallery):
        raise UserError(f'exclude must lie in -1 ... {len(gallery) - 1}')
    return exclude


def check_k(k, available):
    """Raise UserError unless k is an integer from 1 to `available`."""
    if not isinstance(k, Integral) or not 1 <= k <= available:
        raise UserError(
            f'k = {k}: choose from 1 to {available}, the images that can be retrieved'
        )


class BestImages:
    """The k best images of each query in the tiles given to `add_tile`.

    keys (Nq, k): their keys in order; LAST where fewer were seen.
    """

    def __init__(self, query, gallery, k, exclude, bound):
        self.query, self.gallery, self.k, self.exclude = query, gallery, k, exclude
        self.slack = tolerance(query.shape[1], bound, torch.float32)
        self.error = tolerance(query.shape[1], bound, torch.float64)
        self.keys = torch.full((len(query), k), LAST, device=query.device)

    def add_tile(self, row_slice, column_slice):
        """Search a tile: query[row_slice] in gallery[column_slice]."""
        rows = torch.arange(row_slice.start, row_slice.stop, device=self.query.device)
        columns = torch.arange(
            column_slice.start, column_slice.stop, device=self.query.device
        )
        approximate = products(
            self.query, self.gallery, row_slice, column_slice, torch.float32
        )
        self.hide_excluded(approximate, rows, column_slice)

        # a product below the floor cannot belong to one of the k best images
        kth = self.keys[rows, -1]
        floor = torch.where(kth == LAST, -torch.inf, to_scores(kth) - self.slack)
        active = (approximate.amax(dim=1) >= floor).nonzero().flatten()
        if not len(active):
            return
        rows, approximate, floor = rows[active], approximate[active], floor[active]
        if self.k < len(columns):
            kth_here = approximate.topk(self.k).values[:, -1]
            floor = torch.maximum(floor, kth_here - 2 * self.slack)
        candidates = (approximate >= floor[:, None]) & (approximate > -torch.inf)
        self.add_candidates(candidates, rows, columns)

    def hide_excluded(self, approximate, rows, columns):
        """Set the products of excluded images in the tile to -inf."""
        exclude = self.exclude[rows]
        inside = (exclude >= columns.start) & (exclude < columns.stop)
        inside = inside.nonzero().flatten()
        approximate[inside, exclude[inside] - columns.start] = -torch.inf

    def add_candidates(self, candidates, rows, columns):
        """Merge the keys of candidates (n, m), a mask of rows x columns."""
        i, j = candidates.nonzero(as_tuple=True)
        count = candidates.sum(dim=1)
        place = torch.arange(len(i), device=i.device) - (count.cumsum(0) - count)[i]
        scores = tile_scores(self.query, self.gallery, rows, columns, i, j, self.error)
        keys = torch.full((len(rows), int(count.max())), LAST, device=i.device)
        keys[i, place] = to_keys(scores, columns[j])
        merged = torch.cat([self.keys[rows], keys], dim=1).sort(dim=1).values
        self.keys[rows] = merged[:, : self.k]

"""Counts the images that are retrieved ahead of each query's positives.

Recall and MAP@R need the ranks of the positives only, and a rank is a number of images,
so no list is sorted: each tile of scores is computed once, counted and thrown away.
"""

from dataclasses import dataclass

import torch

from areir.bars import progress_bar
from areir.evaluation import scores as exact
from areir.evaluation.scores import (
    CHUNK,
    LAST,
    by_row,
    products,
    round_products,
    rows_at_once,
    tile_scores,
    to_keys,
    to_scores,
)

BLOCK = 64  # gallery images of whole classes whose positives are scored at a time
NARROW = 32  # a tile with at most this many columns is not divided
LAST_INDEX = 2**31 - 1
MANY = 16  # a tile is divided if more than 1/16 of it is doubtful


@dataclass
class LabelledImages:
    """Queries and gallery with their classes."""

    query: torch.Tensor  # (Q, D)
    gallery: torch.Tensor  # (N, D)
    query_class: torch.Tensor  # (Q,) int64 from 0 on, -1 of distractors
    gallery_class: torch.Tensor  # (N,)
    leave_one_out: bool  # whether the gallery is the queries
    bound: float  # on the scores
    # pairs (Q,), (N,) of int64: a query ignores the images with its number in one of
    # them. With leave_one_out and any pair, one of them has a number for each image.
    ignored: tuple = ()

    def tolerance(self, dtype):
        """Return by how much products in dtype can differ from the scores."""
        return exact.tolerance(self.query.shape[1], self.bound, dtype)

    def is_ignored(self, rows, columns):
        """Return which images columns (m,) the queries rows (n, 1) ignore, (n, m)."""
        if not self.ignored:
            return rows == columns
        same = [query[rows] == gallery[columns] for query, gallery in self.ignored]
        return torch.stack(same).any(dim=0)

    def number_of_positives(self):
        """Return how many positives each query has, int64 (Q,)."""
        classes = self.query_class, self.gallery_class
        positives = count_equal(classes)
        for pair in self.ignored:
            positives -= count_equal(classes, pair)
        if len(self.ignored) > 1:  # what is ignored twice was subtracted twice
            positives += count_equal(classes, *self.ignored)
        elif self.leave_one_out and not self.ignored:
            positives -= (self.query_class == self.gallery_class).long()
        return positives


def count_equal(*pairs):
    """Return for each query how many images have its number in every pair, int64 (Q,).

    pairs: (Q,), (N,) of int64, at most two of them `LabelledImages.ignored`.
    """
    codes = 0
    for pair in pairs:
        numbers, both = torch.cat(pair).unique(return_inverse=True)
        codes = (codes * len(numbers) + both).unique(return_inverse=True)[1]
    query, gallery = codes.split([len(numbers) for numbers in pairs[0]])
    return torch.bincount(gallery, minlength=int(codes.max()) + 1)[query]


def positive_keys(images, first, positives):
    """Return the keys (P,) of all positives of the queries first, first + 1, ...

    positives (n,): how many each of these queries has. The keys of a query are in
    order, and follow those of the query before it. Queries and gallery are put in the
    order of their classes, so that the positives of neighbours lie side by side.
    """
    query, gallery = images.query, images.gallery
    error = images.tolerance(torch.float64)
    query_class = images.query_class[first : first + len(positives)]
    query_class, queries = query_class.sort(stable=True)
    gallery_class, columns = images.gallery_class.sort(stable=True)
    start = torch.searchsorted(gallery_class, query_class)
    stop = torch.searchsorted(gallery_class, query_class, right=True)
    slot = positives.cumsum(0) - positives
    keys = positives.new_empty(int(positives.sum()))
    sizes = (start // BLOCK).unique_consecutive(return_counts=True)[1]
    for block in torch.arange(len(queries), device=keys.device).split(sizes.tolist()):
        span = slice(start[block[0]], stop[block[-1]])
        others = columns[span]
        for part in block.split(rows_at_once(max(len(others), CHUNK))):
            own = queries[part]
            rows = first + own
            total = products(query, gallery, rows, others, torch.float64)
            rows = rows[:, None]
            scores = round_products(total, query, gallery, rows, others, error)
            found = to_keys(scores, others)
            found[query_class[part, None] != gallery_class[span]] = LAST
            if images.leave_one_out or images.ignored:
                found[images.is_ignored(rows, others)] = LAST
            found = found.sort(dim=1).values
            place = torch.arange(found.shape[1], device=keys.device)
            is_positive = place < positives[own, None]
            keys[(slot[own, None] + place)[is_positive]] = found[is_positive]
    return keys


class AheadCounter:
    """Counts the images ahead of the positives of the queries first, first + 1, ...

    Queries are numbered from 0 in here. A positive that has as many images ahead as
    its query has positives is in no metric but MAP, unless it is the query's nearest.
    Unless all ranks are wanted, it may be given up: its count is then too low, but its
    rank still beyond R. A positive that is not given up is live.

    ahead (P,)   images between a positive and the one before it, of the same query
    live (Q,)    number of live positives; they are the query's nearest
    passed (Q,)  images counted ahead of the last live positive
    upper (Q,)   an image with a larger product is ahead of all positives
    lower (Q,)   an image with a smaller product is behind all live positives
    """

    def __init__(self, images, first, positives, keys, all_ranks=False):
        """positives (Q,): how many each query has; keys (P,): of `positive_keys`."""
        self.images, self.first, self.all_ranks = images, first, all_ranks
        self.positives, self.keys = positives, keys
        self.slack = images.tolerance(torch.float32)
        start = positives.cumsum(0) - positives
        self.start = start.clamp(max=max(0, len(keys) - 1))
        self.ahead = torch.zeros_like(keys)
        self.live = positives.clone()
        self.passed = torch.zeros_like(positives)
        self.upper = torch.full_like(positives, torch.inf, dtype=torch.float32)
        self.lower = self.upper.clone()
        some = positives.nonzero().flatten()
        nearest, farthest = self.start[some], self.start[some] + positives[some] - 1
        self.upper[some] = to_scores(keys[nearest]) + self.slack
        self.lower[some] = to_scores(keys[farthest]) - self.slack

    def count(self, tile, pairs=None):
        """Count all tiles, `tile` images per side, and return `ahead`.

        In leave-one-out scores are symmetric: each tile counts for both its sides.
        pairs: a PairCounter that counts the tiles, too.
        """
        images, first, queries = self.images, self.first, len(self.positives)
        symmetric = images.leave_one_out and queries == len(images.query)
        tiles = [
            (row, column)
            for row in range(0, queries, tile)
            for column in range(row if symmetric else 0, len(images.gallery), tile)
        ]
        bar = progress_bar(tiles, 'ranking', unit='tile', delay=3, leave=False)
        for row, column in bar:
            rows = slice(first + row, first + min(row + tile, queries))
            columns = slice(column, column + tile)
            approximate = products(
                images.query, images.gallery, rows, columns, torch.float32
            )
            if images.ignored:
                own = torch.arange(rows.start, rows.stop, device=approximate.device)
                others = column + torch.arange(approximate.shape[1]).to(own)
                ignored = images.is_ignored(own[:, None], others)
                approximate.masked_fill_(ignored, -torch.inf)
            elif images.leave_one_out:  # no query retrieves itself
                approximate.diagonal(rows.start - column).fill_(-torch.inf)
            self.add_tile(approximate, row, column)
            if pairs:
                pairs.add(approximate, first + row, column)
            if symmetric and row != column:
                self.add_tile(approximate.T, column, row)
                if pairs:
                    pairs.add(approximate.T, column, row)
        return self.ahead

    def add_tile(self, approximate, row, column):
        """Count the tile (n, m) of products, queries from row, images from column."""
        n, m = approximate.shape
        lower = self.lower[row : row + n]
        active = (approximate.amax(dim=1) >= lower).nonzero().flatten()
        if not len(active):
            return
        if 2 * len(active) > n:  # a copy would cost more than it saves
            active = torch.arange(n, device=active.device)
        tile = approximate if len(active) == n else approximate[active]
        queries = row + active
        certain = tile > self.upper[queries, None]
        possible = tile >= self.lower[queries, None]
        ahead = certain.sum(dim=1, dtype=torch.int32)
        doubtful = possible.sum(dim=1, dtype=torch.int32) - ahead

        most = int(self.positives[queries].max())
        many = doubtful[self.live[queries] > 1].sum() > possible.numel() // MANY
        if many and m > max(NARROW, 2 * most) and not self.all_ranks:
            # count it in halves; the second skips what the first gives up
            left, right = approximate.chunk(2, dim=1)
            self.add_tile(left, row, column)
            self.add_tile(right, row, column + left.shape[1])
            return
        self.ahead.index_add_(0, self.start[queries], ahead.long())
        self.passed[queries] += ahead

        some = doubtful.nonzero().flatten()
        i, j = (certain[some] ^ possible[some]).nonzero(as_tuple=True)
        i = some[i]
        images = self.images
        query_class = images.query_class[self.first + queries[i]]
        other = query_class != images.gallery_class[column + j]
        i, j = i[other], j[other]  # positives are in order already
        if len(i):
            rows = self.first + queries
            columns = torch.arange(column, column + m, device=rows.device)
            self.add_doubtful(rows, columns, i, j, tile[i, j])
        self.give_up(queries)

    def add_doubtful(self, rows, columns, i, j, approximate):
        """Count the doubtful pairs rows[i], columns[j]; approximate: their products."""
        queries = rows[i] - self.first
        place = self.place(queries, to_keys(approximate + self.slack, 0))
        behind = self.place(queries, to_keys(approximate - self.slack, LAST_INDEX))
        unsure = (place != behind).nonzero().flatten()
        if len(unsure):
            query, gallery = self.images.query, self.images.gallery
            i, j = i[unsure], j[unsure]
            error = self.images.tolerance(torch.float64)
            scores = tile_scores(query, gallery, rows, columns, i, j, error)
            place[unsure] = self.place(queries[unsure], to_keys(scores, columns[j]))
        inside = place < self.live[queries]
        queries, place = queries[inside], place[inside]
        one = torch.ones_like(queries)
        self.ahead.index_add_(0, self.start[queries] + place, one)
        self.passed.index_add_(0, queries, one)

    def place(self, queries, keys):
        """Return (p,) how many live positives of the queries (p,) are before keys (p,).

        Equal queries are side by side.
        """
        own, i = queries.unique_consecutive(return_inverse=True)
        wanted, column = by_row(i, keys, len(own))
        number, slot = self.live_slots(own)
        live_keys = self.keys[slot]
        live_keys.masked_fill_(number >= self.live[own, None], LAST)
        return torch.searchsorted(live_keys, wanted, right=True)[i, column]

    def live_slots(self, queries):
        """Return (numbers (l,) of live positives from 0, their places (q, l) in keys).

        Where a query has fewer than l, its last places are those of other positives.
        """
        number = torch.arange(int(self.live[queries].max()), device=queries.device)
        slot = self.start[queries, None] + number
        return number, slot.clamp(max=len(self.keys) - 1)

    def give_up(self, queries):
        """Give up the positives that now have too many images ahead."""
        if self.all_ranks:
            return
        live = self.live[queries]
        too_many = self.passed[queries] + live > self.positives[queries]
        queries = queries[too_many & (live > 1)]
        if not len(queries):
            return
        number, slot = self.live_slots(queries)
        counted = self.ahead[slot].cumsum(dim=1)
        kept = counted + number < self.positives[queries, None]
        kept &= number < self.live[queries, None]
        self.live[queries] = kept.sum(dim=1).clamp(min=1)
        last = self.live[queries] - 1
        self.passed[queries] = counted.gather(1, last[:, None])[:, 0]
        farthest = self.keys[self.start[queries] + last]
        self.lower[queries] = to_scores(farthest) - self.slack

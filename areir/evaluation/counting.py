"""Counts the images that are retrieved ahead of each query's positives.

A positive of a query is a gallery image of its class. Recall and MAP@R need the ranks
of the positives only, and a rank is a number of images, so no list is sorted: each tile
of scores is computed once, counted and thrown away.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from tqdm import tqdm

from areir.evaluation import scores as exact
from areir.evaluation.scores import LAST, products, to_keys, to_scores

NARROW = 32  # a tile with at most this many columns is not divided
MANY = 16  # a tile is divided if more than 1/16 of it is doubtful


@dataclass
class LabelledImages:
    """Queries and gallery with their classes; leave_one_out: both are the same."""

    query: torch.Tensor  # (Q, D)
    gallery: torch.Tensor  # (N, D)
    query_class: torch.Tensor  # (Q,) int64 from 0 on
    gallery_class: torch.Tensor  # (N,)
    leave_one_out: bool
    bound: float  # on the scores

    def tolerance(self, dtype):
        """Return by how much products in dtype can differ from the scores."""
        return exact.tolerance(self.query.shape[1], self.bound, dtype)


# The keys of the positives


class Members(NamedTuple):
    """The images of each class: order[start[c] : start[c] + count[c]].

    order (N,): images in order of their class; start, count (C,).
    """

    order: torch.Tensor
    start: torch.Tensor
    count: torch.Tensor

    def of(self, classes, places):
        """Return the images (c, n) at the places (n,) of each of the classes (c,)."""
        return self.order[self.start[classes, None] + places]


def members_of_classes(classes, class_count):
    """Return the Members of the images with these classes (N,)."""
    count = torch.bincount(classes, minlength=class_count)
    return Members(classes.argsort(stable=True), count.cumsum(0) - count, count)


def positive_keys(images, first, positives):
    """Return the keys of all positives of the queries first, first + 1, ...

    positives (n,): how many each of these queries has. The keys (P,) of a query are in
    order, and follow those of the query before it.
    """
    device, itself = positives.device, int(images.leave_one_out)
    count = int(positives.sum())
    keys = torch.empty(count, dtype=torch.int64, device=device)
    start = positives.cumsum(0) - positives
    query_class = images.query_class[first : first + len(positives)]
    gallery_class = images.gallery_class
    last = torch.maximum(query_class.max(), gallery_class.max())
    class_count = int(last) + 1
    queries = members_of_classes(query_class, class_count)
    gallery = members_of_classes(gallery_class, class_count)
    for rows, columns in class_batches(queries, gallery, itself):
        class_keys = sorted_keys(images, first + rows, columns)
        wanted = columns.shape[1] - itself
        place = torch.arange(wanted, device=device)
        keys[start[rows][:, :, None] + place] = class_keys[:, :, :wanted]
    return keys


def class_batches(queries, gallery, itself):
    """Yield (queries (c, n), gallery images (c, m)) of c classes of equal sizes.

    queries, gallery: Members; itself: 1 if the gallery holds the query itself, as in
    leave-one-out, else 0. The batches cover all classes that have queries with
    positives, and their products fit into the workspace.
    """
    device = queries.count.device
    sizes = torch.stack([queries.count, gallery.count], dim=1)
    used = (queries.count > 0) & (gallery.count > itself)
    for n, m in sizes[used].unique(dim=0).tolist():
        height = min(n, exact.rows_at_once(max(m, exact.CHUNK)))
        widened = height * m + (height + m) * exact.CHUNK
        same_size = (queries.count == n) & (gallery.count == m)
        same_size = same_size.nonzero().flatten()
        for classes in same_size.split(exact.rows_at_once(widened)):
            every = torch.arange(m, device=device)
            columns = gallery.of(classes, every)
            for places in torch.arange(n, device=device).split(height):
                yield queries.of(classes, places), columns


def sorted_keys(images, rows, columns):
    """Return the keys (c, n, m) of queries (c, n) with gallery images (c, m).

    Each query's are in order; the query itself comes last.
    """
    query, gallery = images.query, images.gallery
    total = products(query, gallery, rows, columns, torch.float64)
    rows, columns = rows[:, :, None], columns[:, None]
    error = images.tolerance(torch.float64)
    scores = exact.round_products(total, query, gallery, rows, columns, error)
    keys = to_keys(scores, columns)
    if images.leave_one_out:
        keys[rows == columns] = LAST
    return keys.sort(dim=2).values


# Counting


def count_true(mask):
    """Return (n,) int32, how many of each row (n, m) are true."""
    return mask.sum(dim=1, dtype=torch.int32)


class Doubtful(NamedTuple):
    """Pairs of a tile whose products do not tell which positives are behind.

    queries (q,): those with at least one such pair; i (p,): each pair's place in
    queries, ascending; j (p,): its column in the tile; approximate (p,): its product.
    """

    queries: torch.Tensor
    i: torch.Tensor
    j: torch.Tensor
    approximate: torch.Tensor

    def choose(self, mask):
        """Return those pairs that the mask (p,) selects."""
        return Doubtful(
            self.queries,
            self.i[mask],
            self.j[mask],
            self.approximate[mask],
        )


class AheadCounter:
    """Counts the images ahead of the positives of the queries first, first + 1, ...

    Queries are numbered from 0 in here. A positive that has as many images ahead as
    its query has positives is in no metric, unless it is the query's nearest. It may be
    given up: its count is then too low, but its rank still beyond R. A positive
    that is not given up is live.

    ahead (P,)   images between a positive and the one before it, of the same query
    live (Q,)    number of live positives; they are the query's nearest
    passed (Q,)  images counted ahead of the last live positive
    upper (Q,)   an image with a larger product is ahead of all positives
    lower (Q,)   an image with a smaller product is behind all live positives
    """

    def __init__(self, images, first, positives, keys):
        """positives (Q,): how many each query has; keys (P,): of `positive_keys`."""
        self.images, self.first = images, first
        self.positives, self.keys = positives, keys
        self.device = keys.device
        self.slack = images.tolerance(torch.float32)
        self.error = images.tolerance(torch.float64)
        start = positives.cumsum(0) - positives
        self.start = start.clamp(max=max(0, len(keys) - 1))
        self.ahead = torch.zeros_like(keys)
        self.live = positives.clone()
        self.passed = torch.zeros_like(positives)
        limit = torch.full(
            (len(positives),), torch.inf, dtype=torch.float32, device=self.device
        )
        self.upper, self.lower = limit, limit.clone()
        some = (positives > 0).nonzero().flatten()
        self.upper[some] = to_scores(keys[self.start[some]]) + self.slack
        self.update_lower(some)

    def update_lower(self, queries):
        last = self.start[queries] + self.live[queries] - 1
        self.lower[queries] = to_scores(self.keys[last]) - self.slack

    def count(self, tile):
        """Count all tiles, `tile` images per side, and return `ahead`.

        In leave-one-out scores are symmetric: each tile counts for both its sides.
        """
        images, queries = self.images, len(self.positives)
        gallery = len(images.gallery)
        symmetric = images.leave_one_out and queries == len(images.query)
        tiles = [
            (row, column)
            for row in range(0, queries, tile)
            for column in range(row if symmetric else 0, gallery, tile)
        ]
        for row, column in tqdm(
            tiles, desc='ranking', unit='tile', delay=3, leave=False
        ):
            stop = min(row + tile, queries)
            approximate = self.tile_products(row, stop, column, column + tile)
            self.add_tile(approximate, row, column)
            if symmetric and row != column:
                self.add_tile(approximate.T, column, row)
        return self.ahead

    def tile_products(self, row, row_stop, column, column_stop):
        """Return the float32 products of a tile; a query's with itself is -inf."""
        rows = slice(self.first + row, self.first + row_stop)
        columns = slice(column, column_stop)
        images = self.images
        approximate = products(
            images.query, images.gallery, rows, columns, torch.float32
        )
        if images.leave_one_out:
            with_itself = approximate.diagonal(self.first + row - column)
            with_itself.fill_(-torch.inf)
        return approximate

    def add_tile(self, approximate, row, column):
        """Count the tile (n, m) of products, queries from row, images from column."""
        lower = self.lower[row : row + len(approximate)]
        active = (approximate.amax(dim=1) >= lower).nonzero().flatten()
        if not len(active):
            return
        if 2 * len(active) > len(approximate):
            # a copy would cost more than it saves
            active = torch.arange(len(approximate), device=self.device)
            rows = approximate
        else:
            rows = approximate[active]
        queries = row + active
        certain = rows > self.upper[queries, None]
        possible = rows >= self.lower[queries, None]
        certain_count = count_true(certain).long()
        doubtful_count = count_true(possible) - certain_count
        if self.should_divide(possible, queries, doubtful_count):
            self.divide(approximate, row, column)
            return
        self.ahead.index_add_(0, self.start[queries], certain_count)
        self.passed[queries] += certain_count

        some = doubtful_count.nonzero().flatten()
        i, j = (certain[some] ^ possible[some]).nonzero(as_tuple=True)
        other = self.is_other_class(queries[some[i]], column + j)
        i, j = i[other], j[other]  # positives are in order already
        if len(i):
            pairs = Doubtful(queries[some], i, j, rows[some[i], j])
            stop = column + approximate.shape[1]
            columns = torch.arange(column, stop, device=self.device)
            self.add_doubtful(pairs, columns)
        self.give_up(queries)

    def is_other_class(self, queries, columns):
        """Return (p,) whether the gallery images are of other classes."""
        query_class = self.images.query_class[self.first + queries]
        return query_class != self.images.gallery_class[columns]

    def should_divide(self, possible, queries, doubtful_count):
        """Whether many pairs are doubtful, and half of the tile may settle some."""
        doubtful = doubtful_count[self.live[queries] > 1].sum()
        if doubtful <= possible.numel() // MANY:
            return False
        most = int(self.positives[queries].max())
        return possible.shape[1] > max(NARROW, 2 * most)

    def divide(self, approximate, row, column):
        """Count a tile in halves; the second skips what the first gives up."""
        start = column
        for half in approximate.chunk(2, dim=1):
            self.add_tile(half, row, start)
            start += half.shape[1]

    def add_doubtful(self, pairs, columns):
        """Count doubtful pairs of a tile with these gallery columns."""
        highest = pairs.approximate + self.slack
        lowest = pairs.approximate - self.slack
        first_index = torch.zeros_like(pairs.j)
        last_index = torch.full_like(pairs.j, 2**31 - 1)
        place = self.place(pairs, to_keys(highest, first_index))
        behind = self.place(pairs, to_keys(lowest, last_index))
        unsure = place != behind
        if unsure.any():
            chosen = pairs.choose(unsure)
            place[unsure] = self.exact_place(chosen, columns)
        queries = pairs.queries[pairs.i]
        inside = place < self.live[queries]
        queries, place = queries[inside], place[inside]
        one = torch.ones_like(queries)
        self.ahead.index_add_(0, self.start[queries] + place, one)
        self.passed.index_add_(0, queries, one)

    def exact_place(self, pairs, columns):
        """Return `place` of the pairs by their scores instead of their products."""
        query, gallery = self.images.query, self.images.gallery
        rows = self.first + pairs.queries
        scores = exact.tile_scores(
            query, gallery, rows, columns, pairs.i, pairs.j, self.error
        )
        return self.place(pairs, to_keys(scores, columns[pairs.j]))

    def place(self, pairs, keys):
        """Return (p,) how many live positives are not behind the pairs' keys (p,)."""
        queries, i = pairs.queries, pairs.i
        count = torch.bincount(i, minlength=len(queries))
        column = torch.arange(len(i), device=self.device)
        column -= (count.cumsum(0) - count)[i]
        wanted = torch.full((len(queries), int(count.max())), LAST, device=self.device)
        wanted[i, column] = keys
        number, slot = self.live_slots(queries)
        live_keys = self.keys[slot]
        live_keys.masked_fill_(number >= self.live[queries, None], LAST)
        return torch.searchsorted(live_keys, wanted, right=True)[i, column]

    def live_slots(self, queries):
        """Return (numbers (l,) of live positives from 0, their places (q, l) in keys).

        l is the largest number of live positives. Where a query has fewer, the places
        are those of other positives.
        """
        number = torch.arange(int(self.live[queries].max()), device=self.device)
        slot = self.start[queries, None] + number
        return number, slot.clamp(max=len(self.keys) - 1)

    def give_up(self, queries):
        """Give up the positives that now have too many images ahead."""
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
        last = self.live[queries, None] - 1
        self.passed[queries] = counted.gather(1, last)[:, 0]
        self.update_lower(queries)

"""Find the images of a folder that are copies of each other, and group them.

Files are identical if they hold the same bytes. Others are near-duplicates if one
picture can be laid on the other so that they agree; see alignment.py.
"""

import contextlib
import functools
import hashlib
import os
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from areir.data.images import PixelFormat, stored_size
from areir.data.loading import embed_files
from areir.errors import UserError
from areir.gallery import queries
from areir.matching.alignment import SIDES, compare, cut_crops, resemblance
from areir.matching.thresholds import threshold_of

NEAREST = 16  # images that each is compared with, by default
RESEMBLING = 0.75  # least correlation of tiny pictures to look closer
TOGETHER = 32  # pairs looked at closely at a time
HELD = 1024  # pictures for it in memory


class Group(NamedTuple):
    """Copies of one image."""

    keep: int  # the one with the most pixels, then bytes, then the oldest
    others: dict  # {index: agreement with it}
    identical: set  # the others with the same bytes

    def is_identical(self):
        return len(self.identical) == len(self.others)


# Which images to compare


def find_identical(collection):
    """Return lists of the images whose files hold the same bytes, the oldest first."""
    by_size, by_content = defaultdict(list), defaultdict(list)
    for index in range(len(collection)):
        with contextlib.suppress(OSError):  # it is gone
            seen = os.stat(collection.path_of(index))
            by_size[seen.st_size].append((seen.st_mtime_ns, index))
    for files in by_size.values():
        for _, index in sorted(files) if len(files) > 1 else ():
            path = collection.path_of(index)
            with contextlib.suppress(OSError), open(path, 'rb') as file:
                digest = hashlib.file_digest(file, 'sha256').digest()
                by_content[digest].append(index)
    return [indices for indices in by_content.values() if len(indices) > 1]


def find_pairs(collection, k, identical):
    """Return {(index, index): score} of the pairs of images among the k nearest.

    identical: see `find_identical`; the first stands for all, so that k other images
    are found.
    """
    first, more = {}, torch.zeros(len(collection), dtype=torch.long)
    for indices in identical:
        first |= dict.fromkeys(indices, indices[0])
        more[indices] = -1  # not searched
        more[indices[0]] = len(indices) - 1
    pairs = {}
    for count in more[more >= 0].unique().tolist():
        most = min(k + count, len(collection) - 1)
        for rows in (more == count).nonzero()[:, 0].split(queries.TOGETHER):
            query = torch.as_tensor(collection.embeddings[rows.numpy()]).float()
            scores, indices = collection.search(query, most, rows)
            row, column = (indices >= 0).nonzero(as_tuple=True)
            ones, others = rows[row].tolist(), indices[row, column].tolist()
            for one, other, score in zip(ones, others, scores[row, column].tolist()):
                other = first.get(other, other)
                if one != other:
                    pairs[sort(one, other)] = score
    return pairs


def sort(one, other):
    return min(one, other), max(one, other)


# Whether they show the same picture


class Comparer:
    """Compares the pictures of a Collection.

    least: the agreement of near-duplicates. small: grey pixels (N, 32, 32), of the
    images that are `readable`; only those `seen` were read.
    """

    def __init__(self, collection, least):
        self.collection, self.least = collection, least
        self.small = torch.zeros(len(collection), SIDES[0], SIDES[0], dtype=torch.uint8)
        self.seen, self.readable = torch.zeros(2, len(collection), dtype=torch.bool)

    @torch.inference_mode()
    def compare(self, pairs):
        """Return {pair: agreement}; of pairs that are clearly different, -1."""
        agreements, near = dict.fromkeys(pairs, -1.0), []
        indices = torch.tensor(sorted(pairs), dtype=torch.long).view(-1, 2)
        self.read_small(indices.unique())
        for chunk in indices[self.readable[indices].all(1)].split(1024):
            images, places = chunk.unique(return_inverse=True)
            crops = cut_crops(self.small[images].float())
            correlations, *starts = resemblance(*crops[places].unbind(1))
            chosen = correlations >= RESEMBLING
            parts = [part[chosen] for part in (chunk, *starts)]
            near += zip(map(tuple, parts[0].tolist()), *parts[1:])
        return agreements | self.look_closer(near)

    def read_small(self, indices):
        new = indices[~self.seen[indices]].tolist()
        self.seen[new] = True
        for index, pixels in self.read(new, SIDES[0]):
            self.small[index] = pixels.float().mean(0).round()
            self.readable[index] = True

    def read(self, indices, side):
        """Yield (index, uint8 pixels (3, side, side)) of the readable images."""
        files = [self.collection.path_of(index) for index in indices]
        pixel_format = PixelFormat(side)
        for places, values, _ in embed_files(
            files, pixel_format, torch.Tensor.float, 'comparing'
        ):
            yield from zip([indices[place] for place in places], values.byte())

    def look_closer(self, near):
        """Return {pair: agreement} of (pair, warp, whether it is mirrored)."""
        agreements = {}
        numbers = {}  # of components, whose images are read together
        for number, members in enumerate(components([pair for pair, *_ in near])):
            numbers |= dict.fromkeys(members, number)
        near = sorted(near, key=lambda item: (numbers[item[0][0]], item[0]))
        while near:
            wanted, count = set(), 0
            while count < len(near) and len(wanted) < HELD:
                wanted |= {*near[count][0]}
                count += 1
            pictures = dict(self.read(sorted(wanted), SIDES[-1]))
            by_side = defaultdict(list)
            for item in near[:count]:
                if all(index in pictures for index in item[0]):  # none is gone
                    by_side[min(map(self.finest, item[0]))].append(item)
            near = near[count:]
            for side, items in by_side.items():
                for start in range(0, len(items), TOGETHER):
                    pairs, warps, mirrored = zip(*items[start : start + TOGETHER])
                    ones, others = (
                        torch.stack([pictures[pair[place]] for pair in pairs]).float()
                        for place in (0, 1)
                    )
                    flipped = torch.stack(mirrored)
                    ones[flipped] = ones[flipped].flip(-1)
                    found = compare(ones, others, torch.stack(warps), side, self.least)
                    agreements |= zip(pairs, found.tolist())
        return agreements

    def finest(self, index):
        """Return the largest of SIDES that an image fills."""
        shorter = min(picture_size(self.collection.path_of(index)))
        return max([side for side in SIDES if side <= shorter], default=SIDES[0])


@functools.lru_cache(100_000)
def picture_size(path):
    """Return (width, height) of an image file, zeros if it is gone."""
    try:
        return stored_size(path)
    except (OSError, UserError):
        return 0, 0


# Groups


def find_groups(pairs, identical, collection, least):
    """Return the Groups of images, those of identical files first, the largest first.

    pairs: those to compare; identical: see `find_identical`. In a chain of images that
    resemble only the next, each group holds only what agrees with the file to keep.
    """
    comparer = Comparer(collection, least)
    agreements = comparer.compare(pairs)
    alike = [pair for pair, agreement in agreements.items() if agreement >= least]
    rank, stars = functools.cache(lambda index: file_rank(index, collection)), {}
    linked = alike
    while linked:
        waiting = [(min(members, key=rank), members) for members in components(linked)]
        wanted = {
            sort(keep, other)
            for keep, members in waiting
            for other in members
            if other != keep
        }
        agreements |= comparer.compare(wanted - set(agreements))
        left = set()
        for keep, members in waiting:
            others = {
                other: agreements[sort(keep, other)]
                for other in members
                if other != keep and agreements[sort(keep, other)] >= least
            }
            stars[keep] = others
            left |= {*members} - {keep, *others}
        linked = [pair for pair in linked if left.issuperset(pair)]
    copies = {indices[0]: indices[1:] for indices in identical}
    starred = {*stars, *(other for others in stars.values() for other in others)}
    stars |= {index: {} for index in copies if index not in starred}
    groups = []
    for keep, others in stars.items():
        same = copies.get(keep, [])
        members = dict.fromkeys(same, 1.0)
        for other, agreement in others.items():
            members |= dict.fromkeys([other, *copies.get(other, [])], agreement)
        groups.append(Group(keep, members, set(same)))
    return sorted(
        groups, key=lambda group: (not group.is_identical(), -len(group.others), group)
    )


def file_rank(index, collection):
    """Return what the file to keep has the least of."""
    path = collection.path_of(index)
    width, height = picture_size(path)
    try:
        seen = os.stat(path)
    except OSError:
        return 0, 0, 0, path
    return -width * height, -seen.st_size, seen.st_mtime_ns, path


def components(pairs):
    """Return the lists of images that pairs connect."""
    if not pairs:
        return []
    nodes, places = np.unique(np.array(pairs), return_inverse=True)
    places = places.reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), tuple(places)), (len(nodes),) * 2)
    labels = connected_components(graph, directed=False)[1]
    ends = np.bincount(labels).cumsum()[:-1]
    return [part.tolist() for part in np.split(nodes[labels.argsort()], ends)]


def same_items(pairs, groups, collection):
    """Return the pairs, of files to keep, that reach the threshold; none without one.

    Returns {(index, index): score}.
    """
    threshold = threshold_of(collection)
    if not threshold:
        return {}
    removed = {other for group in groups for other in group.others}
    return {
        pair: score
        for pair, score in pairs.items()
        if score >= threshold.score and removed.isdisjoint(pair)
    }

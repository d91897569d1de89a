"""Find the images of a folder that are copies of each other, and group them.

Files are identical if they hold the same bytes. Others are near-duplicates if one
picture can be laid on the other so that they agree; see alignment.py.
"""

import contextlib
import functools
import hashlib
import itertools
import os
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from areir import processes
from areir.data.images import PixelFormat, open_image
from areir.data.loading import embed_files
from areir.errors import UserError
from areir.gallery import queries
from areir.matching.alignment import SIDES, compare, cut_crops, resemblance
from areir.matching.thresholds import threshold_of

NEAREST = 16  # images that each is compared with, by default
RESEMBLING = 0.75  # least correlation of tiny pictures to look closer
RECOLOURED = 16  # of 255: least shift of a colour that no JPEG of quality 30 had
TOGETHER = 16  # pairs looked at closely at a time
HELD = 256  # pictures for it in memory
KINDS = ('identical', 'near-duplicate', 'recoloured', 'mirrored')


class Likeness(NamedTuple):
    """How much one picture is like another."""

    score: float  # how well they agree, at most 1
    kind: str = 'near-duplicate'  # one of KINDS


class Group(NamedTuple):
    """Copies of one image."""

    keep: int  # the one with the most pixels, then bytes, then the oldest
    others: dict  # {index: Likeness to it}

    def kind(self):
        """Return the kind of the image that is least surely a copy."""
        return max((like.kind for like in self.others.values()), key=KINDS.index)


def find_duplicates(collection, least, nearest=NEAREST):
    """Return the Groups of a Collection, and {(index, index): score} of same items.

    Each image is compared with its `nearest`; least: see `Comparer`. All processes of
    torchrun call this together; the others than rank 0 return nothing: ([], {}).
    Raises UserError if there is a single image.
    """
    if len(collection) < 2:
        raise UserError(f'{collection.name}: a single image, so nothing to compare')
    identical = processes.is_first() and find_identical(collection)
    identical = processes.from_first(identical)
    pairs = find_pairs(collection, min(nearest, len(collection) - 1), identical)
    if not processes.is_first():
        return [], {}
    groups = find_groups(pairs, identical, collection, least)
    return groups, same_items(pairs, groups, collection)


# Which images to compare


def find_identical(collection):
    """Return lists of the images whose files hold the same bytes, the oldest first.

    Links come last.
    """
    by_size, by_content = defaultdict(list), defaultdict(list)
    folder = os.path.realpath(collection.folder)
    for index, image in enumerate(collection.images):
        path = os.path.join(folder, image)
        is_link = os.path.realpath(path) != path  # or it is in a linked folder
        with contextlib.suppress(OSError):  # it is gone
            seen = os.stat(path)
            by_size[seen.st_size].append((is_link, seen.st_mtime_ns, index))
    for files in by_size.values():
        for *_, index in sorted(files) if len(files) > 1 else ():
            path = collection.path_of(index)
            with contextlib.suppress(OSError), open(path, 'rb') as file:
                digest = hashlib.file_digest(file, 'sha256').digest()
                by_content[digest].append(index)
    return [indices for indices in by_content.values() if len(indices) > 1]


def other_files(indices, collection):
    """Return the images that are neither the first's file nor another's before them."""
    files = {}
    for index in indices:
        with contextlib.suppress(OSError):  # it is gone
            seen = os.stat(collection.path_of(index))
            files.setdefault((seen.st_dev, seen.st_ino), index)
    return [index for index in files.values() if index != indices[0]]


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
                    pairs[min(one, other), max(one, other)] = score
    return pairs


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
        """Return {pair: Likeness}; the score of clearly different pictures is -1."""
        likenesses, near = dict.fromkeys(pairs, Likeness(-1.0)), []
        indices = torch.tensor(sorted(pairs), dtype=torch.long).view(-1, 2)
        self.read_small(indices.unique())
        for chunk in indices[self.readable[indices].all(1)].split(1024):
            images, places = chunk.unique(return_inverse=True)
            crops = cut_crops(self.small[images].float())
            correlations, *starts = resemblance(*crops[places].unbind(1))
            chosen = correlations >= RESEMBLING
            parts = [part[chosen] for part in (chunk, *starts)]
            near += zip(map(tuple, parts[0].tolist()), *parts[1:])
        near = [item for item in near if not any(map(self.has_frames, item[0]))]
        return likenesses | self.look_closer(near)

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
        """Return {pair: Likeness} of (pair, warp, whether it is mirrored)."""
        likenesses = {}
        numbers = {}  # of components, whose images are read together
        for number, members in enumerate(components([pair for pair, *_ in near])):
            numbers |= dict.fromkeys(members, number)
        near = sorted(near, key=lambda item: (numbers[item[0][0]], item[0]))
        while near:
            wanted, count = set(), 0
            while count < len(near) and len(wanted) < HELD:
                wanted |= {*near[count][0]}
                count += 1
            largest = max(map(self.finest, wanted))
            pictures = dict(self.read(sorted(wanted), largest))
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
                    for pair, flip, score, shift in zip(pairs, mirrored, *found):
                        recoloured = 'recoloured' if shift >= RECOLOURED else KINDS[1]
                        kind = 'mirrored' if flip else recoloured
                        likenesses[pair] = Likeness(score.item(), kind)
        return likenesses

    def finest(self, index):
        """Return the largest of SIDES that an image fills."""
        width, height, _ = read_header(self.collection.path_of(index))
        fitting = [side for side in SIDES if side <= min(width, height)]
        return max(fitting, default=SIDES[0])

    def has_frames(self, index):
        return read_header(self.collection.path_of(index))[2]


@functools.lru_cache(100_000)
def read_header(path):
    """Return (width, height, whether there are several frames or pages) of a file.

    All are 0 if it is gone.
    """
    with contextlib.suppress(OSError, UserError), open_image(path) as image:
        # the further pictures of an MPO are a camera's previews
        has_frames = getattr(image, 'is_animated', False) and image.format != 'MPO'
        return *image.size, has_frames
    return 0, 0, False


# Groups


def find_groups(pairs, identical, collection, least):
    """Return the Groups of images: identical, near-duplicates, recoloured, mirrored.

    pairs: those to compare; identical: see `find_identical`. Recoloured and mirrored
    images are groups of their own, of what the others leave.
    """
    comparer = Comparer(collection, least)
    likenesses = comparer.compare(pairs)
    rank = functools.cache(lambda index: file_rank(index, collection))
    copies = {indices[0]: other_files(indices, collection) for indices in identical}

    stars = find_stars(likenesses, KINDS[1:2], comparer, rank)
    removed = {other for others in stars.values() for other in others}
    for index in copies:
        if index not in removed:
            stars.setdefault(index, {})
    groups = []
    for keep, others in stars.items():
        members = dict.fromkeys(copies.get(keep, []), Likeness(1.0, 'identical'))
        for other, like in others.items():
            members |= dict.fromkeys([other, *copies.get(other, [])], like)
        groups.append(Group(keep, members))

    rest = {pair: like for pair, like in likenesses.items() if removed.isdisjoint(pair)}
    stars = find_stars(rest, KINDS[2:], comparer, rank)
    groups += itertools.starmap(Group, stars.items())

    def place(group):
        return KINDS.index(group.kind()), -len(group.others), group.keep

    return sorted([group for group in groups if group.others], key=place)


def find_stars(likenesses, kinds, comparer, rank):
    """Return {image to keep: {image: Likeness}} of the pairs of these kinds.

    In a chain of images that resemble only the next, each star holds only what agrees
    with the image to keep. The Likenesses of further pairs are added.
    """

    def alike(pair):
        like = likenesses[pair]
        return like.score >= comparer.least and like.kind in kinds

    stars, linked = {}, list(filter(alike, likenesses))
    while linked:
        waiting = [(min(members, key=rank), members) for members in components(linked)]
        beside = {
            keep: {i: (min(keep, i), max(keep, i)) for i in members if i != keep}
            for keep, members in waiting
        }
        wanted = {pair for pairs in beside.values() for pair in pairs.values()}
        likenesses |= comparer.compare(wanted - set(likenesses))
        for keep, pairs in beside.items():
            stars[keep] = {
                other: likenesses[pair] for other, pair in pairs.items() if alike(pair)
            }
        done = {*stars, *(other for others in stars.values() for other in others)}
        linked = [pair for pair in linked if done.isdisjoint(pair)]
    return stars


def file_rank(index, collection):
    """Return what the file to keep has the least of."""
    path = collection.path_of(index)
    width, height, _ = read_header(path)
    with contextlib.suppress(OSError):  # it is gone
        seen = os.stat(path)
        return -width * height, -seen.st_size, seen.st_mtime_ns, path
    return 0, 0, 0, path


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

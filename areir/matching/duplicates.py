"""Find the pairs of images of a folder that show the same thing, and tell their kind.

Images are identical if their files have the same bytes, near-duplicates if they are
alike when reduced to SIDE x SIDE pixels, and else show the same item.
"""

import filecmp
import functools

import torch

from areir.data.images import PixelFormat
from areir.data.loading import embed_files
from areir.gallery import queries
from areir.matching.thresholds import threshold_of

KINDS = ('identical', 'near-duplicate', 'same item')
SIDE = 16  # pixels of the reduced images
ALIKE = 6  # largest mean difference, of 255, of near-duplicates when reduced


def find_pairs(collection, k):
    """Return {(index, index): score} of the pairs of images among the k nearest.

    If there is a threshold, only pairs that reach it are returned.
    """
    pairs = {}
    threshold = threshold_of(collection)
    lowest = threshold.score if threshold else -1
    for rows in torch.arange(len(collection)).split(queries.TOGETHER):
        query = torch.as_tensor(collection.embeddings[rows]).float()
        scores, indices = collection.search(query, k, rows)
        wanted = (scores >= lowest) & (indices >= 0)
        row, column = wanted.nonzero(as_tuple=True)
        ones, others = rows[row].tolist(), indices[row, column].tolist()
        for one, other, score in zip(ones, others, scores[row, column].tolist()):
            pairs[min(one, other), max(one, other)] = score
    return pairs


def kinds_of_pairs(pairs, collection):
    """Return the kind of each pair, one of KINDS."""
    reduced = reduce_images({index for pair in pairs for index in pair}, collection)
    kinds = []
    for one, other in pairs:
        kind = 'same item'
        if one in reduced and other in reduced:  # neither is gone
            difference = (reduced[one] - reduced[other]).abs().double().mean()
            if difference <= ALIKE:
                kind = 'near-duplicate'
            files = collection.path_of(one), collection.path_of(other)
            if difference == 0 and filecmp.cmp(*files, shallow=False):
                kind = 'identical'
        kinds.append(kind)
    return kinds


def reduce_images(indices, collection):
    """Return {index: int16 values} of the images that can be read, reduced."""
    indices = sorted(indices)
    files = [collection.path_of(index) for index in indices]
    flatten = functools.partial(torch.flatten, start_dim=1)
    pixel_format = PixelFormat(SIDE)
    reduced = {}
    for places, values, _ in embed_files(files, pixel_format, flatten, 'comparing'):
        values = values.to(torch.int16)
        reduced |= {indices[place]: row for place, row in zip(places, values)}
    return reduced

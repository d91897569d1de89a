"""The pairs of images of a folder that show the same thing: duplicates and matches."""

import functools
import hashlib
import os

import pandas as pd
import torch

from areir.data.images import load_image
from areir.data.loading import embed_files
from areir.files import atomic_folder, cut_name, write_table
from areir.gallery import queries
from areir.output.sheets import COLUMNS, sheet, thumbnail

KINDS = ('identical', 'near-duplicate', 'same item')
PAIRS = 32  # pairs drawn at most
SIDE = 16  # pixels of the reduced images
ALIKE = 6  # largest mean difference, of 255, of near-duplicates when reduced
DIFFERENT = 255
MARK = 'pairs.csv'  # marks a folder that an earlier call wrote


def find_pairs(collection, k):
    """Return {(index, index): score} of the pairs of images among the k nearest.

    If there is a threshold, only pairs that reach it are returned.
    """
    pairs = {}
    lowest = collection.threshold.score if collection.threshold else -1
    for rows in torch.arange(len(collection)).split(queries.TOGETHER):
        query = collection.embedding_rows(int(rows[0]), int(rows[-1]) + 1)
        scores, indices = collection.search(query, k, rows)
        wanted = (scores >= lowest) & (indices >= 0)
        row, column = wanted.nonzero(as_tuple=True)
        ones, others = rows[row].tolist(), indices[row, column].tolist()
        for one, other, score in zip(ones, others, scores[row, column].tolist()):
            pairs[min(one, other), max(one, other)] = score
    return pairs


def kinds_of_pairs(pairs, collection):
    """Return the kind of each pair, one of KINDS.

    Images are identical if their files have the same bytes, and near-duplicates if they
    are alike when reduced to SIDE x SIDE pixels.
    """
    reduced = reduce_images({index for pair in pairs for index in pair}, collection)
    digest = functools.cache(file_digest)
    kinds = []
    for one, other in pairs:
        difference = mean_difference(reduced.get(one), reduced.get(other))
        kind = 'near-duplicate' if difference <= ALIKE else 'same item'
        if difference == 0:
            same_bytes = digest(collection.path_of(one)) == digest(
                collection.path_of(other)
            )
            kind = 'identical' if same_bytes else kind
        kinds.append(kind)
    return kinds


def reduce_images(indices, collection):
    """Return {index: int16 values} of the images that can be read, reduced."""
    indices = sorted(indices)
    files = [collection.path_of(index) for index in indices]
    reduced = {}
    for places, values, _ in embed_files(files, SIDE, flatten, 'comparing'):
        values = values.to(torch.int16)
        reduced |= {indices[place]: row for place, row in zip(places, values)}
    return reduced


def flatten(pixels):
    """Return pixels (N, 3, S, S) as vectors (N, 3 * S * S)."""
    return pixels.flatten(1)


def mean_difference(one, other):
    """Return the mean absolute difference; DIFFERENT if an image is gone."""
    if one is None or other is None:
        return DIFFERENT
    return (one - other).abs().double().mean().item()


def file_digest(path):
    """Return the SHA-256 digest of a file."""
    with open(path, 'rb') as file:
        return hashlib.sha256(file.read()).digest()


# The table and the picture


def pairs_table(pairs, kinds, collection):
    """Return a table of pairs: kind, score, and path and class of both images.

    Without a threshold the pairs of kind 'same item' are left out.
    """
    reported = kinds_reported(collection)
    rows = [row for row in zip(kinds, pairs.items()) if row[0] in reported]
    kinds = [kind for kind, _ in rows]
    ones = [pair[0] for _, (pair, _) in rows]
    others = [pair[1] for _, (pair, _) in rows]
    table = pd.DataFrame(
        {
            'kind': pd.Categorical(kinds, reported, ordered=True),
            'score': [score for _, (_, score) in rows],
            'path': [collection.path_of(index) for index in ones],
            'class': [collection.class_of(index) for index in ones],
            'other_path': [collection.path_of(index) for index in others],
            'other_class': [collection.class_of(index) for index in others],
        }
    )
    order = ['kind', 'score', 'path', 'other_path']
    ascending = [True, False, True, True]
    return table.sort_values(order, ascending=ascending)


def kinds_reported(collection):
    """Return the kinds that can be told apart: all, if there is a threshold."""
    return list(KINDS if collection.threshold else KINDS[:2])


def draw_pairs(table):
    """Draw the first pairs of a table as a sheet."""
    tiles, captions = [], []
    for row in table.head(PAIRS).itertuples():
        for path, text in ((row.path, row.kind), (row.other_path, f'{row.score:.3f}')):
            tiles.append(thumbnail(load_image(path), 'black', 1))
            captions.append((os.path.basename(path), text))
    return sheet(tiles, captions, min(len(tiles), COLUMNS))


def pairs_folder(collection, results_root):
    """Return where the pairs of a folder are written."""
    name = cut_name(os.path.basename(os.path.abspath(collection.folder)))
    return os.path.join(results_root, f'{name}_pairs')


def write_pairs(table, target):
    """Write the table and the picture of its first pairs to the folder `target`."""
    with atomic_folder(target, MARK) as folder:
        if len(table):
            draw_pairs(table).save(os.path.join(folder, 'pairs.png'))
        write_table(os.path.join(folder, MARK), table)


def print_pairs(table, collection):
    """Print how many pairs of each kind there are, and how many images are in none."""
    kinds = kinds_reported(collection)
    counts = [f'{(table["kind"] == kind).sum():,} {kind}' for kind in kinds]
    paired = set(table['path']) | set(table['other_path'])
    print(
        f'{", ".join(counts)} pairs; {len(collection) - len(paired):,} of '
        f'{len(collection):,} images are in none'
    )

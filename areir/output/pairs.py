"""Write, draw and print the pairs of images of a folder that show the same thing."""

import os

import pandas as pd

from areir.data.images import load_image
from areir.files import atomic_folder, cut_name, write_table
from areir.matching.duplicates import KINDS
from areir.output.sheets import COLUMNS, THUMBNAIL, sheet, thumbnail

PAIRS = 32  # pairs drawn at most
MARK = 'pairs.csv'  # marks a folder that an earlier call wrote


def pairs_table(pairs, kinds, collection):
    """Return a table of pairs: kind, score, and path and class of both images.

    pairs: {(index, index): score}; kinds: of each. Without a threshold the pairs of
    kind 'same item' are left out.
    """
    reported = kinds_reported(collection)
    rows = []
    for kind, ((one, other), score) in zip(kinds, pairs.items()):
        images = []
        for index in (one, other):
            images += [collection.path_of(index), collection.classes[index]]
        if kind in reported:
            rows.append((kind, score, *images))
    columns = ['kind', 'score', 'path', 'class', 'other_path', 'other_class']
    table = pd.DataFrame(rows, columns=columns)
    table['kind'] = pd.Categorical(table['kind'], reported, ordered=True)
    order = ['kind', 'score', 'path', 'other_path']
    return table.sort_values(order, ascending=[True, False, True, True])


def kinds_reported(collection):
    """Return the kinds that can be told apart: all, if there is a threshold."""
    return list(KINDS if collection.calibration else KINDS[:2])


def draw_pairs(table):
    """Draw the first pairs of a table as a sheet."""
    tiles, captions = [], []
    for row in table.head(PAIRS).itertuples():
        for path, text in ((row.path, row.kind), (row.other_path, f'{row.score:.3f}')):
            tiles.append(thumbnail(load_image(path, least=THUMBNAIL), 'black', 1))
            captions.append((os.path.basename(path), text))
    return sheet(tiles, captions, min(len(tiles), COLUMNS))


def write_pairs(table, collection, results_root):
    """Write the table and the picture of its first pairs; return the table's path."""
    name = cut_name(os.path.basename(os.path.abspath(collection.folder)))
    target = os.path.join(results_root, f'{name}_pairs')
    with atomic_folder(target, MARK) as folder:
        if len(table):
            draw_pairs(table).save(os.path.join(folder, 'pairs.png'))
        write_table(os.path.join(folder, MARK), table)
    return os.path.join(target, MARK)


def print_pairs(table, collection):
    """Print how many pairs of each kind there are, and how many images are in none."""
    counts = []
    for kind in kinds_reported(collection):
        counts.append(f'{(table["kind"] == kind).sum():,} {kind}')
    paired = set(table['path']) | set(table['other_path'])
    print(
        f'{", ".join(counts)} pairs; {len(collection) - len(paired):,} of '
        f'{len(collection):,} images are in none'
    )

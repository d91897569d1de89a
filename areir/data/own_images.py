"""Your own images: a folder of class folders, or a CSV.

The CSV has the columns of open-metric-learning:

    path,label              required; path is relative to the folder of the CSV
    split                   train or validation; without it, classes are drawn
    is_query,is_gallery     roles of validation images; without them, all have both
    x_1,x_2,y_1,y_2         a box on the stored pixels, or empty cells

https://open-metric-learning.readthedocs.io describes the format.
"""

import math
import os
import random

from areir.data import lists
from areir.data.images import IMAGE_SUFFIXES
from areir.data.lists import Record
from areir.errors import UserError

PART_OF = {'train': 'train', 'validation': 'test', 'val': 'test', 'test': 'test'}


def read_folder(root, files):
    """Return (layout, records) of any folder of class folders.

    Folders train and test (or train, query and gallery) at its top are its parts.
    Otherwise the part of its records is None.
    """
    images = [path for path in files if path.lower().endswith(IMAGE_SUFFIXES)]
    images = [path for path in images if '/' in path]
    tops = {path.split('/')[0] for path in images}
    records = []
    for parts in (('train', 'query', 'gallery'), ('train', 'test')):
        if tops.issuperset(parts):
            for path in images:
                part, *names = path.split('/')
                if part in parts and len(names) > 1:
                    records.append(Record(part, names[0], path))
            return ' + '.join(parts), records
    if len(tops) < 2:
        raise UserError(
            f'{root}: {len(tops)} folders with images; a folder per class is needed, '
            'at least two'
        )
    records = [Record(None, path.split('/')[0], path) for path in images]
    return f'{len(tops)} class folders', records


def draw_parts(records, seed, test_share):
    """Draw the classes of the test from the seed; the others train.

    test_share: their share of all classes, rounded, a half down. Raises UserError if
    fewer than two classes train, or if one is left for the test.
    """
    classes = sorted({record.label for record in records})
    random.Random(seed).shuffle(classes)
    tested = math.ceil(len(classes) * test_share - 0.5)
    trained = len(classes) - tested
    if trained < 2 or (test_share and tested < 2):
        raise UserError(
            f'--test_share {test_share:g}: of {len(classes)} classes, {trained} would '
            f'train and {tested} test, and each needs at least 2: choose another share '
            '(0 trains on all) or add classes'
        )
    train = set(classes[:trained])
    return [
        record._replace(part='train' if record.label in train else 'test')
        for record in records
    ]


def read_table(path):
    """Return (layout, records) of a CSV; see the top of this file.

    Without a column split, the part of the records is None. Raises UserError naming the
    lines that are wrong.
    """
    folder = os.path.dirname(path)

    def parse(cells):
        return read_record(folder, cells), lists.read_roles(cells)

    rows = lists.parse_rows(path, lists.read_csv(path, [['path'], ['label']]), parse)
    separate = lists.check_roles(
        [(origin, roles) for origin, (record, roles) in rows if record.part == 'test']
    )
    records = []
    for origin, (record, (is_query, _)) in rows:
        part = record.part
        if part == 'test' and separate:
            part = 'query' if is_query else 'gallery'
        records.append(record._replace(part=part, origin=origin))
    return os.path.basename(path), records


def read_record(folder, cells):
    """Return the Record of a row, {column: text}. Raises ValueError if it is wrong."""
    image = os.path.relpath(os.path.join(folder, cells['path']), folder or '.')
    image = image.replace(os.sep, '/')
    if not cells['path'] or image.startswith('../'):
        raise ValueError(
            f'path {cells["path"]!r:.200} is not below the folder of the CSV'
        )
    if not os.path.isfile(os.path.join(folder, image)):
        raise ValueError(f'path {cells["path"]!r:.200}: no such file')
    if not cells['label']:
        raise ValueError('no label')
    part = PART_OF.get(cells.get('split'))
    if part is None and 'split' in cells:
        raise ValueError(
            f'split {cells["split"]!r:.99} is neither train nor validation'
        )
    # left, top, right, bottom
    corners = [cells.get(name, '') for name in ('x_1', 'y_1', 'x_2', 'y_2')]
    box = None
    if not all(corner.lower() in lists.EMPTY for corner in corners):
        box = lists.make_box(*lists.to_numbers(corners))
    return Record(part, cells['label'], image, box)

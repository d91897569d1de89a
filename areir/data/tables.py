"""Read a dataset that a CSV describes, with the columns of open-metric-learning.

    path,label              required; path is relative to the folder of the CSV
    split                   train or validation; without it, half of the classes train
    is_query,is_gallery     roles of validation images; without them, all have both
    x_1,x_2,y_1,y_2         a box on the stored pixels, or empty cells

https://open-metric-learning.readthedocs.io describes the format.
"""

import os

from areir.data.layouts import draw_training_classes
from areir.data.records import Record, to_number
from areir.data.text_files import quote, read_csv, refuse_repeats
from areir.errors import UserError

CORNERS = ('x_1', 'y_1', 'x_2', 'y_2')  # left, top, right, bottom
ROLES = ('is_query', 'is_gallery')
PART_OF = {'train': 'train', 'validation': 'test', 'val': 'test', 'test': 'test'}
EMPTY = ('', 'nan', 'none')
YES, NO = ('true', '1', '1.0'), ('false', '0', '0.0', *EMPTY)


def read_table(path, seed=0):
    """Return (layout, records) of a CSV; see the top of this file.

    seed: draws the training classes if there is no column split. Raises UserError
    naming the lines that are wrong.
    """
    folder = os.path.dirname(path)
    columns, rows, origins = read_csv(
        path,
        [('path',), ('label',)],
        lambda cells: (read_row(folder, cells), read_roles(cells)),
    )
    refuse_repeats('image', zip([record.path for record, _ in rows], origins))
    if 'split' in columns:
        records = with_roles(rows, origins)
    else:
        records = draw_parts(rows, seed)
        print(f'notice: {path}: no column split, so half of the classes train')
    records = [
        record._replace(origin=origin) for record, origin in zip(records, origins)
    ]
    return os.path.basename(path), records


def draw_parts(rows, seed):
    """Return the records of [(record, roles)]; half of the classes train."""
    classes = sorted({record.label for record, _ in rows})
    train = draw_training_classes(classes, seed)
    records = []
    for record, _ in rows:
        part = 'train' if record.label in train else 'test'
        records.append(record._replace(part=part))
    return records


def read_row(folder, cells):
    """Return the Record of a row, {column: text}. Raises ValueError if it is wrong."""
    image = os.path.relpath(os.path.join(folder, cells['path']), folder or '.')
    image = image.replace(os.sep, '/')
    if not cells['path'] or image.startswith('../'):
        raise ValueError(
            f'path {quote(cells["path"])} is not below the folder of the CSV'
        )
    if not os.path.isfile(os.path.join(folder, image)):
        raise ValueError(f'path {quote(cells["path"])}: no such file')
    if not cells['label']:
        raise ValueError('no label')
    split = cells.get('split', 'train')
    if split not in PART_OF:
        raise ValueError(f'split {quote(split)} is neither train nor validation')
    return Record(PART_OF[split], cells['label'], image, read_box(cells))


def read_box(cells):
    """Return the box of a row, or None without one.

    Raises ValueError if it is not four numbers or has no area.
    """
    corners = [cells.get(name, '') for name in CORNERS]
    if all(corner.lower() in EMPTY for corner in corners):
        return None
    try:
        left, top, right, bottom = (round(to_number(corner)) for corner in corners)
    except (ValueError, OverflowError):  # round(nan), round(inf)
        shown = quote(', '.join(corners))
        raise ValueError(f'box {shown}: four numbers expected') from None
    if left >= right or top >= bottom:
        raise ValueError(
            f'box from {left}, {top} to {right}, {bottom} is empty: x_1 must be below '
            'x_2, and y_1 below y_2'
        )
    return left, top, right, bottom


def read_roles(cells):
    """Return (is_query, is_gallery) of a row; a missing column counts as true.

    Raises ValueError if a cell is neither true nor false.
    """
    roles = []
    for name in ROLES:
        text = cells.get(name, 'true').lower()
        if text not in YES + NO:
            raise ValueError(f'{name} {quote(text)} is neither true nor false')
        roles.append(text in YES)
    return tuple(roles)


def check_roles(roles, origins):
    """Return whether the queries are separate from the gallery.

    roles: of each image, as `read_roles` returns them; origins: where they are. They
    are not separate if all images have both roles. Raises UserError if only some images
    have both, because each of those would have to be left out of its own gallery, or if
    an image has neither.
    """
    if all(role == (True, True) for role in roles):
        return False
    both, neither = roles.count((True, True)), roles.count((False, False))
    if not both and not neither:
        return True
    if neither:
        odd = roles.index((False, False))
    else:  # the fewer are odd
        wanted = both <= len(roles) / 2
        odd = [role == (True, True) for role in roles].index(wanted)
    raise UserError(
        f'{origins[odd]}: is_query and is_gallery: every test image must have both '
        'roles, or every one exactly one of them'
    )


def with_roles(rows, origins):
    """Return the records of [(record, roles)] with their final part of the split.

    A test image becomes query or gallery, unless all of them have both roles.
    """
    test = [row for row, (record, _) in enumerate(rows) if record.part == 'test']
    roles = [rows[row][1] for row in test]
    separate = check_roles(roles, [origins[row] for row in test])
    records = [record for record, _ in rows]
    if separate:
        for row, (is_query, _) in zip(test, roles):
            part = 'query' if is_query else 'gallery'
            records[row] = records[row]._replace(part=part)
    return records

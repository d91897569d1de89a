"""Read a dataset that a CSV describes, with the columns of open-metric-learning.

    path,label              required; path is relative to the folder of the CSV
    split                   train or validation; without it, half of the classes train
    is_query,is_gallery     roles of validation images; without them, all have both
    x_1,x_2,y_1,y_2         a box on the stored pixels, or empty cells

https://open-metric-learning.readthedocs.io describes the format.
"""

import csv
import os

from areir.data.layouts import draw_training_classes
from areir.data.records import Record
from areir.errors import UserError
from areir.files import refuse_special

CORNERS = ('x_1', 'y_1', 'x_2', 'y_2')  # left, top, right, bottom
ROLES = ('is_query', 'is_gallery')
SPLITS = {'train': 'train', 'validation': 'test', 'val': 'test', 'test': 'test'}
EMPTY = ('', 'nan', 'none')
YES, NO = ('true', '1', '1.0'), ('false', '0', '0.0', *EMPTY)
SHOWN = 10  # bad rows that a message names


def read_table(path, seed=0):
    """Return (layout, records) of a CSV; see the top of this file.

    seed: draws the training classes if there is no column split. Raises UserError
    naming the lines that are wrong.
    """
    folder = os.path.dirname(path)
    columns, rows = read_csv(
        path,
        [('path',), ('label',)],
        lambda cells: (read_row(folder, cells), read_roles(cells)),
    )
    if 'split' in columns:
        return os.path.basename(path), with_roles(path, rows)
    classes = sorted({record.label for record, _ in rows})
    train = draw_training_classes(classes, seed)
    records = []
    for record, _ in rows:
        split = 'train' if record.label in train else 'test'
        records.append(record._replace(split=split))
    return os.path.basename(path), records


def read_csv(path, required, read):
    """Return (columns, [read(cells) for each row]) of a CSV; cells: {column: text}.

    required: for each needed column, the names that it may have. Raises UserError
    naming the columns that are missing, or the lines for which `read` raises
    ValueError.
    """
    refuse_special(path)
    rows, problems = [], []
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:
            table = csv.DictReader(file)
            columns = table.fieldnames or []
            check_columns(path, columns, required)
            for cells in table:
                try:
                    check_width(cells)
                    rows.append(read(cells))
                except ValueError as error:
                    problems.append(f'line {table.line_num}: {error}')
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{path}: not a CSV file in UTF-8 ({error})') from error
    if problems:
        listed = problems[:SHOWN]
        if len(problems) > SHOWN:
            listed.append(f'and {len(problems) - SHOWN} more')
        listing = '\n  '.join(listed)
        raise UserError(f'{path}: {len(problems)} bad rows\n  {listing}')
    return columns, rows


def check_columns(path, columns, required):
    """Raise UserError unless a CSV has the columns that `read_csv` requires."""
    missing = [names for names in required if not set(names) & set(columns)]
    if missing:
        names = ' and '.join(' or '.join(names) for names in missing)
        raise UserError(f'{path}: no column {names}')


def check_width(cells):
    """Raise ValueError unless a row has a cell for each column."""
    if None in cells or None in cells.values():
        raise ValueError('more or fewer cells than columns')


def read_row(folder, cells):
    """Return the Record of a row, {column: text}. Raises ValueError if it is wrong."""
    image = os.path.relpath(os.path.join(folder, cells['path']), folder or '.')
    image = image.replace(os.sep, '/')
    if not cells['path'] or image.startswith('../'):
        raise ValueError(f'path {cells["path"]!r} is not below the folder of the CSV')
    if not os.path.isfile(os.path.join(folder, image)):
        raise ValueError(f'path {cells["path"]!r}: no such file')
    if not cells['label']:
        raise ValueError('no label')
    split = cells.get('split', 'train')
    if split not in SPLITS:
        raise ValueError(f'split {split!r} is neither train nor validation')
    return Record(SPLITS[split], cells['label'], image, read_box(cells))


def read_box(cells):
    """Return the box of a row, or None without one.

    Raises ValueError if it is not four numbers or has no area.
    """
    corners = [cells.get(name, '') for name in CORNERS]
    if all(corner.lower() in EMPTY for corner in corners):
        return None
    try:
        left, top, right, bottom = (round(float(corner)) for corner in corners)
    except (ValueError, OverflowError):
        raise ValueError(f'box {", ".join(corners)}: four numbers expected') from None
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
            raise ValueError(f'{name} {text!r} is neither true nor false')
        roles.append(text in YES)
    return tuple(roles)


def check_roles(path, roles):
    """Return whether the queries are separate from the gallery.

    roles: the set of all that `read_roles` returned. They are not separate if all
    images have both roles. Raises UserError if only some images have both, because each
    of those would have to be left out of its own gallery, or if an image has neither.
    """
    if roles == {(True, True)} or not roles:
        return False
    if (True, True) in roles or (False, False) in roles:
        raise UserError(
            f'{path}: is_query and is_gallery: every test image must have both '
            'roles, or every one exactly one of them'
        )
    return True


def with_roles(path, rows):
    """Return the records of [(record, roles)] with their final split.

    A test image becomes query or gallery, unless all of them have both roles.
    """
    roles = {role for record, role in rows if record.split == 'test'}
    if not check_roles(path, roles):
        return [record for record, _ in rows]
    records = []
    for record, (is_query, _) in rows:
        if record.split == 'test':
            record = record._replace(split='query' if is_query else 'gallery')
        records.append(record)
    return records

"""Your own images, listed in a CSV.

The CSV has the columns of open-metric-learning:

    path,label              required; path is relative to the folder of the CSV
    split                   train or validation; without it, classes are drawn
    is_query,is_gallery     roles of validation images; without them, all have both
    x_1,x_2,y_1,y_2         a box on the stored pixels, or empty cells

https://open-metric-learning.readthedocs.io describes the format.
"""

import os

from areir.data import lists
from areir.data.lists import Record

PART_OF = {'train': 'train', 'validation': 'test', 'val': 'test', 'test': 'test'}


def read_table(path):
    """Return (layout, records) of a CSV; see the top of this file.

    Without a column split, the part of the records is None. Raises UserError naming the
    lines that are wrong.
    """
    folder = os.path.dirname(path)

    def parse(cells):
        return read_record(folder, cells), lists.read_roles(cells)

    rows = lists.parse_rows(path, lists.read_csv(path, ['path', 'label']), parse)
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

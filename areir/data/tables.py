"""Your own images, listed in a CSV.

The CSV has the columns of open-metric-learning, in any order:

    path,label              required; path is relative to the folder of the CSV
    split                   train or validation; without it, classes are drawn
    is_query,is_gallery     roles of validation images; without them, all have both
    group                   a query ignores images of its label and group
    x_1,x_2,y_1,y_2         a box on the stored pixels, or empty cells

https://open-metric-learning.readthedocs.io describes the format; `lists.COLUMNS` has
other names of the columns.
"""

import functools
import itertools
import os
import re
import unicodedata

from areir.data import lists
from areir.data.images import walk
from areir.data.lists import DISTRACTOR, Record
from areir.data.own_images import part_named
from areir.errors import UserError, counted, did_you_mean, printable

# (is_query, is_gallery) of the parts that say so
ROLES = {'query': (True, False), 'gallery': (False, True)}
CORNERS = ('x_1', 'y_1', 'x_2', 'y_2')  # left, top, right, bottom
ROUNDED = re.compile(r'\d([.,]\d+)?[eE]\+\d+')  # 271802113987 in a spreadsheet
PROBES = 8  # paths by which their folder is found
SEARCHED = 100_000  # files among which the nearest name is looked for
COMPARED = 1000  # of them, as comparing takes long


def read_table(path, *folders, skip_missing=False):
    """Return (layout, records, folder) of a CSV; see the top of this file.

    folders: where its paths may start, by default in the folder of the CSV. The paths
    of the records are relative to the folder that is returned, which is the one where
    they start unless the CSV has images elsewhere. Without a column split, records with
    a label have no part.
    skip_missing: whether images need not be there, which verifying them will tell.
    Raises UserError naming the lines that are wrong.
    """
    rows = list(lists.read_csv(path, ['path', 'label']))
    for column in ('label', 'group'):
        texts = lists.plain_labels([cells.get(column, '') for _, cells in rows])
        for (_, cells), text in zip(rows, texts):
            cells[column] = text
    folders = [os.path.abspath(each) for each in folders or [os.path.dirname(path)]]
    names = [cells['path'] for _, cells in rows]
    finder = ImageFinder(path, folders, names, skip_missing)

    def parse(cells):
        record = read_record(finder, cells)
        return record, ROLES.get(record.part) or lists.read_roles(cells)

    records = set_roles(lists.parse_rows(path, rows, parse))
    if finder.renamed:
        count, example = len(finder.renamed), next(iter(finder.renamed.values()))
        print(
            f'notice: {path}: {counted(count, "name")} as on disk, in other case '
            f'or with other accents, such as {printable(example)}'
        )
    print_parts(path, [cells for _, cells in rows], records)
    folder, paths = finder.common_folder([record.path for record in records])
    records = [record._replace(path=path) for record, path in zip(records, paths)]
    return os.path.basename(path), records, folder


def read_record(finder, cells):
    """Return the Record of a row, {column: text}, with the absolute path of its image.

    finder: an ImageFinder. Raises ValueError if the row is wrong.
    """
    image, label, group = finder.find(cells['path']), cells['label'], cells['group']
    if ROUNDED.fullmatch(label):
        raise ValueError(
            f'label {label} is a number that a spreadsheet rounded: make the column '
            'text and save the file again'
        )
    part = None
    if 'split' in cells:
        part = part_named(cells['split'])
        part = 'test' if part == 'val' else part
        if part is None:
            raise ValueError(
                f'split {cells["split"]!r:.99} is neither train nor validation'
            )
    elif 'is_query' in cells and 'is_gallery' in cells:
        part = 'test' if any(lists.read_roles(cells)) else 'train'
    if label == DISTRACTOR:
        part = part or 'test'
    corners = [cells.get(name, '') for name in CORNERS]
    box = None
    if not all(corner.lower() in lists.EMPTY for corner in corners):
        numbers = lists.to_numbers(corners)
        if max(numbers) <= 1:
            raise ValueError(f'box {numbers}: pixels are needed, not shares')
        box = lists.make_box(*numbers)
    return Record(part, label, image, box, group=None if group == DISTRACTOR else group)


def set_roles(rows):
    """Return the records of rows (origin, (record, roles)) with their final parts.

    Images without a label have the role that they may have. Raises UserError as
    `lists.check_roles` does.
    """
    separate = lists.check_roles(
        [
            (origin, roles)
            for origin, (record, roles) in rows
            if record.part not in ('train', None) and record.label != DISTRACTOR
        ]
    )
    records = []
    for origin, (record, (is_query, is_gallery)) in rows:
        part = record.part
        if part not in ('train', None):
            part = 'gallery' if separate else 'test'
            if is_query and not is_gallery:
                part = 'query'
        records.append(record._replace(part=part, origin=origin))
    return records


def print_parts(path, rows, records):
    """Print what is not plain about the parts and labels of a table."""
    notices, columns = [], rows[0] if rows else ()
    if any(record.group is not None for record in records):
        notices.append('a query ignores images of its class and group')
    labels = [record.label for record in records]
    if unlabelled := labels.count(DISTRACTOR):
        count = counted(unlabelled, 'image')
        notices.append(f'{count} without a label: searched in the test, never right')
    notices += lists.label_notices(labels)
    if 'split' not in columns and {'is_query', 'is_gallery'} <= {*columns}:
        notices.append('no column split: images with a role are the test, others train')
    splits = {cells['split'].lower() for cells in rows if 'split' in cells}
    tested = sorted(split for split in splits if part_named(split) in ('test', 'val'))
    if len(tested) > 1:
        notices.append(f'the test is {" and ".join(tested)}')
    for notice in notices:
        print(f'notice: {path}: {notice}')


class ImageFinder:
    """Finds the images that a table names.

    path, names: of the table, and all paths in it. They start from one of `folders`,
    from the current one, or from one elsewhere; then what precedes those in the first
    of `folders` is left out. Letters may differ from the disk in case or in the form of
    accents, and `\\` may stand for `/`. skip_missing: see `read_table`.
    Raises UserError if no image is found.
    """

    def __init__(self, path, folders, names, skip_missing=False):
        self.path, self.folder = path, folders[0]
        self.list_names = functools.cache(list_names)
        self.renamed = {}  # {name in the table: name on disk}, if they differ
        self.skip_missing, self.advised = skip_missing, False
        self.base, self.prefix = self.find_base(folders, names)

    def find_base(self, folders, names):
        """Return (folder from which the names start, what precedes them)."""
        probes = names[:: max(1, len(names) // PROBES)]
        current = os.getcwd()
        for folder in (*folders, current):
            if any(self.on_disk(folder, name) for name in probes):
                if folder in folders:
                    self.folder = folder
                else:
                    print(f'notice: {self.path}: paths start from the current folder')
                return folder, ''
        for name in probes:
            steps = name.replace('\\', '/').split('/')
            for count in range(1, len(steps)):
                if self.on_disk(self.folder, '/'.join(steps[count:])):
                    prefix = '/'.join(steps[:count]) + '/'
                    print(f'notice: {self.path}: paths are read without {prefix}')
                    return self.folder, prefix
        if names and not any(self.on_disk(self.folder, name) for name in names):
            raise UserError(
                f'{self.path}: none of its images is there, such as {names[0]!r:.200}: '
                'name the folder from which its paths start with --data_path'
                f'{nearest_name(self.folder, names[0])}'
            )
        return self.folder, ''

    def find(self, name):
        """Return the absolute path of an image. Raises ValueError if it is missing."""
        below = name
        if self.prefix:
            below = name.replace('\\', '/').removeprefix(self.prefix)
        if image := self.on_disk(self.base, below):
            return image
        if self.skip_missing:
            return os.path.abspath(os.path.join(self.base, below.lstrip('/')))
        advice = ''
        if not self.advised:  # looking for the nearest name takes a while
            self.advised = True
            advice = nearest_name(self.base, below) or ';'
            advice += ' --skip_broken leaves such rows out'
        raise ValueError(f'path {name!r:.200}: no such file{advice}')

    def on_disk(self, folder, name):
        """Return the absolute path of an image below a folder, or None."""
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return os.path.abspath(path)
        name = name.replace('\\', '/')
        path, found = folder if name[:1] != '/' else '/', []
        for step in name.split('/'):
            if not os.path.lexists(os.path.join(path, step)):
                alike = self.list_names(path).get(folded(step), [])
                if len(alike) != 1:
                    return None
                (step,) = alike
            found.append(step)
            path = os.path.join(path, step)
        if not os.path.isfile(path):
            return None
        if '/'.join(found) != name:
            self.renamed[name] = '/'.join(found)
        return os.path.abspath(path)

    def common_folder(self, images):
        """Return (folder, paths relative to it) of images; theirs are absolute.

        It is `self.folder` if all are below. Raises UserError if it would be the
        root of the disk.
        """
        folder, real = self.folder, functools.cache(os.path.realpath)
        if not all(image.startswith(os.path.join(folder, '')) for image in images):
            folders, names = zip(*map(os.path.split, images))
            folders, own = list(map(real, folders)), real(folder)
            folder = os.path.commonpath(folders)
            if os.path.commonpath([folder, own]) == own:
                folder = own
            images = map(os.path.join, folders, names)
        if folder == os.path.dirname(folder):
            raise UserError(f'{self.path}: move its images below one folder')
        paths = [image.removeprefix(os.path.join(folder, '')) for image in images]
        return folder, [path.replace(os.sep, '/') for path in paths]


def nearest_name(folder, name):
    """Return '; did you mean NAME?' of a file below a folder, or ''."""
    name = name.replace('\\', '/')
    files = sorted(itertools.islice(walk(folder, '', frozenset(), {}), SEARCHED))
    deeper = [path for path in files if path.endswith(f'/{name}')]
    if deeper:
        return f'; did you mean {printable(deeper[0])}?'
    inner, base = os.path.split(name)
    near = [path for path in files if path.startswith(inner) or path.endswith(base)]
    return did_you_mean(name, near[:COMPARED])


def list_names(folder):
    """Return {folded name: [names]} of a folder's entries."""
    names = {}
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        names.setdefault(folded(name), []).append(name)
    return names


def folded(name):
    """Return a file name without case and with composed accents."""
    return unicodedata.normalize('NFC', name.casefold())

"""Read the lists and CSV files that describe images. Errors name the file and the line.

Rows are pairs ('line N', cells). Parsed rows are pairs ('path, line N', value).
"""

import codecs
import csv
import itertools
import math
import os
import re
import unicodedata
from collections import defaultdict
from typing import NamedTuple

from areir.errors import UserError, counted
from areir.files import is_unicode

SHOWN = 10  # bad rows that a message lists
EMPTY = ('', 'nan', 'none')  # cells without a value
DISTRACTOR = '-1'  # label of an image that is searched and never right
YES = ('true', 'yes', '1', '1.0')
NO = ('false', 'no', '0', '0.0', *EMPTY)
# what a column is, and its names in the order of preference; case, blanks and
# underscores do not count
COLUMNS = {
    'path': (
        *('path', 'image', 'image_path', 'img_path', 'file_path', 'file_name'),
        *('image_name', 'img_name', 'image_file', 'relative_path', 'file', 'img'),
    ),
    'label': (
        *('label', 'class', 'labels', 'class_id', 'class_name', 'target', 'identity'),
        *('person_id', 'vehicle_id', 'individual_id', 'pid', 'product_id', 'item_id'),
        *('label_id', 'label_name', 'target_id', 'category_id'),
    ),
    'split': ('split', 'subset', 'partition', 'evaluation_status'),
    'is_query': ('is_query',),
    'is_gallery': ('is_gallery',),
    'group': ('group', 'group_id', 'camera', 'camera_id', 'cam', 'cam_id'),
    'row': ('row',),  # of the vector, in images.csv of inference.py --export
    'x_1': ('x_1', 'x_min', 'bbox_x1'),
    'x_2': ('x_2', 'x_max', 'bbox_x2'),
    'y_1': ('y_1', 'y_min', 'bbox_y1'),
    'y_2': ('y_2', 'y_max', 'bbox_y2'),
}
# how browsers and desktops name a copy of a file
COPY = (
    '((copy of|kopie von|copie de|copia de|copia di) )?{stem}'
    r'([ _-]+(copy|kopie|copie|copia))?( ?\(\d+\)|[ _-]\d)?{suffix}(\.\d)?'
)
SEPARATORS = ',;\t|'
# labels that say that there is none, beside numbers and beside texts
UNLABELLED = ('', '-1', '-1.0', 'nan', 'NaN', '<NA>', '#N/A', 'N/A', 'NULL', 'null')
UNNUMBERED = (*UNLABELLED, 'None', 'none', 'NA')


class Record(NamedTuple):
    """One image as a dataset's own files describe it."""

    part: str | None  # of the split: train, test, query or gallery; None: to be drawn
    label: int | str  # as the dataset has it
    path: str  # relative to the dataset's folder, with '/'
    # left, top, right, bottom: 0-based, half-open, on the stored pixels
    box: tuple | None = None
    origin: str = ''  # the file and the line that names it, for messages
    group: str | None = None  # a query ignores images of its class and group


def read_lines(path, any_bytes=False):
    """Yield the lines of a text file in UTF-8, or in UTF-16 with a mark at its start.

    any_bytes: whether a line may hold bytes that are not UTF-8, as file names may; they
    become surrogates. Raises UserError naming a line that is not text.
    """
    with open(path, 'rb') as file:
        start = file.read(2)
    options = {'encoding': 'utf-8-sig', 'errors': 'surrogateescape'}
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        options = {'encoding': 'utf-16', 'errors': 'replace'}
    with open(path, newline='', **options) as file:
        for number, line in enumerate(file, 1):
            if '\0' in line or not (any_bytes or is_unicode(line)):
                raise UserError(
                    f'{path}, line {number}: not text in UTF-8: save the file as '
                    'text in UTF-8 (in a spreadsheet: CSV UTF-8)'
                )
            yield line


def read_rows(path, fields, header=0):
    """Yield the rows of a list after `header` lines, split at white space.

    fields: how many each line has; the last may contain spaces. Empty lines are
    skipped. Raises UserError naming a line with fewer fields.
    """
    for number, line in enumerate(read_lines(path), 1):
        cells = line.strip().split(None, fields - 1)
        if number <= header or not cells:
            continue
        if len(cells) != fields:
            raise UserError(
                f'{path}, line {number}: {fields} fields expected, not {line!r:.99}'
            )
        yield f'line {number}', cells


def read_cells(path, any_bytes=False):
    """Yield the rows of a CSV, except empty ones, without blanks around the cells.

    Cells are separated by what is most frequent in the first row, outside quotes, of
    SEPARATORS. Raises UserError naming the line where a malformed row begins.
    """
    lines, head = read_lines(path, any_bytes), []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    unquoted = re.sub('"[^"]*"', '', ''.join(head))
    separator = max(SEPARATORS, key=unquoted.count)
    options = {'delimiter': separator, 'skipinitialspace': True, 'strict': True}
    table, first = csv.reader(itertools.chain(head, lines), **options), 1
    try:
        for cells in table:
            cells = [cell.strip() for cell in cells]
            if any(cells) or len(cells) == 1:  # a quoted, empty cell
                yield f'line {first}', cells
            first = table.line_num + 1
    except csv.Error as error:
        raise UserError(f'{path}, line {first}: not a CSV row ({error})') from error


def read_csv(path, needed, any_bytes=False):
    """Yield ('line N', {column: text}) of each row of a CSV below its header.

    Columns are called as in COLUMNS; others are left out. needed: those that must be
    there. Raises UserError naming a column that is missing or repeated, or a row that
    is too short or too long.
    """
    table = read_cells(path, any_bytes)
    _, header = next(table, ('', []))
    if header and header[0].lower() == 'sep=':  # Excel's
        _, header = next(table, ('', []))
    places = find_columns(path, header, needed)
    width = max((place for place, name in enumerate(header, 1) if name), default=0)
    for line, cells in table:
        # each row may end in a separator
        if len(cells) < width or any(cells[len(header) :]):
            raise UserError(f'{path}, {line}: more or fewer cells than columns')
        yield line, {column: cells[place] for column, place in places.items()}


def find_columns(path, header, needed):
    """Return {column: place} of the columns of a header; print what is not plain."""

    def key(name):
        return re.sub('[# _-]', '', name.lower())  # '# label' of numpy.savetxt

    keys = [key(name) for name in header]
    present = [name for name in header if name]
    places = {}
    for column, names in COLUMNS.items():
        found = next((key(name) for name in names if key(name) in keys), None)
        if found:
            places[column] = keys.index(found)
            if keys.count(found) > 1:
                raise UserError(f'{path}: two columns {header[places[column]]}')
        elif column in needed:
            raise UserError(
                f'{path}: no column {" or ".join(names[:2])}; its first line names '
                f'{shorten(present) or "none"}'
            )
    understood = [
        f'{header[place]} is the {column}'
        for column, place in places.items()
        if key(header[place]) != key(column)
    ]
    unused = [
        name
        for place, name in enumerate(header)
        if name not in ('', 'Unnamed: 0') and place not in places.values()
    ]
    if unused:
        understood.append(f'not used: {shorten(unused)}')
    if understood:
        print(f'notice: {path}: {"; ".join(understood)}')
    return places


def shorten(names):
    """Return the first names as a listing."""
    return ', '.join(names[:SHOWN]) + ', ...' * (len(names) > SHOWN)


def look_alikes(labels):
    """Return what to say if labels differ in case, blanks, zeros or accents alone.

    Accents: in the form of their letters, composed or not. Returns a list of at most
    one text, about the first of these labels.
    """
    groups = defaultdict(list)
    for label in sorted(set(labels)):
        plain = ''.join(unicodedata.normalize('NFKC', label).casefold().split())
        groups[re.sub('[.,]0*$', '', plain).lstrip('0')].append(label)
    pairs = [group[:2] for group in groups.values() if len(group) > 1]
    return ['{!r} and {!r} are different classes'.format(*pair) for pair in pairs[:1]]


def label_notices(labels):
    """Return what may be meant otherwise in the labels of `plain_labels`."""
    unclear = sorted({*UNNUMBERED} & {*labels} - {DISTRACTOR})
    return look_alikes(labels) + [
        f'{label} is a class; if it means none, leave it empty' for label in unclear
    ]


def plain_labels(labels):
    """Return the labels of a table; DISTRACTOR for an empty one, and for -1.

    If all are numbers, 3.0 becomes 3, because programs write whole numbers so when one
    is missing. Letters with accents are composed.
    """
    labels = [unicodedata.normalize('NFC', label) for label in labels]
    numbers = re.compile(r'\d+([.,]0*)?')
    none = UNLABELLED
    if all(label in UNNUMBERED or numbers.fullmatch(label) for label in labels):
        labels = [re.sub('[.,]0*$', '', label) for label in labels]
        none = UNNUMBERED
    return [DISTRACTOR if label in none else label for label in labels]


def parse_rows(path, rows, parse):
    """Return [('path, line N', parse(cells))] of rows.

    Raises UserError that lists the lines for which `parse` raises ValueError.
    """
    parsed, problems = [], []
    for line, cells in rows:
        try:
            parsed.append((f'{path}, {line}', parse(cells)))
        except ValueError as error:
            problems.append(f'{line}: {error}')
    if len(problems) == 1:
        raise UserError(f'{path}, {problems[0]}')
    if problems:
        raise UserError(f'{path}: {len(problems)} bad rows:{listed(problems)}')
    return parsed


def listed(lines, most=SHOWN):
    """Return the first lines below a heading, and how many there are besides."""
    more = [f'and {len(lines) - most:,} more'] if len(lines) > most else []
    return ''.join(f'\n  {line}' for line in [*lines[:most], *more])


def refuse_repeats(rows):
    """Raise UserError if two parsed rows (origin, image) name the same image."""
    first = {}
    for origin, image in rows:
        if image in first:
            raise UserError(f'{origin}: image {image!r} is already in {first[image]}')
        first[image] = origin


def to_class(cell, classes):
    """Return a class as int. Raises ValueError if it is not in a range of classes."""
    if not str(cell).isdecimal() or int(cell) not in classes:
        raise ValueError(
            f'class {cell!r:.99} is not a number from {classes[0]} to {classes[-1]}'
        )
    return int(cell)


def to_numbers(cells):
    """Return the numbers of a box. Raises ValueError unless all are finite.

    1,5 is 1.5, but 1,024 may be a thousand, and is no number.
    """
    decimal = re.compile(r',(\d{1,2}|\d{4,})$')
    try:
        numbers = [float(decimal.sub(r'.\1', str(cell))) for cell in cells]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f'box {list(cells)!r:.99}: four numbers expected')
    return numbers


def make_box(*corners):
    """Return left, top, right, bottom as integers. Raises ValueError if empty."""
    left, top, right, bottom = map(round, corners)
    if left >= right or top >= bottom:
        raise ValueError(f'box from {left}, {top} to {right}, {bottom} is empty')
    return left, top, right, bottom


def read_roles(cells):
    """Return (is_query, is_gallery) of a row; a missing column counts as true.

    Raises ValueError if a cell is neither true nor false.
    """
    roles = []
    for name in ('is_query', 'is_gallery'):
        text = cells.get(name, 'true').lower()
        if text not in YES + NO:
            raise ValueError(f'{name} {text!r:.99} is neither true nor false')
        roles.append(text in YES)
    return tuple(roles)


def check_roles(rows):
    """Return whether the queries are separate from the gallery.

    rows: (origin, roles as `read_roles` returns them) of each image. They are not
    separate if all images have both roles. Raises UserError if only some have both,
    because each of those would have to be left out of its own gallery, or if one has
    neither.
    """
    separate = bool(rows) and rows[0][1] != (True, True)
    for origin, (is_query, is_gallery) in rows:
        both, neither = is_query and is_gallery, not is_query and not is_gallery
        # the first row says whether all must have both roles
        if neither or both == separate:
            raise UserError(
                f'{origin}: is_query and is_gallery: either all test images must have '
                'both roles, or each must have exactly one'
            )
    return separate


def find_file(files, name):
    """Return the shortest path that is `name` or ends with /`name`, or None.

    If there is none, a copy as browsers and desktops name it, such as `name (1)`, does.
    """
    paths = [path for path in files if f'/{path}'.endswith(f'/{name}')]
    if not paths:
        stem, suffix = map(re.escape, os.path.splitext(name))
        copy = re.compile(COPY.format(stem=stem, suffix=suffix), re.IGNORECASE)
        paths = [path for path in files if copy.fullmatch(path.rpartition('/')[2])]
    return min(paths, key=len, default=None)


def need_file(root, files, name, dataset):
    """Return root/path as `find_file` finds it. Raises UserError if there is none."""
    path = find_file(files, name)
    if path is None:
        raise UserError(f'{root}: {name} is missing; extract {dataset} there')
    return f'{root}/{path}'


def read_records(files, source, rows, parse):
    """Return the records parse(cells) of rows, with their origins and full paths.

    Datasets are extracted to different depths, so a list may name `img/1.jpg` where
    `Img/img/1.jpg` is on disk. All paths get the prefix with which most images exist,
    the shortest of several.
    source: the file that lists the images. Raises UserError if none is found, or as
    `parse_rows` does.
    """
    rows = parse_rows(source, rows, parse)
    wanted = [record.path for _, record in rows]
    prefixes = set()
    # a few images suffice to find the prefixes that are possible
    for probe in wanted[:: max(1, len(wanted) // 8)]:
        paths = [path for path in files if f'/{path}'.endswith(f'/{probe}')]
        prefixes |= {path.removesuffix(probe) for path in paths}
    if not prefixes:
        raise UserError(
            f'{source} names {counted(len(wanted), "image")}, and none was found: '
            'extract the images beside it'
        )
    files = set(files)

    def quality(prefix):
        return sum(prefix + path in files for path in wanted), -len(prefix)

    best = max(prefixes, key=quality)
    return [
        record._replace(path=best + record.path, origin=origin)
        for origin, record in rows
    ]

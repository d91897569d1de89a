"""Read the lists and CSV files that describe images. Errors name the file and the line.

Rows are pairs ('line N', cells). Parsed rows are pairs ('path, line N', value).
"""

import csv
import math
from typing import NamedTuple

from areir.errors import UserError
from areir.files import is_unicode, refuse_special

SHOWN = 10  # bad rows that a message lists
EMPTY = ('', 'nan', 'none')  # cells without a value
DISTRACTOR = '-1'  # label of an image that is searched and never right
YES, NO = ('true', '1', '1.0'), ('false', '0', '0.0', *EMPTY)


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
    """Yield the lines of a UTF-8 text file, with their line ends.

    any_bytes: whether a line may hold bytes that are not UTF-8, as file names may; they
    become surrogates. Raises UserError naming a line that is not text.
    """
    refuse_special(path)
    with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
        for number, line in enumerate(file, 1):
            if '\0' in line or not (any_bytes or is_unicode(line)):
                raise UserError(
                    f'{path}, line {number}: not text in UTF-8: save the file as UTF-8'
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
    """Yield the rows of a CSV, except empty ones.

    Raises UserError naming the line where a malformed row begins.
    """
    table, first = csv.reader(read_lines(path, any_bytes), strict=True), 1
    try:
        for cells in table:
            if cells:
                yield f'line {first}', cells
            first = table.line_num + 1
    except csv.Error as error:
        raise UserError(f'{path}, line {first}: not a CSV row ({error})') from error


def read_csv(path, required, any_bytes=False):
    """Yield ('line N', {column: text}) of each row of a CSV below its header.

    required: for each needed column, the names that it may have. Raises UserError
    naming a column that is missing or repeated, or a row that is too short or too long.
    """
    table = read_cells(path, any_bytes)
    _, columns = next(table, ('', []))
    for names in required:
        found = [name for name in columns if name in names]
        if not found or len(found) > len(set(found)):
            count = 'two columns' if found else 'no column'
            raise UserError(f'{path}: {count} {" or ".join(names)}')
    for line, cells in table:
        if len(cells) != len(columns):
            raise UserError(f'{path}, {line}: more or fewer cells than columns')
        yield line, dict(zip(columns, cells))


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
        listed = problems[:SHOWN]
        if len(problems) > SHOWN:
            listed.append(f'and {len(problems) - SHOWN} more')
        text = '\n  '.join([f'{path}: {len(problems)} bad rows:', *listed])
        raise UserError(text)
    return parsed


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
    """Return the numbers of a box. Raises ValueError unless all are finite."""
    try:
        numbers = [float(cell) for cell in cells]
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
    """Return the shortest path that is `name` or ends with /`name`, or None."""
    paths = [path for path in files if f'/{path}'.endswith(f'/{name}')]
    return min(paths, key=len, default=None)


def need_file(root, files, name, dataset):
    """As `find_file`. Raises UserError if there is none."""
    path = find_file(files, name)
    if path is None:
        raise UserError(f'{root}: {name} is missing; extract {dataset} there')
    return path


def locate(files, rows, source):
    """Return the records of parsed rows, with their origins and full paths.

    Datasets are extracted to different depths, so a list may name `img/1.jpg` where
    `Img/img/1.jpg` is on disk. All paths get the prefix with which most images exist,
    the shortest of several.
    source: the file that lists the images. Raises UserError if none is found.
    """
    wanted = [record.path for _, record in rows]
    prefixes = set()
    # a few images suffice to find the prefixes that are possible
    for probe in wanted[:: max(1, len(wanted) // 8)]:
        paths = [path for path in files if f'/{path}'.endswith(f'/{probe}')]
        prefixes |= {path.removesuffix(probe) for path in paths}
    if not prefixes:
        raise UserError(
            f'{source} names {len(wanted):,} images, and none of them was found: '
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

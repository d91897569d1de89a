"""Read lists and CSV files line by line. Every error names the file and the line."""

import csv
from typing import NamedTuple

from areir.errors import UserError
from areir.files import is_unicode, refuse_special

SHOWN = 10  # bad rows that a message lists
LONGEST = 200  # characters of a value that a message shows
NOT_TEXT = 'not text in UTF-8: save the file as UTF-8, or get it again'


class Row(NamedTuple):
    """One row of a file."""

    origin: str  # the file and the line, for messages
    cells: list  # of str


def read_lines(path, any_bytes=False):
    """Yield the lines of a UTF-8 text file, with their line ends.

    any_bytes: whether a line may hold bytes that are not UTF-8, as file names may; they
    become surrogates. Raises UserError naming a line that is not text.
    """
    refuse_special(path)
    with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
        for number, line in enumerate(file, 1):
            if '\0' in line or not (any_bytes or is_unicode(line)):
                raise UserError(f'{path}, line {number}: {NOT_TEXT}')
            yield line


def read_rows(path, fields, header=0):
    """Return a Row for each line after `header` lines, split at white space.

    fields: how many each line has; the last may contain spaces. Empty lines are
    skipped. Raises UserError naming a line with fewer fields.
    """
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        cells = line.strip().split(None, fields - 1)
        if number <= header or not cells:
            continue
        if len(cells) != fields:
            shown = quote(line.strip())
            raise UserError(
                f'{path}, line {number}: {fields} fields expected, not {shown}'
            )
        rows.append(Row(f'{path}, line {number}', cells))
    return rows


def read_cells(path, any_bytes=False):
    """Yield a Row for each row of a CSV file, except empty ones.

    Raises UserError naming the line where a malformed row begins.
    """
    table = csv.reader(read_lines(path, any_bytes), strict=True)
    while True:
        origin = f'{path}, line {table.line_num + 1}'
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f'{origin}: not a row of a CSV file ({error})') from error
        if cells:
            yield Row(origin, cells)


def read_csv(path, required, read, any_bytes=False):
    """Return (columns, [read(cells) for each row], their origins) of a CSV.

    cells: {column: text}; required: for each needed column, the names that it may
    have; any_bytes: see `read_lines`. Raises UserError naming the columns that are
    missing, or the lines for which `read` raises ValueError.
    """
    table = read_cells(path, any_bytes)
    columns = next(table, Row(path, [])).cells
    check_columns(path, columns, required)
    rows, origins, problems = [], [], []
    for origin, cells in table:
        try:
            if len(cells) != len(columns):
                raise ValueError('more or fewer cells than columns')
            rows.append(read(dict(zip(columns, cells))))
            origins.append(origin)
        except ValueError as error:
            line = origin.removeprefix(f'{path}, ')
            problems.append(f'{line}: {error}')
    if problems:
        raise UserError(f'{path}: {len(problems)} bad rows{listing(problems)}')
    return columns, rows, origins


def listing(problems, most=SHOWN):
    """Return the end of a message, which lists at most `most` problems.

    A single problem follows on the same line; several get a line each.
    """
    if len(problems) == 1:
        return f': {problems[0]}'
    listed = problems[:most]
    if len(problems) > most:
        listed.append(f'and {len(problems) - most} more')
    return ':\n  ' + '\n  '.join(listed)


def check_columns(path, columns, required):
    """Raise UserError if a CSV lacks a required column or has one twice.

    required: see `read_csv`.
    """
    missing = [names for names in required if not set(names) & set(columns)]
    if missing:
        names = ' and '.join(' or '.join(names) for names in missing)
        raise UserError(f'{path}: no column {names}')
    twice = [name for name in columns if name and columns.count(name) > 1]
    if twice:
        raise UserError(f'{path}, line 1: two columns {twice[0]}')


def quote(value):
    """Return a value as a message shows it: quoted, and cut if it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}...'


def refuse_repeats(kind, pairs):
    """Raise UserError if a value occurs twice.

    kind: what a message calls the values; pairs: (value, origin) of each.
    """
    first = {}
    for value, origin in pairs:
        if value in first:
            line = first[value].partition(', ')[2]
            raise UserError(f'{origin}: {kind} {quote(value)} is in {line}, too')
        first[value] = origin

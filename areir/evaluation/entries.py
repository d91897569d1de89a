"""Load the named arrays of a file of embeddings that any program wrote.

The first bytes of a file say what it is, whatever its name. Nothing in it is executed:
of pickled objects only texts, numbers, paths and arrays of them are built.

    .npz, .pt, .safetensors, .h5   named arrays
    .npy, .csv, .tsv, .txt         vectors; a table may have columns of labels, too
    .parquet                       a table with a column of vectors, or of numbers

Labels that a file lacks are in a second one: .npy, .txt (one a line), .csv or .tsv.
"""

import contextlib
import os
import pickle
import posixpath
import re
import unicodedata
import zipfile

import numpy as np
import pandas as pd
import torch

from areir.data.lists import (
    check_roles,
    find_columns,
    parse_rows,
    read_cells,
    read_csv,
    read_lines,
    read_roles,
    shorten,
)
from areir.errors import UserError, counted, optional, printable
from areir.files import (
    BUILDERS,
    LEGACY,
    is_safetensors,
    load_tensors,
    objects_refused,
)

NOTES = ('protocol', 'select', 'trained')  # of a database of train.py
PREFIXES = ('', 'query_', 'gallery_', 'test_')
FIELDS = ('embeddings', 'features', 'labels', 'images', 'groups', 'files')
USED = {prefix + field for prefix in PREFIXES for field in FIELDS}
USED |= {*NOTES, 'ensemble_size'}
# names of the labels of FILE.npy in its folder
BESIDE = ('labels.npy', 'labels.csv', 'labels.txt', 'images.csv')
TABLES = ('.csv', '.tsv', '.txt')
ADVICE = 'save plain arrays with numpy.savez, or tensors with torch.save'
HDF5 = b'\x89HDF\r\n\x1a\n'


def load_entries(path, labels=None):
    """Return (entries, notices, labels_unused) of a file.

    entries: {name: array, tensor or list}; notices: what was understood of it; labels:
    the path of the labels of a file that has none, by default one of BESIDE;
    labels_unused: whether it has its own. Raises UserError that says what the file is
    if it cannot be read.
    """
    for each in filter(None, (path, labels)):
        if not os.path.isfile(each):
            raise UserError(f'{each}: no such file')
    entries = read(path)
    has_labels = any(str(name).endswith('labels') for name in entries)
    notices = entries.pop('notices', None) or []  # of a table
    if has_labels or 'embeddings' not in entries:
        return entries, notices, labels is not None
    if labels is None:
        labels = find_labels(path)
        notices.append(f'its labels are those of {labels}')
    return label_entries(path, entries, labels), notices, False


def read(path):
    """Return the entries of a file, without labels from elsewhere."""
    with open(path, 'rb') as file:
        start = file.read(512)
    reader = find_reader(path, start)
    try:
        return reader(path)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # libraries raise many kinds for a damaged file
        reason = str(error).partition('\n')[0] or type(error).__name__
        raise UserError(
            f'{path} is damaged: copy it or write it again ({reason:.200})'
        ) from error


def find_reader(path, start):
    """Return the function that reads a file of the first bytes `start`."""
    for begins, reader in (
        (b'PK', read_zip),
        (b'\x93NUMPY', read_npy),
        (HDF5, read_hdf5),
        (b'PAR1', read_parquet),
    ):
        if start.startswith(begins):
            return reader
    if start.startswith(LEGACY) or is_safetensors(start):
        return read_tensors
    if not start:
        kind = 'an empty file'
    elif start.startswith(b'version https://git-lfs'):
        kind = 'a Git LFS pointer (git lfs pull gets the file itself)'
    elif start[:1] == b'\x80':
        kind = 'a pickle, which could run any code'
    elif start.lstrip().lower().startswith((b'<!doctype html', b'<html')):
        kind = 'a web page'
    elif path.lower().endswith(TABLES):
        return read_table
    else:
        kind = 'of an unknown kind' if b'\0' in start else 'a text file'
    raise UserError(f'{path} is {kind}, no file of embeddings: {ADVICE}')


# Files of named arrays


def read_zip(path):
    """Read what numpy.savez or torch.save wrote."""
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
        if any(name.endswith('data.pkl') for name in names):
            return read_tensors(path)
        arrays = [name for name in names if name.endswith('.npy')]
        if not arrays and names:
            is_excel = any(name.startswith('xl/') for name in names)
            kind = 'a workbook of Excel' if is_excel else 'a zip file'
            raise UserError(f'{path} is {kind}, not one of arrays: {ADVICE}')
        entries = {}
        for name in arrays:  # others may hold any objects, so only their names are read
            key = name.removesuffix('.npy')
            entries[key] = None
            if key in USED:
                with file.open(name) as member:
                    entries[key] = read_array(path, member)
        return entries


def read_array(path, file):
    """Return the array of an open .npy file; its objects are built by BUILDERS only."""
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        if 'allow_pickle' not in str(error):
            raise
        return PlainUnpickler(path, file).load()  # which follows the header


class PlainUnpickler(pickle.Unpickler):
    """Builds texts, numbers, paths and arrays of them; refuses all else."""

    def __init__(self, path, file):
        super().__init__(file)
        self.path = path

    def find_class(self, module, name):
        name = f'{module}.{name}'
        if name in ('pandas.NA', 'pandas._libs.missing.NA'):
            return None
        if name not in BUILDERS:
            raise objects_refused(self.path, name)
        return BUILDERS[name]


def read_tensors(path):
    """Read what torch.save or safetensors wrote; arrays may be among it."""
    content = load_tensors(path)
    if isinstance(content, dict):
        return content
    if isinstance(content, torch.Tensor):
        return {'embeddings': content}
    raise UserError(f'{path}: not a dict of embeddings and labels')


def read_hdf5(path):
    """Read the datasets at the top of an HDF5 file."""
    h5py = optional(path, 'h5py', 'h5py')
    with h5py.File(path) as file:
        return {
            name: node[()] if name in USED and isinstance(node, h5py.Dataset) else None
            for name, node in file.items()
        }


# Vectors alone, and tables


def read_npy(path):
    """Read an array of vectors; or a dict of arrays, which numpy.save writes, too."""
    with open(path, 'rb') as file:
        vectors = read_array(path, file)
    if vectors.shape == () and isinstance(vectors.item(), dict):
        return vectors.item()
    return {'embeddings': vectors}


def read_parquet(path):
    """Read the table of a Parquet file."""
    optional(path, 'pyarrow', 'pyarrow')
    frame = pd.read_parquet(path)
    rows = enumerate(frame.itertuples(index=False, name=None), 1)
    rows = [(f'row {number}', list(cells)) for number, cells in rows]
    return table_entries(path, [str(name) for name in frame.columns], rows)


def read_table(path):
    """Read a table of text; its first line may name its columns."""
    rows = []
    for line, cells in read_cells(path):
        if len(cells) == 1 and not cells[0].startswith('['):
            cells = cells[0].lstrip('# ').split()  # as numpy.savetxt writes
        rows.append((line, cells))
    if not rows:
        raise UserError(f'{path} is an empty table')
    header = [str(number) for number in range(len(rows[0][1]))]  # as pandas counts
    if rows[0][1] == header or not count_numbers(rows[0][1]):
        header = rows.pop(0)[1]
        header[0] = header[0].lstrip('# ')
    return table_entries(path, header, rows)


def table_entries(path, header, rows):
    """Return the entries of a table of vectors and perhaps labels.

    header: the names of the columns; rows: ('line N', cells). The vectors are in one
    column of lists or in the columns of one name and a number, such as f0, f1, f2:
    those with the most numbers.
    """
    if not rows:
        raise UserError(f'{path} is a table without rows')
    columns = vector_columns(header, rows[0][1])
    if not columns:
        raise UserError(
            f'{path}: no columns of vectors: name them f0, f1, ..., or have one of '
            'whole lists, and write numbers with a point; its first line names '
            f'{shorten(header)}'
        )
    others = ['' if place in columns else name for place, name in enumerate(header)]
    places = find_columns(path, others, [])

    def parse(cells):
        if len(cells) != len(header):
            raise ValueError('more or fewer cells than columns')
        own = {name: to_text(cells[place]) for name, place in places.items()}
        if len(columns) == 1:
            return to_numbers(cells[columns[0]]), read_row(own)
        return to_numbers([cells[place] for place in columns]), read_row(own)

    parsed = parse_rows(path, rows, parse)
    vectors = np.stack([vector for _, (vector, _) in parsed])
    ends = list(dict.fromkeys([header[columns[0]], header[columns[-1]]]))
    dimensions = counted(vectors.shape[1], 'dimension')
    understood = f'{dimensions}, from {" to ".join(ends)}'
    is_whole = (np.trunc(vectors) == vectors).all(axis=0) & vectors.any(axis=0)
    whole = [header[place] for place, each in zip(columns, is_whole) if each]
    if 0 < len(whole) < len(columns):
        understood += f'; {whole[0]} has whole numbers only, as labels do'
    entries = {'embeddings': vectors}
    entries = row_entries(entries, [(origin, row) for origin, (_, row) in parsed])
    return entries | {'notices': [understood]}


def vector_columns(header, first):
    """Return the places of the columns of vectors; first: the cells of a row."""
    groups = {}  # {name without its number: (size, places)}
    for place, (name, cell) in enumerate(zip(header, first)):
        size = count_numbers(cell)
        stem = name if size > 1 else re.sub(r'\d+$', '', name)
        if size > 1 or (size == 1 and stem != name):
            count, places = groups.get(stem, (0, []))
            groups[stem] = count + size, [*places, place]
    return max(groups.values(), key=lambda group: group[0], default=(0, []))[1]


def count_numbers(cells):
    """Return how many numbers `to_numbers` finds, 0 if it raises an error."""
    with contextlib.suppress(TypeError, ValueError):
        return len(to_numbers(cells))
    return 0


def to_numbers(cells):
    """Return a number, or a list, as float32 (n,), or raise ValueError.

    cells: also a text of a list, as Python or numpy writes it.
    """
    if isinstance(cells, str) and cells.startswith('['):
        cells = cells.strip('[]').replace(',', ' ').split()
    return np.array(cells, dtype=np.float32, ndmin=1)


# Labels


def find_labels(path):
    """Return the file of labels in the folder of a file of vectors."""
    folder = os.path.dirname(path)
    found = [os.path.join(folder, name) for name in BESIDE]
    found = [name for name in found if os.path.isfile(name) and name != path]
    if len(found) == 1:
        return found[0]
    several = f'; {", ".join(found)} lie beside it' if found else ''
    raise UserError(
        f'{path}: give its labels with --labels FILE ({", ".join(TABLES)} or .npy), or '
        f'in a table as a column label{several}'
    )


def label_entries(path, entries, labels_path):
    """Add the entries of a file of labels to those of the vectors of `path`."""
    suffix, rows = os.path.splitext(labels_path)[1].lower(), None
    if suffix == '.npy':
        labels = np.atleast_1d(read(labels_path).get('embeddings'))
    elif suffix == '.txt':
        labels = [line.rstrip('\r\n') for line in read_lines(labels_path)]
    else:
        rows = read_csv(labels_path, ['label'], any_bytes=True)
        rows = labels = parse_rows(labels_path, rows, read_row)
        order = [row.get('row', '') for _, row in rows]
        # a spreadsheet may have sorted them otherwise
        if all(map(str.isdecimal, order)) and len({*order}) == len(rows):
            rows.sort(key=lambda row: int(row[1]['row']))
    if rows and 'path' in rows[0][1] and entries.get('images') is not None:
        rows = labels = rows_of(path, np.ravel(entries['images']), labels_path, rows)
    embeddings = entries['embeddings']
    if len(embeddings) != len(labels):
        raise UserError(
            f'{path} has {counted(len(embeddings), "embedding")}, but {labels_path} '
            f'has {counted(len(labels), "row")}: give a label for each with --labels'
        )
    if rows is None:
        return {**entries, 'labels': labels}
    return row_entries(entries, rows)


def read_row(cells):
    """Return the texts and roles of a row of labels, or raise ValueError."""
    roles, split = read_roles(cells), cells.get('split', '').lower()
    if 'is_query' not in cells and split in ('query', 'gallery'):
        roles = split == 'query', split == 'gallery'
    return {**cells, 'roles': roles}


def rows_of(path, images, labels_path, rows):
    """Return the rows that name the images of a file, in their order.

    If one of the two has whole paths, the names of files count. Raises UserError if
    these do not tell which row an image has.
    """
    for form in (clean, lambda name: posixpath.basename(clean(name))):
        by_name = {form(row['path']): (origin, row) for origin, row in rows}
        names = [form(name) for name in images]
        absent = set(names).difference(by_name)
        if not absent and len(by_name) == len(rows):
            return [by_name[name] for name in names]
    raise UserError(
        f'{labels_path}: its paths are not those of the images in {path}, such as '
        f'{printable(min(absent, default=names[0]))}'
    )


def row_entries(entries, rows):
    """Add what rows say, ('file, line N', value of `read_row`), to entries of vectors.

    If they have roles, the vectors of the queries are divided from the gallery's.
    """
    first = rows[0][1] if rows else {}
    names = {'label': 'labels', 'path': 'images', 'group': 'groups'}
    for column in names.keys() & first.keys():
        entries[names[column]] = np.array([row[column] for _, row in rows], dtype=str)
    if not check_roles([(origin, row['roles']) for origin, row in rows]):
        splits = sorted({row.get('split', '') for _, row in rows})
        if len(splits) > 1:
            print(f'notice: all splits are searched together: {shorten(splits)}')
        return entries
    is_query = np.array([row['roles'][0] for _, row in rows])
    return {
        **{f'query_{name}': values[is_query] for name, values in entries.items()},
        **{f'gallery_{name}': values[~is_query] for name, values in entries.items()},
    }


def clean(name):
    """Return the name of an image in the form in which names are compared."""
    name = to_text(name).replace('\\', '/')
    return unicodedata.normalize('NFC', posixpath.normpath(name)) if name else ''


def to_text(value):
    """Return an entry of an array or a table as text; '' if there is none."""
    if isinstance(value, bytes):
        return value.decode(errors='surrogateescape')
    if value is None or value is pd.NA or value != value:  # NaN
        return ''
    is_whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value)) if is_whole else str(value)

"""Add the labels of a CSV to the embeddings of a .npy file."""

import numpy as np

from areir.data.tables import check_roles, read_roles
from areir.data.text_files import read_csv
from areir.errors import UserError
from areir.files import is_unicode

LABEL_COLUMNS = ('label', 'class')  # `--export` of inference.py writes class


def label_entries(path, embeddings, labels_csv):
    """Return the entries of `read_embeddings`, from an array and a CSV of its labels.

    path: the file of the array, for messages. The CSV has a row for each embedding, in
    the same order. Its columns are label, or class, and optionally path, is_query and
    is_gallery. Raises UserError naming the file that is at fault, or both if they have
    different numbers of rows.
    """
    columns, rows, origins = read_csv(
        labels_csv, [LABEL_COLUMNS], read_row, any_bytes=True
    )
    embeddings = np.atleast_1d(embeddings)
    if len(embeddings) != len(rows):
        raise UserError(
            f'{path} has {len(embeddings):,} embeddings, but {labels_csv} has '
            f'{len(rows):,} rows'
        )
    labels, images, roles = zip(*rows) if rows else [()] * 3
    entries = {'embeddings': embeddings, 'labels': np.array(labels, dtype=str)}
    if 'path' in columns:
        entries['images'] = np.array(images, dtype=str)
    if not check_roles(list(roles), origins):
        return entries
    is_query = np.array([is_query for is_query, _ in roles])
    return {
        **{f'query_{name}': values[is_query] for name, values in entries.items()},
        **{f'gallery_{name}': values[~is_query] for name, values in entries.items()},
    }


def read_row(cells):
    """Return (label, path or None, roles) of a row.

    Raises ValueError if it has no label or no clear role.
    """
    label = next(cells[name] for name in LABEL_COLUMNS if name in cells)
    if not label:
        raise ValueError('no label')
    if not is_unicode(label):
        raise ValueError('the label is not text in UTF-8')
    return label, cells.get('path'), read_roles(cells)

"""Read anybody's embeddings and their labels from a file."""

import os
from dataclasses import dataclass

import numpy as np
import torch

from areir.errors import UserError
from areir.evaluation.labelled_arrays import label_entries
from areir.evaluation.original_databases import (
    current_entries,
    is_original,
    original_name,
)
from areir.files import load_tensors, refuse_special
from areir.schemas import is_count, is_dense

NOTES = ('protocol', 'select')
LONGEST_NOTE = 100  # characters
SIDES = ('', 'query_', 'gallery_')  # before the names of a file's entries
ENTRIES = [side + name for side in SIDES for name in ('embeddings', 'labels', 'images')]


@dataclass
class ImageSet:
    """The queries or the gallery of a file."""

    prefix: str  # before the names of its entries: '', 'query_' or 'gallery_'
    embeddings: torch.Tensor  # (N, D)
    labels: torch.Tensor  # (N,)
    images: list | None = None  # (N,) names


@dataclass
class EmbeddingsFile:
    """What a file of embeddings holds."""

    path: str
    query: ImageSet
    gallery: ImageSet | None  # None: each image queries all others
    ensemble_size: int | None  # heads that the embeddings consist of
    notes: dict  # protocol and select, if the file has them
    original: bool = False  # whether its names are those of the original code

    def keep_heads(self, heads):
        """Reduce the embeddings to those of the first `heads` heads.

        The embedding of an ensemble contains those of smaller ensembles.
        """
        known = self.ensemble_size or 0
        if known == 1 < heads:
            raise UserError(
                f'--evaluate_heads {heads}: {self.path} has one head, or components '
                'that mix its heads (train with --dimensions 0)'
            )
        if not 1 <= heads <= known:
            count = known or 'an unknown number of'
            raise UserError(f'--evaluate_heads {heads}: {self.path} has {count} heads')
        for side in filter(None, (self.query, self.gallery)):
            columns = side.embeddings.shape[-1] // self.ensemble_size * heads
            side.embeddings = side.embeddings[:, :columns]

    def entry(self, argument):
        """Return what the file calls an argument of `rank_positives`."""
        sides = {'query': self.query, 'gallery': self.gallery or self.query}
        name, _, labels = argument.partition('_')
        if name not in sides or labels not in ('', 'labels'):
            return argument
        entry = sides[name].prefix + (labels or 'embeddings')
        return original_name(entry) if self.original else entry


# Reading


def read_embeddings(path, labels_csv=None):
    """Read an EmbeddingsFile from a .npz or .npy file or a file of torch.save.

    The file holds `embeddings` and `labels`. If the queries are not the gallery,
    the queries' entries have the prefix `query_`, or the gallery's have the prefix
    `gallery_`, or both. Labels are integers or texts. `images`, with the same
    prefix, may name the images; original_databases.py has the names of the original
    code. A .npy file holds the embeddings only; labels_csv: the CSV of their labels.
    Raises UserError naming the file and what is missing.
    """
    entries = load_entries(path, labels_csv)
    original = is_original(entries)
    if original:
        entries = current_entries(path, entries)
    prefixes = [
        prefix if f'{prefix}embeddings' in entries else ''
        for prefix in ('query_', 'gallery_')
    ]
    prefixes = list(dict.fromkeys(prefixes))
    check_entries(path, entries, prefixes)
    try:
        embeddings = [
            torch.as_tensor(entries[prefix + 'embeddings']).detach()
            for prefix in prefixes
        ]
        labels = number_labels([entries[prefix + 'labels'] for prefix in prefixes])
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition('\n')[0]
        raise UserError(
            f'{path}: embeddings and labels must be arrays ({reason})'
        ) from error
    for prefix, tensor in zip(prefixes, embeddings):
        if not is_dense(tensor):
            raise UserError(f'{path}: {prefix}embeddings are sparse or expanded')
    sides = [ImageSet(*values) for values in zip(prefixes, embeddings, labels)]
    for side in sides:
        entry = f'{side.prefix}images'
        name = original_name(entry) if original else entry
        side.images = read_names(path, name, entries.get(entry), len(side.labels))
    return EmbeddingsFile(
        path=path,
        query=sides[0],
        gallery=sides[1] if len(sides) == 2 else None,
        ensemble_size=read_heads(path, entries, embeddings[0].shape[-1:].numel()),
        notes={
            name: read_note(path, name, entries[name])
            for name in NOTES
            if name in entries
        },
        original=original,
    )


def load_entries(path, labels_csv=None):
    """Return {name: array, tensor or list} of a file; nothing in it is executed.

    labels_csv: see `read_embeddings`. Raises UserError naming the file if it is
    missing, damaged, or holds objects where arrays or tensors belong.
    """
    if not os.path.exists(path):
        raise UserError(f'{path}: no such file')
    if os.path.isdir(path):
        raise UserError(f'{path}: a folder')
    refuse_special(path)
    suffix = os.path.splitext(path)[1]
    if suffix == '.npy' and labels_csv is None:
        raise UserError(f'{path}: give its labels with --labels FILE.csv')
    try:
        entries = LOADERS.get(suffix, load_tensors)(path)
    except PermissionError:
        raise
    except Exception as error:  # numpy raises many kinds for a damaged file
        raise UserError(
            f'{path}: damaged, or holds objects; save plain arrays with numpy.savez, '
            'or tensors with torch.save'
        ) from error
    if suffix == '.npy':
        return label_entries(path, entries, labels_csv)
    if not isinstance(entries, dict):
        raise UserError(f'{path}: not a dict of embeddings and labels')
    return entries


def load_npz(path):
    """Return {name: array}; None for an entry that is not used and may be an object."""
    used = (*NOTES, 'ensemble_size', *ENTRIES)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] if name in used else None for name in file.files}


def load_npy(path):
    """Return the array of a .npy file."""
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError('an archive of several arrays')
    return array


LOADERS = {'.npz': load_npz, '.npy': load_npy}


def check_entries(path, entries, prefixes):
    """Raise UserError unless each side has embeddings and labels."""
    needed = [prefix + name for prefix in prefixes for name in ('embeddings', 'labels')]
    missing = [name for name in needed if name not in entries]
    if missing:
        present = ', '.join(map(str, entries)) or 'nothing'
        raise UserError(f'{path}: {", ".join(missing)} not in it, only {present}')


def plain(value):
    """Return what a number or a text, or an array of one, holds; None otherwise."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.item() if value.shape == () else None
    return value if isinstance(value, (int, str)) else None


def read_heads(path, entries, dimensions):
    """Return the number of heads, which divides the dimensions, None if unknown."""
    if 'ensemble_size' not in entries:
        return None
    heads = plain(entries['ensemble_size'])
    if not is_count(heads) or dimensions % heads:
        raise UserError(f'{path}: ensemble_size does not fit the embeddings')
    return heads


def read_note(path, name, value):
    """Return protocol or select, a text. Raises UserError."""
    note = plain(value)
    if not isinstance(note, str) or len(note) > LONGEST_NOTE:
        raise UserError(f'{path}: {name} is not a text')
    return note


def number_labels(labels):
    """Return the labels of each side as a tensor; texts get one numbering."""
    labels = [np.atleast_1d(np.asarray(values)) for values in labels]
    if any(values.dtype.kind in 'US' for values in labels):
        numbers = np.unique(np.concatenate(labels), return_inverse=True)[1]
        labels = np.split(numbers, [len(labels[0])])[: len(labels)]
    return [torch.as_tensor(values) for values in labels]


def read_names(path, entry, names, count):
    """Return the names of `count` images as a list of str; None if there are none."""
    if names is None:
        return None
    try:
        names = np.asarray(names)
    except (TypeError, ValueError, RuntimeError):  # lists of different lengths
        names = np.empty(0)
    if names.shape != (count,):
        raise UserError(f'{path}: {entry} must be one name per image ({count})')
    return names.astype(str).tolist()

"""Read anybody's embeddings from a file, rank them, and match two such files."""

import os
from dataclasses import dataclass

import numpy as np
import torch

from areir.errors import UserError
from areir.files import load_tensors, refuse_special
from areir.retrieval.labelled_arrays import label_entries
from areir.retrieval.metrics import rank_positives
from areir.retrieval.original_files import (
    current_entries,
    is_original,
    original_name,
)
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


@dataclass
class RankedFile:
    """The ranks of a file's queries, without its embeddings."""

    path: str
    ranks: dict  # of `rank_positives`
    labels: torch.Tensor  # (Nq,)
    images: list | None  # (Nq,) names of the queries
    has_gallery: bool
    gallery_images: list | None
    available: int  # images that a query can retrieve
    dimensions: int
    notes: dict

    @property
    def how(self):
        """Say what the queries retrieve from."""
        if self.has_gallery:
            return f'they query a gallery of {self.available:,}'
        return 'each queries all others, itself excluded by its index'


# Reading


def read_embeddings(path, table=None):
    """Read an EmbeddingsFile from a .npz or .npy file or a file of torch.save.

    The file holds `embeddings` and `labels`. If the queries are not the gallery,
    the queries' entries have the prefix `query_`, or the gallery's have the prefix
    `gallery_`, or both. Labels are integers or texts. `images`, with the same
    prefix, may name the images. original_files.py has the names of older files. A .npy
    file holds the embeddings only; table: the CSV of their labels. Raises UserError
    naming the file and what is missing.
    """
    entries = load_entries(path, table)
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


def load_entries(path, table=None):
    """Return {name: array, tensor or list} of a file; nothing in it is executed.

    table: the CSV of the labels of a .npy file. Raises UserError naming the file if it
    is missing, damaged, or holds objects where arrays or tensors belong.
    """
    if not os.path.exists(path):
        raise UserError(f'{path}: no such file')
    if os.path.isdir(path):
        raise UserError(f'{path}: a folder')
    refuse_special(path)
    suffix = os.path.splitext(path)[1]
    if suffix == '.npy' and table is None:
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
        return label_entries(path, entries, table)
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


# Ranking


def rank_file(path, device, heads=None, table=None):
    """Return a RankedFile: the embeddings in a file, ranked on a device.

    heads: how many of the first heads to use, by default all; table: the CSV of the
    labels of a .npy file. Raises UserError naming the file.
    """
    file = read_embeddings(path, table)
    if heads is not None:
        file.keep_heads(heads)
    query, gallery = file.query, file.gallery
    try:
        arguments = [query.embeddings.to(device), query.labels.to(device)]
        if gallery is not None:
            arguments += [gallery.embeddings.to(device), gallery.labels.to(device)]
        ranks = rank_positives(*arguments)
    except (ValueError, RuntimeError) as error:
        argument, *rest = str(error).splitlines()[0].split(' ')
        reason = ' '.join([file.entry(argument), *rest])
        raise UserError(f'{path}: {reason}') from error
    count = len(query.labels)
    available = count - 1 if gallery is None else len(gallery.labels)
    if not available:
        raise UserError(f'{path}: a single image, which has nothing to retrieve')
    return RankedFile(
        path=path,
        ranks={name: values.cpu() for name, values in ranks.items()},
        labels=query.labels,
        images=query.images,
        has_gallery=gallery is not None,
        gallery_images=gallery.images if gallery else None,
        available=available,
        dimensions=query.embeddings.shape[1],
        notes=file.notes,
    )


# Matching


def match_queries(one, other):
    """Return (Nq,) the place in `other` of each query of `one`, RankedFiles.

    Queries are matched by their images' names, or by their order if a file has no
    names. Raises UserError unless both files have the same queries and retrieve from
    the same gallery: equal names, numbers of images, and images of each query's class.
    """
    both = f'{one.path} and {other.path}'
    order = torch.arange(len(one.labels))
    if one.images is not None and other.images is not None:
        order = match_names(one, other)
    if not same_classes(one.labels, other.labels, order):
        raise UserError(
            f'{both}: the queries are not of the same classes, or not in the same order'
        )
    if not same_gallery(one, other, order):
        raise UserError(f'{both}: the queries do not retrieve from the same gallery')
    return order


def match_names(one, other):
    """Return `match_queries` by the images' names."""
    if len(set(one.images)) < len(one.images):
        raise UserError(f'{one.path}: several images have the same name')
    if sorted(one.images) != sorted(other.images):
        raise UserError(f'{one.path} and {other.path}: not results of the same images')
    places = {image: place for place, image in enumerate(other.images)}
    return torch.tensor([places[image] for image in one.images])


def same_classes(labels, others, order):
    """Whether labels and others[order] divide the images into the same classes."""
    if len(labels) != len(others):
        return False
    pairs = torch.stack([labels.long(), others[order].long()], dim=1)
    count = len(pairs.unique(dim=0))
    return count == len(labels.unique()) == len(others.unique())


def same_gallery(one, other, order):
    """Whether two files have the same gallery, as far as it is known."""
    if one.has_gallery != other.has_gallery or one.available != other.available:
        return False
    if not torch.equal(one.ranks['positives'], other.ranks['positives'][order]):
        return False
    if one.gallery_images is None or other.gallery_images is None:
        return True
    return sorted(one.gallery_images) == sorted(other.gallery_images)

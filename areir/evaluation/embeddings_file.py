"""Read anybody's embeddings and their labels from a file, and rank its queries.

A file of torch.save or numpy.savez has these entries. If the queries are not the
gallery, prefix the entries of one or both with `query_` or `gallery_`:

    embeddings      (N, D) floats
    labels          (N,) integers or texts
    images          (N,) names; optional
    ensemble_size, protocol, select    how train.py made them; optional

Databases of the original code (https://github.com/leftthomas/NormSoftmax/commits) hold
test_features, test_labels and perhaps test_images, and the same of the gallery.
Features are (N, D), (N, heads, D), or a list of tensors of one image or batch. That
code scored two images by the mean of the heads' dot products, so concatenated heads
rank images in the same order.

A .npy file holds the embeddings alone. Their labels are in a CSV with a row for each,
in the same order, and the columns label (or class), and optionally path, is_query and
is_gallery.

All functions raise a UserError that names the file and what is missing or wrong.
"""

import os
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from areir.data.lists import check_roles, parse_rows, read_csv, read_roles
from areir.errors import UserError
from areir.evaluation.metrics import rank_positives
from areir.files import is_unicode, load_tensors, refuse_special

NOTES = ('protocol', 'select', 'trained')  # of a database of train.py
PREFIXES = ('', 'query_', 'gallery_', 'test_')
FIELDS = ('embeddings', 'features', 'labels', 'images')
USED = {prefix + field for prefix in PREFIXES for field in FIELDS}
USED |= {*NOTES, 'ensemble_size'}


@dataclass
class ImageSet:
    """The queries or the gallery of a file."""

    names: tuple  # of the entries of its embeddings, labels and images
    embeddings: torch.Tensor | None  # (N, D); None when the file has been ranked
    labels: torch.Tensor  # (N,)
    images: list | None  # (N,) names


@dataclass
class EmbeddingsFile:
    """What a file of embeddings holds."""

    path: str
    query: ImageSet
    gallery: ImageSet | None  # None: each image queries all others
    dimensions: int
    ensemble_size: int | None  # heads that the embeddings consist of
    notes: dict  # those of NOTES that the file has
    ranks: dict | None = None  # of `rank_positives`

    @property
    def available(self):
        """The number of images that a query can retrieve."""
        return len(self.gallery.labels) if self.gallery else len(self.query.labels) - 1

    def keep_heads(self, heads):
        """Reduce the embeddings to those of the first `heads` heads."""
        known = self.ensemble_size or 0
        if known == 1 and heads > 1:
            raise UserError(
                f'--evaluate_heads {heads}: {self.path} has one head, or a projection '
                'that mixes its heads (train with --dimensions 0 --whitening 0)'
            )
        if not 1 <= heads <= known:
            count = known or 'an unknown number of'
            raise UserError(f'--evaluate_heads {heads}: {self.path} has {count} heads')
        self.dimensions = self.dimensions // known * heads
        for side in filter(None, (self.query, self.gallery)):
            side.embeddings = side.embeddings[:, : self.dimensions]


def rank_file(path, device, heads=None, labels_csv=None):
    """Return an EmbeddingsFile, ranked on a device, without its embeddings.

    heads: how many of the first heads to use, by default all; labels_csv: the CSV of a
    .npy file.
    """
    file = read_embeddings(path, labels_csv)
    if heads is not None:
        file.keep_heads(heads)
    sides = {'query': file.query, 'gallery': file.gallery}
    arguments, names = [], {}  # {argument of rank_positives: entry of the file}
    for argument, side in sides.items():
        if side:
            arguments += [side.embeddings.to(device), side.labels.to(device)]
            names[argument], names[f'{argument}_labels'], _ = side.names
            side.embeddings = None
    try:
        ranks = rank_positives(*arguments)
    except (ValueError, RuntimeError) as error:
        # the message begins with the argument at fault
        argument, _, reason = str(error).partition('\n')[0].partition(' ')
        argument = names.get(argument, argument)
        raise UserError(f'{path}: {argument} {reason}') from error
    if not file.available:
        raise UserError(f'{path}: a single image, which has nothing to retrieve')
    file.ranks = {name: values.cpu() for name, values in ranks.items()}
    return file


def read_embeddings(path, labels_csv=None):
    """Read an EmbeddingsFile; labels_csv: the CSV of a .npy file.

    Whether numbers and shapes can be ranked is left to `rank_positives`.
    """
    entries = load_entries(path, labels_csv)
    names = find_names(path, entries)
    numbers = number_labels(path, [entries[labels] for _, labels, _ in names])
    sides = []
    for side_names, labels in zip(names, numbers):
        vectors_name, _, images_name = side_names
        vectors = to_vectors(path, vectors_name, entries)
        images = read_images(path, images_name, entries, len(labels))
        sides.append(ImageSet(side_names, vectors, labels, images))
    heads = plain(entries.get('ensemble_size'))
    vectors = sides[0].embeddings
    if names[0][0] == 'test_features':
        # for data without a gallery, the original code wrote the test images twice
        if len(sides) == 2 and torch.equal(vectors, sides[1].embeddings):
            del sides[1]
        if vectors.dim() == 3:
            heads = vectors.shape[1]
            for side in sides:
                side.embeddings = side.embeddings.flatten(1)
    # 1 for a tensor of one number, which `rank_positives` refuses
    dimensions = sides[0].embeddings.shape[-1:].numel()
    if heads is not None and (
        type(heads) is not int or heads < 1 or dimensions % heads
    ):
        raise UserError(f'{path}: ensemble_size does not fit the embeddings')
    notes = {name: plain(entries.get(name)) for name in NOTES}
    notes = {name: str(note) for name, note in notes.items() if note is not None}
    gallery = sides[1] if len(sides) == 2 else None
    return EmbeddingsFile(path, sides[0], gallery, dimensions, heads, notes)


# Entries


def load_entries(path, labels_csv=None):
    """Return {name: array, tensor or list} of a file; nothing in it is executed."""
    refuse_special(path)
    if not os.path.isfile(path):
        raise UserError(f'{path}: no such file')
    suffix = os.path.splitext(path)[1]
    if suffix == '.npy' and labels_csv is None:
        raise UserError(f'{path}: give its labels with --labels FILE.csv')
    try:
        if suffix == '.npy':
            with open(path, 'rb') as file:
                entries = np.lib.format.read_array(file, allow_pickle=False)
        elif suffix == '.npz':
            with np.load(path, allow_pickle=False) as file:
                # other entries may be objects, so only their names are read
                entries = {key: file[key] if key in USED else None for key in file}
        else:
            entries = load_tensors(path)
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


def label_entries(path, embeddings, labels_csv):
    """Return the entries of an array and the CSV of its labels; path: of the array."""
    table = read_csv(labels_csv, ['label'], any_bytes=True)
    rows = parse_rows(labels_csv, table, read_row)
    embeddings = np.atleast_1d(embeddings)
    if len(embeddings) != len(rows):
        raise UserError(
            f'{path} has {len(embeddings):,} embeddings, but {labels_csv} has '
            f'{len(rows):,} rows'
        )
    labels, images, roles = (), (), ()
    if rows:
        labels, images, roles = zip(*(row for _, row in rows))
    entries = {'embeddings': embeddings, 'labels': np.array(labels, dtype=str)}
    if None not in images:
        entries['images'] = np.array(images, dtype=str)
    if not check_roles([(origin, row[2]) for origin, row in rows]):
        return entries
    is_query = np.array([is_query for is_query, _ in roles])
    return {
        **{f'query_{name}': values[is_query] for name, values in entries.items()},
        **{f'gallery_{name}': values[~is_query] for name, values in entries.items()},
    }


def read_row(cells):
    """Return (label, path or None, roles) of a row, or raise ValueError."""
    label = cells['label']
    if not label:
        raise ValueError('no label')
    if not is_unicode(label):
        raise ValueError('the label is not text in UTF-8')
    return label, cells.get('path'), read_roles(cells)


def find_names(path, entries):
    """Return the `names` of the queries and, if it is separate, of the gallery."""
    current = {prefix + 'embeddings' for prefix in PREFIXES}
    if 'test_features' in entries and not current & entries.keys():
        field, prefixes = 'features', ['test_']
        if {'gallery_features', 'gallery_labels'} & entries.keys():
            prefixes.append('gallery_')
    else:
        field, prefixes = 'embeddings', ['query_', 'gallery_']
        prefixes = [prefix if prefix + field in entries else '' for prefix in prefixes]
    names = [
        (prefix + field, prefix + 'labels', prefix + 'images')
        for prefix in dict.fromkeys(prefixes)
    ]
    needed = [name for each in names for name in each[:2]]  # images are optional
    missing = [name for name in needed if name not in entries]
    if missing:
        present = ', '.join(map(str, entries)) or 'nothing'
        raise UserError(f'{path}: {", ".join(missing)} not in it, only {present}')
    return names


@contextmanager
def must_be(path, name, kind):
    """Turn what numpy and torch raise for an odd entry into a UserError."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = str(error).partition('\n')[0]
        raise UserError(f'{path}: {name} must be {kind} ({reason})') from error


def to_vectors(path, name, entries):
    """Return an array, tensor or list of tensors of images or batches as a tensor."""
    vectors = entries[name]
    with must_be(path, name, 'an array, a tensor or a list of tensors'):
        if not isinstance(vectors, (np.ndarray, torch.Tensor)):
            parts = [torch.as_tensor(part) for part in vectors]
            vectors = torch.stack(parts) if parts[0].dim() == 1 else torch.cat(parts)
        return torch.as_tensor(vectors).detach().to_dense()


def number_labels(path, labels):
    """Return the labels of each side as a tensor; both sides number texts alike."""
    with must_be(path, 'labels', 'arrays'):
        labels = [np.atleast_1d(np.asarray(values)) for values in labels]
        if any(values.dtype.kind in 'US' for values in labels):
            numbers = np.unique(np.concatenate(labels), return_inverse=True)[1]
            labels = np.split(numbers, [len(labels[0])])[: len(labels)]
        return [torch.as_tensor(values) for values in labels]


def read_images(path, name, entries, count):
    """Return the names of `count` images as a list of str; None if there are none."""
    if entries.get(name) is None:
        return None
    with must_be(path, name, 'one name per image'):
        images = np.asarray(entries[name])
        if images.shape != (count,):
            raise ValueError(count)
    return images.astype(str).tolist()


def plain(value):
    """Return the value of a 0-d array or tensor, and anything else as it is."""
    is_array = isinstance(value, (np.ndarray, torch.Tensor))
    return value.item() if is_array and value.ndim == 0 else value


# Two files with the same queries


def match_queries(one, other):
    """Return the place in `other` of each query of `one`, int64 (Nq,).

    Both are ranked EmbeddingsFiles. Queries are matched by the names of their images,
    or by their order if a file has no names. Both files must have the same queries and
    the same gallery: equal names, numbers of images, and images of each query's class.
    """
    both = f'{one.path} and {other.path}'
    images, others = one.query.images, other.query.images
    order = torch.arange(len(one.query.labels))
    if images is not None and others is not None:
        if len(set(images)) < len(images):
            raise UserError(f'{one.path}: several images have the same name')
        if sorted(images) != sorted(others):
            raise UserError(f'{both}: not results of the same images')
        places = {image: place for place, image in enumerate(others)}
        order = torch.tensor([places[image] for image in images])
    if not same_classes(one.query.labels, other.query.labels, order):
        raise UserError(
            f'{both}: the queries are not of the same classes, or not in the same order'
        )
    if not same_gallery(one, other, order):
        raise UserError(f'{both}: the queries do not retrieve from the same gallery')
    return order


def same_classes(labels, others, order):
    """Whether labels and others[order] divide the images into the same classes."""
    if len(labels) != len(others):
        return False
    pairs = torch.stack([labels.long(), others[order].long()], dim=1)
    count = len(pairs.unique(dim=0))
    return count == len(labels.unique()) == len(others.unique())


def same_gallery(one, other, order):
    """Whether two files have the same gallery, as far as it is known."""
    positives, others = one.ranks['positives'], other.ranks['positives'][order]
    if one.available != other.available or not torch.equal(positives, others):
        return False
    if not (one.gallery and other.gallery):
        return one.gallery is other.gallery  # neither has one
    names = one.gallery.images, other.gallery.images
    return None in names or sorted(names[0]) == sorted(names[1])

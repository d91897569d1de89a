"""Read anybody's embeddings and their labels from a file, and rank its queries.

A file of arrays (see entries.py) has these. If the queries are not the gallery, prefix
the entries of one or both with `query_` or `gallery_`:

    embeddings      (N, D) floats
    labels          (N,) whole numbers or texts; none, '' or -1: searched, never right
    images          (N,) names; optional. A query ignores images of its name
    groups          (N,) optional; a query ignores images of its class and group
    files           (N,) optional; a query ignores images of its file
    ensemble_size, protocol, select    how train.py made them; optional

Databases of the original code (https://github.com/leftthomas/NormSoftmax/commits) hold
test_features, test_labels and perhaps test_images, and the same of the gallery.
Features are (N, D), (N, heads, D), or a list of tensors of one image or batch. That
code scored two images by the mean of the heads' dot products, so concatenated heads
rank images in the same order.

All functions raise a UserError that names the file and what is missing or wrong.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from areir.data.lists import DISTRACTOR, label_notices, plain_labels, shorten
from areir.errors import UserError, counted, printable
from areir.evaluation.distances import apply_metric
from areir.evaluation.entries import NOTES, clean, load_entries, to_text
from areir.evaluation.metrics import (
    label_images,
    number_files,
    query_indices,
    rank_images,
)
from areir.evaluation.overlap import note_equal_vectors, number_names, number_repeats
from areir.evaluation.roc import PairCounter, is_coarse


@dataclass
class ImageSet:
    """The queries or the gallery of a file."""

    names: dict  # {field: entry of the file}
    embeddings: torch.Tensor | None  # (N, D); None when the file has been ranked
    labels: torch.Tensor  # (N,)
    images: list | None  # (N,) names
    groups: torch.Tensor | None  # (N,), -1: none
    files: torch.Tensor | None  # (N,), -1: none


@dataclass
class EmbeddingsFile:
    """What a file of embeddings holds."""

    path: str
    query: ImageSet
    gallery: ImageSet | None  # None: each image queries all others
    dimensions: int
    ensemble_size: int | None  # heads that the embeddings consist of
    notes: dict  # those of NOTES that the file has
    notices: list = field(default_factory=list)  # what was understood of it
    labels_unused: bool = False  # whether it has labels beside those of --labels
    in_gallery: int | None = None  # queries whose name the gallery has; None: no names
    available: int = 0  # images that a query can retrieve
    ranks: dict | None = None  # of `rank_positives`, without distractors
    pairs: torch.Tensor | None = None  # `PairCounter.result`, if it is wanted

    @property
    def sides(self):
        return [self.query, self.gallery] if self.gallery else [self.query]

    @property
    def found(self):
        """What a report says of the file beside figures."""
        found = {**self.notes}
        if self.notices:
            found['notices'] = self.notices
        if self.in_gallery is not None:
            found['queries_in_gallery'] = self.in_gallery
        return found

    def keep_heads(self, heads):
        """Reduce the embeddings to those of the first `heads` heads."""
        known = self.ensemble_size or 0
        if heads > known:
            count = counted(known, 'head') if known else 'an unknown number of heads'
            raise UserError(
                f'--evaluate_heads {heads}: {self.path} has {count}; train.py keeps '
                'them apart with --dimensions 0 --whitening 0'
            )
        self.dimensions = self.dimensions // known * heads
        for side in self.sides:
            side.embeddings = side.embeddings[:, : self.dimensions]


def rank_file(path, device, heads=None, labels=None, metric=None, with_pairs=False):
    """Return an EmbeddingsFile, ranked on a device, without embeddings or distractors.

    heads: how many of the first heads to use, by default all; labels: the path of the
    labels of a file that has none; metric: as `apply_metric` takes it; with_pairs:
    whether pairs are counted by score, too.
    """
    file = read_embeddings(path, labels)
    if heads is not None:
        file.keep_heads(heads)
    named = all(side.images is not None for side in file.sides)
    if named and file.query.files is None:  # else its own numbers tell the copies
        number = number_repeats if file.gallery is None else number_names
        number(file)
    vectors = apply_metric(file, metric, device)
    query, gallery = file.query, file.gallery or file.query
    if file.gallery is None and len(vectors) == 2:  # no query finds itself
        none = torch.full_like(query.labels, -1)
        query.files = number_files(none if query.files is None else query.files)
    arguments = {'query': vectors[0], 'query_labels': query.labels}
    arguments |= {'groups': query.groups, 'files': query.files}
    if len(vectors) == 2:
        arguments |= {'gallery': vectors[1], 'gallery_labels': gallery.labels}
        arguments |= {'gallery_groups': gallery.groups, 'gallery_files': gallery.files}
    del vectors
    file.available = len(gallery.labels) - (file.gallery is None)
    try:
        images = label_images(**arguments)
        note_equal_vectors(file, images)
        pairs = PairCounter(images, highest(images, metric)) if with_pairs else None
        all_ranks = query.groups is not None
        file.ranks = rank_images(images, all_ranks=all_ranks, pairs=pairs)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    file.ranks = {name: values.cpu() for name, values in file.ranks.items()}
    classes = gallery.labels.unique().tolist()
    if not file.ranks['positives'].any():
        file.notices.append(
            'no query has an image of its class to find, so its figures are 0: check '
            'the labels, groups and files'
        )
    elif len(classes) == 1:
        file.notices.append(
            'all images that are searched are of a single class, so any recall is '
            '100 % and says nothing'
        )
    file.pairs = pairs and pairs.result()
    if pairs and is_coarse(file.pairs):
        file.notices.append(
            'beside the longest vectors most scores are alike, so --verification is '
            'coarse: try --metric cosine'
        )
    queries = query_indices(query.labels)
    if query.images is not None:
        query.images = [query.images[row] for row in queries.tolist()]
    query.labels = query.labels[queries]
    return file


def highest(images, metric):
    """Return the highest score that is possible, per query (Q,) if they differ."""
    if metric != 'euclidean':
        return images.bound
    # without the dimensions that `euclidean` adds
    return images.query[:, :-2].double().square().sum(dim=1).float() / 2


def read_embeddings(path, labels=None):
    """Read an EmbeddingsFile; labels: the path of the labels of a file without any.

    Whether numbers are finite is left to `apply_metric`.
    """
    entries, notices, unused = load_entries(path, labels)
    names, numbers = find_names(path, entries, notices), {}
    for kind in ('labels', 'groups', 'files'):
        values = [entries.get(each[kind]) for each in names]
        if kind == 'labels' and any(each is None for each in values):
            raise UserError(f'{path}: labels must be an array')
        numbers[kind] = number_entries(path, values, kind, notices)
    heads = entries.get('ensemble_size')
    sides = []
    for place, fields in enumerate(names):
        own = {kind: values[place] for kind, values in numbers.items()}
        name = fields['embeddings']
        vectors = to_vectors(path, name, entries)
        if name.endswith('features') and vectors.dim() == 3:
            heads, vectors = vectors.shape[1], vectors.flatten(1)
        own['images'] = images = entries.get(fields['images'])
        if images is not None:
            with must_be(path, fields['images'], 'one name per image'):
                own['images'] = [clean(image) for image in flat(images)]
        check_shapes(path, fields, vectors, own)
        if not vectors.is_floating_point():
            kind, vectors = str(vectors.dtype).removeprefix('torch.'), vectors.float()
            notices.append(
                f'{name} of {kind} are read as numbers; unpack packed bits '
                'first, with numpy.unpackbits'
            )
        sides.append(ImageSet(fields, vectors, **own))
    dimensions = [side.embeddings.shape[1] for side in sides]
    if len({*dimensions}) > 1:
        raise UserError(
            f'{path}: queries of {dimensions[0]} dimensions, a gallery of '
            f'{dimensions[1]}'
        )
    # the original code wrote them twice if there was no gallery
    values = [(side.labels, side.embeddings) for side in sides]
    if len(sides) == 2 and all(map(torch.equal, *values)):
        notices.append('the gallery repeats the queries: no query finds its own')
        del sides[1]
    unlabelled = sum(
        len(side.labels) - len(query_indices(side.labels)) for side in sides
    )
    if unlabelled:
        notices.append(
            f'{counted(unlabelled, "image")} without a label, or with -1: searched, '
            'never right, and not among the queries'
        )
    return EmbeddingsFile(
        path=path,
        query=sides[0],
        gallery=sides[1] if len(sides) == 2 else None,
        dimensions=dimensions[0],
        ensemble_size=heads if heads is None else int(heads),
        notes={
            name: str(entries[name]) for name in NOTES if entries.get(name) is not None
        },
        notices=notices,
        labels_unused=unused,
    )


def check_shapes(path, names, vectors, fields):
    """Raise UserError unless vectors are a matrix, and each field has their number."""
    if vectors.dim() != 2 or not vectors.numel():
        raise UserError(
            f'{path}: {names["embeddings"]} must be a non-empty matrix (images, '
            f'dimensions), not {tuple(vectors.shape)}'
        )
    for kind, values in fields.items():
        if values is not None and len(values) != len(vectors):
            each = 'one name per image' if kind == 'images' else 'one per image'
            raise UserError(
                f'{path}: {names[kind]} must be {each} ({len(vectors)}), not '
                f'{len(values)}'
            )


# Entries


def find_names(path, entries, notices):
    """Return {field: entry} of the queries and, if it is separate, of the gallery.

    Entries that are not used are added to notices.
    """
    vectors, prefixes, common = 'embeddings', ['query_', 'gallery_'], ''
    if 'test_features' in entries and 'embeddings' not in entries:
        vectors, prefixes, common = 'features', ['test_', 'gallery_'], 'test_'
    prefixes = [each if each + vectors in entries else common for each in prefixes]
    others = ('labels', 'images', 'groups', 'files')
    names = [
        {'embeddings': prefix + vectors, **{kind: prefix + kind for kind in others}}
        for prefix in dict.fromkeys(prefixes)
    ]
    needed = [each[kind] for each in names for kind in ('embeddings', 'labels')]
    for kind in ('groups', 'files'):
        if any(each[kind] in entries for each in names):
            needed += [each[kind] for each in names]
    if missing := [name for name in needed if name not in entries]:
        present = shorten(list(map(str, entries))) or 'nothing'
        raise UserError(f'{path}: {", ".join(missing)} not in it, only {present}')
    used = {*NOTES, 'ensemble_size'}
    unused = entries.keys() - used.union(*(each.values() for each in names))
    if unused and vectors == 'embeddings' and 'protocol' not in entries:
        notices.append(f'not used: {shorten(sorted(map(str, unused)))}')
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
        if isinstance(vectors, np.ndarray) and vectors.dtype.kind in 'OUS':
            # an array of arrays, or numbers as objects or texts
            vectors = np.array(vectors.tolist(), dtype=np.float32)
        if isinstance(vectors, (list, tuple)):
            parts = [torch.as_tensor(part) for part in vectors]
            vectors = torch.stack(parts) if parts[0].dim() == 1 else torch.cat(parts)
        return torch.as_tensor(vectors).detach()


def number_entries(path, sides, kind, notices):
    """Return the labels, groups or files of each side as int64 (N,), -1 for none.

    Whole numbers stay as they are. Texts are numbered, alike on both sides. A side that
    is None remains so. What is not plain is added to notices.
    """
    given = [values for values in sides if values is not None]
    if not given:
        return sides
    with must_be(path, kind, 'whole numbers or texts'):
        given = [flat(values) for values in given]
        if any(values.dtype.kind not in 'biuf' for values in given):
            texts = plain_labels([to_text(v) for values in given for v in values])
            numbers = np.unique(texts, return_inverse=True)[1]
            numbers = np.where(np.array(texts) == DISTRACTOR, -1, numbers)
            given = np.split(numbers, [len(given[0])])[: len(given)]
            if kind == 'labels':
                notices += label_notices(texts)
        given = [whole(values) for values in given]
    if kind == 'groups' and len(np.intersect1d(given[0], given[-1])) == 0:
        notices.append('no group of the queries is one of the gallery')
    numbers = iter(map(torch.from_numpy, given))
    return [values if values is None else next(numbers) for values in sides]


def flat(values):
    """Return labels (N,), (N, 1) or (1, N) as an array (N,), or raise ValueError."""
    values = values.cpu() if isinstance(values, torch.Tensor) else values
    if isinstance(values, list) and any(isinstance(value, tuple) for value in values):
        values = list(map(str, values))  # such as (brand, model)
    values = np.atleast_1d(np.asarray(values))
    if values.size != max(values.shape):
        raise ValueError(f'shape {values.shape}')
    return values.reshape(-1)


def whole(values):
    """Return numbers as int64, NaN as -1.

    Raises ValueError for others than whole, and for those that the float type rounds.
    """
    if values.dtype.kind == 'f':
        kind, last = values.dtype, 2.0 ** (1 + np.finfo(values.dtype).nmant)
        values = np.where(np.isnan(values), -1, values).astype(np.float64)
        odd = values[(values % 1 != 0) | (np.abs(values) >= last)]
        if odd.size:
            raise ValueError(f'{odd[0]:.16g} of {kind} is among them')
    return values.astype(np.int64)


# Two files with the same queries


def match_queries(one, other):
    """Return the place in `other` of each query of `one`, int64 (Nq,).

    Both are ranked EmbeddingsFiles. Queries are matched by the names of their images,
    or by their order if a file has no names. Both files must have the same queries and
    the same gallery: equal names, numbers of images, and images of each query's class.
    """
    both = f'{one.path} and {other.path}'
    images, others = one.query.images, other.query.images
    order = torch.arange(len(other.query.labels))
    if images is not None and others is not None:
        if len(set(images)) < len(images):
            raise UserError(f'{one.path}: several images have the same name')
        if sorted(images) != sorted(others):
            odd = min(set(images) ^ set(others), default='')
            raise UserError(
                f'{both}: not results of the same images, such as {printable(odd)}'
            )
        places = {image: place for place, image in enumerate(others)}
        order = torch.tensor([places[image] for image in images])
    # classes are numbered by their first images
    labels = one.query.labels.numpy(), other.query.labels[order].numpy()
    if not np.array_equal(*(pd.factorize(each)[0] for each in labels)):
        raise UserError(
            f'{both}: the queries are not of the same classes, or not in the same order'
        )
    positives, others = one.ranks['positives'], other.ranks['positives'][order]
    galleries = [file.gallery for file in (one, other) if file.gallery]
    names = [gallery.images for gallery in galleries]
    if (
        one.available != other.available
        or not torch.equal(positives, others)
        or len(galleries) == 1
        or (galleries and None not in names and sorted(names[0]) != sorted(names[1]))
    ):
        raise UserError(f'{both}: the queries do not retrieve from the same gallery')
    return order

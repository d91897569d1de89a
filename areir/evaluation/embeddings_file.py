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

import itertools
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from areir.data.lists import DISTRACTOR, label_notices, plain_labels, shorten
from areir.errors import UserError, counted, printable
from areir.evaluation.entries import NOTES, PREFIXES, clean, load_entries, to_text
from areir.evaluation.metrics import label_images, rank_images
from areir.evaluation.roc import PairCounter, is_coarse
from areir.evaluation.scores import rows_at_once

METRICS = 'cosine', 'dot', 'euclidean'
SAME_VECTOR = 1 - 2e-6  # the least cosine of two; float32 rounds by less
SEEN = 100  # queries whose vectors are looked for in the gallery
LARGE = 1e6  # vectors of one length may be so long without being normalised
SAME_LENGTH = 1.004  # longest to shortest of a side; bfloat16 rounds by less


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
        if known == 1 and heads > 1:
            raise UserError(
                f'--evaluate_heads {heads}: {self.path} has one head, or a projection '
                'that mixes its heads (train with --dimensions 0 --whitening 0)'
            )
        if not 1 <= heads <= known:
            count = counted(known, 'head') if known else 'an unknown number of heads'
            raise UserError(f'--evaluate_heads {heads}: {self.path} has {count}')
        self.dimensions = self.dimensions // known * heads
        for side in self.sides:
            side.embeddings = side.embeddings[:, : self.dimensions]


def rank_file(path, device, heads=None, labels=None, metric=None, with_pairs=False):
    """Return an EmbeddingsFile, ranked on a device, without embeddings or distractors.

    heads: how many of the first heads to use, by default all; labels: the path of the
    labels of a file that has none; metric: one of METRICS, by which images are ranked.
    By default cosine, for which vectors of unequal lengths are normalised. with_pairs:
    whether pairs are counted by score, too.
    """
    file = read_embeddings(path, labels)
    if heads is not None:
        file.keep_heads(heads)
    find_copies(file)
    vectors = apply_metric(file, metric, device)
    query, gallery = file.query, file.gallery or file.query
    if file.gallery is None and len(vectors) == 2:  # no query finds itself
        own = torch.arange(len(query.labels))
        if query.files is not None:
            files, own = query.files, query.files.max() + 1 + own
            own = torch.where(files < 0, own, files)
        query.files = own
    arguments = {'query': vectors[0], 'query_labels': query.labels}
    arguments |= {'groups': query.groups, 'files': query.files}
    if len(vectors) == 2:
        arguments |= {'gallery': vectors[1], 'gallery_labels': gallery.labels}
        arguments |= {'gallery_groups': gallery.groups, 'gallery_files': gallery.files}
    del vectors
    file.available = len(gallery.labels) - (file.gallery is None)
    classes = gallery.labels.unique().tolist()
    if len(classes) == 1 and classes != [int(DISTRACTOR)]:
        file.notices.append(
            f'{path}: all images that are searched are of a single class, so any '
            'recall is 100 % and says nothing'
        )
    try:
        images = label_images(**arguments)
        pairs = PairCounter(images, highest(images, metric)) if with_pairs else None
        all_ranks = query.groups is not None
        file.ranks = rank_images(images, all_ranks=all_ranks, pairs=pairs)
    except (ValueError, RuntimeError) as error:
        # the message begins with the argument at fault
        argument, _, reason = str(error).partition('\n')[0].partition(' ')
        side, _, name = argument.partition('_')
        sides = {'query': query, 'gallery': gallery}
        if side in sides:
            argument = sides[side].names.get(name or 'embeddings', argument)
        raise UserError(f'{path}: {argument} {reason}') from error
    if not file.available:
        raise UserError(f'{path}: a single image, which has nothing to retrieve')
    file.ranks = {name: values.cpu() for name, values in file.ranks.items()}
    if not file.ranks['positives'].any():
        file.notices.append(
            f'{path}: no query has an image of its class to find, so its figures are '
            '0: check the labels, groups and files'
        )
    file.pairs = pairs and pairs.result()
    if pairs and is_coarse(file.pairs):
        file.notices.append(
            f'{path}: beside the longest vectors most scores are alike, so '
            '--verification is coarse: try --metric cosine'
        )
    kept = query.labels != int(DISTRACTOR)
    if query.images is not None:
        query.images = list(itertools.compress(query.images, kept.tolist()))
    query.labels = query.labels[kept]
    return file


def highest(images, metric):
    """Return the highest score that is possible, per query (Q,) if they differ."""
    if metric != 'euclidean':
        return images.bound
    # without the dimensions that `euclidean` adds
    return images.query[:, :-2].double().square().sum(dim=1).float() / 2


def read_embeddings(path, labels=None):
    """Read an EmbeddingsFile; labels: the path of the labels of a file without any.

    Whether numbers and shapes can be ranked is left to `rank_positives`.
    """
    entries, notices, unused = load_entries(path, labels)
    names, numbers = find_names(path, entries, notices), {}
    for kind in ('labels', 'groups', 'files'):
        values = [entries.get(each[kind]) for each in names]
        numbers[kind] = number_entries(path, values, kind, notices)
    sides = []
    for place, fields in enumerate(names):
        own = {kind: values[place] for kind, values in numbers.items()}
        vectors = to_vectors(path, fields['embeddings'], entries)
        images = read_images(path, fields['images'], entries, len(own['labels']))
        for kind in ('groups', 'files'):
            if own[kind] is not None and own[kind].shape != own['labels'].shape:
                raise UserError(f'{path}: {fields[kind]} must be one per image')
        if not (vectors.is_floating_point() or vectors.is_complex()):
            kind, vectors = str(vectors.dtype).removeprefix('torch.'), vectors.float()
            notices.append(
                f'{path}: {fields["embeddings"]} of {kind} are read as numbers; '
                'unpack packed bits first, with numpy.unpackbits'
            )
        sides.append(ImageSet(fields, vectors, images=images, **own))
    heads = plain(entries.get('ensemble_size'))
    vectors = sides[0].embeddings
    # the original code wrote them twice if there was no gallery
    values = [(side.labels, side.embeddings) for side in sides]
    if len(sides) == 2 and all(map(torch.equal, *values)):
        notices.append(
            f'{path}: the gallery repeats the queries: no query finds its own'
        )
        del sides[1]
    if names[0]['embeddings'] == 'test_features' and vectors.dim() == 3:
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
    unlabelled = sum(int((side.labels == int(DISTRACTOR)).sum()) for side in sides)
    if unlabelled:
        notices.append(
            f'{path}: {counted(unlabelled, "image")} without a label, or with -1: '
            'searched, never right, and not among the queries'
        )
    return EmbeddingsFile(
        path, sides[0], gallery, dimensions, heads, notes, notices, unused
    )


# Entries


def find_names(path, entries, notices):
    """Return {field: entry} of the queries and, if it is separate, of the gallery.

    Entries that are not used are added to notices.
    """
    current = {prefix + 'embeddings' for prefix in PREFIXES}
    if 'test_features' in entries and not current & entries.keys():
        vectors, prefixes = 'features', ['test_']
        if {'gallery_features', 'gallery_labels'} & entries.keys():
            prefixes.append('gallery_')
    else:
        vectors, prefixes = 'embeddings', ['query_', 'gallery_']
        prefixes = [
            prefix if prefix + vectors in entries else '' for prefix in prefixes
        ]
    others = ('labels', 'images', 'groups', 'files')
    names = [
        {'embeddings': prefix + vectors, **{kind: prefix + kind for kind in others}}
        for prefix in dict.fromkeys(prefixes)
    ]
    needed = [each[kind] for each in names for kind in ('embeddings', 'labels')]
    for kind in ('groups', 'files'):
        if any(each[kind] in entries for each in names):
            needed += [each[kind] for each in names]
    missing = [name for name in needed if name not in entries]
    if missing:
        present = shorten(list(map(str, entries))) or 'nothing'
        raise UserError(f'{path}: {", ".join(missing)} not in it, only {present}')
    used = {*NOTES, 'ensemble_size'}
    unused = entries.keys() - used.union(*(each.values() for each in names))
    if unused and vectors == 'embeddings' and 'protocol' not in entries:
        notices.append(f'{path}: not used: {shorten(sorted(map(str, unused)))}')
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
            vectors = list(vectors) if vectors.ndim == 1 else vectors.astype(np.float32)
        if isinstance(vectors, np.ndarray):
            vectors = vectors.astype(vectors.dtype.newbyteorder('='), copy=False)
        elif not isinstance(vectors, torch.Tensor):
            parts = [torch.as_tensor(part) for part in vectors]
            vectors = torch.stack(parts) if parts[0].dim() == 1 else torch.cat(parts)
        return torch.as_tensor(vectors).detach().to_dense()


def number_entries(path, sides, kind, notices):
    """Return the labels, groups or files of each side as int64 (N,), -1 for none.

    Whole numbers stay as they are. Texts are numbered, alike on both sides. Columns
    (N, 1) and rows (1, N) are taken as (N,). A side that is None remains so. What is
    not plain is added to notices.
    """
    if any(values is None for values in sides):
        if kind == 'labels':
            raise UserError(f'{path}: labels must be an array')
        return [None] * len(sides)
    with must_be(path, kind, 'whole numbers or texts'):
        sides = [flat(values) for values in sides]
        if any(values.dtype.kind not in 'biuf' for values in sides):
            texts = plain_labels([to_text(v) for values in sides for v in values])
            numbers = np.unique(texts, return_inverse=True)[1]
            numbers = np.where(np.array(texts) == DISTRACTOR, -1, numbers)
            sides = np.split(numbers, [len(sides[0])])[: len(sides)]
            if kind == 'labels':
                notices += [f'{path}: {notice}' for notice in label_notices(texts)]
        sides = [whole(values) for values in sides]
    if kind == 'groups' and len(np.intersect1d(sides[0], sides[-1])) == 0:
        notices.append(f'{path}: no group of the queries is one of the gallery')
    return [torch.from_numpy(values) for values in sides]


def flat(values):
    """Return labels as an array (N,). Raises ValueError for a matrix."""
    values = np.atleast_1d(np.asarray(values))
    if values.ndim > 1 and values.size == max(values.shape):
        values = values.reshape(-1)
    if values.ndim > 1:
        raise ValueError(f'shape {values.shape}')
    return values


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


def read_images(path, name, entries, count):
    """Return the names of `count` images as a list of str; None if there are none."""
    if entries.get(name) is None:
        return None
    with must_be(path, name, 'one name per image'):
        images = flat(entries[name])
        if images.shape != (count,):
            raise ValueError(count)
    return [clean(image) for image in images]


def plain(value):
    """Return the value of a 0-d array or tensor, and anything else as it is."""
    is_array = isinstance(value, (np.ndarray, torch.Tensor))
    return value.item() if is_array and value.ndim == 0 else value


# Images on both sides


def find_copies(file):
    """Let queries ignore their own images; note what was found.

    Those are images of their name in the gallery or, without one, rows of their name
    and vector, as programs that divide images among processes repeat some. The array
    files of a file comes first. Equal vectors of other names are noted, not ignored.
    """
    if file.gallery is None:
        find_repeats(file)
    else:
        find_names_in_gallery(file)
    rows, copies = same_vectors(file)
    if copies:
        count = counted(len(copies), 'query')
        seen = (
            f' of {len(rows)} looked at' if len(rows) < len(file.query.labels) else ''
        )
        file.notices.append(
            f'{file.path}: {count}{seen}, such as row {copies[0]}, with the vector of '
            'an image that they search: if it is the same image, give both one name '
            '(images) or number (files), and none finds itself'
        )


def find_names_in_gallery(file):
    """Number images of one name in queries and gallery as one file.

    Names that images of several classes share do not tell images apart, nor do names
    that mostly are of another class in the gallery, such as row numbers.
    """
    query, gallery = file.sides
    if query.files is not None or query.images is None or gallery.images is None:
        return
    names = [side.images for side in file.sides]
    shared = set(names[0]).intersection(names[1]) - {''}
    example = min(shared, default=None)
    labels = [side.labels.tolist() for side in file.sides]
    both = contradictions(names[0] + names[1], labels[0] + labels[1], shared)
    inside = [contradictions(*side, shared) for side in zip(names, labels)]
    if any(inside) or both > len(shared) / 2:
        file.notices.append(
            f'{file.path}: names such as {example} are of several classes, so they '
            'do not tell which queries the gallery holds: give whole paths'
        )
        return
    file.in_gallery = sum(name in shared for name in names[0])
    if shared:
        count = counted(file.in_gallery, 'query')
        file.notices.append(
            f'{file.path}: the gallery has images of the names of {count}, such as '
            f'{example}: no query finds its own'
        )
        numbers = {name: number for number, name in enumerate(shared)}
        query.files, gallery.files = (
            torch.tensor([numbers.get(name, -1) for name in side]) for side in names
        )


def contradictions(names, labels, shared):
    """Return how many classes the shared names have beyond one for each."""
    return len({pair for pair in zip(names, labels) if pair[0] in shared}) - len(shared)


def find_repeats(file):
    """Number rows of one name and vector as one file."""
    side = file.query
    if side.files is not None or side.images is None or not can_be_ranked([side]):
        return
    first = {}  # {name: its first row}
    firsts = [first.setdefault(name, row) for row, name in enumerate(side.images)]
    firsts = torch.tensor(firsts)
    rows = (firsts != torch.arange(len(firsts))).nonzero().flatten()
    pairs = [side.embeddings[each].double() for each in (rows, firsts[rows])]
    rows = rows[F.cosine_similarity(*pairs) > SAME_VECTOR]
    if len(rows):
        count, example = counted(len(rows), 'image'), side.images[rows[0]]
        file.notices.append(
            f'{file.path}: {count} listed more than once, such as {example}: none '
            'finds itself'
        )
        side.files = torch.full_like(firsts, -1)
        side.files[rows] = side.files[firsts[rows]] = firsts[rows]


def same_vectors(file):
    """Return (rows of queries, those whose vector is that of an image to be found).

    At most SEEN queries are looked at. Images that they ignore are not to be found.
    """
    query, gallery = file.query, file.gallery or file.query
    if not can_be_ranked(file.sides):
        return [], []
    rows = torch.arange(0, len(query.labels), -(-len(query.labels) // SEEN))
    vectors = F.normalize(query.embeddings[rows].float())
    found = torch.zeros(len(rows), dtype=torch.bool)
    places = torch.arange(len(gallery.labels))
    for block in places.split(rows_at_once(vectors.shape[1])):
        same = vectors @ F.normalize(gallery.embeddings[block].float()).T > SAME_VECTOR
        if file.gallery is None:
            same &= rows[:, None] != block
        if query.files is not None:
            own = query.files[rows, None]
            same &= (own != gallery.files[block]) | (own < 0)
        if query.groups is not None:
            own = query.groups[rows, None]
            others = query.labels[rows, None] != gallery.labels[block]
            same &= (own != gallery.groups[block]) | (own < 0) | others
        found |= same.any(dim=1)
    return rows.tolist(), rows[found].tolist()


# Metrics


def apply_metric(file, metric, device):
    """Return [query, gallery], or [query] alone, whose dot products rank by a metric.

    The embeddings of the file are given up. What cannot be ranked stays as it is.
    """
    names = [side.names['embeddings'] for side in file.sides]
    fits = can_be_ranked(file.sides)
    vectors = [side.embeddings.to(device) for side in file.sides]
    for side in file.sides:
        side.embeddings = None
    if not fits:
        return vectors
    norms = [by_rows(part, lambda rows: rows.norm(dim=1)) for part in vectors]
    low, high = torch.cat(norms).aminmax()
    if metric == 'dot' or not (low <= high < torch.inf):
        return vectors
    if metric == 'euclidean':
        return euclidean(vectors)
    for name, part in zip(names, norms):
        zeros = (part == 0).nonzero().flatten().tolist()
        if zeros:
            raise UserError(
                f'{file.path}: {name} holds zeros only, which have no direction, in '
                f'{counted(len(zeros), "image")}: {shorten(list(map(str, zeros)))}; '
                'leave them out, or rank by --metric dot or euclidean'
            )
    if metric is None:
        alike = all(part.max() <= part.min() * SAME_LENGTH for part in norms)
        if alike and low > 1 / LARGE and high < LARGE:
            return vectors
        file.notices.append(
            f'{file.path}: the vectors are not of unit length ({low:.2g} to '
            f'{high:.2g}), so they are normalised: --metric dot or euclidean ranks '
            'them otherwise'
        )
    return [
        by_rows(part, lambda rows, norms: (rows / norms[:, None]).float(), norm)
        for part, norm in zip(vectors, norms)
    ]


def can_be_ranked(sides):
    """Whether sides have matrices of floats of one width, one row for each label."""
    vectors = [side.embeddings for side in sides]
    return all(
        part.dim() == 2 and part.numel() and part.is_floating_point()
        for part in vectors
    ) and all(
        part.shape == (len(side.labels), vectors[0].shape[1])
        for part, side in zip(vectors, sides)
    )


def by_rows(embeddings, function, *others):
    """Return function(block in float64, ...) of all blocks of rows, as one tensor."""
    size = rows_at_once(embeddings.shape[1])
    parts = zip(*(values.split(size) for values in (embeddings, *others)))
    return torch.cat([function(part.double(), *rest) for part, *rest in parts])


def euclidean(vectors):
    """Return [query, gallery] whose dot products descend with the Euclidean distance.

    -|q - g|^2 / 2 is q . g - |g|^2 / 2 and a number of the query, so the gallery gets
    dimensions of -|g|^2 / 2, in two float32 numbers, and the query ones. Distances to
    the gallery's mean, at most 1, are small numbers, which float32 rounds least.
    """
    gallery = vectors[-1]
    total = by_rows(gallery, lambda part: part.sum(dim=0, keepdim=True)).sum(dim=0)
    mean = total / len(gallery)
    farthest = by_rows(gallery, lambda part: (part - mean).norm(dim=1)).max()
    scale = farthest.clamp(min=1e-30)
    query, gallery = (
        by_rows(part, lambda rows: ((rows - mean) / scale).float())
        for part in (vectors[0], gallery)
    )
    half = by_rows(gallery, lambda rows: rows.square().sum(dim=1, keepdim=True) / -2)
    coarse = half.float()
    gallery = torch.cat([gallery, coarse, (half - coarse).float()], dim=1)
    return [torch.cat([query, query.new_ones(len(query), 2)], dim=1), gallery]


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
            odd = min(set(images) ^ set(others), default='')
            raise UserError(
                f'{both}: not results of the same images, such as {printable(odd)}'
            )
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

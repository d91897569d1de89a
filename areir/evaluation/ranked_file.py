"""Rank the queries of a file of embeddings, and match the queries of two such files."""

from dataclasses import dataclass

import torch

from areir.errors import UserError
from areir.evaluation.embeddings_file import read_embeddings
from areir.evaluation.metrics import rank_positives


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


def rank_file(path, device, heads=None, labels_csv=None):
    """Return a RankedFile: the embeddings in a file, ranked on a device.

    heads: how many of the first heads to use, by default all; labels_csv: see
    `read_embeddings`. Raises UserError naming the file.
    """
    file = read_embeddings(path, labels_csv)
    if heads is not None:
        file.keep_heads(heads)
    sides = {'query': file.query}
    if file.gallery:
        sides['gallery'] = file.gallery
    arguments, names = [], {}
    for argument, side in sides.items():
        arguments += [side.embeddings.to(device), side.labels.to(device)]
        names[argument], names[f'{argument}_labels'], _ = side.names
    try:
        ranks = rank_positives(*arguments)
    except (ValueError, RuntimeError) as error:
        # the message begins with the argument at fault
        argument, _, reason = str(error).partition('\n')[0].partition(' ')
        argument = names.get(argument, argument)
        raise UserError(f'{path}: {argument} {reason}') from error
    count = len(file.query.labels)
    available = len(file.gallery.labels) if file.gallery else count - 1
    if not available:
        raise UserError(f'{path}: a single image, which has nothing to retrieve')
    return RankedFile(
        path=path,
        ranks={name: values.cpu() for name, values in ranks.items()},
        labels=file.query.labels,
        images=file.query.images,
        has_gallery=file.gallery is not None,
        gallery_images=file.gallery.images if file.gallery else None,
        available=available,
        dimensions=file.query.embeddings.shape[1],
        notes=file.notes,
    )


def match_queries(one, other):
    """Return (Nq,) the place in `other` of each query of `one`, RankedFiles.

    Queries are matched by their images' names, or by their order if a file has no
    names. Raises UserError unless both files have the same queries and retrieve from
    the same gallery: equal names, numbers of images, and images of each query's class.
    """
    both = f'{one.path} and {other.path}'
    order = torch.arange(len(one.labels))
    if one.images is not None and other.images is not None:
        places = {image: place for place, image in enumerate(other.images)}
        if len(set(one.images)) < len(one.images):
            raise UserError(f'{one.path}: several images have the same name')
        if sorted(one.images) != sorted(other.images):
            raise UserError(f'{both}: not results of the same images')
        order = torch.tensor([places[image] for image in one.images])
    if not same_classes(one.labels, other.labels, order):
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
    if one.has_gallery != other.has_gallery or one.available != other.available:
        return False
    if not torch.equal(one.ranks['positives'], other.ranks['positives'][order]):
        return False
    if one.gallery_images is None or other.gallery_images is None:
        return True
    return sorted(one.gallery_images) == sorted(other.gallery_images)

"""Queries: what --query_img_name means, their embeddings, and their nearest images."""

import contextlib
import os
from dataclasses import dataclass, replace

import torch

from areir.bars import say
from areir.data.images import load_image
from areir.errors import UserError, missing, printable
from areir.gallery.folders import scan
from areir.gallery.index import embed_shares

TOGETHER = 4096  # queries searched at a time


@dataclass
class Query:
    """An image whose nearest images are wanted."""

    picture: object  # the path of its file, or what `load_image` takes
    name: object  # as the user gave it, or the collection's own name for it
    label: object = None  # the name of its class, or None
    index: int = -1  # among the images that are searched, or -1
    embedding: object = None  # (D,), or None if it must be computed


# Which images


def query_paths(name, folder):
    """Return the paths that --query_img_name means: a file, or a folder's images.

    folder: what is searched; the file may be named by its path in it.
    Raises UserError if there is no such file, or if it is no image.
    """
    if os.path.isdir(name):
        images, problems, _ = scan(name)
        report_problems(problems, name)
        if not images:
            raise UserError(f'--query_img_name {name}: no images in it')
        return [os.path.join(name, path) for path in images]
    path = query_file(name, folder)
    load_image(path, least=1)
    return [path]


def query_file(name, folder):
    """Return the path of a file, by its path or by its path in a folder.

    The folder's own name may come first, with others before it. Raises UserError if
    there is no such file.
    """
    own = os.path.basename(os.path.abspath(folder))
    parts = os.path.normpath(name).split(os.sep)
    starts = [0, *(place for place, part in enumerate(parts, 1) if part == own)]
    inside = [os.path.join(folder, *parts[start:]) for start in starts]
    for path in [name] if '..' in parts else [name, *inside]:
        if os.path.isfile(path):
            return path
    raise UserError(
        f'--query_img_name {name}: no such image in {folder}, and {missing(name)}'
    )


def find_queries(pictures, collection):
    """Return the Query of each picture; images of the collection have embeddings."""
    return [
        Query(picture, picture)
        if position < 0
        else replace(stored_query(position, collection), picture=picture)
        for picture, position in zip(pictures, find_images(pictures, collection))
    ]


def report_problems(problems, folder=''):
    """Print a notice for each of {path in the folder: why it cannot be read}."""
    for path, reason in problems.items():
        path = printable(os.path.join(folder, str(path)))
        say(f'notice: {path} is left out: {reason}')


def find_images(pictures, collection):
    """Return the position of each picture in the collection's `names`, or -1.

    A file is found by device and inode, so it may have other names or be a link. What
    is no path is not found.
    """
    positions = [-1] * len(pictures)
    wanted, wanted_sizes = {}, set()  # wanted: {(device, inode): numbers of pictures}
    for number, picture in enumerate(pictures):
        if not isinstance(picture, str):
            continue
        seen = os.stat(picture)
        wanted.setdefault((seen.st_dev, seen.st_ino), []).append(number)
        wanted_sizes.add(seen.st_size)
    sizes = collection.sizes
    for position, name in enumerate(collection.names):
        if not wanted:
            break
        if sizes and sizes[position] not in wanted_sizes:
            continue  # another size, so another file: no need to stat it
        with contextlib.suppress(OSError):
            seen = os.stat(os.path.join(collection.folder, name))
            for number in wanted.pop((seen.st_dev, seen.st_ino), ()):
                positions[number] = position
    return positions


def stored_query(position, collection):
    """Return the Query of an image by its position in the collection's `names`."""
    name = collection.names[position]
    label, embedding = collection.stored(position)
    return Query(
        picture=os.path.join(collection.folder, name),
        name=name,
        label=label,
        # the names of images that are not searched come last
        index=position if position < len(collection) else -1,
        embedding=embedding,
    )


# Their embeddings


def embed_queries(queries, collection):
    """Embed the Queries without embeddings, and return those that can be read.

    Each process of torchrun embeds its share. Raises UserError if none can be read.
    """
    outside = [query for query in queries if query.embedding is None]
    pictures = [query.picture for query in outside]
    embed, problems = collection.embedder, {}
    shares = embed_shares(pictures, embed.pixel_format, embed, 'queries')
    for numbers, vectors, bad in shares:
        for number, vector in zip(numbers, torch.from_numpy(vectors)):
            outside[number].embedding = vector
        problems |= {outside[number].name: reason for number, reason in bad.items()}
    readable = [query for query in queries if query.embedding is not None]
    if not readable:
        name = queries[0].name
        raise UserError(f'{name}: {problems[name]}')
    report_problems(problems)
    return readable


# Their nearest images


def search_queries(queries, collection, k):
    """Return [(Query, (scores, indices))]: lists, of the query's k nearest images."""
    results = []
    for start in range(0, len(queries), TOGETHER):
        batch = queries[start : start + TOGETHER]
        embeddings = torch.stack([query.embedding for query in batch])
        exclude = torch.tensor([query.index for query in batch])
        scores, indices = collection.search(embeddings, k, exclude)
        results += zip(batch, zip(scores.tolist(), indices.tolist()))
    return results

"""The folder that the page searches, shared by all threads of the server."""

import secrets
import threading
from dataclasses import dataclass
from typing import NamedTuple

from areir.errors import UserError
from areir.gallery.collection import FolderCollection
from areir.gallery.queries import embed_images, search_queries
from areir.matching.votes import images_to_find
from areir.output.answers import make_answer
from areir.output.wording import counted


class OldPage(UserError):
    """The page or link was made before the folder was read again."""


class NoSuchImage(UserError):
    """No image of the folder has the number of a request."""


class Generation(NamedTuple):
    """The images of the folder as one reading found them.

    token: a part of these images' URLs, because their numbers may mean other images in
    another generation. It is random, so that no earlier server has used it either.
    """

    token: str
    collection: FolderCollection

    def check(self, token, index):
        """Return the number of an image, `index`. Raises OldPage or NoSuchImage."""
        if token != self.token:
            raise OldPage(
                'The folder has been read again since this page showed the image, so '
                'its number may mean another one. Search with your picture again.'
            )
        if not 0 <= index < len(self.collection):
            raise NoSuchImage('The folder has no image of this number.')
        return index


@dataclass
class Changes:
    """What reading the folder again has found."""

    new: int
    changed: int
    removed: int
    unreadable: int  # in all
    total: int
    lost_threshold: bool  # because the principal components were fitted again

    def __str__(self):
        parts = [counted(self.new, 'new image')]
        if self.changed:
            parts.append(f'{self.changed:,} changed')
        if self.removed:
            parts.append(f'{self.removed:,} gone')
        text = f'{", ".join(parts)}. The folder has {counted(self.total, "image")}.'
        if self.unreadable:
            files = counted(self.unreadable, 'file')
            text += f' {files} cannot be read; the terminal names them.'
        if self.lost_threshold:
            text += (
                ' It has grown so much that its principal components were fitted '
                'again, so there is no threshold any more: end the page and run '
                'inference.py with --calibrate.'
            )
        return text


class SearchedFolder:
    """A FolderCollection that can be replaced while it is searched.

    A request reads `current` once and uses that generation to its end. Requests compute
    one at a time, because a network or a search already uses all cores and because that
    bounds the memory.
    """

    def __init__(self, collection, open_again):
        """open_again: brings the index up to date and returns a new collection."""
        self.open_again = open_again
        self.current = Generation(secrets.token_hex(4), collection)
        self.computing = threading.Lock()
        self.reading = threading.Lock()

    def find(self, query, number, collection):
        """Return (Answer, indices of its images) for a Query."""
        available = len(collection) - (query.index >= 0)
        if not available:
            raise UserError('The folder has no other image.')
        with self.computing:
            if query.embedding is None:
                query.embedding = embed(query, collection)
            nearest = images_to_find(number, available)
            ((_, result),) = search_queries([query], collection, nearest)
        answer = make_answer(query, *result, collection, number)
        return answer, result[1][: len(answer.table)]

    def read_again(self):
        """Read the folder again; return (earlier, current Generation, Changes).

        Searches go on meanwhile. Raises UserError and keeps the current generation if
        the folder cannot be read or is already being read.
        """
        if not self.reading.acquire(blocking=False):
            raise UserError('The folder is already being read. Wait until that ends.')
        try:
            earlier = self.current
            collection = self.open_again()
            if collection.index.vectors.path != earlier.collection.index.vectors.path:
                self.current = Generation(secrets.token_hex(4), collection)
            return earlier, self.current, compare(earlier.collection, collection)
        finally:
            self.reading.release()


def embed(query, collection):
    """Return the embedding of a picture. Raises UserError if it cannot be read."""
    embeddings, problems = embed_images([query.file], collection)
    if problems:
        reason = problems[0].replace(f' {query.file!r}', '')
        raise UserError(f'The picture cannot be read: {reason}.')
    return embeddings[0]


def compare(earlier, later):
    """Return the Changes between two collections of a folder."""
    new = len(set(later.images).difference(earlier.images))
    return Changes(
        new=new,
        changed=max(0, later.index.embedded - new),
        removed=len(set(earlier.images).difference(later.images)),
        unreadable=len(later.index.problems),
        total=len(later),
        lost_threshold=bool(earlier.calibration and not later.calibration),
    )


def place_after(index, earlier, later):
    """Return the number that image `index` of an earlier collection has in a later one.

    Returns None if the image is gone.
    """
    path = earlier.images[index]
    return later.images.index(path) if path in later.images else None

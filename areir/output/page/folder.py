"""The folder that the page searches, and its pictures; all threads share them."""

import io
import os
import secrets
import threading
from typing import NamedTuple

from PIL import Image, ImageOps

from areir.data.images import load_image
from areir.errors import UserError, counted
from areir.gallery.collection import FolderCollection
from areir.gallery.queries import embed_images, search_queries
from areir.hardware import available_cores
from areir.matching.votes import images_to_find
from areir.output.answers import make_answer
from areir.output.heat_maps import overlay, pair_heat

SIDES = {'small': 320, 'large': 1600}  # pixels
GAP = 8  # pixels between a pair
NO_LONGER = 'Its threshold no longer holds: run inference.py with --calibrate.'


class Generation(NamedTuple):
    """The images of the folder as one reading found them.

    token: a part of these images' URLs, because their numbers may mean other images in
    another generation. It is random, so that no earlier server has used it either.
    """

    token: str
    collection: FolderCollection


class SearchedFolder:
    """A Gallery that can be updated while it is searched.

    A request reads `current` once and uses that generation to its end. Requests compute
    one at a time, because a network or a search already uses all cores and because that
    bounds the memory.
    """

    def __init__(self, gallery):
        self.gallery = gallery
        self.current = Generation(secrets.token_hex(4), gallery.collection)
        self.computing = threading.Lock()
        self.reading = threading.Lock()
        self.decoding = threading.BoundedSemaphore(available_cores())

    def find(self, query, number, collection):
        """Return (Answer, indices of its images) for a Query."""
        available = len(collection) - (query.index >= 0)
        if not available:
            raise UserError('The folder has no other image.')
        with self.computing:
            if query.embedding is None:
                embeddings, problems = embed_images([query.picture], collection)
                if problems:
                    raise unreadable(query.picture, problems[0])
                query.embedding = embeddings[0]
            nearest = images_to_find(number, available)
            ((_, result),) = search_queries([query], collection, nearest)
        answer = make_answer(query, *result, collection, number)
        return answer, result[1][: len(answer.table)]

    def read_again(self):
        """Read the folder again; return (earlier, current Generation, changes as text).

        Searches go on meanwhile. Raises UserError and keeps the current generation if
        the folder cannot be read or is already being read.
        """
        if not self.reading.acquire(blocking=False):
            raise UserError('The folder is already being read. Wait until that ends.')
        try:
            earlier = self.current
            changes = self.gallery.update()
            later = self.gallery.collection
            if later.index.vectors.path != earlier.collection.index.vectors.path:
                self.current = Generation(secrets.token_hex(4), later)
            text = describe_changes(changes)
            if earlier.collection.calibration and not later.calibration:
                text += f' {NO_LONGER}'
            return earlier, self.current, text
        finally:
            self.reading.release()

    def picture(self, path, size):
        """Return an image file as the bytes of a JPEG; size: small or large."""
        side = SIDES[size]
        with self.decoding:  # bounds the memory, as `computing` does
            image = read(path, least=side)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return encode(image, 'JPEG')


def describe_changes(changes):
    """Write what an update has found."""
    text = counted(changes.new, 'new image')
    if changes.changed:
        text += f', {changes.changed:,} changed'
    if changes.gone:
        text += f', {changes.gone:,} gone'
    text += f'. The folder has {counted(changes.images, "image")}.'
    if changes.problems:
        files = counted(len(changes.problems), 'file')
        text += f' {files} cannot be read; the terminal names them.'
    return text


# Pictures


def unreadable(path, reason):
    """Return the UserError about an uploaded picture; the reason may name its path."""
    reason = str(reason).removeprefix(f'{path}: ')
    return UserError(f'The picture cannot be read: {reason.rstrip(".")}.')


def read(path, least=None):
    """Read an image file. A UserError names the file without its folder."""
    try:
        return load_image(path, least=least)
    except UserError as error:
        name = os.path.basename(path)
        raise UserError(f'{name} cannot be read. Read the folder again.') from error


def encode(image, kind):
    """Return the bytes of an image file; kind: JPEG or PNG."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85)
    return buffer.getvalue()


def draw_pair(query_path, path, trained):
    """Return a PNG of the query and an image, side by side, under their heat maps."""
    images = [read(query_path), read(path)]
    heats = pair_heat(images, trained)
    side = SIDES['small']
    pair = Image.new('RGBA', (2 * side + GAP, side))
    for place, (image, heat) in enumerate(zip(images, heats)):
        drawn = overlay(ImageOps.contain(image, (side, side)), heat)
        left = place * (side + GAP) + (side - drawn.width) // 2
        pair.paste(drawn, (left, (side - drawn.height) // 2))
    return encode(pair, 'PNG')

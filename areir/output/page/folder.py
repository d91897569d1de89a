"""The folder that is searched, and its pictures; all threads share them."""

import contextlib
import os
import queue
import secrets
import shutil
import threading
from concurrent.futures import Future
from typing import NamedTuple

import torch
from PIL import Image, ImageOps
from werkzeug.exceptions import Conflict

from areir.data.images import check_pixels, image_bytes, load_image
from areir.data.loading import ImageDataset
from areir.errors import UserError, counted
from areir.evaluation.scores import check_embeddings
from areir.files import remove
from areir.gallery.collection import FolderCollection
from areir.gallery.queries import Query
from areir.hardware import available_cores
from areir.matching.votes import images_to_find
from areir.output.answers import make_answer
from areir.output.heat_maps import overlay, pair_heat

SIDES = {'small': 320, 'large': 1600}  # pixels
GAP = 8  # pixels between a pair
MOST_TOGETHER = 32  # requests
MOST_PIXELS = 50_000_000  # of an upload, as `check_pixels` counts them


class Generation(NamedTuple):
    """The images of the folder as one reading found them.

    token: a part of these images' URLs, because their numbers may mean other images in
    another generation. It is random, so that no earlier server has used it either.
    """

    token: str
    collection: FolderCollection


class Wanted(NamedTuple):
    """What a request asks of a collection: its `result` is that of `ask`."""

    query: Query
    pixels: torch.Tensor | None  # uint8 (3, S, S), of a query without an embedding
    collection: FolderCollection
    nearest: int  # images to find
    result: Future


class SearchedFolder:
    """A Gallery that can be updated while it is searched.

    A request reads `current` once and uses that generation to its end. One thread runs
    the network, because it uses all cores and because that bounds the memory.
    """

    def __init__(self, gallery):
        self.gallery = gallery
        self.current = Generation(secrets.token_hex(4), gallery.collection)
        self.waiting = queue.SimpleQueue()
        self.computing = threading.Lock()
        self.reading = threading.Lock()
        self.decoding = threading.BoundedSemaphore(available_cores())
        threading.Thread(target=self.compute, daemon=True).start()

    def find(self, query, number, collection):
        """Return (Answer, indices of its images) for a Query."""
        available = len(collection) - (query.index >= 0)
        if not available:
            raise UserError('The folder has no other image.')
        nearest = images_to_find(number, available)
        _, scores, indices = self.ask(query, collection, nearest)
        answer = make_answer(query, scores, indices, collection, number)
        return answer, indices[: len(answer.table)]

    def ask(self, query, collection, nearest=1):
        """Return (embedding (D,), scores, indices) of a Query and its nearest images.

        Pictures are decoded here, and embedded and searched by `compute`.
        """
        pixels = None
        if query.embedding is None:
            with self.decoding:
                pixel_format = collection.trained.pixel_format
                pixels, _, problem = ImageDataset([query.picture], pixel_format)[0]
            if problem:
                raise unreadable(query.picture, problem)
        wanted = Wanted(query, pixels, collection, nearest, Future())
        self.waiting.put(wanted)
        return wanted.result.result()

    def compute(self):
        """Answer all requests that wait, those of one collection together, forever."""
        while True:
            waiting = [self.waiting.get()]
            while len(waiting) < MOST_TOGETHER and not self.waiting.empty():
                waiting.append(self.waiting.get())
            batches = [
                [one for one in waiting if one.collection is collection]
                for collection in {one.collection for one in waiting}
            ]
            for batch in batches:
                try:
                    with self.computing:
                        results = search_together(batch, batch[0].collection)
                    for one, result in zip(batch, results):
                        one.result.set_result(result)
                except Exception as error:
                    if len(batch) > 1:  # which of them fails, or all?
                        batches += [[one] for one in batch]
                    else:  # the request's thread reports it
                        batch[0].result.set_exception(error)

    def read_again(self):
        """Read the folder again; return (earlier Generation, current one, Changes).

        Searches go on meanwhile. Raises an error and keeps the current generation if
        the folder cannot be read or is already being read.
        """
        if not self.reading.acquire(blocking=False):
            raise Conflict('The folder is already being read. Wait until that ends.')
        try:
            earlier = self.current
            changes = self.gallery.update()
            later = self.gallery.collection
            if later.index.vectors.path != earlier.collection.index.vectors.path:
                self.current = Generation(secrets.token_hex(4), later)
            return earlier, self.current, changes
        finally:
            self.reading.release()

    def picture(self, path, size):
        """Return an image file as the bytes of a JPEG; size: small or large."""
        side = SIDES[size]
        with self.decoding:  # bounds the memory, as `computing` does
            image = read(path, least=side)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image_bytes(image, 'JPEG', quality=85)


def search_together(wanted, collection):
    """Return what `SearchedFolder.ask` returns for each Wanted of a collection."""
    embeddings = [one.query.embedding for one in wanted]
    new = [place for place, one in enumerate(wanted) if one.pixels is not None]
    if new:
        pixels = torch.stack([wanted[place].pixels for place in new])
        vectors = collection.embedder(pixels).float().cpu()
        check_embeddings('vectors', vectors)
        for place, vector in zip(new, vectors):
            embeddings[place] = vector
    embeddings = torch.stack(embeddings)
    results = {}
    for number in {one.nearest for one in wanted}:
        own = [place for place, one in enumerate(wanted) if one.nearest == number]
        exclude = torch.tensor([wanted[place].query.index for place in own])
        scores, indices = collection.search(embeddings[own], number, exclude)
        rows = zip(embeddings[own], scores.tolist(), indices.tolist())
        results |= zip(own, rows)
    return [results[place] for place in range(len(wanted))]


def describe_changes(changes, earlier, later):
    """Write what an update has found, between two collections."""
    others = {'changed': changes.changed, 'gone': changes.gone}
    text = counted(changes.new, 'new image')
    text += ''.join(f', {n:,} {kind}' for kind, n in others.items() if n)
    text += f'. The folder has {counted(changes.images, "image")}.'
    if changes.problems:
        files = counted(len(changes.problems), 'file')
        text += f' {files} cannot be read; the terminal names them.'
    if earlier.calibration and not later.calibration:
        text += ' Its threshold no longer holds: run inference.py with --calibrate.'
    return text


# Pictures


@contextlib.contextmanager
def uploaded(stream, uploads):
    """Yield the Query of an uploaded picture, whose bytes come from a stream.

    They lie in a file in the folder `uploads`, which is removed afterwards.
    """
    path = os.path.join(uploads, secrets.token_hex(8))
    try:
        with open(path, 'xb') as file:
            shutil.copyfileobj(stream, file)
        if not os.path.getsize(path):
            raise UserError('The picture is an empty file. Choose another one.')
        try:
            check_pixels(path, MOST_PIXELS)
        except UserError as error:
            raise unreadable(path, error) from error
        yield Query(path, name='picture')
    finally:
        remove(path)


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
    return image_bytes(pair, 'PNG')

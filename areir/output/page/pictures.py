"""The pictures that the page shows: small ones, large ones, and heat maps."""

import functools
import io
import os
import threading

from PIL import Image, ImageOps

from areir.data.images import load_image
from areir.errors import UserError
from areir.hardware import available_cores
from areir.output.heat_maps import overlay, pair_heat

SIDES = {'small': 320, 'large': 1600}  # pixels
CACHED = 500  # small pictures kept, about 10 MB
GAP = 8  # pixels between a pair


class PictureMaker:
    """Draws image files as JPEG on request. Threads share it."""

    def __init__(self):
        self.decoding = threading.BoundedSemaphore(available_cores())
        self.small = functools.lru_cache(CACHED)(self.draw_small)

    def picture(self, path, token, size):
        """Return the bytes of a JPEG.

        token: of the generation, because the file may have changed before a later one;
        size: small or large. Raises UserError if the file cannot be read.
        """
        if size == 'small':
            return self.small(path, token)
        return self.draw(path, size)

    def draw_small(self, path, token):
        return self.draw(path, 'small')

    def draw(self, path, size):
        with self.decoding:
            image = read(path, least=SIDES[size])
        image.thumbnail((SIDES[size], SIDES[size]), Image.Resampling.LANCZOS)
        return encode(image, 'JPEG')


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

"""Small folders of photos and indexes of them, with a fixed projection as the model."""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from areir.data import loading
from areir.data.images import PixelFormat
from areir.gallery import index
from areir.gallery.vectors import VectorsFile

SIDE = 4
PIXEL_FORMAT = PixelFormat(SIDE)
SETTINGS = {'model': 'a', 'image_size': SIDE}
DIMENSIONS = 6


def draw(path, seed):
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def draw_photos(folder):
    """Draw 7 images in the folders a and b, and return the folder."""
    for number in range(7):
        draw(folder / 'ab'[number % 2] / f'{number}.png', number)
    return folder


def embed(pixels):
    """Return unit vectors of pixels by a fixed projection."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3 * SIDE * SIDE, DIMENSIONS, generator=generator)
    return F.normalize(pixels.flatten(1).float() @ matrix + 1)


class Counting:
    """As `embed`; counts the images."""

    def __init__(self):
        self.images = 0

    def __call__(self, pixels):
        self.images += len(pixels)
        return embed(pixels)


def update(folder, index_folder, settings=SETTINGS, embed=embed):
    return index.update_index(
        str(folder), str(index_folder), settings, PIXEL_FORMAT, embed
    )


def assert_same(one, other):
    """Check that two Indexes hold the same images and vectors."""
    assert one.paths == other.paths and one.problems == other.problems
    ours, theirs = one.vectors.array, other.vectors.array
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def embed_in_steps(monkeypatch):
    """Embed two images at a time and read none ahead."""
    monkeypatch.setattr(loading, 'BATCH', 2)
    monkeypatch.setattr(loading, 'available_cores', lambda: 0)


def flip_bit(path, place):
    """Flip the lowest bit of the byte at `place` of a file."""
    with open(path, 'r+b') as file:
        file.seek(place)
        (value,) = file.read(1)
        file.seek(place)
        file.write(bytes([value ^ 1]))


def random_vectors(folder, count, dimensions=DIMENSIONS, distinct=None):
    """Write unit vectors, with ties if `distinct` is below count.

    Returns (VectorsFile, the vectors).
    """
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(distinct or count, dimensions, generator=generator)
    vectors = F.normalize(vectors)[torch.arange(count) % len(vectors)]
    path = str(folder / 'vectors.f32')
    vectors.numpy().tofile(path)
    return VectorsFile(path, dimensions), vectors

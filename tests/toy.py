"""A collection whose embeddings a test chooses."""

import shutil

import torch
from PIL import Image, ImageFilter
from trained import CALIBRATION

from areir.gallery.collection import Collection
from areir.retrieval import search


class ToyCollection(Collection):
    """Images named by `paths`, drawn in a folder, with given embeddings (N, D)."""

    def __init__(self, folder, paths, embeddings, classes=None, calibration=None):
        for number, path in enumerate(paths):
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                draw_noise(file, number)
        classes = classes or [None] * len(paths)
        name = str(folder)
        super().__init__(name, name, paths, classes, embeddings, calibration)

    def search(self, queries, k, exclude):
        return search(queries, self.embeddings, k, exclude)


def draw_noise(path, seed, size=(24, 18)):
    """Write an image of noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = size[1], size[0], 3
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)


def on_circle(*degrees):
    """Return unit vectors (N, 2) at these angles."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def photo_pairs(folder):
    """Return a collection of six images, most of them in pairs.

    b.jpg is a blurred a.png; copy.png and same.bmp show c.png; z.png is like none, but
    its vector is near theirs.
    """
    folder.mkdir()
    for number, name in enumerate(['a.png', 'c.png', 'z.png']):
        draw_noise(folder / name, number, size=(16, 16))
        with Image.open(folder / name) as image:
            image.resize((160, 160), Image.Resampling.NEAREST).save(folder / name)
    with Image.open(folder / 'a.png') as image:
        blurred = image.filter(ImageFilter.GaussianBlur(0.4))
        blurred.save(folder / 'b.jpg', quality=95, subsampling=0)
    shutil.copy(folder / 'c.png', folder / 'copy.png')
    with Image.open(folder / 'c.png') as image:
        image.save(folder / 'same.bmp')
    paths = ['a.png', 'b.jpg', 'c.png', 'copy.png', 'same.bmp', 'z.png']
    vectors = on_circle(0, 1, 90, 90, 90, 115)
    collection = ToyCollection(folder, paths, vectors, list('xxyyyz'), CALIBRATION)
    collection.sizes = [(folder / path).stat().st_size for path in paths]
    return collection

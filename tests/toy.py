"""A collection whose embeddings a test chooses."""

import torch
from PIL import Image

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

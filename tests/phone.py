"""Photos as phones write them: JPEG, HEIC and AVIF, stored in any orientation."""

import sys

import numpy as np
import pytest
from PIL import Image

from areir.data import images

LOSS = 12  # of 255, by which a pixel of two encodings of a picture differs at most


needs_heic = pytest.mark.skipif(
    not images.register_heic(), reason='pip install pillow-heif'
)
every_name = pytest.mark.parametrize(
    'name', [pytest.param('photo.heic', marks=needs_heic), 'photo.avif']
)


def picture():
    """Return a smooth picture, 64 x 48, without any symmetry."""
    x, y = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 48))
    pixels = np.stack([x, y, (1 - x) * (1 - y)], axis=2)
    return Image.fromarray((40 + 170 * pixels).astype(np.uint8))


def write_photo(path, orientation=6):
    """Write the picture with an EXIF orientation, as a camera does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    # with an Exif in place of its bytes, pillow-heif does not turn the picture
    picture().save(path, exif=exif.tobytes(), quality=95)
    return path


def difference(one, other):
    """Return the largest difference of two images or arrays of equal size."""
    one, other = (np.asarray(image).astype(int) for image in (one, other))
    assert one.shape == other.shape
    return np.abs(one - other).max()


def take_heic_away(monkeypatch):
    """Make HEIC unreadable, as if pillow-heif were not installed."""
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    monkeypatch.setattr(images, 'register_heic', images.register_heic.__wrapped__)

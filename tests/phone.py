"""Photos as phones write them: JPEG, HEIC and AVIF, stored in any orientation."""

import sys

import numpy as np
import pytest
from PIL import Image

from areir.data import optional_formats

LOSS = 12  # of 255, by which a pixel of two encodings of a picture differs at most


def needs(kind):
    """Return the mark that skips a test where HEIC or AVIF cannot be read."""
    reason = f'{kind}: {optional_formats.ADVICE[kind]}'
    return pytest.mark.skipif(not optional_formats.can_read(kind), reason=reason)


def names(*chosen):
    """Return names of photos as parameters of a test, each with its mark."""
    kinds = {name: optional_formats.kind_by_suffix(name) for name in chosen}
    return [
        pytest.param(name, marks=[needs(kind)] if kind else [])
        for name, kind in kinds.items()
    ]


def picture():
    """Return a smooth picture, 64 x 48, without any symmetry."""
    x, y = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 48))
    pixels = np.stack([x, y, (1 - x) * (1 - y)], axis=2)
    return Image.fromarray((40 + 170 * pixels).astype(np.uint8))


def write_photo(path, orientation=6):
    """Write the picture with an EXIF orientation, as a camera does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[optional_formats.ORIENTATION] = orientation
    # with an Exif in place of its bytes, pillow-heif does not turn the picture
    picture().save(path, exif=exif.tobytes(), quality=95)
    return path


def difference(one, other):
    """Return the largest difference of two images or arrays of equal size."""
    one, other = (np.asarray(image).astype(int) for image in (one, other))
    assert one.shape == other.shape
    return np.abs(one - other).max()


def take_away(monkeypatch, kind):
    """Make HEIC or AVIF unreadable, as if no package could read it."""
    if kind == 'AVIF':
        monkeypatch.setattr(optional_formats, 'has_avif', lambda: False)
        return
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    monkeypatch.setattr(
        optional_formats,
        'register_heic',
        optional_formats.register_heic.__wrapped__,
    )

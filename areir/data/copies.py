"""Reduced copies of large images, which are read again and again.

They are in one file, mapped into memory, with a slot for each image of each loader: a
header and the pixels. Slots of small images stay empty and take no space on the disk.
Whether a copy is read or the image, the pixels are the same.
"""

import contextlib
import math
import os
import shutil
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from areir.data.images import is_large, stored_size

# size and mtime_ns of the image file; CRC-32, height and width of the copy
HEADER = struct.Struct('<QqIHH')
SAMPLE = 32  # images whose sizes are looked at


@dataclass
class Copies:
    """The slots of one loader; side: the most pixels per side of a copy."""

    path: str
    start: int  # of the first slot, in bytes
    side: int
    mapped: np.ndarray | None = None

    @property
    def slot(self):
        """The size of a slot in bytes."""
        return HEADER.size + 3 * self.side**2

    def read(self, index, stat):
        """Return the copy of an image, or None; stat: of its file."""
        if self.mapped is None:
            self.mapped = np.memmap(self.path, np.uint8, 'r')
        start = self.start + index * self.slot
        slot = self.mapped[start : start + self.slot]
        size, mtime_ns, checksum, height, width = HEADER.unpack(slot[: HEADER.size])
        pixels = slot[HEADER.size :][: 3 * height * width]
        is_of_file = (size, mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        if not height or not is_of_file or zlib.crc32(pixels) != checksum:
            return None
        return Image.fromarray(pixels.reshape(height, width, 3))

    def write(self, index, stat, image):
        """Store the copy of an image; do nothing if the disk is full.

        It is not written through the map: a full disk would kill the process.
        """
        pixels = np.asarray(image)
        header = stat.st_size, stat.st_mtime_ns, zlib.crc32(pixels), *pixels.shape[:2]
        start = self.start + index * self.slot
        with (
            contextlib.suppress(OSError),
            open(self.path, 'r+b', buffering=0) as file,
        ):
            file.seek(start + HEADER.size)
            file.write(pixels.tobytes())
            file.seek(start)
            file.write(HEADER.pack(*header))


def make_copies(folder, images, sides):
    """Return {name: Copies} and make their file, one for each node, if it is not there.

    images: {name: paths}; sides: {name: pixels per side}. Returns {} and makes no file
    if no image of a sample is large, or, with a notice, if the copies would take more
    than half of the disk's free space.
    """
    path = os.path.join(folder, os.environ.get('GROUP_RANK', '0'))  # of torchrun
    copies, start, expected = {}, 0, 0
    for name, paths in images.items():
        copies[name] = Copies(path, start, sides[name])
        size = len(paths) * copies[name].slot
        start += size
        expected += size * share_of_large(paths, sides[name])
    if not expected:
        return {}
    free = shutil.disk_usage(os.path.dirname(folder)).free
    if expected > free / 2 and not os.path.isfile(path):
        print(
            f'notice: {folder}: the disk has no space for reduced copies of large '
            f'images ({expected / 1e6:,.0f} MB), so these are decoded in every epoch'
        )
        return {}
    print(
        f'notice: reduced copies of large images take about {expected / 1e6:,.0f} MB '
        f'in {folder} until the run is finished; --copies no does without'
    )
    os.makedirs(folder, exist_ok=True)
    with open(path, 'ab') as file:
        file.truncate(start)
    return copies


def share_of_large(paths, side):
    """Return the share of images that `PixelFormat.reduce` reduces, from a sample."""
    step = max(1, math.ceil(len(paths) / SAMPLE))
    sample = paths[::step]
    large = 0
    for path in sample:
        # decoders raise many kinds; training will name the file
        with contextlib.suppress(Exception):
            large += is_large(stored_size(path), side)
    return large / len(sample)

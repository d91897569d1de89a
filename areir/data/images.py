"""From image files to pixels: find them, decode them, resize and normalise them."""

import contextlib
import ctypes
import functools
import io
import logging
import os
import warnings
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps

from areir.data.optional_formats import (
    as_stored,
    can_read,
    check_readable,
    kind_by_suffix,
)
from areir.errors import UserError
from areir.files import file_checksum, is_special

IMAGE_SUFFIXES = (
    *('.jpg', '.jpeg', '.jfif', '.png', '.gif', '.bmp', '.webp'),
    *('.tif', '.tiff', '.ppm', '.pgm', '.heic', '.heif', '.hif', '.avif'),
)

# pillow runs another program for these, or only recognises them
REFUSED_FORMATS = ('EPS', 'WMF', 'MPEG', 'BUFR', 'GRIB', 'HDF5')


def image_formats():
    """Return the names of the formats that are decoded, as pillow calls them."""
    Image.init()
    return [name for name in Image.ID if name not in REFUSED_FORMATS]


def is_image(path):
    """Whether a file is an image, by its suffix or, without one, by its first bytes.

    A HEIC or AVIF file counts only if it can be read here.
    """
    Image.init()
    if kind := kind_by_suffix(path):
        return can_read(kind)
    suffix = os.path.splitext(path)[1].lower()
    kind = Image.registered_extensions().get(suffix)
    if kind:
        return kind in image_formats()
    try:
        with quiet_pillow(), open_image(path):
            return True
    except Exception:  # decoders raise many kinds
        return False


@contextlib.contextmanager
def quiet_pillow():
    """Keep pillow from warning about odd metadata, damage and large images."""
    silence_decoders()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@functools.cache
def silence_decoders():
    """Keep libtiff, which pillow brings, from writing to stderr; once per process."""
    logging.getLogger('PIL').setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def open_image(path):
    """Open an image file in one of the formats that are decoded, as Image.open does.

    Raises UserError, without the path, if it is not a regular file.
    """
    if is_special(path):
        raise UserError('not a regular file')
    check_readable(path)
    return Image.open(path, formats=image_formats())


def load_image(path, box=None, least=None):
    """Read an image as RGB, completely decoded.

    The first frame is taken, EXIF orientation is applied, and transparency becomes
    white. box: (left, top, right, bottom), cut out of the stored pixels before they
    are turned, because the datasets' boxes were drawn on stored pixels. least: pixels
    per side that suffice, not to be combined with a box. A JPEG is then decoded at a
    half, a quarter or an eighth of its size, which is several times as fast.
    Raises UserError naming the file if it is not a complete image.
    """
    try:
        with quiet_pillow(), open_image(path) as image:
            if least:
                image.draft(None, (least, least))
            image.load()
            file_format = image.format
            if file_format == 'PNG':
                check_png(path)
            if box:
                image = as_stored(image)
                image = image.crop(clamp_box(box, image.size))
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image, file_format)
    except Exception as error:  # decoders raise many kinds
        raise UserError(f'{path}: {str(error) or type(error).__name__}') from error


def check_png(path):
    """Raise UserError if the pixels of a PNG do not have their checksums.

    pillow does not compare them, and can decode pixels that have changed.
    """
    with open(path, 'rb') as file:
        file.seek(8)  # after the signature
        while len(head := file.read(8)) == 8 and head[4:] != b'IEND':
            length = int.from_bytes(head[:4], 'big')
            if head[4:] != b'IDAT':
                file.seek(length + 4, os.SEEK_CUR)
                continue
            found = file_checksum(file, length, zlib.crc32(b'IDAT'))
            if found != int.from_bytes(file.read(4), 'big'):
                raise UserError('its checksum does not fit')


def to_rgb(image, file_format=None):
    """Convert an image of any mode to RGB, with transparency on white.

    file_format: of its file, as pillow calls it. 16 bits of grey are divided by 256.
    The other numbers that a TIFF may hold, floats, 32 bits and signed 16 bits, have no
    agreed white: the smallest becomes black and the largest white, see
    `stretch_to_bytes`.
    """
    numbers = image.mode == 'I' and file_format == 'TIFF'
    if numbers or image.mode == 'F':
        image = Image.fromarray(stretch_to_bytes(np.asarray(image)))
    elif image.mode.startswith('I'):  # 16-bit grey, which pillow would clip at 255
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image)
    return image.convert('RGB')


def stretch_to_bytes(values):
    """Map numbers (H, W) from their own range to 0 ... 255, as uint8.

    If all are equal, they become 0. NaN and infinity do not count for the range: NaN
    becomes 0, and infinity 0 or 255 by its sign. Raises UserError if no number is
    finite.
    """
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise UserError('none of its pixels is a finite number')
    low, high = finite.min(), finite.max()
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    shares = (values - low) / ((high - low) or 1)
    return np.rint(255 * shares).astype(np.uint8)


def clamp_box(box, size):
    """Return the part of a box that is inside an image of `size` (width, height).

    Raises UserError if no part is inside.
    """
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[2], size[0]), min(box[3], size[1])
    if left >= right or top >= bottom:
        raise UserError(
            f'box {box} is outside the image of {size[0]} x {size[1]}: '
            'annotations and images do not belong together'
        )
    return left, top, right, bottom


def resize(image, image_size, region=None):
    """Squash an RGB image to uint8 (image_size, image_size, 3).

    region: the part to take, (left, top, right, bottom) as shares of width and height.
    """
    size = (image_size, image_size)
    if region:
        width, height = image.size
        left, top, right, bottom = region
        region = (left * width, top * height, right * width, bottom * height)
    return np.array(image.resize(size, Image.Resampling.BILINEAR, region))


def to_pixels(image, image_size, region=None):
    """Squash an RGB image, or a region of it, to uint8 (3, image_size, image_size)."""
    return torch.from_numpy(resize(image, image_size, region)).permute(2, 0, 1)


def normalise(pixels, mean, std):
    """Return uint8 pixels (N, 3, H, W) as floats, minus mean, divided by std."""
    channels = (3, 1, 1)
    mean = torch.tensor(mean, device=pixels.device).view(channels)
    std = torch.tensor(std, device=pixels.device).view(channels)
    return (pixels.float() / 255 - mean) / std


def flip(images, mirrored):
    """Mirror the images (N, 3, H, W) for which mirrored (N,) is true."""
    mirrored = mirrored.to(images.device)[:, None, None, None]
    return torch.where(mirrored, images.flip(3), images)


def list_files(root, skip=(), problems=None, special=None):
    """Return all files below root as sorted relative paths with '/'.

    Links are followed, but never into a folder that contains them. Hidden and system
    files and the folders `skip` of root are left out. problems: a dict that receives
    {path: reason} for folders that cannot be read; without it they raise OSError.
    FIFOs, sockets and devices are left out, too. special: a list that receives them.
    Raises UserError for the root of the disk, which would take hours.
    """
    if os.path.realpath(root) == '/':
        raise UserError(f'{root}: the root of the disk; name a folder of images')
    files = []
    special = [] if special is None else special
    for path in walk(root, '', frozenset(), skip, problems):
        kind = special if is_special(os.path.join(root, path)) else files
        kind.append(path)
    return sorted(files)


def walk(folder, prefix, above, skip, problems):
    """Yield the files of `list_files` below a folder.

    prefix: its path below the root; above: the real paths of the folders around it.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        if problems is None or not prefix:
            raise
        problems[prefix] = error.strerror
        return
    for entry in entries:
        name = entry.name
        if name.startswith('.') or name == '__MACOSX' or (not prefix and name in skip):
            continue
        if os.path.isdir(entry.path):
            below = f'{prefix}{name}/'
            yield from walk(entry.path, below, above | {real}, skip, problems)
        else:
            yield prefix + name


def save_image(image, path, kind, **options):
    """Write a pillow image in the format `kind`. Raises OSError on a full disk.

    pillow would not notice that the disk took only a part of a JPEG, BMP or TIFF.
    """
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    with open(path, 'wb') as file:
        file.write(buffer.getbuffer())

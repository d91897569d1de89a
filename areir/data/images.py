"""From image files to pixels: find them, decode them, resize and normalise them.

pillow-heif, if it is installed, reads HEIC. A process imports it when it meets the
first such file.
"""

import contextlib
import functools
import io
import math
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageChops, ImageCms, ImageOps, ImageStat

from areir.errors import UserError

PREPROCESSING = 3  # raise it if the same image file now gives other pixels
HEIC_SUFFIXES = ('.heic', '.heif', '.hif')
IMAGE_SUFFIXES = (
    *('.jpg', '.jpeg', '.jfif', '.png', '.gif', '.bmp', '.webp'),
    *('.tif', '.tiff', '.ppm', '.pgm', '.avif', *HEIC_SUFFIXES),
)
HEIC_BRANDS = (b'ftyphei', b'ftyphev', b'ftypmif1', b'ftypmsf1')  # bytes 4 to 12
HEIC_ADVICE = 'pip install pillow-heif reads them'
NO_HEIC = f'nothing here reads HEIC files: {HEIC_ADVICE}'  # an index stores it
# of archives made by macOS, and of Synology's thumbnails
SYSTEM_FOLDERS = ('__MACOSX', '@eaDir')

# pillow runs another program for these, or only recognises them
REFUSED_FORMATS = ('EPS', 'WMF', 'MPEG', 'BUFR', 'GRIB', 'HDF5')
MOST_PIXELS = 250 * 10**6  # of an image on disk: 750 MB as RGB
DEEP_MODES = ('RGB;16', 'RGBA;16', 'LA;16')  # pillow reads their higher bytes alone
DEPTHS = (8, 10, 12, 14)  # bits that cameras and scanners store in 16
PROFILE_MODES = {'RGB': 'RGB', 'GRAY': 'L', 'CMYK': 'CMYK'}  # of colour profiles
CONVERTIBLE = {('RGB', 'RGB'), ('L', 'L'), ('L', 'RGB'), ('CMYK', 'CMYK')}
FAINT = 0.1  # of 255: what is visible and nearer to white than this is hidden by it
SHAPES = (), (3,), (4,)  # of a pixel in an array: grey, RGB, RGBA
SAME_COLOUR = 2  # of 255: a profile that changes no colour by more is sRGB's
Picture = str | os.PathLike | Image.Image | np.ndarray
Pictures = Picture | Iterable[Picture]
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # pillow refuses more than twice as many


@functools.cache
def register_heic():
    """Add pillow-heif to pillow; return whether it is installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def is_outdated(problem):
    """Whether a file could not be read for lack of a package that is installed now."""
    return problem == NO_HEIC and register_heic()


def image_formats():
    """Return the names of the formats that are decoded, as pillow calls them."""
    Image.init()
    return [name for name in Image.ID if name not in REFUSED_FORMATS]


def is_image(path):
    """Whether a file is a readable image, by its suffix, or by its first bytes."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in HEIC_SUFFIXES:
        return register_heic()
    kind = Image.registered_extensions().get(suffix)
    if kind:
        return kind in image_formats()
    with contextlib.suppress(Exception), open_image(path):  # decoders raise many kinds
        return True
    return False


def to_pictures(pictures: Pictures) -> list:
    """Return a list of what `load_image` takes, of one picture or of several.

    A pillow image that has not been read yet becomes the path of its file.
    Raises UserError naming the number of what is no picture.
    """
    one = isinstance(pictures, (str, os.PathLike, Image.Image))
    if one or getattr(pictures, 'ndim', 0) in (2, 3):
        pictures = [pictures]
    return [to_picture(number, each) for number, each in enumerate(pictures)]


def to_picture(number, picture):
    """Return one of the list that `to_pictures` returns; number: its place there."""
    if isinstance(picture, (str, os.PathLike)):
        return os.fsdecode(picture)
    if isinstance(picture, Image.Image):
        name = getattr(picture, 'filename', '')
        is_unread = getattr(picture, 'tile', None) and picture.tell() == 0
        return os.fsdecode(name) if is_unread and os.path.isfile(name) else picture
    pixels = np.asarray(picture)
    is_matrix = pixels.ndim > 1 and pixels.size
    if pixels.dtype != np.uint8 or not is_matrix or pixels.shape[2:] not in SHAPES:
        raise UserError(
            f'picture {number}: {pixels.dtype} {pixels.shape} is no picture; give a '
            'path, a pillow image, or an array uint8 (H, W, 3) or (H, W)'
        )
    return pixels


@contextlib.contextmanager
def open_image(picture):
    """Open an image file in one of the formats that are decoded, as Image.open does.

    A pillow image is copied, and an array becomes one. Pillow's warnings about odd
    metadata, damage and large images are ignored. Raises UserError, without the path,
    if it is HEIC and cannot be read here.
    """
    with warnings.catch_warnings(action='ignore'):
        if isinstance(picture, Image.Image):
            yield picture.copy()
        elif isinstance(picture, np.ndarray):
            yield Image.fromarray(picture)
        else:
            with open(picture, 'rb') as file:
                start = file.read(12)
            if start[4:].startswith(HEIC_BRANDS) and not register_heic():
                raise UserError(NO_HEIC)
            with Image.open(picture, formats=image_formats()) as image:
                yield image


def check_pixels(path, most):
    """Raise UserError naming a file if it has too many pixels or is no image.

    most: pixels. A JPEG may have four times as many: it is decoded at a fraction of its
    size, in which a phone's 200 megapixels take no longer than 50 of a PNG. Progressive
    ones may not, because decoding holds all of it in memory. Nothing is decoded here.
    """
    with naming(path), open_image(path) as image:
        if image.format in ('JPEG', 'MPO') and 'progressive' not in image.info:
            most *= 4
        if math.prod(image.size) > most:
            raise UserError(too_many(math.prod(image.size), most))


def too_many(pixels, most):
    """Write that an image is not read for its number of pixels."""
    return (
        f'{pixels / 10**6:,.0f} million pixels, but at most {most // 10**6:,} million '
        'are read: make it smaller'
    )


@contextlib.contextmanager
def naming(path):
    """Turn every error into a UserError that begins with the path."""
    try:
        yield
    except Exception as error:  # decoders raise many kinds
        text = str(error).removesuffix(f' {path!r}').rstrip(':') or type(error).__name__
        if isinstance(error, Image.DecompressionBombError):
            text = too_many(int(re.search(r'\d+', text)[0]), MOST_PIXELS)
        raise UserError(f'{path}: {text}') from error


def stored_size(path):
    """Return (width, height) of an image file, from its header, before it is turned."""
    with open_image(path) as image:
        return image.size


def load_image(picture, box=None, least=None, reduce=None):
    """Read a picture as RGB, completely decoded.

    picture: the path of a file, a pillow image, or an array uint8 (H, W, 3) or (H, W).

    The first frame is taken, EXIF orientation is applied, the embedded colour profile
    is converted to sRGB, and transparency becomes white, or black where white would
    hide the picture. box: (left, top, right, bottom), cut out of the stored pixels
    before they are turned, because the datasets' boxes were drawn on stored pixels.
    least: pixels per side that are wanted, not to be combined with a box. A JPEG is
    then decoded at a half, a quarter or an eighth of its size as long as twice as many
    remain, which is several times as fast. reduce: a `Reduction`; called before the
    image is turned, because only then is it known which part of the last pixels is
    real.
    Raises UserError naming the file if it is not a complete image.
    """
    with naming(picture), open_image(picture) as image:
        drafted = least and image.draft(None, (2 * least, 2 * least))
        tiles = getattr(image, 'tile', ())  # of a file
        image.load()
        if image.format == 'PNG':
            # pillow does not look at checksums of pixels as it decodes them
            with Image.open(picture, formats=['PNG']) as stored:
                stored.verify()
        image = to_bytes(image, picture, tiles)
        if box:
            image = image.crop(clamp_box(box, image.size))
        if drafted and reduce:
            image = reduce(image, drafted[1])
        ImageOps.exif_transpose(image, in_place=True)
        image = to_plain_mode(image)
        if reduce and image.mode not in ('LA', 'RGBA'):
            image = reduce(image)  # first, so that fewer colours are converted
        image = on_backdrop(to_srgb(image))
        return reduce(image) if reduce else image


def to_bytes(image, path, tiles):
    """Return an image of one byte per channel from one that holds larger numbers.

    tiles: `image.tile` before it was loaded. 16 bits are divided by 256. Where none of
    them exceeds 8, 10, 12 or 14 bits, these are taken to be its depth. The other
    numbers of a TIFF, floats, 32 bits and signed 16 bits, and those of an image that is
    no file, have no agreed white: the smallest becomes black and the largest white.
    """
    key = image.info.get('transparency')
    values = np.asarray(image) if image.mode[0] in 'FI' else None
    if image.mode == 'F' or (image.mode == 'I' and image.format in ('TIFF', None)):
        values, key = stretch_to_bytes(values), None
    elif any(mode in str(tiles) for mode in DEEP_MODES):
        high = np.asarray(image)
        if key is not None or high[..., :3].max() < 2 ** (DEPTHS[-1] - 8):
            values = 256 * high.astype(np.uint16) + lower_bytes(path)
    if values is None:
        return image
    values = values.reshape(*image.size[::-1], -1)  # (H, W, 1, 3 or 4)
    channels = [scale_depth(values[..., :3]), scale_depth(values[..., 3:])]
    if key is not None:
        seen = (values != key).any(axis=2, keepdims=True)
        channels.append(255 * seen.astype(np.uint8))
    pixels = np.concatenate(channels, axis=2)
    loaded = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    loaded.info = dict(image.info)
    loaded.info.pop('transparency', None)
    return loaded


def lower_bytes(path):
    """Return the lower bytes (H, W, 3 or 4) of a PNG or TIFF in DEEP_MODES."""
    with open_image(path) as image:
        for place, tile in enumerate(image.tile):
            mode, *rest = [tile.args] if isinstance(tile.args, str) else tile.args
            grey = mode.startswith('LA')  # as RGBA: its two bytes, and those of alpha
            swapped = mode[:-1] + ('L' if mode[-1] == 'B' else 'B')
            args = ('RGBA' if grey else swapped, *rest)
            image.tile[place] = tile._replace(args=args)
        pixels = np.asarray(image)
    return pixels[..., (1, 1, 1, 3)] if grey else pixels


def scale_depth(values):
    """Return integers of 16 bits or fewer as bytes, by the depth they seem to have."""
    most = values.max(initial=0)
    bits = next((bits for bits in DEPTHS if most < 2**bits), 16)
    return (values >> (bits - 8)).astype(np.uint8)


def to_plain_mode(image):
    """Convert an image to RGB, L or CMYK, or with transparency to RGBA or LA."""
    if image.mode == 'La':
        image = image.convert('LA')
    if not image.has_transparency_data:
        return image if image.mode in ('L', 'RGB', 'CMYK') else image.convert('RGB')
    image = image.convert('LA' if image.mode in ('1', 'L', 'LA') else 'RGBA')
    opaque = image.getchannel('A').getextrema() == (255, 255)
    return image.convert(image.mode[:-1]) if opaque else image


def to_srgb(image):
    """Convert an image in a plain mode from its embedded profile to sRGB.

    A profile that cannot be read, or is for other channels than the image has, counts
    for nothing.
    """
    transform = srgb_transform(image.info.get('icc_profile'))
    colours = image.mode.removesuffix('A')
    if transform is None or (colours, transform.input_mode) not in CONVERTIBLE:
        return image
    converted = image.convert(colours).convert(transform.input_mode)
    converted = ImageCms.applyTransform(converted, transform)
    if colours != image.mode:
        converted.putalpha(image.getchannel('A'))
    return converted


@functools.lru_cache(maxsize=16)
def srgb_transform(profile):
    """Return pillow's transform from a profile, as bytes, to sRGB; None to do nothing.

    Colours that both have are kept (relative colorimetric), with black point
    compensation. The profile of sRGB itself, in any wording, is known by what it does
    to a grid of colours.
    """
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = PROFILE_MODES[source.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile('sRGB'),
            mode,
            'RGB',
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (KeyError, ValueError, OSError, ImageCms.PyCMSError):
        return None
    if mode == 'CMYK':
        return transform
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    before = Image.fromarray(grid).convert(mode)
    after = ImageCms.applyTransform(before, transform)
    changes = ImageChops.difference(before.convert('RGB'), after).getextrema()
    return transform if max(high for _, high in changes) > SAME_COLOUR else None


def on_backdrop(image):
    """Return an image in a plain mode as RGB, with transparency on white or black.

    Black is for art that white would hide: the visible pixels, weighted by the square
    of their alpha, are nearer to white than FAINT in the root mean square.
    """
    if image.mode not in ('LA', 'RGBA'):
        return image.convert('RGB')
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    on_white = Image.alpha_composite(white, image).convert('RGB')
    contrast = sum(ImageStat.Stat(ImageChops.invert(on_white)).sum2) / 3
    if contrast >= FAINT**2 * ImageStat.Stat(image.getchannel('A')).sum2[0]:
        return on_white
    black = Image.new('RGBA', image.size, 'black')
    return Image.alpha_composite(black, image).convert('RGB')


def stretch_to_bytes(values):
    """Map numbers (H, W) from their own range to 0 ... 255, as uint8.

    If all are equal, they become 0. NaN and infinity do not count for the range: NaN
    becomes 0, and infinity 0 or 255 by its sign.
    """
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = finite.min(), finite.max()
    values = np.clip(np.nan_to_num(values, nan=low), low, high)
    shares = (values - low) / ((high - low) or 1)
    return np.rint(255 * shares).astype(np.uint8)


def clamp_box(box, size):
    """Return the part of a box in an image of (width, height). UserError if none is."""
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[2], size[0]), min(box[3], size[1])
    if left >= right or top >= bottom:
        raise UserError(
            f'box {box} is outside the image of {size[0]} x {size[1]}: '
            'annotations and images do not belong together'
        )
    return left, top, right, bottom


def is_large(size, side):
    """Whether an image of (width, height) is reduced to `side` pixels per side."""
    return math.prod(size) >= 4 * side**2


@dataclass
class Reduction:
    """Squashes images of 4 * side * side pixels or more to `side` pixels per side.

    Other images, and a side that is shorter, stay as they are. So the pixels that come
    of an image depend on the image alone, not on whether there is a reduced copy.
    """

    side: int
    resampling: Image.Resampling
    happened: bool = False

    def __call__(self, image, extent=None):
        """Return the image; extent: the part of it that is squashed, in pixels."""
        if not is_large(image.size, self.side):
            return image
        self.happened = True
        size = [min(self.side, length) for length in image.size]
        return image.resize(size, self.resampling, extent)


@dataclass(frozen=True)
class PixelFormat:
    """The form in which a network takes images, and the two steps to it.

    image_size: pixels per side; mean, std: per channel; interpolation: the filter of
    resizing, bilinear, bicubic or lanczos.
    """

    image_size: int
    mean: tuple = (0.0, 0.0, 0.0)
    std: tuple = (1.0, 1.0, 1.0)
    interpolation: str = 'bilinear'

    @property
    def resampling(self):
        """The filter of resizing, as pillow names it."""
        return Image.Resampling[self.interpolation.upper()]

    def reduction(self, side=None):
        """Return a Reduction to `side` pixels per side, by default image_size."""
        return Reduction(side or self.image_size, self.resampling)

    def to_pixels(self, image, region=None):
        """Squash an RGB image to uint8 (3, image_size, image_size).

        region: the part to take, as shares: (left, top, right, bottom).
        """
        if region is not None:
            width, height = image.size
            left, top, right, bottom = region
            region = (left * width, top * height, right * width, bottom * height)
        size = (self.image_size, self.image_size)
        squashed = image.resize(size, self.resampling, region)
        return torch.from_numpy(np.array(squashed)).permute(2, 0, 1)

    def normalise(self, pixels):
        """Return uint8 pixels (N, 3, H, W) as floats, minus mean, divided by std."""
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        return (pixels.float() / 255 - mean) / std


def list_files(root, problems=None):
    """Return all files below root as sorted relative paths with '/'.

    Links are followed, but never into a folder that contains them. Left out are hidden
    and system files, FIFOs, sockets and devices. problems: a dict that receives {path:
    reason} for folders that cannot be read; without it they raise OSError.
    Raises UserError for the root of the disk, which would take hours.
    """
    if os.path.realpath(root) == '/':
        raise UserError(f'{root}: the root of the disk; name a folder of images')
    return sorted(walk(root, '', frozenset(), problems))


def walk(folder, prefix, above, problems):
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
        if entry.name.startswith('.') or entry.name in SYSTEM_FOLDERS:
            continue
        if os.path.isdir(entry.path):
            below = f'{prefix}{entry.name}/'
            yield from walk(entry.path, below, above | {real}, problems)
        elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
            yield prefix + entry.name


def image_bytes(image, kind, **options):
    """Return a pillow image as the bytes of a file; options: of pillow's `save`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def save_image(image, path, kind, **options):
    """Write a pillow image in the format `kind`. Raises OSError on a full disk.

    pillow would not notice that the disk took only a part of a JPEG, BMP or TIFF.
    """
    with open(path, 'wb') as file:
        file.write(image_bytes(image, kind, **options))

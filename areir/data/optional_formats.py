"""Read HEIC and AVIF files, if a package that can do so is installed.

pillow-heif reads HEIC. Each process imports it when it meets the first such file.
pillow reads AVIF from version 11.3 on, unless it was built without AVIF.
"""

import functools
import os

from PIL import Image, features

from areir.errors import UserError

ADVICE = {
    'HEIC': 'pip install pillow-heif reads them',
    'AVIF': 'pip install --upgrade pillow reads them',
}
SUFFIXES = {'.heic': 'HEIC', '.heif': 'HEIC', '.hif': 'HEIC', '.avif': 'AVIF'}

# the brands at the start of a file, ISO 23008-12 and the AV1 image file format
AVIF_BRANDS = {b'avif', b'avis'}
HEIC_BRANDS = {b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'hevm', b'hevs'}
COMMON_BRANDS = {b'mif1', b'msf1'}  # of either format

ORIENTATION = 0x0112  # the EXIF tag
TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


# Which files


def kind_by_suffix(path):
    """Return HEIC, AVIF or None, by the suffix of a path."""
    return SUFFIXES.get(os.path.splitext(path)[1].lower())


def kind_by_content(path):
    """Return HEIC, AVIF or None, by the first bytes of a file."""
    with open(path, 'rb') as file:
        start = file.read(64)
    if start[4:8] != b'ftyp':
        return None
    size = int.from_bytes(start[:4], 'big')
    main, others = start[8:12], start[16 : max(16, size)]
    compatible = {others[place : place + 4] for place in range(0, len(others), 4)}
    if main in AVIF_BRANDS or (main in COMMON_BRANDS and compatible & AVIF_BRANDS):
        return 'AVIF'
    return 'HEIC' if main in HEIC_BRANDS | COMMON_BRANDS else None


# What can be read


def can_read(kind):
    """Whether HEIC or AVIF can be read here. Makes pillow open such files if it can."""
    return register_heic() if kind == 'HEIC' else has_avif()


@functools.cache
def register_heic():
    """Add pillow-heif to pillow; return whether it is installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def has_avif():
    """Whether pillow reads AVIF; versions before 11.3 do not know the name."""
    return 'avif' in features.modules and features.check('avif')


def check_readable(path):
    """Raise UserError if a file is HEIC or AVIF and cannot be read here.

    The message leaves out the path, which callers add.
    """
    kind = kind_by_content(path)
    if kind and not can_read(kind):
        raise UserError(missing_reader(kind))


def missing_reader(kind):
    """Return the reason to report if no installed package reads HEIC or AVIF.

    An index stores the reason, and `is_outdated` compares it: keep the text.
    """
    return f'nothing here reads {kind} files: {ADVICE[kind]}'


def is_outdated(problem):
    """Whether a file could not be read for lack of a package that is installed now."""
    return any(problem == missing_reader(kind) and can_read(kind) for kind in ADVICE)


def split_by_reader(paths):
    """Return (readable paths, {kind: unreadable paths}), judged by their suffix.

    A kind is HEIC or AVIF.
    """
    readable, unreadable = [], {}
    for path in paths:
        kind = kind_by_suffix(path)
        if kind and not can_read(kind):
            unreadable.setdefault(kind, []).append(path)
        else:
            readable.append(path)
    return readable, unreadable


# Orientation


def as_stored(image):
    """Return an image with its pixels as the file stores them.

    pillow-heif turns a HEIC as it decodes it and sets the EXIF orientation to 1.
    Every other decoder leaves both as they are.
    """
    orientation = image.info.get('original_orientation')
    if image.format != 'HEIF' or orientation not in TURN_BACK:
        return image
    stored = image.transpose(TURN_BACK[orientation])
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    stored.info['exif'] = exif.tobytes()
    return stored

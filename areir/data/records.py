"""One record per image, and what every reader of a dataset's own files needs."""

from math import isfinite, nan
from typing import NamedTuple

from areir.data.text_files import quote, refuse_repeats
from areir.errors import UserError

LONGEST_PATH = 4096  # of Linux


class Record(NamedTuple):
    """One image as a dataset's own files describe it."""

    part: str  # of the split: train, test, query or gallery
    label: int | str  # as the dataset has it
    path: str  # relative to the dataset's folder, with '/'
    # left, top, right, bottom: 0-based, half-open, on the stored pixels
    box: tuple | None = None
    origin: str = ''  # the file and the line that names it, for messages


def find_file(files, *names):
    """Return the path that ends with the first of `names` that is there, or None.

    If several paths do, the shortest is returned.
    """
    for name in names:
        paths = [path for path in files if ends_with(path, name)]
        if paths:
            return min(paths, key=len)
    return None


def ends_with(path, name):
    """Whether a path is `name` or has it as its last components."""
    return path == name or path.endswith('/' + name)


def locate(files, wanted, origins, source):
    """Return the wanted paths, each below the folder where most of them exist.

    Datasets are extracted to different depths, so a list may name `img/1.jpg` where
    `Img/img/1.jpg` is on disk. If several folders have equally many, the shortest wins.
    origins: the file and the line of each path; source: the file that lists them.
    Raises UserError if a path leads outside or is there twice, or if none is found.
    """
    if not wanted:
        raise UserError(f'{source}: it lists no images')
    for path, origin in zip(wanted, origins):
        if not is_inside(path):
            raise UserError(
                f'{origin}: {quote(path)} is no path below the folder of images'
            )
    refuse_repeats('image', zip(wanted, origins))
    probes = wanted[:: max(1, len(wanted) // 8)]
    prefixes = set()
    for path in files:
        for probe in probes:
            if ends_with(path, probe):
                prefixes.add(path.removesuffix(probe))
    if not prefixes:
        raise UserError(
            f'{source} names {len(wanted)} images, and none of them was found: '
            f'extract the images beside it (the first is {wanted[0]}, of {origins[0]})'
        )
    files = set(files)

    def quality(prefix):
        return sum(prefix + path in files for path in wanted), -len(prefix)

    best = max(prefixes, key=quality)
    return [best + path for path in wanted]


def is_inside(path):
    """Whether a path can be that of a file below a folder."""
    names = path.split('/')
    odd = '' in names or '..' in names or '\0' in path
    return not odd and len(path) < LONGEST_PATH


# What lists hold: checked numbers


def to_class(value, classes, origin):
    """Return a class, a number or its text, as int. Raises UserError.

    classes: the range of those that there are; origin: the file and the line.
    """
    number = to_number(value)
    if number not in classes:
        raise UserError(
            f'{origin}: class {quote(value)} is not a number from {classes[0]} to '
            f'{classes[-1]}'
        )
    return int(number)


def to_number(value):
    """Return a number, or a text of ASCII digits, as float; NaN for anything else."""
    plain = not isinstance(value, str) or (value.isascii() and '_' not in value)
    try:
        return float(value) if plain else nan
    except (TypeError, ValueError, OverflowError):
        return nan


def to_corners(values, origin):
    """Return four numbers or their texts as floats. Raises UserError."""
    numbers = [to_number(value) for value in values]
    if not all(map(isfinite, numbers)):
        shown = ', '.join(map(quote, values))
        raise UserError(f'{origin}: box {shown}: four finite numbers expected')
    return numbers


def check_box(box, origin):
    """Return a box of integers. Raises UserError if it has no area."""
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise UserError(
            f'{origin}: box from {left}, {top} to {right}, {bottom} is empty'
        )
    return box

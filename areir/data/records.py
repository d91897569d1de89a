"""One record per image, and what every reader of a dataset's own files needs."""

from typing import NamedTuple

from areir.errors import UserError


class Record(NamedTuple):
    """One image as a dataset's own files describe it."""

    split: str  # train, test, query or gallery
    label: int | str  # as the dataset has it
    path: str  # relative to the dataset's folder, with '/'
    # left, top, right, bottom: 0-based, half-open, on the stored pixels
    box: tuple | None = None


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


def locate(files, wanted, source):
    """Put the folder in which most of the wanted paths exist in front of each of them.

    Datasets are extracted to different depths, so a list may name `img/1.jpg` where
    `Img/img/1.jpg` is on disk. If several folders have equally many, the shortest wins.
    source: the file that lists the paths. Raises UserError if none is found.
    """
    probes = wanted[:: max(1, len(wanted) // 8)]
    prefixes = set()
    for path in files:
        for probe in probes:
            if ends_with(path, probe):
                prefixes.add(path.removesuffix(probe))
    if not prefixes:
        raise UserError(
            f'{source} names {len(wanted)} images, such as {wanted[0]}: none of them '
            'was found, extract the images beside it'
        )
    files = set(files)

    def quality(prefix):
        return sum(prefix + path in files for path in wanted), -len(prefix)

    best = max(prefixes, key=quality)
    return [best + path for path in wanted]


def read_rows(path, fields, header=0):
    """Split the lines of a text file at white space, after `header` lines.

    The last of the `fields` keeps its own spaces. Raises UserError naming the line
    that has fewer fields.
    """
    rows = []
    with open(path, encoding='utf-8-sig') as file:
        for number, line in enumerate(file, 1):
            row = line.strip().split(None, fields - 1)
            if number <= header or not row:
                continue
            if len(row) != fields:
                raise UserError(
                    f'{path}, line {number}: {fields} fields expected, '
                    f'not {line.strip()!r}'
                )
            rows.append(row)
    return rows

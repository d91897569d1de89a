"""Make the files beside a dataset's originals: links to images, and crops of them."""

import contextlib
import os
import shutil

from PIL import Image

from areir.data.images import load_image, save_image
from areir.data.verification import parallel
from areir.errors import UserError
from areir.files import atomic_path, remove_leftovers, write_text

SYMBOLIC = 'symbolic links'
PATH_SUFFIX = '.path'
# in the folder of crops: which images and boxes they are from; in that of links that
# are not symbolic: what they are
MARK = '.fingerprint'


def write_link(target, link):
    """Make `link` a symbolic link with exactly this target; return whether it is one.

    There are no symbolic links on exFAT, on some network disks and for most users of
    Windows.
    """
    if os.path.islink(link) and os.readlink(link) == target:
        return True
    try:
        with atomic_path(link, failures=(), tidy=False) as temporary:
            os.symlink(target, temporary)
        return True
    except OSError:
        return False


def link_images(images, links):
    """Make relative links to images; without symbolic links, hard links or copies."""
    make_folders(links)
    kinds = {link_image(image, link) for image, link in zip(images, links)}
    folder = common_folder(links)
    for kind in sorted(kinds - {SYMBOLIC}):
        print(f'notice: {folder} cannot hold symbolic links, so it holds {kind}')
        write_text(os.path.join(folder, MARK), kind)


def link_image(image, link):
    """Make one link, unless it or a copy is there; return what was made."""
    if is_copy(image, link):
        return SYMBOLIC
    if write_link(os.path.relpath(image, os.path.dirname(link)), link):
        return SYMBOLIC
    with atomic_path(link, failures=OSError, tidy=False) as temporary:
        with contextlib.suppress(OSError):
            os.link(os.path.realpath(image), temporary)
            return 'hard links'
        shutil.copy2(image, temporary)
        return 'copies'


def is_copy(image, link):
    """Whether `link` is a hard link to an image, or a copy of it."""
    if os.path.islink(link) or not (os.path.isfile(link) and os.path.isfile(image)):
        return False
    copy, original = os.stat(link), os.stat(image)
    late = abs(copy.st_mtime - original.st_mtime)  # exFAT counts in 2 seconds
    return copy.st_size == original.st_size and late <= 2


def common_folder(paths):
    """Return the folder below which all files lie."""
    return os.path.commonpath(map(os.path.dirname, paths))


def link_source(source, link, data_root):
    """Link to the folder of photos, or to the CSV, of a dataset.

    The link is relative if they are below data_root, so that both can be moved
    together, and absolute otherwise. Where there are no symbolic links, `link`.path is
    a text file with the path. Returns whether there are; see `source_link`.
    """
    target = os.path.realpath(source)
    if target.startswith(os.path.realpath(data_root) + os.sep):
        home = os.path.realpath(os.path.dirname(link))
        target = os.path.relpath(target, home)
    if write_link(target, link):
        return True
    write_text(link + PATH_SUFFIX, os.path.realpath(source))
    return False


def source_link(link):
    """Return `link` if it is a link or a file, the path in `link`.path, or None."""
    if os.path.islink(link) or os.path.isfile(link):
        return link
    if os.path.isfile(link + PATH_SUFFIX):
        with open(link + PATH_SUFFIX, 'rb') as file:
            return os.fsdecode(file.read())
    return None


def make_folders(paths):
    """Make the folders of files, and remove what killed processes left there."""
    for folder in {os.path.dirname(path) for path in paths}:
        os.makedirs(folder, exist_ok=True)
        remove_leftovers(folder)


def write_crop(job):
    """Write a box of an image without visible loss; job: (image, target, box)."""
    source, target, box = job
    crop = load_image(source, box)
    suffix = os.path.splitext(target)[1].lower()
    kind = Image.registered_extensions().get(suffix, 'JPEG')
    if kind in ('HEIF', 'AVIF'):  # what reads them need not be able to write them
        kind = 'JPEG'
    options = {'quality': 95, 'subsampling': 0} if kind == 'JPEG' else {}
    with atomic_path(target, failures=OSError, tidy=False) as temporary:
        save_image(crop, temporary, kind, **options)


def write_crops(pool, folder, jobs, fingerprint):
    """Write crops below `folder`. jobs: (image, target, box).

    Crops of an interrupted run are kept if the fingerprint in the file MARK is the
    same. Otherwise they are removed first.
    """
    mark = os.path.join(folder, MARK)
    if not os.path.isfile(mark) or open(mark).read() != fingerprint:
        for _, target, _ in jobs:
            if os.path.lexists(target):
                os.remove(target)
        os.makedirs(folder, exist_ok=True)
        write_text(mark, fingerprint)
    missing = [job for job in jobs if not os.path.isfile(job[1])]
    make_folders(target for _, target, _ in missing)
    parallel(pool, write_crop, missing, 'cropping')


def refuse_foreign_files(links, folder):
    """Raise UserError if links, or crops in `folder`, would replace a user's files."""
    made = os.path.isfile(os.path.join(common_folder(links), MARK))
    for link in links:
        if os.path.lexists(link) and not (made or os.path.islink(link)):
            raise UserError(f'{link} is not a link made here: move it away')
    names = os.listdir(folder) if os.path.isdir(folder) else []
    # a killed process may have left a hidden temporary file
    if MARK not in names and any(not name.startswith(f'.{MARK}') for name in names):
        raise UserError(f'{folder} was not written here: move it away')

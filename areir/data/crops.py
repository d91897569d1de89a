"""Make the files beside a dataset's originals: links to images, and crops of them."""

import os

from PIL import Image

from areir.data.images import load_image, save_image
from areir.data.verification import parallel
from areir.errors import UserError
from areir.files import atomic_path, remove_leftovers, write_text

MARK = '.fingerprint'  # in the folder of crops: which images and boxes they are from


def write_link(target, link):
    """Make `link` a symbolic link with exactly this target, unless it is already."""
    if os.path.islink(link) and os.readlink(link) == target:
        return
    with atomic_path(link, tidy=False) as temporary:
        os.symlink(target, temporary)


def link_images(images, links):
    """Make relative links to images."""
    make_folders(links)
    for image, link in zip(images, links):
        write_link(os.path.relpath(image, os.path.dirname(link)), link)


def link_source(source, link, data_root):
    """Link to the folder of photos, or to the CSV, of a dataset.

    The link is relative if they are below data_root, so that both can be moved
    together, and absolute otherwise.
    """
    target = os.path.realpath(source)
    if target.startswith(os.path.realpath(data_root) + os.sep):
        home = os.path.realpath(os.path.dirname(link))
        target = os.path.relpath(target, home)
    write_link(target, link)


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
    for link in links:
        if os.path.lexists(link) and not os.path.islink(link):
            raise UserError(f'{link} is not a link made here: move it away')
    names = os.listdir(folder) if os.path.isdir(folder) else []
    # a killed process may have left a hidden temporary file
    if MARK not in names and any(not name.startswith(f'.{MARK}') for name in names):
        raise UserError(f'{folder} was not written here: move it away')

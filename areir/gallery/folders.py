"""What is in a folder of images: its images, their sizes and times, their classes."""

import os

from areir.data.images import (
    HEIC_ADVICE,
    IMAGE_SUFFIXES,
    is_image,
    list_files,
    unreadable_heic,
    walk,
)
from areir.data.lists import DISTRACTOR
from areir.data.own_images import recognise
from areir.errors import UserError, counted, missing

# inference.py writes one of these into each of its folders
OWN_FILES = ('/retrieved.csv', '/duplicates.html', '/index.sqlite')


def check_gallery(folder):
    """Raise UserError unless a folder has an image, before all of it is looked at."""
    if not os.path.isdir(folder):
        reason = 'not a folder' if os.path.exists(folder) else missing(folder)
        raise UserError(f'--gallery {folder}: {reason}')
    files = walk(folder, '', frozenset(), {})
    if not any(is_image(os.path.join(folder, path)) for path in files):
        raise UserError(f'--gallery {folder}: no images in it')


def scan(folder):
    """Look at all files below a folder except those that inference.py has written.

    Returns {path: [size, mtime_ns]} of the images, {path: reason} of folders and links
    that cannot be read, and the paths of other files. HEIC files that cannot be read
    here are left out, with a notice.
    """
    images, problems, others = {}, {}, []
    files = list_files(folder, problems=problems)
    own = {os.path.dirname(path) for path in files if path.endswith(OWN_FILES)}
    files = [path for path in files if os.path.dirname(path) not in own]
    unreadable = set(unreadable_heic(files))
    if unreadable:
        print(
            f'notice: left out {counted(len(unreadable), "HEIC file")}: {HEIC_ADVICE}'
        )
    for path in files:
        if path in unreadable:
            continue
        file = os.path.join(folder, path)
        try:
            seen = os.stat(file)
        except OSError as error:  # a broken link, or gone since
            if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
                problems[path] = error.strerror
            continue
        if os.path.isfile(file) and is_image(file):
            images[path] = [seen.st_size, seen.st_mtime_ns]
        else:
            others.append(path)
    return images, problems, others


def class_names(paths, layout=None):
    """Return the class of every path, or None, as data_utils.py reads a folder.

    layout: what `recognise` returns of the paths, if it is at hand. If it is unclear
    which folder is the class, it is the first. None if there are fewer than two
    classes, and for distractors.
    """
    layout = layout or recognise(paths)
    classes = [place and place[1] for place in layout.places]
    classes = [None if name == DISTRACTOR else name for name in classes]
    if len(set(classes) - {None}) < 2:
        return [None] * len(paths)
    return classes

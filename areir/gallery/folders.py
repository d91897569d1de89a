"""What is in a folder of images: its images, their sizes and times, their classes."""

import os

from areir.data.images import (
    HEIC_ADVICE,
    HEIC_SUFFIXES,
    IMAGE_SUFFIXES,
    is_image,
    list_files,
    walk,
)
from areir.data.lists import DISTRACTOR
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
    heic = 0  # files that nothing here reads
    for path in files:
        file = os.path.join(folder, path)
        try:
            seen = os.stat(file)
        except OSError as error:  # a broken link, or gone since
            if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
                problems[path] = error.strerror
            continue
        if is_image(file):
            images[path] = [seen.st_size, seen.st_mtime_ns]
        elif path.lower().endswith(HEIC_SUFFIXES):
            heic += 1
        else:
            others.append(path)
    if heic:
        print(f'notice: left out {counted(heic, "HEIC file")}: {HEIC_ADVICE}')
    return images, problems, others


def class_names(layout):
    """Return the class of every image of a Layout, or None.

    None if there are fewer than two classes, and for distractors.
    """
    classes = [place and place[1] for place in layout.places]
    classes = [None if name == DISTRACTOR else name for name in classes]
    if len(set(classes) - {None}) < 2:
        return [None] * len(classes)
    return classes

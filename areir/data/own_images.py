"""Your own images in a folder of class folders."""

import math
import random

from areir.data.images import IMAGE_SUFFIXES
from areir.data.lists import DISTRACTOR, Record
from areir.errors import UserError


def read_folder(root, files):
    """Return (layout, records) of any folder of class folders.

    Folders train and test (or train, query and gallery) at its top are its parts.
    Otherwise the part of its records is None.
    """
    images = [path for path in files if path.lower().endswith(IMAGE_SUFFIXES)]
    images = [path for path in images if '/' in path]
    tops = {path.split('/')[0] for path in images}
    records = []
    for parts in (('train', 'query', 'gallery'), ('train', 'test')):
        if tops.issuperset(parts):
            for path in images:
                part, *names = path.split('/')
                if part in parts and len(names) > 1:
                    records.append(Record(part, names[0], path))
            return ' + '.join(parts), records
    if len(tops) < 2:
        raise UserError(
            f'{root}: {len(tops)} folders with images; a folder per class is needed, '
            'at least two'
        )
    records = [Record(None, path.split('/')[0], path) for path in images]
    return f'{len(tops)} class folders', records


def draw_parts(records, seed, test_share):
    """Draw the classes of the test from the seed; the others train.

    test_share: their share of all classes, rounded, a half down. Distractors are for
    the test. Raises UserError if fewer than two classes train, or if one is left for
    the test.
    """
    classes = sorted({record.label for record in records} - {DISTRACTOR})
    random.Random(seed).shuffle(classes)
    tested = math.ceil(len(classes) * test_share - 0.5)
    trained = len(classes) - tested
    if trained < 2 or (test_share and tested < 2):
        raise UserError(
            f'--test_share {test_share:g}: of {len(classes)} classes, {trained} would '
            f'train and {tested} test, and each needs at least 2: choose another share '
            '(0 trains on all) or add classes'
        )
    train = set(classes[:trained])
    return [
        record._replace(part='train' if record.label in train else 'test')
        for record in records
    ]

"""Look at every image of a dataset, in worker processes, and at its split.

Is each image complete? Is the split as it should be? What are mean and deviation?
"""

import signal
from collections import Counter
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import NamedTuple

import numpy as np

from areir.bars import progress_bar
from areir.data.images import PixelFormat, clamp_box, load_image, stored_size
from areir.data.layouts import KNOWN_DATASETS
from areir.data.loading import end_with_parent
from areir.errors import UserError

PARTS = ('train', 'test', 'query', 'gallery')


def start_pool(num_workers):
    """Return a pool of worker processes."""
    return ProcessPoolExecutor(num_workers, initializer=start_worker)


def start_worker():
    """Leave Ctrl-C to the parent process and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


def parallel(pool, function, jobs, description):
    """Return the results of function(job) in order, with a progress bar.

    Raises UserError if a worker process was killed.
    """
    results = pool.map(function, jobs, chunksize=16)
    try:
        return list(progress_bar(results, description, len(jobs), unit='img'))
    except BrokenExecutor as error:
        raise UserError(
            f'{description}: a worker process was killed, perhaps memory ran out: '
            'try a smaller --num_workers'
        ) from error


class Verified(NamedTuple):
    """What is known of an image that has been decoded completely."""

    problem: str = ''
    beyond: bool = False  # whether its box reaches beyond it
    sums: np.ndarray | None = None  # of its pixels, and of their squares, int64 (2, 3)


def verify_image(job):
    """Return what is Verified of one image.

    job: (path, box or None, pixels per side of the image whose sums are wanted, or
    None). Computed by numpy: torch's threads do not survive the fork that starts a
    worker process.
    """
    path, box, image_size = job
    pixel_format = PixelFormat(image_size or 1)
    beyond, sums = False, None
    try:
        side = pixel_format.image_size
        image = load_image(path, least=side, reduce=pixel_format.reduction())
        if box:
            beyond = clamp_box(box, stored_size(path)) != tuple(box)
    except UserError as error:
        return Verified(f'{path}: ' + str(error).removeprefix(f'{path}: '))
    if image_size:
        pixels = pixel_format.to_pixels(image).numpy().astype(np.int64)
        sums = np.array([pixels.sum((1, 2)), (pixels**2).sum((1, 2))])
    return Verified('', beyond, sums)


def verify_images(pool, name, images, records, image_size=None):
    """Decode all images; return what is Verified of each.

    images: the path of each record's file; image_size: pixels per side of the training
    images whose sums are wanted, or None. Raises UserError naming every image that
    cannot be read.
    """
    jobs = [
        (image, record.box, image_size if record.part == 'train' else None)
        for image, record in zip(images, records)
    ]
    results = parallel(pool, verify_image, jobs, 'verifying')
    problems = [
        f'{result.problem} ({record.origin})' if record.origin else result.problem
        for result, record in zip(results, records)
        if result.problem
    ]
    if problems:
        raise UserError(
            f'{name}: {len(problems):,} of {len(jobs):,} images cannot be read, so '
            'nothing was written; replace these files and run again:\n  '
            + '\n  '.join(problems)
        )
    return results


def channel_statistics(results, image_size):
    """Return the mean and standard deviation of the pixels / 255, per channel.

    results: the Verified of all images; those with sums count, at image_size. Exact,
    because integers are summed.
    """
    sums = [result.sums for result in results if result.sums is not None]
    count = len(sums) * image_size**2
    mean, std = [], []
    for total, square in sum(sums).T.tolist():
        mean.append(total / count / 255)
        std.append((square * count - total**2) ** 0.5 / count / 255)
    return tuple(mean), tuple(std)


def count_parts(records):
    """Return {part of the split: (images, classes)} in the order of PARTS."""
    counts = {}
    for part in PARTS:
        labels = [record.label for record in records if record.part == part]
        if labels:
            counts[part] = (len(labels), len(set(labels)))
    return counts


def find_oddities(name, records, beyond=0):
    """Return what is odd about a dataset as a list of sentences.

    beyond: how many boxes reach beyond their image.
    """
    oddities = []
    known = KNOWN_DATASETS.get(name)
    if known:
        counts = count_parts(records)
        for part, official in known.counts.items():
            images, classes = counts.get(part, (0, 0))
            if (images, classes) != official:
                oddities.append(
                    f'{part} has {images:,} images of {classes:,} classes, the '
                    'official split {:,} of {:,}'.format(*official)
                )
        if beyond and known.boxes_fit:
            oddities.append(
                f'{beyond:,} boxes reach beyond their image and were clamped: '
                'annotations and images may not belong together'
            )
    sizes = {part: Counter() for part in PARTS}  # images of each class
    for record in records:
        sizes[record.part][record.label] += 1
    single = list(sizes['test'].values()).count(1)
    if single:
        oddities.append(
            f'{single:,} test classes have a single image, whose query always misses'
        )
    lost = [label for label in sizes['query'] if label not in sizes['gallery']]
    if lost:
        images = sum(sizes['query'][label] for label in lost)
        oddities.append(
            f'{images:,} queries have no image of their class in the gallery and '
            'always miss'
        )
    tested = sizes['test'] | sizes['query'] | sizes['gallery']
    shared = sizes['train'].keys() & tested.keys()
    if shared:
        oddities.append(
            f'{len(shared):,} classes are both in training and in the test: the score '
            'is not for unseen classes'
        )
    return oddities

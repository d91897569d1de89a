"""Look at every image of a dataset, in worker processes, and at its split.

Is each image complete? Is the split as it should be? What are mean and deviation?
"""

import hashlib
import signal
from collections import defaultdict
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import NamedTuple

import numpy as np

from areir.bars import progress_bar
from areir.data.images import PixelFormat, clamp_box, load_image, stored_size
from areir.data.layouts import KNOWN_DATASETS
from areir.data.lists import DISTRACTOR
from areir.data.loading import start_worker
from areir.errors import UserError, counted

PARTS = ('train', 'test', 'query', 'gallery')


def start_pool(num_workers):
    """Return a pool of worker processes."""
    arguments = None, signal.SIG_DFL  # a broken pool ends its workers by SIGTERM
    return ProcessPoolExecutor(num_workers, None, start_worker, arguments)


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
    digest: bytes = b''  # of its file


def verify_image(job):
    """Return what is Verified of one image.

    job: (path, box or None, pixels per side of the image whose sums are wanted, or 0).
    Computed by numpy: torch's threads do not survive the fork that starts a worker
    process.
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
        reason = str(error).removeprefix(f'{path}: ')
        return Verified(reason)
    if image_size:
        pixels = pixel_format.to_pixels(image).numpy().astype(np.int64)
        sums = np.array([pixels.sum((1, 2)), (pixels**2).sum((1, 2))])
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').digest()
    return Verified('', beyond, sums, digest)


def verify_images(pool, images, records, image_size=0):
    """Decode all images; return what is Verified of each.

    images: the path of each record's file; image_size: pixels per side of the training
    images whose sums are wanted, or 0.
    """
    jobs = [
        (image, record.box, image_size * (record.part == 'train'))
        for image, record in zip(images, records)
    ]
    return parallel(pool, verify_image, jobs, 'verifying')


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
            counts[part] = (len(labels), len({*labels} - {DISTRACTOR}))
    return counts


def find_oddities(name, records, beyond=0, contents=None):
    """Return what is odd about a dataset as a list of sentences.

    beyond: how many boxes reach beyond their image; contents: of each record, what it
    shares with the copies that a query ignores.
    """
    oddities = []
    known = KNOWN_DATASETS.get(name)
    if known:
        counts = count_parts(records)
        for part, official in known.counts.items():
            images, classes = counts.get(part, (0, 0))
            if (images, classes) != official:
                oddities.append(
                    f'{part} has {counted(images, "image")} of '
                    f'{counted(classes, "class")}, the '
                    'official split {:,} of {:,}'.format(*official)
                )
        if beyond and known.boxes_fit:
            oddities.append(
                f'{counted(beyond, "box")} beyond the edge of the image: '
                'annotations and images may not belong together'
            )
    lost = count_lost(records, contents or range(len(records)))
    if lost:
        oddities.append(
            f'queries without another image of their class to find: {lost:,}; they '
            'always miss'
        )
    trained = {record.label for record in records if record.part == 'train'}
    tested = {record.label for record in records if record.part != 'train'}
    if shared := trained & tested:
        oddities.append(
            f'{counted(len(shared), "class")} both in training and in the test: the '
            'score is not for unseen classes'
        )
    return oddities


def count_lost(records, contents):
    """Return how many queries have no image of their class to find.

    Copies of a query, and images of its class and group, are not to be found.
    """
    searched = defaultdict(set)  # of each class
    for record, content in zip(records, contents):
        if record.part in ('gallery', 'test'):
            searched[record.label].add((content, record.group))

    def finds(record, own):
        return any(
            content != own and (group is None or group != record.group)
            for content, group in searched[record.label]
        )

    return sum(
        record.part in ('query', 'test')
        and record.label != DISTRACTOR
        and not finds(record, content)
        for record, content in zip(records, contents)
    )

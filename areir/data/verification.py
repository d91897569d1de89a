"""Look at every image of a dataset, in worker processes, and at its split.

Is each image complete? Is the split as it should be? What are mean and deviation?
"""

import signal
from collections import Counter
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

import numpy as np
from tqdm import tqdm

from areir.data.images import PixelFormat, load_image
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
        return list(tqdm(results, total=len(jobs), desc=description, unit='img'))
    except BrokenExecutor as error:
        raise UserError(
            f'{description}: a worker process was killed, perhaps memory ran out: '
            'try a smaller --num_workers'
        ) from error


def verify_image(job):
    """Decode one image completely.

    job: (path, box or None). Returns (problem or '', whether the box reaches beyond
    the image).
    """
    path, box = job
    try:
        size = load_image(path, box).size
    except UserError as error:
        return str(error), False
    left, top, right, bottom = box or (0, 0, *size)
    return '', sum(size) < right - left + bottom - top


def verify_images(pool, name, images, records):
    """Decode all images; return the records whose boxes reach beyond their image.

    images: the path of each record's file. Raises UserError naming every image that
    cannot be read.
    """
    jobs = [(image, record.box) for image, record in zip(images, records)]
    results = parallel(pool, verify_image, jobs, 'verifying')
    problems = [
        f'{problem} ({record.origin})' if record.origin else problem
        for (problem, _), record in zip(results, records)
        if problem
    ]
    if problems:
        raise UserError(
            f'{name}: {len(problems):,} of {len(jobs):,} images cannot be read, so '
            'nothing was written; replace these files and run again:\n  '
            + '\n  '.join(problems)
        )
    return [record for (_, beyond), record in zip(results, records) if beyond]


def pixel_sums(job):
    """Return the sums of the pixels and of their squares, three integers each.

    job: (path, image_size). Computed by numpy: torch's threads do not survive the fork
    that starts a worker process.
    """
    path, image_size = job
    pixels = PixelFormat(image_size).to_pixels(load_image(path))
    pixels = pixels.numpy().astype(np.int64)
    return pixels.sum((1, 2)), (pixels**2).sum((1, 2))


def channel_statistics(pool, paths, image_size):
    """Return the mean and standard deviation of the pixels / 255, per channel.

    They are those of all images at image_size, and exact, because integers are summed.
    """
    jobs = [(path, image_size) for path in paths]
    sums, square_sums = zip(*parallel(pool, pixel_sums, jobs, 'mean and deviation'))
    count = len(paths) * image_size**2
    mean, std = [], []
    for total, square in zip(sum(sums).tolist(), sum(square_sums).tolist()):
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

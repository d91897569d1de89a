"""Look at every image of a dataset, in worker processes, and at its split.

Is each image complete? Is the split as it should be? What are mean and deviation?
"""

import signal
from collections import Counter, defaultdict
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

import numpy as np
from tqdm import tqdm

from areir.data.images import HEIC_ADVICE, load_image, resize, unreadable_heic
from areir.data.layouts import KNOWN_DATASETS
from areir.data.lists import listing
from areir.data.loading import end_with_parent
from areir.errors import UserError

PART_ORDER = ('train', 'test', 'query', 'gallery')


# Worker processes


def start_pool(num_workers):
    """Return a pool of worker processes, to be used in a `with` statement."""
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


# Images


def verify_image(job):
    """Decode one image completely.

    job: (path, box or None). Returns (problem or '', whether the box reaches beyond
    the image).
    """
    path, box = job
    try:
        width, height = load_image(path, box).size
    except UserError as error:
        return str(error), False
    if box is None:
        return '', False
    left, top, right, bottom = box
    return '', width + height < right - left + bottom - top


def verify_images(pool, name, images, records):
    """Decode all images; return the records whose boxes reach beyond their image.

    images: the path of each record's file. Raises UserError naming every image that
    cannot be read, or the package that is missing to read HEIC files.
    """
    heic = unreadable_heic(images)
    if heic:
        raise UserError(
            f'{name}: {len(heic):,} HEIC files cannot be read: {HEIC_ADVICE}; nothing '
            'was written'
        )
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
            'nothing was written; replace these files and run again'
            + listing(problems, most=len(problems))
        )
    return [record for (_, beyond), record in zip(results, records) if beyond]


def pixel_sums(job):
    """Return the sums of the pixels and of their squares, three integers each.

    job: (path, image_size). Computed by numpy: torch's threads do not survive the fork
    that starts a worker process.
    """
    path, image_size = job
    pixels = resize(load_image(path), image_size).reshape(-1, 3).astype(np.int64)
    return pixels.sum(0), (pixels**2).sum(0)


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


# Counts


def count_parts(records):
    """Return {part of the split: (images, classes)} in the order of PART_ORDER."""
    classes = defaultdict(set)
    for record in records:
        classes[record.part].add(record.label)
    images = Counter(record.part for record in records)
    return {
        part: (images[part], len(classes[part]))
        for part in PART_ORDER
        if part in images
    }


def official_counts(name):
    """Return {part: (images, classes)} as published, {} for an unknown dataset."""
    return KNOWN_DATASETS[name].counts if name in KNOWN_DATASETS else {}


def print_counts(name, counts):
    """Print the counts of each part beside the official ones."""
    official = official_counts(name)
    header = f'{"split":<10}{"images":>10}{"classes":>10}'
    print(header + (f'{"official":>12}{"":>8}' if official else ''))
    for part in {**official, **counts}:
        images, classes = counts.get(part, (0, 0))
        row = f'{part:<10}{images:>10,}{classes:>10,}'
        if part in official:
            row += '{:>12,}{:>8,}'.format(*official[part])
        print(row)


def find_oddities(name, records, beyond=0):
    """Return what is odd about a dataset as a list of sentences.

    beyond: how many boxes reach beyond their image.
    """
    oddities = []
    counts = count_parts(records)
    for part, (images, classes) in official_counts(name).items():
        present = counts.get(part, (0, 0))
        if present != (images, classes):
            oddities.append(
                f'{part} has {present[0]:,} images of {present[1]:,} classes, the '
                f'official split {images:,} of {classes:,}'
            )
    if beyond and name in KNOWN_DATASETS and KNOWN_DATASETS[name].boxes_fit:
        oddities.append(
            f'{beyond:,} boxes reach beyond their image and were clamped: annotations '
            'and images may not belong together'
        )
    sizes = Counter((record.part, record.label) for record in records)
    single = sum(part == 'test' and size == 1 for (part, _), size in sizes.items())
    if single:
        oddities.append(
            f'{single:,} test classes have a single image, whose query always misses'
        )
    lost = sum(
        size
        for (part, label), size in sizes.items()
        if part == 'query' and ('gallery', label) not in sizes
    )
    if lost:
        oddities.append(
            f'{lost:,} queries have no image of their class in the gallery and always '
            'miss'
        )
    train = {label for part, label in sizes if part == 'train'}
    shared = train & {label for part, label in sizes if part != 'train'}
    if shared:
        oddities.append(
            f'{len(shared):,} classes are both in training and in the test: the score '
            'is not for unseen classes'
        )
    return oddities

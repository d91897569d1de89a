"""Check a dataset: is every image complete, and is the split as it should be?"""

from collections import Counter, defaultdict

from areir.data.images import clamp_box, load_image, open_image
from areir.data.layouts import KNOWN_DATASETS
from areir.data.optional_formats import ADVICE, as_stored, split_by_reader
from areir.data.text_files import listing
from areir.data.workers import parallel
from areir.errors import UserError

PART_ORDER = ('train', 'test', 'query', 'gallery')


def verify_image(job):
    """Decode one image completely.

    job: (path, box or None). Returns (problem or '', whether the box reaches beyond
    the image).
    """
    path, box = job
    try:
        load_image(path, box)
        if box is None:
            return '', False
        with open_image(path) as image:
            size = as_stored(image).size
        return '', clamp_box(box, size) != tuple(box)
    except UserError as error:
        return str(error), False


def verify_images(pool, name, images, records):
    """Decode all images; return the records whose boxes reach beyond their image.

    images: the path of each record's file. Raises UserError naming every image that
    cannot be read, or the package that is missing to read HEIC or AVIF files.
    """
    _, unreadable = split_by_reader(images)
    if unreadable:
        counts = '; '.join(
            f'{len(paths):,} {kind} files cannot be read: {ADVICE[kind]}'
            for kind, paths in unreadable.items()
        )
        raise UserError(f'{name}: {counts}; nothing was written')
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
    sizes = Counter((record.part, record.label) for record in records)
    return [
        *compare_counts(name, count_parts(records)),
        *compare_with_known(name, len(records), beyond),
        *find_hopeless_queries(sizes),
        *find_shared_classes(sizes),
    ]


def compare_counts(name, counts):
    """Yield the parts whose counts are not the official ones."""
    for part, (images, classes) in official_counts(name).items():
        present = counts.get(part, (0, 0))
        if present != (images, classes):
            yield (
                f'{part} has {present[0]:,} images of {present[1]:,} classes, the '
                f'official split {images:,} of {classes:,}'
            )


def compare_with_known(name, images, beyond):
    """Yield the signs that a known dataset is not what its name says."""
    known = KNOWN_DATASETS.get(name)
    if known and images in known.lookalikes:
        yield f'{images:,} images: this is {known.lookalikes[images]}'
    if known and known.boxes_fit and beyond:
        yield (
            f'{beyond:,} boxes reach beyond their image and were clamped: annotations '
            'and images may not belong together'
        )


def find_hopeless_queries(sizes):
    """Yield the queries that always miss. sizes: {(part, label): images}."""
    single = sum(part == 'test' and size == 1 for (part, _), size in sizes.items())
    if single:
        yield f'{single:,} test classes have a single image, whose query always misses'
    lost = 0
    for (part, label), size in sizes.items():
        if part == 'query' and ('gallery', label) not in sizes:
            lost += size
    if lost:
        yield (
            f'{lost:,} queries have no image of their class in the gallery and always '
            'miss'
        )


def find_shared_classes(sizes):
    """Yield the number of classes in both training and test, if there are any."""
    train = {label for part, label in sizes if part == 'train'}
    test = {label for part, label in sizes if part != 'train'}
    if train & test:
        yield (
            f'{len(train & test):,} classes are both in training and in the test: the '
            'score is not for unseen classes'
        )

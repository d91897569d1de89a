"""The datasets that are known, in their official layouts, and any folder of classes.

To add a dataset, write a reader here and give it an entry in KNOWN_DATASETS.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from areir.data.cars import read_car
from areir.data.images import IMAGE_SUFFIXES
from areir.data.records import (
    Record,
    check_box,
    find_file,
    locate,
    to_class,
    to_corners,
)
from areir.data.text_files import Row, quote, read_lines, read_rows, refuse_repeats
from areir.errors import UserError


@dataclass(frozen=True)
class KnownDataset:
    """One public dataset: how to read it, and what is known about it."""

    read: Callable  # (root, files) -> (layout, records)
    counts: dict  # {part: (images, classes)} as published
    mean: tuple  # of the training pixels / 255, per channel
    std: tuple
    crop_types: tuple = ('uncropped',)
    # whether all published boxes lie inside their images
    boxes_fit: bool = False
    # {number of images: which dataset of the same layout has this number}
    lookalikes: dict = field(default_factory=dict)
    # how its folder is called elsewhere, in letters and digits alone
    folders: tuple = ()


SOP_CLASSES = {'train': range(1, 11319), 'test': range(11319, 22635)}


def read_cub(root, files):
    """Return (layout, records) of CUB-200-2011: classes 1-100 train, 101-200 test.

    Boxes are x, y, width, height, 0-based; some reach beyond their image.
    """
    index = find_file(files, 'images.txt')
    if index is None:
        raise UserError(f'{root}: no images.txt found; extract CUB_200_2011 there')
    source = f'{root}/{index}'
    folder = source.removesuffix('images.txt')
    images = read_by_id(source, 2)
    labels = read_by_id(folder + 'image_class_labels.txt', 2)
    boxes = read_by_id(folder + 'bounding_boxes.txt', 5)
    for image_id, row in images.items():
        for table, rows in (('image_class_labels', labels), ('bounding_boxes', boxes)):
            if image_id not in rows:
                raise UserError(
                    f'{row.origin}: image {quote(image_id)} is not in {table}.txt'
                )

    wanted = [f'images/{row.cells[1]}' for row in images.values()]
    origins = [row.origin for row in images.values()]
    paths = locate(files, wanted, origins, source)
    records = []
    for (image_id, row), path in zip(images.items(), paths):
        label = cub_class(labels[image_id], row)
        part = 'train' if label <= 100 else 'test'
        box = cub_box(boxes[image_id])
        origin = f'{row.origin}, and {boxes[image_id].origin}'
        records.append(Record(part, label, path, box, origin))
    return index, records


def read_by_id(path, fields):
    """Return {id: Row} of a list whose first field is an id. Raises UserError."""
    rows = read_rows(path, fields)
    refuse_repeats('image', [(row.cells[0], row.origin) for row in rows])
    return {row.cells[0]: row for row in rows}


def cub_class(row, image):
    """Return the class of a Row (id, class); image: the Row (id, path) of its image.

    The path begins with the class. Raises UserError if they differ.
    """
    label = to_class(row.cells[1], range(1, 201), row.origin)
    path = image.cells[1]
    if not path.startswith(f'{label:03d}.'):
        raise UserError(
            f'{row.origin}: class {label}, but the path is {quote(path)} in '
            f'{image.origin}'
        )
    return label


def cub_box(row):
    """Return the box of a Row (id, x, y, width, height)."""
    x, y, width, height = to_corners(row.cells[1:], row.origin)
    box = (round(x), round(y), round(x + width), round(y + height))
    return check_box(box, row.origin)


def read_sop(root, files):
    """Return (layout, records) of Stanford Online Products.

    Class ids are global: 1-11318 train, 11319-22634 test.
    """
    records, tables, ids = [], [], []
    for part, classes in SOP_CLASSES.items():
        table = find_file(files, f'Ebay_{part}.txt')
        if table is None:
            raise UserError(
                f'{root}: Ebay_{part}.txt is missing; extract '
                'Stanford_Online_Products there'
            )
        source = f'{root}/{table}'
        header, *rows = read_rows(source, 4) or [Row(source, '1')]
        if header.cells[0].isdigit():
            raise UserError(f'{source}, line 1: the header is missing')
        origins = [row.origin for row in rows]
        paths = locate(files, [row.cells[3] for row in rows], origins, source)
        for row, path in zip(rows, paths):
            label = to_class(row.cells[1], classes, row.origin)
            records.append(Record(part, label, path, None, row.origin))
        ids += [(row.cells[0], row.origin) for row in rows]
        tables.append(table)
    refuse_repeats('image', ids)
    refuse_repeats('image', [(record.path, record.origin) for record in records])
    return ' and '.join(tables), records


def read_isc(root, files):
    """Return (layout, records) of In-shop Clothes: train, query and gallery.

    A class is an item's id, which is the folder of its images, too. Images need their
    whole path, since base names repeat.
    """
    table = find_file(files, 'list_eval_partition.txt')
    if table is None:
        raise UserError(
            f'{root}: no list_eval_partition.txt found; extract In-shop Clothes '
            'Retrieval there'
        )
    source = f'{root}/{table}'
    rows = isc_rows(source)
    for origin, (path, item, status) in rows:
        if status not in ('train', 'query', 'gallery'):
            raise UserError(
                f'{origin}: status {status!r} is none of train, query, gallery'
            )
        if item not in path.split('/'):
            raise UserError(f'{origin}: item {item}, but the image is {path}')
    # the folder img/ of the list is Img/img, img, img/img or img_highres on disk
    wanted = [row.cells[0].partition('/')[2] for row in rows]
    paths = locate(files, wanted, [row.origin for row in rows], source)
    records = []
    for (origin, (_, item, status)), path in zip(rows, paths):
        records.append(Record(status, item, path, None, origin))
    return table, records


def isc_rows(source):
    """Return the Rows (path, item, status) of list_eval_partition.txt.

    Its first line is their number, its second a header. Raises UserError if the lines
    are fewer or more.
    """
    lines = read_lines(source)
    count, header = next(lines, '').strip(), next(lines, '')
    if not count.isdigit():
        raise UserError(f'{source}, line 1: the number of images is missing')
    if '/' in header:
        raise UserError(f'{source}, line 2: the header is missing')
    rows = read_rows(source, 3, header=2)
    if len(rows) != int(count):
        raise UserError(
            f'{source}, line 1: {int(count):,} images, but {len(rows):,} lines name '
            'one: lines are missing or were added'
        )
    return rows


def read_folder(root, files, seed=0):
    """Return (layout, records) of any folder of class folders.

    Folders train and test (or train, query and gallery) at its top are its parts.
    Otherwise half of the classes, drawn from the seed, train and the others test.
    """
    images = [path for path in files if path.lower().endswith(IMAGE_SUFFIXES)]
    tops = {path.split('/')[0] for path in images if '/' in path}
    for parts in (('train', 'query', 'gallery'), ('train', 'test')):
        if tops.issuperset(parts):
            return ' + '.join(parts), part_records(images, parts)

    classes = sorted(tops)
    if len(classes) < 2:
        raise UserError(
            f'{root}: {len(classes)} folders with images; a folder per class is '
            'needed, at least two'
        )
    train = draw_training_classes(classes, seed)
    records = []
    for path in images:
        label, slash, _ = path.partition('/')
        if slash:
            records.append(Record('train' if label in train else 'test', label, path))
    return f'{len(classes)} class folders', records


def draw_training_classes(classes, seed):
    """Return the set of half of the classes, drawn from the seed."""
    classes = list(classes)
    random.Random(seed).shuffle(classes)
    return set(classes[: (len(classes) + 1) // 2])


def part_records(images, parts):
    """Return the records of the images that lie in <part>/<class>/."""
    records = []
    for path in images:
        components = path.split('/')
        if len(components) > 2 and components[0] in parts:
            records.append(Record(components[0], components[1], path))
    return records


KNOWN_DATASETS = {
    'car': KnownDataset(
        read=read_car,
        counts={'train': (8054, 98), 'test': (8131, 98)},
        mean=(0.4853, 0.4965, 0.4295),
        std=(0.2237, 0.2193, 0.2568),
        crop_types=('uncropped', 'cropped'),
        boxes_fit=True,
        folders=('cars196', 'car196', 'stanfordcars'),
    ),
    'cub': KnownDataset(
        read=read_cub,
        counts={'train': (5864, 100), 'test': (5924, 100)},
        mean=(0.4707, 0.4601, 0.4549),
        std=(0.2767, 0.2760, 0.2850),
        crop_types=('uncropped', 'cropped'),
        lookalikes={6033: 'CUB-200 of 2010, not CUB-200-2011'},
        folders=('cub2002011', 'cub200', 'cub2011'),
    ),
    'sop': KnownDataset(
        read=read_sop,
        counts={'train': (59551, 11318), 'test': (60502, 11316)},
        mean=(0.5807, 0.5396, 0.5044),
        std=(0.2901, 0.2974, 0.3095),
        folders=('stanfordonlineproducts', 'onlineproducts'),
    ),
    'isc': KnownDataset(
        read=read_isc,
        counts={
            'train': (25882, 3997),
            'query': (14218, 3985),
            'gallery': (12612, 3985),
        },
        mean=(0.8324, 0.8109, 0.8041),
        std=(0.2206, 0.2378, 0.2444),
        folders=('inshopclothesretrievalbenchmark', 'inshopclothes', 'inshop'),
    ),
}


def crop_types(name):
    """Return the crop types of a dataset: uncropped, and cropped if it has boxes."""
    return KNOWN_DATASETS[name].crop_types if name in KNOWN_DATASETS else ('uncropped',)


def has_boxes(name):
    """Whether a dataset comes with boxes to crop its images to."""
    return 'cropped' in crop_types(name)


WITH_BOXES = tuple(filter(has_boxes, KNOWN_DATASETS))  # names of datasets

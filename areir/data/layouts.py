"""The datasets that are known, in their official layouts, and any folder of classes.

To add a dataset, write a reader here and give it an entry in KNOWN_DATASETS.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from areir.data.cars import read_car
from areir.data.images import IMAGE_SUFFIXES
from areir.data.lists import (
    Record,
    locate,
    make_box,
    need_file,
    parse_rows,
    read_lines,
    read_rows,
    refuse_repeats,
    to_class,
    to_numbers,
)
from areir.errors import UserError


@dataclass(frozen=True)
class KnownDataset:
    """One public dataset: how to read it, and what is known about it."""

    read: Callable  # (root, files) -> (layout, records)
    counts: dict  # {part: (images, classes)} as published
    mean: tuple  # of the training pixels / 255, per channel
    std: tuple
    folders: tuple  # how its folder is called elsewhere, in letters and digits alone
    boxes_fit: bool = False  # whether all published boxes lie inside their images


def read_cub(root, files):
    """Return (layout, records) of CUB-200-2011: classes 1-100 train, 101-200 test."""
    index = need_file(root, files, 'images.txt', 'CUB_200_2011')
    source = f'{root}/{index}'
    folder = source.removesuffix('images.txt')
    images = read_by_id(source, 2, cub_path)
    labels = read_by_id(f'{folder}image_class_labels.txt', 2, cub_class)
    boxes = read_by_id(f'{folder}bounding_boxes.txt', 5, cub_box)
    rows = []
    for image_id, (origin, path) in images.items():
        for table, listed in (
            ('image_class_labels', labels),
            ('bounding_boxes', boxes),
        ):
            if image_id not in listed:
                raise UserError(f'{origin}: image {image_id} is not in {table}.txt')
        _, label = labels[image_id]
        box_origin, box = boxes[image_id]
        part = 'train' if label <= 100 else 'test'
        rows.append((f'{origin}, and {box_origin}', Record(part, label, path, box)))
    return index, locate(files, rows, source)


def read_by_id(path, fields, parse):
    """Return {id: (origin, parse(cells after the id))} of a list."""

    def parse_row(cells):
        return cells[0], parse(*cells[1:])

    rows = parse_rows(path, read_rows(path, fields), parse_row)
    refuse_repeats('image', [(origin, image_id) for origin, (image_id, _) in rows])
    return {image_id: (origin, value) for origin, (image_id, value) in rows}


def cub_path(path):
    return f'images/{path}'


def cub_class(label):
    return to_class(label, range(1, 201))


def cub_box(*cells):
    """Return the box of x, y, width, height; some reach beyond their image."""
    x, y, width, height = to_numbers(cells)
    return make_box(x, y, x + width, y + height)


def read_sop(root, files):
    """Return (layout, records) of Stanford Online Products."""
    # class ids are global
    train, train_records = sop_part(root, files, 'train', range(1, 11319))
    test, test_records = sop_part(root, files, 'test', range(11319, 22635))
    return f'{train} and {test}', train_records + test_records


def sop_part(root, files, part, classes):
    """Return (name of the list, records) of one part."""
    table = need_file(root, files, f'Ebay_{part}.txt', 'Stanford_Online_Products')
    source = f'{root}/{table}'

    def parse(cells):
        _, label, _, path = cells
        return Record(part, to_class(label, classes), path)

    rows = parse_rows(source, read_rows(source, 4, header=1), parse)
    return table, locate(files, rows, source)


def read_isc(root, files):
    """Return (layout, records) of In-shop Clothes: train, query and gallery.

    A class is an item's id. Images need their whole path, since base names repeat.
    """
    name = 'list_eval_partition.txt'
    table = need_file(root, files, name, 'In-shop Clothes Retrieval')
    source = f'{root}/{table}'

    def parse(cells):
        path, item, status = cells
        if status not in ('train', 'query', 'gallery'):
            raise ValueError(f'status {status!r} is none of train, query, gallery')
        # the folder img/ of the list is Img/img, img, img/img or img_highres on disk
        return Record(status, item, path.partition('/')[2])

    rows = parse_rows(source, read_rows(source, 3, header=2), parse)
    count = next(read_lines(source), '').strip()
    if count != str(len(rows)):
        raise UserError(
            f'{source}, line 1: {count!r:.99} images, but {len(rows)} lines name one: '
            'lines are missing or were added'
        )
    return table, locate(files, rows, source)


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
    if len(tops) < 2:
        raise UserError(
            f'{root}: {len(tops)} folders with images; a folder per class is needed, '
            'at least two'
        )
    records = [Record(None, path.split('/')[0], path) for path in images if '/' in path]
    return f'{len(tops)} class folders', draw_parts(records, seed)


def part_records(images, parts):
    """Return the records of the images that lie in <part>/<class>/."""
    records = []
    for path in images:
        part, *names = path.split('/')
        if part in parts and len(names) > 1:
            records.append(Record(part, names[0], path))
    return records


def draw_parts(records, seed):
    """Return records whose part is train for half of the classes, drawn from the seed.

    The others are test.
    """
    classes = sorted({record.label for record in records})
    random.Random(seed).shuffle(classes)
    train = set(classes[: (len(classes) + 1) // 2])
    return [
        record._replace(part='train' if record.label in train else 'test')
        for record in records
    ]


KNOWN_DATASETS = {
    'car': KnownDataset(
        read=read_car,
        counts={'train': (8054, 98), 'test': (8131, 98)},
        mean=(0.4853, 0.4965, 0.4295),
        std=(0.2237, 0.2193, 0.2568),
        boxes_fit=True,
        folders=('cars196', 'car196', 'stanfordcars'),
    ),
    'cub': KnownDataset(
        read=read_cub,
        counts={'train': (5864, 100), 'test': (5924, 100)},
        mean=(0.4707, 0.4601, 0.4549),
        std=(0.2767, 0.2760, 0.2850),
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

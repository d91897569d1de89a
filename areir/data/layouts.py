"""The datasets that are known, in their official layouts, and any folder of classes.

To add a dataset, write a reader here and give it an entry in LAYOUTS.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from areir.data.cars import read_car
from areir.data.images import IMAGE_SUFFIXES
from areir.data.records import Record, find_file, locate, read_rows
from areir.errors import UserError


@dataclass(frozen=True)
class Layout:
    """One public dataset: how to read it, and what is known about it."""

    read: Callable  # (root, files) -> (layout, records)
    counts: dict  # {split: (images, classes)} as published
    mean: tuple  # of the training pixels / 255, per channel
    std: tuple
    crop_types: tuple = ('uncropped',)
    # whether all published boxes lie inside their images
    boxes_fit: bool = False
    # {number of images: which dataset of the same layout has this number}
    lookalikes: dict = field(default_factory=dict)
    # how its folder is called elsewhere, in letters and digits alone
    folders: tuple = ()


def read_cub(root, files):
    """Return (layout, records) of CUB-200-2011: classes 1-100 train, 101-200 test.

    Boxes are x, y, width, height, 0-based; some reach beyond their image.
    """
    index = find_file(files, 'images.txt')
    if index is None:
        raise UserError(f'{root}: no images.txt found; extract CUB_200_2011 there')
    source = f'{root}/{index}'
    folder = source.removesuffix('images.txt')
    rows = read_rows(source, 2)
    labels = dict(read_rows(folder + 'image_class_labels.txt', 2))
    boxes = {}
    for image_id, *numbers in read_rows(folder + 'bounding_boxes.txt', 5):
        boxes[image_id] = [float(number) for number in numbers]
    for image_id, _ in rows:
        if image_id not in labels or image_id not in boxes:
            raise UserError(
                f'{source}: image {image_id} has no class or no bounding box'
            )

    paths = locate(files, [f'images/{path}' for _, path in rows], source)
    records = []
    for (image_id, _), path in zip(rows, paths):
        x, y, width, height = boxes[image_id]
        box = (round(x), round(y), round(x + width), round(y + height))
        label = int(labels[image_id])
        split = 'train' if label <= 100 else 'test'
        records.append(Record(split, label, path, box))
    return index, records


def read_sop(root, files):
    """Return (layout, records) of Stanford Online Products.

    Class ids are global: 1-11318 train, 11319-22634 test.
    """
    records = []
    for split in ('train', 'test'):
        table = find_file(files, f'Ebay_{split}.txt')
        if table is None:
            raise UserError(
                f'{root}: Ebay_{split}.txt is missing; extract '
                'Stanford_Online_Products there'
            )
        source = f'{root}/{table}'
        rows = read_rows(source, 4, header=1)
        paths = locate(files, [row[3] for row in rows], source)
        for row, path in zip(rows, paths):
            records.append(Record(split, int(row[1]), path))
    return table, records


def read_isc(root, files):
    """Return (layout, records) of In-shop Clothes: train, query and gallery.

    A class is an item's id. Images need their whole path, since base names repeat.
    """
    table = find_file(files, 'list_eval_partition.txt')
    if table is None:
        raise UserError(
            f'{root}: no list_eval_partition.txt found; extract In-shop Clothes '
            'Retrieval there'
        )
    source = f'{root}/{table}'
    rows = read_rows(source, 3, header=2)
    for _, _, status in rows:
        if status not in ('train', 'query', 'gallery'):
            raise UserError(
                f'{source}: status {status!r} is none of train, query, gallery'
            )
    # the folder img/ of the list is Img/img, img, img/img or img_highres on disk
    paths = locate(files, [path.partition('/')[2] for path, _, _ in rows], source)
    records = []
    for (_, item, status), path in zip(rows, paths):
        records.append(Record(status, item, path))
    return table, records


def read_folder(root, files, seed=0):
    """Return (layout, records) of any folder of class folders.

    Folders train and test (or train, query and gallery) at its top are its splits.
    Otherwise half of the classes, drawn from the seed, train and the others test.
    """
    images = [path for path in files if path.lower().endswith(IMAGE_SUFFIXES)]
    tops = {path.split('/')[0] for path in images if '/' in path}
    for splits in (('train', 'query', 'gallery'), ('train', 'test')):
        if tops.issuperset(splits):
            return ' + '.join(splits), split_records(images, splits)

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


def split_records(images, splits):
    """Return the records of the images that lie in <split>/<class>/."""
    records = []
    for path in images:
        components = path.split('/')
        if len(components) > 2 and components[0] in splits:
            records.append(Record(components[0], components[1], path))
    return records


LAYOUTS = {
    'car': Layout(
        read=read_car,
        counts={'train': (8054, 98), 'test': (8131, 98)},
        mean=(0.4853, 0.4965, 0.4295),
        std=(0.2237, 0.2193, 0.2568),
        crop_types=('uncropped', 'cropped'),
        boxes_fit=True,
        folders=('cars196', 'car196', 'stanfordcars'),
    ),
    'cub': Layout(
        read=read_cub,
        counts={'train': (5864, 100), 'test': (5924, 100)},
        mean=(0.4707, 0.4601, 0.4549),
        std=(0.2767, 0.2760, 0.2850),
        crop_types=('uncropped', 'cropped'),
        lookalikes={6033: 'CUB-200 of 2010, not CUB-200-2011'},
        folders=('cub2002011', 'cub200', 'cub2011'),
    ),
    'sop': Layout(
        read=read_sop,
        counts={'train': (59551, 11318), 'test': (60502, 11316)},
        mean=(0.5807, 0.5396, 0.5044),
        std=(0.2901, 0.2974, 0.3095),
        folders=('stanfordonlineproducts', 'onlineproducts'),
    ),
    'isc': Layout(
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
    return LAYOUTS[name].crop_types if name in LAYOUTS else ('uncropped',)


def has_boxes(name):
    """Whether a dataset comes with boxes to crop its images to."""
    return 'cropped' in crop_types(name)


# the datasets with boxes
CROP_TYPES = {name: crop_types(name) for name in LAYOUTS if has_boxes(name)}

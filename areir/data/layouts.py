"""The public datasets that are known, in their official layouts.

To add a dataset, write a reader here and give it an entry in KNOWN_DATASETS.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from areir.data import lists
from areir.data.lists import Record
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


# CARS196

CAR_CORNERS = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2')
CAR_CLASSES = range(1, 197)


def read_car(root, files):
    """Return (layout, records) of CARS196.

    It comes as one folder with cars_annos.mat, as two folders with a devkit, or as
    folders of class names with CSV files. Raises UserError if it is none of these.
    """
    need = partial(lists.need_file, root, files, dataset='CARS196')
    if not lists.find_file(files, 'cars_annos.mat'):
        if lists.find_file(files, 'cars_train_annos.mat'):
            # the two folders use the same file names for different images
            records = mat_records(
                files, need('cars_train_annos.mat'), 'cars_train/', 'fname'
            )
            # cars_test_annos.mat, which is beside it, has no classes
            test = need('cars_test_annos_withlabels.mat')
            return 'devkit', records + mat_records(files, test, 'cars_test/', 'fname')
        if lists.find_file(files, 'anno_train.csv'):
            tables = {part: need(f'anno_{part}.csv') for part in ('train', 'test')}
            records = csv_records(files, need('names.csv'), tables)
            return 'anno_train.csv and anno_test.csv', records
    annotations = need('cars_annos.mat')
    return 'cars_annos.mat', mat_records(files, annotations, '', 'relative_im_path')


def car_record(path, corners, label):
    """Return the Record of an image: classes 1-98 train, classes 99-196 test.

    corners: x1, y1, x2, y2, 1-based and inclusive.
    """
    label = lists.to_class(label, CAR_CLASSES)
    # as numbers: sorted as strings, "100" comes before "99"
    part = 'train' if label <= 98 else 'test'
    x1, y1, x2, y2 = lists.to_numbers(corners)
    return Record(part, label, path, lists.make_box(x1 - 1, y1 - 1, x2, y2))


def read_mat(path):
    """Return the annotations of a MATLAB file, each a dict of Python values.

    The cells of the file mix uint8 and uint16, whose arithmetic wraps around.
    """
    from scipy.io import loadmat  # takes half a second

    return list(loadmat(path, simplify_cells=True)['annotations'])


def mat_records(files, source, folder, key):
    """Return the records of the MATLAB file `source`.

    folder: what precedes the image names, which are in the field `key`. Fields are
    taken by name because their order differs between files.
    """
    try:
        # a damaged file can end the process that reads it
        with ProcessPoolExecutor(1) as pool:
            rows = pool.submit(read_mat, source).result()
    except Exception as error:  # scipy raises many kinds
        raise UserError(f'{source} is damaged: {error}') from error

    def parse(row):
        corners = [row[corner] for corner in CAR_CORNERS]
        return car_record(f'{folder}{row[key]}', corners, row['class'])

    numbered = [(f'row {number}', row) for number, row in enumerate(rows, 1)]
    return lists.read_records(files, source, numbered, parse)


def csv_records(files, names, tables):
    """Return the records of tables {part: path}, with rows file, x1, y1, x2, y2, class.

    names: the file with the name of each class.
    """
    lines = [line.strip().strip('"') for line in lists.read_lines(names)]
    # a folder has "-" where the name of its class has "/"
    folders = [line.replace('/', '-') for line in lines if line]
    if len(folders) != len(CAR_CLASSES):
        raise UserError(f'{names}: {len(folders)} classes, not {len(CAR_CLASSES)}')

    def parse(part, cells):
        name, *corners, label = cells
        folder = folders[lists.to_class(label, CAR_CLASSES) - 1]
        return car_record(f'{part}/{folder}/{name}', corners, label)

    records = []
    for part, table in tables.items():
        rows = lists.read_cells(table)
        records += lists.read_records(files, table, rows, partial(parse, part))
    return records


# CUB-200-2011, Stanford Online Products, In-shop Clothes


def read_cub(root, files):
    """Return (layout, records) of CUB-200-2011: classes 1-100 train, 101-200 test."""
    need = partial(lists.need_file, root, files, dataset='CUB_200_2011')

    def to_box(*cells):  # some reach beyond their image
        x, y, width, height = lists.to_numbers(cells)
        return lists.make_box(x, y, x + width, y + height)

    to_label = partial(lists.to_class, classes=range(1, 201))
    source = need('images.txt')
    labels = read_by_id(need('image_class_labels.txt'), 2, to_label)
    boxes = read_by_id(need('bounding_boxes.txt'), 5, to_box)
    images = read_by_id(source, 2, str)
    for table, known in (('image_class_labels', labels), ('bounding_boxes', boxes)):
        if absent := images.keys() - known.keys():
            raise UserError(f'{source}: image {min(absent)} is not in {table}.txt')

    def parse(cells):
        image_id, path = cells
        part = 'train' if labels[image_id] <= 100 else 'test'
        return Record(part, labels[image_id], f'images/{path}', boxes[image_id])

    rows = lists.read_rows(source, 2)
    return 'images.txt', lists.read_records(files, source, rows, parse)


def read_by_id(path, fields, parse):
    """Return {id: parse(cells after the id)} of a list."""
    rows = lists.read_rows(path, fields)
    rows = lists.parse_rows(path, rows, lambda cells: (cells[0], parse(*cells[1:])))
    lists.refuse_repeats([(origin, image_id) for origin, (image_id, _) in rows])
    return dict(row for _, row in rows)


def read_sop(root, files):
    """Return (layout, records) of Stanford Online Products."""
    # class ids are global
    classes = {'train': range(1, 11319), 'test': range(11319, 22635)}

    def parse(part, cells):
        _, label, _, path = cells
        return Record(part, lists.to_class(label, classes[part]), path)

    records = []
    for part in classes:
        name = f'Ebay_{part}.txt'
        source = lists.need_file(root, files, name, 'Stanford_Online_Products')
        rows = lists.read_rows(source, 4, header=1)
        records += lists.read_records(files, source, rows, partial(parse, part))
    return 'Ebay_train.txt and Ebay_test.txt', records


def read_isc(root, files):
    """Return (layout, records) of In-shop Clothes: train, query and gallery.

    A class is an item's id. Images need their whole path, since base names repeat.
    """
    name = 'list_eval_partition.txt'
    source = lists.need_file(root, files, name, 'In-shop Clothes Retrieval')

    def parse(cells):
        path, item, status = cells
        if status not in ('train', 'query', 'gallery'):
            raise ValueError(f'status {status!r} is none of train, query, gallery')
        # the folder img/ of the list is Img/img, img, img/img or img_highres on disk
        return Record(status, item, path.partition('/')[2])

    rows = list(lists.read_rows(source, 3, header=2))
    count = next(lists.read_lines(source), '').strip()
    if count != str(len(rows)):
        raise UserError(
            f'{source}, line 1: {count!r:.99} images, but {len(rows)} lines name one: '
            'lines are missing or were added'
        )
    return name, lists.read_records(files, source, rows, parse)


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

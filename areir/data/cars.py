"""Read CARS196 in any of the three forms in which it is distributed."""

from concurrent.futures import BrokenExecutor

import numpy as np

from areir.data.records import (
    Record,
    check_box,
    find_file,
    locate,
    to_class,
    to_corners,
)
from areir.data.text_files import read_cells, read_lines, refuse_repeats
from areir.data.workers import start_pool
from areir.errors import UserError

WITH_LABELS = 'cars_test_annos_withlabels.mat'
CORNERS = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2')
CLASSES = range(1, 197)


def read_car(root, files):
    """Return (layout, records) of CARS196.

    It comes as one folder with cars_annos.mat, as two folders with a devkit, or as
    folders of class names with CSV files. Raises UserError if it is none of these.
    """
    annotations = find_file(files, 'cars_annos.mat')
    if annotations:
        records = mat_records(root, files, annotations, '', 'relative_im_path')
        return annotations, records
    train = find_file(files, 'cars_train_annos.mat')
    if train:
        return 'devkit', devkit_records(root, files, train)
    if find_file(files, 'anno_train.csv'):
        return 'anno_train.csv and anno_test.csv', csv_records(root, files)
    raise UserError(
        f'{root}: no cars_annos.mat, devkit or anno_train.csv found; extract '
        'CARS196 there'
    )


def car_records(labels, paths, boxes, origins):
    """Return the records of one table: classes 1-98 train, classes 99-196 test.

    boxes: x1, y1, x2, y2, 1-based and inclusive; origins: the file and the row.
    """
    records = []
    for label, path, corners, origin in zip(labels, paths, boxes, origins):
        label = to_class(label, CLASSES, origin)
        # as numbers: sorted as strings, "100" comes before "99"
        part = 'train' if label <= 98 else 'test'
        box = car_box(corners, origin)
        records.append(Record(part, label, path, box, origin))
    return records


def car_box(corners, origin):
    """Return the box of 1-based, inclusive corners."""
    numbers = to_corners(corners, origin)
    if not all(number.is_integer() for number in numbers):
        raise UserError(f'{origin}: box {numbers}: four whole numbers expected')
    x1, y1, x2, y2 = map(int, numbers)
    return check_box((x1 - 1, y1 - 1, x2, y2), origin)


def read_mat(path):
    """Return what `parse_mat` does, called in a process of its own.

    A damaged file can end a process that reads it by scipy. Raises UserError then.
    """
    with start_pool(1) as pool:
        try:
            return pool.submit(parse_mat, path).result()
        except BrokenExecutor as error:
            raise UserError(f'{path} is damaged: it cannot be read') from error


def parse_mat(path):
    """Return the struct array `annotations` of a MATLAB file as {field: values}.

    Columns are taken by name because their order differs between files. Values become
    Python integers and strings because the cells mix uint8 and uint16, whose
    arithmetic wraps around.
    """
    from scipy.io import loadmat  # takes half a second

    try:
        table = loadmat(path)['annotations'].ravel()
    except Exception as error:  # scipy raises many kinds
        raise UserError(f'{path} is not a readable annotation file: {error}') from error
    if not table.dtype.names:
        raise UserError(f'{path}: annotations is not a struct array')
    columns = {name: [] for name in table.dtype.names}
    for number, row in enumerate(table, 1):
        for name, values in columns.items():
            cell = np.asarray(row[name])
            if cell.size != 1:
                raise UserError(f'{path}, row {number}: {name} is not one value')
            values.append(cell.item())
    return columns


def mat_records(root, files, annotations, folder, key):
    """Return the records of one MATLAB file.

    folder: what precedes the image names, which are in the column `key`.
    """
    source = f'{root}/{annotations}'
    columns = read_mat(source)
    if 'class' not in columns:
        raise UserError(f'{source} has no labels; {WITH_LABELS} is needed')
    for name in (key, *CORNERS):
        if name not in columns:
            raise UserError(f'{source}: annotations has no field {name}')
    names = columns[key]
    origins = [f'{source}, row {number}' for number in range(1, len(names) + 1)]
    for name, origin in zip(names, origins):
        if not isinstance(name, str):
            raise UserError(f'{origin}: {key} {name!r} is not a name')
    paths = locate(files, [folder + name for name in names], origins, source)
    boxes = zip(*(columns[corner] for corner in CORNERS))
    return car_records(columns['class'], paths, boxes, origins)


def devkit_records(root, files, train):
    """Return the records of the folders cars_train and cars_test.

    The two folders use the same file names for different images.
    """
    test = find_file(files, WITH_LABELS, 'cars_test_annos.mat')
    if test is None:
        raise UserError(f'{root}: {WITH_LABELS} is missing beside {train}')
    return [
        *mat_records(root, files, train, 'cars_train/', 'fname'),
        *mat_records(root, files, test, 'cars_test/', 'fname'),
    ]


def csv_records(root, files):
    """Return the records of anno_train.csv and anno_test.csv.

    Their rows are file, x1, y1, x2, y2, class; names.csv has the folder of each class.
    """
    tables = {}
    for name in ('anno_train.csv', 'anno_test.csv', 'names.csv'):
        path = find_file(files, name)
        if path is None:
            raise UserError(f'{root}: {name} is missing beside anno_train.csv')
        tables[name] = f'{root}/{path}'

    folders = read_class_folders(tables['names.csv'])
    records = []
    for part in ('train', 'test'):
        records += csv_part_records(files, tables[f'anno_{part}.csv'], part, folders)
    return records


def csv_part_records(files, source, part, folders):
    """Return the records of anno_<part>.csv; folders: see `read_class_folders`."""
    labels, wanted, boxes, origins = [], [], [], []
    for origin, cells in read_cells(source):
        if len(cells) != 6:
            raise UserError(f'{origin}: 6 cells expected, not {len(cells)}')
        name, *corners, label = cells
        labels.append(to_class(label, CLASSES, origin))
        folder, line = folders[labels[-1] - 1]
        wanted.append(f'{part}/{folder}/{name}')
        boxes.append(corners)
        origins.append(f'{origin}, and {line}')
    paths = locate(files, wanted, origins, source)
    return car_records(labels, paths, boxes, origins)


def read_class_folders(path):
    """Return (folder, file and line) of each class of names.csv."""
    names = [line.strip().strip('"') for line in read_lines(path)]
    # a folder has "-" where the name of the class has "/"
    folders = [
        (name.replace('/', '-'), f'{path}, line {number}')
        for number, name in enumerate(names, 1)
        if name
    ]
    refuse_repeats('class', folders)
    if len(folders) != len(CLASSES):
        raise UserError(f'{path}: {len(folders)} classes, not {len(CLASSES)}')
    return folders

"""Read CARS196 in any of the three forms in which it is distributed."""

import csv
from concurrent.futures import BrokenExecutor

import numpy as np

from areir.data.records import Record, find_file, locate
from areir.data.workers import start_pool
from areir.errors import UserError

WITH_LABELS = 'cars_test_annos_withlabels.mat'
CORNERS = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2')


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
        return 'anno_train.csv', csv_records(root, files)
    raise UserError(
        f'{root}: no cars_annos.mat, devkit or anno_train.csv found; extract '
        'CARS196 there'
    )


def car_records(labels, paths, boxes):
    """Return the records of one table: classes 1-98 train, classes 99-196 test.

    boxes: x1, y1, x2, y2, 1-based and inclusive.
    """
    records = []
    for label, path, corners in zip(labels, paths, boxes):
        x1, y1, x2, y2 = map(int, corners)
        # as numbers: sorted as strings, "100" comes before "99"
        split = 'train' if int(label) <= 98 else 'test'
        records.append(Record(split, int(label), path, (x1 - 1, y1 - 1, x2, y2)))
    return records


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
    columns = {}
    try:
        for name in table.dtype.names:
            columns[name] = [np.asarray(cell).item() for cell in table[name]]
    except ValueError as error:  # a cell of several values
        raise UserError(f'{path}: {name} is not one value per image') from error
    return columns


def mat_records(root, files, annotations, folder, key):
    """Return the records of one MATLAB file.

    folder: what precedes the image names, which are in the column `key`.
    """
    source = f'{root}/{annotations}'
    columns = read_mat(source)
    if 'class' not in columns:
        raise UserError(f'{source} has no labels; {WITH_LABELS} is needed')
    paths = locate(files, [folder + name for name in columns[key]], source)
    boxes = zip(*(columns[corner] for corner in CORNERS))
    return car_records(columns['class'], paths, boxes)


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

    # a folder has "-" where the name of the class has "/"
    with open(tables['names.csv'], encoding='utf-8-sig') as file:
        lines = [line.strip().strip('"') for line in file if line.strip()]
    folders = [line.replace('/', '-') for line in lines]
    records = []
    for part in ('train', 'test'):
        source = tables[f'anno_{part}.csv']
        with open(source, newline='', encoding='utf-8-sig') as file:
            rows = [row for row in csv.reader(file) if row]
        labels = [row[5] for row in rows]
        wanted = [f'{part}/{folders[int(row[5]) - 1]}/{row[0]}' for row in rows]
        paths = locate(files, wanted, source)
        records += car_records(labels, paths, [row[1:5] for row in rows])
    return records

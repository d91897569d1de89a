"""Read CARS196 in any of the three forms in which it is distributed."""

from areir.data.lists import (
    Record,
    find_file,
    locate,
    make_box,
    need_file,
    parse_rows,
    read_cells,
    read_lines,
    to_class,
    to_numbers,
)
from areir.errors import UserError

CORNERS = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2')
CLASSES = range(1, 197)


def read_car(root, files):
    """Return (layout, records) of CARS196.

    It comes as one folder with cars_annos.mat, as two folders with a devkit, or as
    folders of class names with CSV files. Raises UserError if it is none of these.
    """
    if not find_file(files, 'cars_annos.mat'):
        if find_file(files, 'cars_train_annos.mat'):
            return 'devkit', devkit_records(root, files)
        if find_file(files, 'anno_train.csv'):
            return 'anno_train.csv and anno_test.csv', csv_records(root, files)
    annotations = need_file(root, files, 'cars_annos.mat', 'CARS196')
    return annotations, mat_records(root, files, annotations, '', 'relative_im_path')


def car_record(path, corners, label):
    """Return the Record of an image: classes 1-98 train, classes 99-196 test.

    corners: x1, y1, x2, y2, 1-based and inclusive.
    """
    label = to_class(label, CLASSES)
    # as numbers: sorted as strings, "100" comes before "99"
    part = 'train' if label <= 98 else 'test'
    x1, y1, x2, y2 = to_numbers(corners)
    return Record(part, label, path, make_box(x1 - 1, y1 - 1, x2, y2))


# MATLAB files


def read_mat(path):
    """Return the struct array `annotations` of a MATLAB file, a dict for each row.

    Values are Python integers and strings: the file's own cells mix uint8 and uint16,
    whose arithmetic wraps around.
    """
    from scipy.io import loadmat  # takes half a second

    try:
        rows = loadmat(path, simplify_cells=True)['annotations']
        rows = [rows] if isinstance(rows, dict) else list(rows)
        return [dict(row) for row in rows]
    except Exception as error:  # scipy raises many kinds
        raise UserError(f'{path} is not a readable annotation file: {error}') from error


def mat_records(root, files, annotations, folder, key):
    """Return the records of one MATLAB file.

    folder: what precedes the image names, which are in the field `key`. Fields are
    taken by name because their order differs between files.
    """
    source = f'{root}/{annotations}'
    rows = read_mat(source)
    for name in (key, *CORNERS, 'class'):
        if not all(name in row for row in rows):
            raise UserError(f'{source}: annotations has no field {name}')

    def parse(row):
        corners = [row[corner] for corner in CORNERS]
        return car_record(f'{folder}{row[key]}', corners, row['class'])

    numbered = [(f'row {number}', row) for number, row in enumerate(rows, 1)]
    return locate(files, parse_rows(source, numbered, parse), source)


def devkit_records(root, files):
    """Return the records of the folders cars_train and cars_test.

    The two folders use the same file names for different images.
    """
    train = need_file(root, files, 'cars_train_annos.mat', 'CARS196')
    # cars_test_annos.mat, which comes with the devkit, has no classes
    test = need_file(root, files, 'cars_test_annos_withlabels.mat', 'the devkit')
    return [
        *mat_records(root, files, train, 'cars_train/', 'fname'),
        *mat_records(root, files, test, 'cars_test/', 'fname'),
    ]


# CSV files


def csv_records(root, files):
    """Return the records of anno_train.csv and anno_test.csv.

    Their rows are file, x1, y1, x2, y2, class; names.csv has the folder of each class.
    """
    names = f'{root}/{need_file(root, files, "names.csv", "CARS196")}'
    # a folder has "-" where the name of the class has "/"
    folders = [
        line.strip().strip('"').replace('/', '-')
        for line in read_lines(names)
        if line.strip()
    ]
    if len(folders) != len(CLASSES):
        raise UserError(f'{names}: {len(folders)} classes, not {len(CLASSES)}')
    records = []
    for part in ('train', 'test'):
        table = need_file(root, files, f'anno_{part}.csv', 'CARS196')
        records += csv_part_records(files, f'{root}/{table}', part, folders)
    return records


def csv_part_records(files, source, part, folders):
    """Return the records of anno_<part>.csv; folders: that of each class."""

    def parse(cells):
        if len(cells) != 6:
            raise ValueError(f'6 cells expected, not {len(cells)}')
        name, *corners, label = cells
        folder = folders[to_class(label, CLASSES) - 1]
        return car_record(f'{part}/{folder}/{name}', corners, label)

    return locate(files, parse_rows(source, read_cells(source), parse), source)

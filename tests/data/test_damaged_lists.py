"""Damaged lists and tables of a dataset: one line names the file and the line in it."""

import pytest
from official import (
    CARS,
    CORNERS,
    write_car_csv,
    write_car_folder,
    write_cub,
    write_isc,
    write_lines,
    write_mat,
    write_sop,
)

from areir.data.source import read_source
from areir.errors import UserError
from data_utils import prepare

WRITE = {'cub': write_cub, 'sop': write_sop, 'isc': write_isc}
LISTS = {
    'cub': ('images.txt', 'image_class_labels.txt', 'bounding_boxes.txt'),
    'sop': ('Ebay_train.txt', 'Ebay_test.txt'),
    'isc': ('Eval/list_eval_partition.txt',),
    'car': ('anno_train.csv', 'anno_test.csv', 'names.csv'),
}
EVERY_LIST = [(name, file) for name, files in LISTS.items() for file in files]


def write(root, name):
    """Write a dataset below root; CARS196 with its CSV files."""
    if name == 'car':
        write_car_csv(root)
    else:
        WRITE[name](root / name)


def refusal(root, name):
    """Return the one line that refuses to read a dataset."""
    with pytest.raises(UserError) as refused:
        read_source(str(root), name)
    line = str(refused.value)
    assert '\n' not in line and len(line) < 1000
    return line


def edit(path, number, line):
    """Replace a line of a file, counted from 1; None removes it."""
    lines = path.read_text().splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    write_lines(path, lines)


@pytest.mark.parametrize(('name', 'file'), EVERY_LIST)
def test_a_list_that_is_not_utf_8(tmp_path, name, file):
    write(tmp_path, name)
    path = tmp_path / name / file
    text = path.read_text()
    path.write_bytes(text.encode('utf-16'))
    assert f'{path}, line 1: not text in UTF-8' in refusal(tmp_path, name)
    first, second, rest = text.encode().split(b'\n', 2)
    path.write_bytes(b'\n'.join([first, second + b'\xe9', rest]))
    assert f'{path}, line 2: not text in UTF-8' in refusal(tmp_path, name)


@pytest.mark.parametrize(('name', 'file'), EVERY_LIST)
def test_an_empty_list(tmp_path, name, file):
    write(tmp_path, name)
    (tmp_path / name / file).write_text('')
    assert file in refusal(tmp_path, name)


# dataset, list, line, what it becomes, what the message says
ISC = 'Eval/list_eval_partition.txt'
LINES = [
    ('cub', 'images.txt', 2, '1 a.jpg', "line 2: image '1' is in .*line 1, too"),
    ('cub', 'images.txt', 2, '2', 'line 2: 2 fields expected'),
    ('cub', 'image_class_labels.txt', 2, None, 'images.txt, line 2: image 2 is not in'),
    ('cub', 'image_class_labels.txt', 2, '2 220', "line 2: class '220'"),
    ('cub', 'image_class_labels.txt', 2, '2 abc', "line 2: class 'abc'"),
    ('cub', 'bounding_boxes.txt', 2, None, 'images.txt, line 2: image 2 is not in'),
    ('cub', 'bounding_boxes.txt', 2, '2 0 0 nan 9', 'line 2: box '),
    ('cub', 'bounding_boxes.txt', 2, '2 0 0 -9 9', 'line 2: box '),
    ('sop', 'Ebay_train.txt', 3, '2 11319 1 a.JPG', "line 3: class '11319'"),
    ('sop', 'Ebay_train.txt', 3, '2 1', 'line 3: 4 fields expected'),
    (
        'sop',
        'Ebay_train.txt',
        3,
        '2 1 1 bicycle_final/111085122871_0.JPG',
        "line 3: image 'bicycle_final/111085122871_0.JPG' is in .*line 2, too",
    ),
    ('isc', ISC, 4, None, "line 1: '5' images, but 4 lines"),
    ('isc', ISC, 1, None, 'line 1: '),
    ('isc', ISC, 4, 'img/x/id_2/1.jpg id_2 val', "line 4: status 'val'"),
    ('car', 'anno_train.csv', 1, '00001.jpg,3,2,12,9,abc', "line 1: class 'abc'"),
    ('car', 'anno_train.csv', 1, '00001.jpg,3,2,12,9,0', "line 1: class '0'"),
    ('car', 'anno_train.csv', 1, '00001.jpg,3,2,1,9,1', 'line 1: box '),
    ('car', 'anno_train.csv', 1, '00001.jpg,3,2', 'line 1: 6 cells expected'),
    ('car', 'anno_train.csv', 1, '"00001.jpg,3,2,9,9,1', 'line 1: no row of a CSV'),
    ('car', 'names.csv', 7, None, '195 classes, not 196'),
]


@pytest.mark.parametrize(('name', 'file', 'number', 'line', 'expected'), LINES)
def test_a_damaged_line_is_named(tmp_path, name, file, number, line, expected):
    write(tmp_path, name)
    edit(tmp_path / name / file, number, line)
    with pytest.raises(UserError, match=expected):
        read_source(str(tmp_path), name)


@pytest.mark.parametrize(
    ('name', 'file', 'number', 'image'),
    [
        ('sop', 'Ebay_train.txt', 4, 'toaster_final/111085122871_0.JPG'),
        ('car', 'anno_test.csv', 2, 'Car 99/00003.jpg'),
    ],
)
def test_an_image_that_its_list_lacks_is_named(
    tmp_path, capsys, name, file, number, image
):
    write(tmp_path, name)
    prepare(str(tmp_path), name)
    assert 'left out' not in capsys.readouterr().out
    edit(tmp_path / name / file, number, None)
    prepare(str(tmp_path), name)
    lines = capsys.readouterr().out.splitlines()
    (notice,) = [line for line in lines if 'left out 1 images' in line]
    assert file in notice and notice.endswith(image)


# MATLAB files


def write_annotations(root, rows, fields=('relative_im_path', *CORNERS, 'class')):
    """Write CARS196 as one folder, with these rows: file, corners, class."""
    write_car_folder(root)
    rows = [(f'car_ims/{name}', *box, label) for name, box, label in rows]
    write_mat(root / 'car/cars_annos.mat', list(fields), rows)


@pytest.mark.parametrize(
    ('row', 'expected'),
    [
        (('000002.jpg', (1, 1, 24, 18), 197), 'row 2: class 197'),
        (('000002.jpg', (9, 1, 7, 18), 5), 'row 2: box '),
        (('000002.jpg', (1, 1, 24, 'x'), 5), 'row 2: '),
        (('000001.jpg', (1, 1, 24, 18), 5), "row 2: image 'car_ims/000001.jpg'"),
    ],
)
def test_a_damaged_row_of_a_mat_file_is_named(tmp_path, row, expected):
    write_annotations(tmp_path, [CARS[0], row, *CARS[2:]])
    assert expected in refusal(tmp_path, 'car')


@pytest.mark.parametrize('field', ['relative_im_path', 'bbox_y2', 'class'])
def test_a_mat_file_without_a_field_is_named(tmp_path, field):
    fields = ['relative_im_path', *CORNERS, 'class']
    write_annotations(tmp_path, CARS, [name.replace(field, 'x') for name in fields])
    assert f'cars_annos.mat: annotations has no field {field}' in refusal(
        tmp_path, 'car'
    )


def test_a_mat_file_that_is_cut_short_is_named(tmp_path):
    write_car_folder(tmp_path)
    path = tmp_path / 'car/cars_annos.mat'
    content = path.read_bytes()
    for size in range(0, len(content), 50):
        path.write_bytes(content[:size])
        assert 'cars_annos.mat' in refusal(tmp_path, 'car')

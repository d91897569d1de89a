"""Damaged lists and tables of a dataset: one line names the file and the line in it."""

import os

import numpy as np
import pytest
from official import (
    CARS,
    CORNERS,
    CUBS,
    image_size,
    write_car_csv,
    write_car_folder,
    write_classes,
    write_cub,
    write_isc,
    write_lines,
    write_mat,
    write_sop,
)
from test_tables import BOXED, HEADER, ROWS, write_table

from areir.data.source import read_source
from areir.data.splits import load_split
from areir.data.tables import read_table
from areir.errors import UserError
from areir.evaluation.ranked_file import rank_file
from data_utils import prepare

WRITE = {
    'cub': lambda root: write_cub(root / 'cub'),
    'sop': lambda root: write_sop(root / 'sop'),
    'isc': lambda root: write_isc(root / 'isc', table=''),
    'car': write_car_csv,
}
LISTS = {
    'cub': ('images.txt', 'image_class_labels.txt', 'bounding_boxes.txt'),
    'sop': ('Ebay_train.txt', 'Ebay_test.txt'),
    'isc': ('list_eval_partition.txt',),
    'car': ('anno_train.csv', 'anno_test.csv', 'names.csv'),
}
EVERY_LIST = [(name, file) for name, files in LISTS.items() for file in files]


def refusal(root, name):
    """Return the one line that refuses a dataset."""
    with pytest.raises(UserError) as refused:
        prepare(str(root), name, image_size=8)
    line = str(refused.value)
    assert '\n' not in line and len(line) < 1000
    return line


def edit(path, number, change):
    """Replace a line of a file, counted from 1, by change(line); None removes it."""
    lines = path.read_text().splitlines()
    line = change(lines.pop(number - 1))
    if line is not None:
        lines[number - 1 : number - 1] = line.split('\n')
    write_lines(path, lines)


# Files that are no text, or empty


@pytest.mark.parametrize(('name', 'file'), EVERY_LIST)
@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-le'])
def test_a_list_in_utf_16(tmp_path, name, file, encoding):
    WRITE[name](tmp_path)
    path = tmp_path / name / file
    path.write_bytes(path.read_text().encode(encoding))
    assert f'{path}, line 1: not text in UTF-8' in refusal(tmp_path, name)


@pytest.mark.parametrize(('name', 'file'), EVERY_LIST)
@pytest.mark.parametrize('byte', [b'\xe9', b'\0'])
def test_a_line_in_latin_1_or_with_nul(tmp_path, name, file, byte):
    WRITE[name](tmp_path)
    path = tmp_path / name / file
    first, second, rest = path.read_bytes().split(b'\n', 2)
    path.write_bytes(b'\n'.join([first, second + byte, rest]))
    assert f'{path}, line 2: not text in UTF-8' in refusal(tmp_path, name)


@pytest.mark.parametrize(('name', 'file'), EVERY_LIST)
@pytest.mark.parametrize('content', ['', '\n\n'])
def test_an_empty_list(tmp_path, name, file, content):
    WRITE[name](tmp_path)
    (tmp_path / name / file).write_text(content)
    assert file in refusal(tmp_path, name)


# Single lines

BIRD = CUBS[1][1]
LINES = [
    ('cub', 'images.txt', 2, f'1 {BIRD}', "line 2: image '1' is in line 1, too"),
    ('cub', 'images.txt', 2, f'2 {CUBS[0][1]}', f"line 2: image 'images/{CUBS[0][1]}'"),
    (
        'cub',
        'images.txt',
        2,
        '2 ../../x.jpg',
        "line 2: 'images/../../x.jpg' is no path",
    ),
    ('cub', 'images.txt', 2, f'2 {BIRD}\n9 {BIRD}', "image '9' is not in image_class"),
    ('cub', 'images.txt', 2, f'2 {BIRD[:-3]}', 'images.txt, line 2, and '),
    (
        'cub',
        'image_class_labels.txt',
        2,
        None,
        "images.txt, line 2: image '2' is not in",
    ),
    (
        'cub',
        'image_class_labels.txt',
        2,
        '2 abc',
        "line 2: class 'abc' is not a number",
    ),
    (
        'cub',
        'image_class_labels.txt',
        2,
        '2 220',
        "line 2: class '220' is not a number",
    ),
    ('cub', 'image_class_labels.txt', 2, '2 99', 'line 2: class 99, but the path is'),
    ('cub', 'image_class_labels.txt', 2, '2', 'line 2: 2 fields expected'),
    ('cub', 'bounding_boxes.txt', 2, '2 0 0 inf 9', 'line 2: box '),
    ('cub', 'bounding_boxes.txt', 2, '2 nan 0 9 9', 'line 2: box '),
    ('cub', 'bounding_boxes.txt', 2, '2 0 0 -9 9', 'line 2: box '),
    ('cub', 'bounding_boxes.txt', 2, '2 30 0 9 9', 'bounding_boxes.txt, line 2)'),
    ('sop', 'Ebay_train.txt', 1, None, 'line 1: the header is missing'),
    ('sop', 'Ebay_train.txt', 3, '2 11319 1 a.JPG', 'line 3: '),
    ('sop', 'Ebay_test.txt', 2, '1 11319 1 lamp_final/271802113987_2.JPG', "image '1'"),
    ('sop', 'Ebay_test.txt', 2, f'1 1 1 {"x" * 9999}', 'line 2: '),
    ('isc', 'list_eval_partition.txt', 4, None, 'line 1: 5 images, but 4 lines'),
    ('isc', 'list_eval_partition.txt', 1, None, 'line 1: the number of images'),
    ('isc', 'list_eval_partition.txt', 2, None, 'line 2: the header'),
    (
        'isc',
        'list_eval_partition.txt',
        4,
        'img/x/id_2/1.jpg id_3 train',
        'line 4: item',
    ),
    ('car', 'anno_train.csv', 1, '00001.jpg,3,2,12,9,abc', "line 1: class 'abc'"),
    ('car', 'anno_train.csv', 1, '00001.jpg,3,2,12,9,0', "line 1: class '0'"),
    ('car', 'anno_train.csv', 1, '00001.jpg,3,2,1.5,9,1', 'line 1: box '),
    ('car', 'anno_train.csv', 1, '00001.jpg,3,2,1,9,1', 'line 1: box '),
    ('car', 'anno_train.csv', 1, '/etc/x.jpg,3,2,9,9,1', 'line 1: '),
    ('car', 'anno_train.csv', 1, '"00001.jpg,3,2,9,9,1', 'line 1: not a row of a CSV'),
    ('car', 'anno_train.csv', 1, 'x' * 200_000, 'line 1: not a row of a CSV'),
    ('car', 'names.csv', 7, None, '195 classes, not 196'),
    ('car', 'names.csv', 7, 'Car 8', "line 8: class 'Car 8' is in line 7, too"),
    ('car', 'names.csv', 189, 'Ram', 'names.csv, line 189)'),
]


@pytest.mark.parametrize(('name', 'file', 'number', 'line', 'expected'), LINES)
def test_a_damaged_line_is_named(tmp_path, name, file, number, line, expected):
    WRITE[name](tmp_path)
    edit(tmp_path / name / file, number, lambda _: line)
    refused = refusal(tmp_path, name)
    assert expected in refused and f'{tmp_path / name}{os.sep}' in refused


@pytest.mark.parametrize(
    ('name', 'file', 'number', 'image'),
    [
        ('cub', 'images.txt', 2, BIRD),
        ('sop', 'Ebay_train.txt', 4, 'toaster_final/111085122871_0.JPG'),
        ('car', 'anno_test.csv', 2, 'Car 99/00003.jpg'),
    ],
)
def test_an_image_that_its_list_lacks_is_named(
    tmp_path, capsys, name, file, number, image
):
    WRITE[name](tmp_path)
    prepare(str(tmp_path), name)
    assert 'left out' not in capsys.readouterr().out
    edit(tmp_path / name / file, number, lambda _: None)
    prepare(str(tmp_path), name)
    (notice,) = [
        line for line in capsys.readouterr().out.splitlines() if 'not in' in line
    ]
    assert 'left out 1 images' in notice and file in notice
    assert notice.endswith(image)


# MATLAB files


@pytest.mark.parametrize(
    ('row', 'expected'),
    [
        (('000002.jpg', (1, 1, 24, 18), 197), 'row 2: class 197'),
        (('000002.jpg', (1, 1, 24, 18), 'abc'), "row 2: class 'abc'"),
        (('000002.jpg', (9, 1, 7, 18), 5), 'row 2: box '),
        (('000002.jpg', (1, 1, 24, 'x'), 5), 'row 2: box '),
        (('000001.jpg', (1, 1, 24, 18), 5), "row 2: image 'car_ims/000001.jpg'"),
        (('../000002.jpg', (1, 1, 24, 18), 5), 'row 2: '),
        (('000007.jpg', (1, 1, 24, 18), 5), 'cars_annos.mat, row 2)'),
        (('000002.jpg', (25, 1, 30, 9), 5), 'cars_annos.mat, row 2)'),
    ],
)
def test_a_damaged_row_of_a_mat_file_is_named(tmp_path, row, expected):
    write_car_folder(tmp_path)
    rows = [
        (f'car_ims/{name}', *box, label)
        for name, box, label in [CARS[0], row, *CARS[2:]]
    ]
    fields = ['relative_im_path', *CORNERS, 'class']
    write_mat(tmp_path / 'car/cars_annos.mat', fields, rows)
    assert expected in refusal(tmp_path, 'car')


@pytest.mark.parametrize('field', ['relative_im_path', 'bbox_y2'])
def test_a_mat_file_without_a_field_is_named(tmp_path, field):
    write_car_folder(tmp_path)
    fields = ['relative_im_path', *CORNERS, 'class']
    fields = [name.replace(field, 'other') for name in fields]
    rows = [(f'car_ims/{name}', *box, label) for name, box, label in CARS]
    write_mat(tmp_path / 'car/cars_annos.mat', fields, rows)
    assert f'cars_annos.mat: annotations has no field {field}' in refusal(
        tmp_path, 'car'
    )


# CSV files


def test_an_image_that_a_csv_names_twice(tmp_path):
    path = write_table(tmp_path, [*ROWS, '7,./a/1.png,train,,,x'])
    with pytest.raises(UserError, match=r"line 10: image 'a/1.png' is in line 2, too"):
        read_table(path)


def test_a_csv_that_has_a_column_twice(tmp_path):
    path = write_table(tmp_path, ROWS, HEADER.replace('category', 'label'))
    with pytest.raises(UserError, match=r'df\.csv, line 1: two columns label'):
        read_table(path)


def test_a_row_of_an_image_with_odd_roles_is_named(tmp_path):
    rows = [*ROWS[:6], ROWS[6].replace('True,True', 'True,False'), ROWS[7]]
    with pytest.raises(UserError, match=r'df\.csv, line 8: is_query'):
        read_table(write_table(tmp_path, rows))


def test_a_csv_without_splits_says_what_trains(tmp_path, capsys):
    path = write_table(tmp_path, ['a.png,1', 'b.png,2'], 'path,label')
    read_table(path)
    assert f'notice: {path}: no column split' in capsys.readouterr().out


def test_boxes_beyond_the_image_are_cut_with_a_notice(tmp_path, capsys):
    rows = [f'{name}.png,{name},train,2,9,3,14' for name in 'abcd']
    rows += ['e.png,e,validation,-4,20,0,10', 'f.png,f,validation,1,1e308,2,9']
    table = write_table(tmp_path / 'photos', rows, BOXED)
    prepare(str(tmp_path / 'data'), 'shop', table=table)
    printed = capsys.readouterr().out
    assert 'notice: shop: 2 boxes reach beyond' in printed
    assert f'e.png ({table}, line 6)' in printed
    images = load_split(str(tmp_path / 'data'), 'shop', 'cropped').query.images
    sizes = [image_size(tmp_path / 'data/shop' / image) for image in images]
    assert sizes == [(20, 10), (23, 7)]


def test_a_box_outside_its_image_names_the_row(tmp_path):
    rows = [f'{name}.png,{name},train,2,9,3,14' for name in 'ab']
    rows += ['e.png,e,validation,30,40,0,10', 'f.png,f,validation,,,,']
    table = write_table(tmp_path / 'photos', rows, BOXED)
    with pytest.raises(UserError) as refused:
        prepare(str(tmp_path / 'data'), 'shop', table=table)
    assert str(refused.value).endswith(f'({table}, line 4)')


def test_names_of_files_that_are_not_utf_8_in_a_table_of_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vectors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.save('vectors.npy', vectors)
    rows = [b'path,class', b'caf\xe9.png,a', b'b.png,a', b'c.png,b', b'd.png,b']
    (tmp_path / 'images.csv').write_bytes(b'\n'.join(rows))
    names = rank_file('vectors.npy', 'cpu', labels_csv='images.csv').images
    assert [os.fsencode(name) for name in names[:2]] == [b'caf\xe9.png', b'b.png']
    (tmp_path / 'images.csv').write_bytes(b'\n'.join([*rows[:-1], b'd.png,\xe9']))
    with pytest.raises(UserError, match=r'images\.csv: .*line 5: the label'):
        rank_file('vectors.npy', 'cpu', labels_csv='images.csv')


def test_folders_whose_names_are_not_utf_8(tmp_path):
    photos = tmp_path / 'photos'
    write_classes(photos)
    (photos / 'c').rename(photos / os.fsdecode(b'caf\xe9'))
    prepare(str(tmp_path / 'data'), 'shop', str(photos), image_size=8)
    assert len(read_source(str(tmp_path / 'data'), 'shop').records) == 8

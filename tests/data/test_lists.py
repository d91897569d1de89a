"""Damaged lists of a dataset: one line names the file and the line in it."""

import os

import pytest
from official import (
    CARS,
    write_car_csv,
    write_car_devkit,
    write_car_folder,
    write_cub,
    write_isc,
    write_lines,
    write_sop,
)

from areir.data.lists import find_file, read_csv
from areir.data.source import read_source
from areir.errors import UserError
from areir.scripts.data_utils import prepare

WRITE = {'cub': write_cub, 'sop': write_sop, 'isc': write_isc}
LISTS = {
    'images.txt': 'cub',
    'image_class_labels.txt': 'cub',
    'bounding_boxes.txt': 'cub',
    'Ebay_train.txt': 'sop',
    'Ebay_test.txt': 'sop',
    'Eval/list_eval_partition.txt': 'isc',
    'anno_train.csv': 'car',
    'anno_test.csv': 'car',
    'names.csv': 'car',
}


def write(root, file):
    """Write the dataset of a list below root; return (its name, the list)."""
    name = LISTS[file]
    if name == 'car':
        write_car_csv(root)
    else:
        WRITE[name](root / name)
    return name, root / name / file


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


@pytest.mark.parametrize('file', LISTS)
def test_a_list_that_is_empty_or_not_utf_8(tmp_path, file):
    name, path = write(tmp_path, file)
    text = path.read_text()
    path.write_bytes(text.encode('utf-16-le'))
    assert f'{path}, line 1: not text in UTF-8' in refusal(tmp_path, name)
    first, second, rest = text.encode().split(b'\n', 2)
    path.write_bytes(b'\n'.join([first, second + b'\xe9', rest]))
    assert f'{path}, line 2: not text in UTF-8' in refusal(tmp_path, name)
    path.write_text('')
    assert file in refusal(tmp_path, name)


def test_names_of_files_in_a_csv_need_not_be_utf_8(tmp_path):
    (tmp_path / 'images.csv').write_bytes(b'path,class\ncaf\xe9.png,a\n')
    ((line, cells),) = read_csv(tmp_path / 'images.csv', ['label'], any_bytes=True)
    assert line == 'line 2' and os.fsencode(cells['path']) == b'caf\xe9.png'


@pytest.mark.parametrize(
    ('copy', 'name'),
    [
        ('devkit/cars_annos (1).mat', 'cars_annos.mat'),
        ('cars_annos(12).mat', 'cars_annos.mat'),
        ('anno_train - Copy.csv', 'anno_train.csv'),
        ('anno_train - Kopie (2).csv', 'anno_train.csv'),
        ('Copy of list_eval_partition.txt', 'list_eval_partition.txt'),
        ('list_eval_partition copy 2.txt', 'list_eval_partition.txt'),
        ('list_eval_partition.txt.1', 'list_eval_partition.txt'),
    ],
)
def test_copies_of_a_list_are_found(copy, name):
    others = [f'x{name}', f'a/{name}x', name.replace('.', 's (1).')]
    assert find_file([*others, copy], name) == copy
    assert find_file([*others, copy, f'a/deeper/folder/{name}'], name) != copy
    assert find_file(others, name) is None


def test_a_dataset_of_copies_is_read(tmp_path):
    write_car_devkit(tmp_path / 'devkit')
    for number, path in enumerate((tmp_path / 'devkit').rglob('*.mat')):
        path.rename(path.with_stem(f'{path.stem} ({number})'))
    assert len(read_source(str(tmp_path / 'devkit'), 'car').records) == 4
    write_cub(tmp_path / 'cub')
    for path in (tmp_path / 'cub').glob('*.txt'):
        path.rename(path.with_stem(f'{path.stem}(1)'))
    assert len(read_source(str(tmp_path), 'cub').records) == 4


SOP = 'bicycle_final/111085122871_0.JPG'
ISC = 'Eval/list_eval_partition.txt'


# list, line, what it becomes, what the message says
@pytest.mark.parametrize(
    ('file', 'number', 'line', 'expected'),
    [
        ('images.txt', 2, '1 a.jpg', "line 2: image '1' .*line 1"),
        ('images.txt', 2, '2', 'line 2: 2 fields expected'),
        ('image_class_labels.txt', 2, None, r'images\.txt: image 2 is not in'),
        ('image_class_labels.txt', 2, '2 220', "line 2: class '220'"),
        ('bounding_boxes.txt', 2, None, r'images\.txt: image 2 is not in'),
        ('bounding_boxes.txt', 2, '2 0 0 nan 9', 'line 2: box '),
        ('bounding_boxes.txt', 2, '2 0 0 -9 9', 'line 2: box '),
        ('Ebay_train.txt', 3, f'2 11319 1 {SOP}', "line 3: class '11319'"),
        ('Ebay_train.txt', 3, '2 1', 'line 3: 4 fields expected'),
        ('Ebay_train.txt', 3, f'2 1 1 {SOP}', 'line 3: image .*line 2'),
        (ISC, 4, None, "line 1: '5' images, but 4 lines"),
        (ISC, 1, None, 'line 1: '),
        (ISC, 4, 'img/x/id_2/1.jpg id_2 val', "line 4: status 'val'"),
        ('anno_train.csv', 1, '00001.jpg,3,2,12,9,abc', "line 1: class 'abc'"),
        ('anno_train.csv', 1, '00001.jpg,3,2,1,9,1', 'line 1: box '),
        ('anno_train.csv', 1, '00001.jpg,3,2', 'line 1: '),
        ('anno_train.csv', 1, '"00001.jpg,3,2,9,9,1', 'line 1: .*CSV'),
        ('names.csv', 7, None, '195 classes, not 196'),
    ],
)
def test_a_damaged_line_is_named(tmp_path, file, number, line, expected):
    name, path = write(tmp_path, file)
    edit(path, number, line)
    with pytest.raises(UserError, match=expected):
        read_source(str(tmp_path), name)


def test_an_image_that_its_list_lacks_is_named(tmp_path, capsys):
    name, path = write(tmp_path, 'Ebay_train.txt')
    prepare(str(tmp_path), name)
    assert 'left out' not in capsys.readouterr().out
    edit(path, 4, None)
    prepare(str(tmp_path), name)
    lines = capsys.readouterr().out.splitlines()
    (notice,) = [line for line in lines if 'left out 1 image ' in line]
    assert 'Ebay_train.txt' in notice and notice.endswith('111085122871_0.JPG')


@pytest.mark.parametrize(
    ('row', 'expected'),
    [
        (('000002.jpg', (1, 1, 24, 18), 197), 'row 2: class 197'),
        (('000002.jpg', (9, 1, 7, 18), 5), 'row 2: box '),
        (('000002.jpg', (1, 1, 24, 'x'), 5), 'row 2: box '),
        (('000001.jpg', (1, 1, 24, 18), 5), "row 2: image 'car_ims/000001.jpg'"),
    ],
)
def test_a_damaged_row_of_a_mat_file_is_named(tmp_path, row, expected):
    write_car_folder(tmp_path)
    write_car_folder(tmp_path, [CARS[0], row, *CARS[2:]])
    assert expected in refusal(tmp_path, 'car')


def test_a_mat_file_that_is_cut_short_is_named(tmp_path):
    write_car_folder(tmp_path)
    path = tmp_path / 'car/cars_annos.mat'
    content = path.read_bytes()
    for size in range(0, len(content), 50):
        path.write_bytes(content[:size])
        assert 'cars_annos.mat' in refusal(tmp_path, 'car')

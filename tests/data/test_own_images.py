"""Your own images: folders of classes, CSVs, and the names of both."""

import os

import pytest
from official import (
    image_size,
    to_pixels,
    tree,
    write_classes,
    write_image,
    write_lines,
)

from areir.data.source import read_source
from areir.data.splits import load_split
from areir.data.tables import read_table
from areir.errors import UserError
from data_utils import prepare


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


# Folders of classes


def classes_of(dataset, split):
    return {record.label for record in dataset.records if record.part == split}


def test_classes_are_split_in_half_by_the_seed(root, tmp_path):
    photos = tmp_path / 'photos'
    classes = ['a', 'b', 'c d', 'Übergröße', '日本', 'f', 'g']
    write_classes(photos, classes)
    write_image(photos / '._a/0.png')
    for name in ('a/._0.png', 'a/.DS_Store', 'a/notes.txt'):
        write_lines(photos / name, ['not an image'])
    before = tree(photos)
    dataset = read_source(root, 'shoes', photos)
    train, test = classes_of(dataset, 'train'), classes_of(dataset, 'test')
    assert (len(train), len(test)) == (4, 3)
    assert sorted([*train, *test]) == sorted(classes)
    expected = {f'images/{name}/{n}.png' for name in classes for n in (0, 1)}
    assert set(dataset.names('uncropped')) == expected
    assert dataset.left_out == ['a/notes.txt']
    assert tree(photos) == before

    halves = set()
    for seed in (*range(5), 0):
        other = read_source(root, 'other', photos, seed)
        halves.add(frozenset(classes_of(other, 'train')))
    assert 1 < len(halves) <= 5 and train in halves


@pytest.mark.parametrize('parts', [('train', 'test'), ('train', 'query', 'gallery')])
def test_folders_of_splits_are_used(root, parts):
    for part in parts:
        classes = ['x', 'y'] if part == 'train' else ['w', 'z']
        write_classes(root / 'shoes' / part, classes)
    dataset = read_source(root, 'shoes')
    assert list(dataset.counts) == list(parts)
    assert classes_of(dataset, 'train') == {'x', 'y'}
    assert 'train/x/0.png' in dataset.names('uncropped')
    for part in parts[1:]:
        records = [record for record in dataset.records if record.part == part]
        images = [(record.label, record.path) for record in records]
        assert images[2:] == [('z', f'{part}/z/0.png'), ('z', f'{part}/z/1.png')]


@pytest.mark.parametrize('folder', ['a', 'train/a', 'train'])
def test_training_and_test_images_are_needed(root, tmp_path, folder):
    write_classes(root / 'shoes' / folder, ['x'])
    (root / 'shoes/test').mkdir()
    with pytest.raises(UserError, match='shoes'):
        read_source(root, 'shoes')
    with pytest.raises(UserError, match='train images found'):
        read_source(root, 'shop', table=write_table(tmp_path, ROWS[:4]))


# CSVs

HEADER = 'label,path,split,is_query,is_gallery,category'
# two classes to train on, two to test with
ROWS = [
    '7,a/1.png,train,,,x',
    '7,a/2.png,train,,,x',
    '3,b/1.png,train,,,x',
    '3,b/2.png,train,,,x',
    '12,c/1.png,validation,True,True,y',
    '12,c/2.png,validation,True,True,y',
    '5,d/1.png,validation,True,True,y',
    '5,d/2.png,validation,True,True,y',
]


def write_table(folder, rows, header=HEADER):
    """Write a CSV and the images that its rows name; return its path."""
    column = header.split(',').index('path')
    for row in rows:
        path = folder / row.split(',')[column]
        if not path.exists():
            write_image(path)
    write_lines(folder / 'df.csv', [header, *rows])
    return str(folder / 'df.csv')


def without(*columns):
    """Return (rows, header) without some columns."""
    lines = [line.split(',') for line in (HEADER, *ROWS)]
    kept = [place for place, name in enumerate(lines[0]) if name not in columns]
    header, *rows = [','.join(line[place] for place in kept) for line in lines]
    return rows, header


def test_splits_and_classes(tmp_path):
    layout, records = read_table(write_table(tmp_path, ROWS))
    assert layout == 'df.csv'
    assert [record.part for record in records] == ['train'] * 4 + ['test'] * 4
    assert [record.label for record in records] == [*'7733', '12', '12', '5', '5']
    assert [record.path for record in records][:2] == ['a/1.png', 'a/2.png']
    assert {record.box for record in records} == {None}
    # without roles all search each other
    path = write_table(tmp_path, *without('is_query', 'is_gallery'))
    assert read_table(path)[1] == records


@pytest.mark.parametrize(
    ('share', 'tested'),
    # of 10 classes: a share in between is rounded, a half down
    [(0, 0), (0.2, 2), (0.25, 2), (0.26, 3), (0.3, 3), (None, 5), (0.5, 5), (0.8, 8)],
)
def test_the_share_of_test_classes(root, tmp_path, share, tested):
    write_classes(tmp_path / 'photos', 'abcdefghij', images=1)
    dataset = read_source(root, 'shoes', tmp_path / 'photos', test_share=share)
    assert len(classes_of(dataset, 'test')) == tested
    assert len(classes_of(dataset, 'train')) == 10 - tested
    all_tested = read_source(root, 'shoes', tmp_path / 'photos', test_share=0.8)
    assert classes_of(dataset, 'test') <= classes_of(all_tested, 'test')


def test_too_few_classes_for_a_share_are_refused(root, tmp_path):
    photos = tmp_path / 'photos'
    write_classes(photos, 'abc', images=1)
    for share in (None, 0.5, 0.1, 0.9):
        with pytest.raises(UserError, match=r'--test_share .* 3 classes'):
            read_source(root, 'shoes', photos, test_share=share)
    assert read_source(root, 'shoes', photos, test_share=0).counts == {'train': (3, 3)}


def test_a_share_of_a_dataset_with_a_split_is_refused(root, tmp_path):
    for part in ('train', 'test'):
        write_classes(tmp_path / 'parted' / part, [part])
    path = write_table(tmp_path / 'photos', ROWS)
    for source in ({'data_path': tmp_path / 'parted'}, {'table': path}):
        with pytest.raises(UserError, match='--test_share 0: '):
            read_source(root, 'shop', **source, test_share=0)


def test_a_table_of_training_images_only(root, tmp_path):
    path = write_table(tmp_path, ROWS[:4])
    with pytest.raises(UserError, match='or --test_share 0'):
        read_source(root, 'shop', table=path)
    dataset = read_source(root, 'shop', table=path, test_share=0)
    assert dataset.counts == {'train': (4, 2)}


def test_query_and_gallery(tmp_path):
    rows = list(ROWS)
    rows[4::2] = [row.replace('True,True', 'True,False') for row in rows[4::2]]
    rows[5::2] = [row.replace('True,True', '0,1') for row in rows[5::2]]
    _, records = read_table(write_table(tmp_path, rows))
    assert [record.part for record in records[4:]] == ['query', 'gallery'] * 2


@pytest.mark.parametrize('roles', ['True,False', 'False,False'])
def test_mixed_roles_are_refused(tmp_path, roles):
    rows = [*ROWS[:-1], ROWS[-1].replace('True,True', roles)]
    with pytest.raises(UserError, match=r'df\.csv, line 9: is_query'):
        read_table(write_table(tmp_path, rows))


def test_without_a_column_split_the_share_holds(root, tmp_path, capsys):
    path = write_table(tmp_path, *without('split'))
    dataset = read_source(root, 'shop', table=path)
    assert dataset.counts == {'train': (4, 2), 'test': (4, 2)}
    assert f'notice: {path}: no column split' in capsys.readouterr().out
    dataset = read_source(root, 'shop', table=path, test_share=0)
    assert dataset.counts == {'train': (8, 4)}


@pytest.mark.parametrize(
    ('bad', 'expected'),
    [
        ('blue,e/1.png,training,,,x', "split 'training'"),
        ('8,gone.png,train,,,x', "'gone.png': no such file"),
        ('8,../outside.png,train,,,x', 'not below the folder'),
        (',a/1.png,train,,,x', 'no label'),
        ('8,a/1.png,validation,maybe,True,x', "is_query 'maybe'"),
        ('8,a/1.png,train', 'cells than columns'),
        ('8,a/1.png,train,,,x,9,2,3,14', 'box from'),
        ('8,a/1.png,train,,,x,2,9,3,', 'box .* four numbers'),
        ('8,a/1.png,train,,,x,2,9,3,inf', 'box .* four numbers'),
    ],
)
def test_bad_rows_are_named_by_their_line(tmp_path, bad, expected):
    folder = tmp_path / 'photos'
    write_image(tmp_path / 'outside.png')
    write_image(folder / 'e/1.png')
    path = write_table(folder, ROWS)
    header = HEADER + ',x_1,x_2,y_1,y_2' * (bad.count(',') > 5)
    write_lines(path, [header, bad])
    with pytest.raises(UserError, match=rf'df\.csv, line 2: .*{expected}'):
        read_table(path)


def test_columns_that_are_missing_or_there_twice_are_named(tmp_path):
    path = write_table(tmp_path, ROWS)
    for column in ('path', 'label'):
        rows, header = without(column)
        write_lines(path, [header, *rows])
        with pytest.raises(UserError, match=rf'df\.csv: no column {column}'):
            read_table(path)
    write_lines(path, [HEADER.replace('category', 'label'), *ROWS])
    with pytest.raises(UserError, match=r'df\.csv: two columns label'):
        read_table(path)


BOXED = 'path,label,split,x_1,x_2,y_1,y_2'


def test_boxes_are_cut_out(root, tmp_path, capsys):
    rows = [f'{name}.png,{name},train,2,9.4,3.0,14' for name in 'abcd']
    rows += ['e.png,e,validation,4,20,0,10', 'f.png,f,validation,,,,']
    rows += ['g.png,e,validation,-4,20,0,10', 'h.png,f,validation,1,1e308,2,9']
    table = write_table(tmp_path / 'photos', rows, BOXED)
    prepare(str(root), 'shop', table=table)
    printed = capsys.readouterr().out
    assert '2 boxes reach beyond' in printed and f'g.png ({table}, line 8)' in printed
    images = load_split(str(root), 'shop', 'cropped').query.images
    sizes = {name: image_size(root / 'shop' / name) for name in images}
    assert sizes == {
        'cropped/e.png': (16, 10),
        'cropped/f.png': (24, 18),
        'cropped/g.png': (20, 10),
        'cropped/h.png': (23, 7),
    }
    crop = to_pixels(root / 'shop/cropped/a.png')
    assert (crop == to_pixels(tmp_path / 'photos/a.png')[3:14, 2:9]).all()
    whole = load_split(str(root), 'shop').query.images
    assert whole == [name.replace('cropped', 'uncropped') for name in images]
    assert image_size(root / 'shop/uncropped/e.png') == (24, 18)


def test_a_table_may_begin_with_a_mark_and_hold_quoted_cells(tmp_path):
    """As Excel writes it."""
    write_image(tmp_path / 'a, b.png')
    lines = ['\ufeffpath,label,split', '"a, b.png","x, y",train']
    write_lines(tmp_path / 'df.csv', lines)
    (record,) = read_table(str(tmp_path / 'df.csv'))[1]
    assert (record.path, record.label) == ('a, b.png', 'x, y')


# Where they are, which name they have, and when they have changed


@pytest.mark.parametrize('first', ['linked', 'in place'])
def test_a_name_that_belongs_to_another_folder_is_refused(root, tmp_path, first):
    photos = tmp_path / 'photos' if first == 'linked' else None
    write_classes(photos or root / 'shoes')
    write_classes(tmp_path / 'other', ['p', 'q'])
    prepare(root, 'shoes', photos, image_size=8)
    before = tree(root)
    with pytest.raises(UserError, match=r'shoes .*--data_name'):
        prepare(root, 'shoes', tmp_path / 'other', image_size=8)
    assert tree(root) == before
    assert len(load_split(root, 'shoes').train) == 4


def test_folders_whose_names_are_not_utf_8(root, tmp_path):
    photos = tmp_path / 'photos'
    write_classes(photos)
    (photos / 'c').rename(photos / os.fsdecode(b'caf\xe9'))
    prepare(root, 'shop', photos, image_size=8)
    assert len(read_source(root, 'shop').records) == 8


@pytest.mark.parametrize('inside', [False, True])
def test_a_table_is_prepared_and_remembered(root, tmp_path, capsys, inside):
    folder = root / 'shop' if inside else tmp_path / 'photos'
    prepare(root, 'shop', table=write_table(folder, ROWS))
    split = load_split(root, 'shop')
    assert split.train.classes == ['3', '7']
    prefix = '' if inside else 'images/'
    assert split.query.images[0] == f'{prefix}c/1.png'
    capsys.readouterr()
    prepare(root, 'shop')
    assert 'nothing changed' in capsys.readouterr().out
    write_table(folder, ROWS[1:])  # a row less
    prepare(root, 'shop')
    assert len(load_split(root, 'shop').train) == 3


def test_a_name_stays_with_its_table(root, tmp_path):
    table = write_table(tmp_path / 'photos', ROWS)
    prepare(root, 'shop', table=table)
    for options in (
        {'table': write_table(tmp_path / 'others', ROWS)},
        {'data_path': str(tmp_path / 'photos')},
    ):
        with pytest.raises(UserError, match='shop is the name of'):
            prepare(root, 'shop', **options)
    os.remove(table)
    with pytest.raises(UserError, match=r'table\.csv: no such file'):
        prepare(root, 'shop')

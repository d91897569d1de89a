"""Datasets that a CSV describes, with the columns of open-metric-learning."""

import os

import pytest
from official import image_size, noise, to_pixels, write_image, write_lines

from areir.data.own_images import read_table
from areir.data.splits import load_split
from areir.errors import UserError
from data_utils import prepare

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


def write_table(folder, rows, header=HEADER, name='df.csv'):
    """Write a CSV and the images that its rows name; return its path."""
    column = header.split(',').index('path')
    for row in rows:
        path = folder / row.split(',')[column]
        if not path.exists():
            write_image(path)
    write_lines(folder / name, [header, *rows])
    return str(folder / name)


def without(column, rows=ROWS, header=HEADER):
    """Return (rows, header) without a column."""
    place = header.split(',').index(column)
    lines = [line.split(',') for line in (header, *rows)]
    header, *rows = [','.join(line[:place] + line[place + 1 :]) for line in lines]
    return rows, header


def records_of(path):
    return [(each.part, each.label, each.path) for each in read_table(path)[1]]


def test_splits_and_classes(tmp_path):
    layout, records = read_table(write_table(tmp_path, ROWS))
    assert layout == 'df.csv'
    assert [record.part for record in records] == ['train'] * 4 + ['test'] * 4
    assert [record.label for record in records] == [*'7733', '12', '12', '5', '5']
    assert [record.path for record in records][:2] == ['a/1.png', 'a/2.png']
    assert {record.box for record in records} == {None}


def test_without_roles_all_search_each_other(tmp_path):
    path = write_table(tmp_path, *without('is_query', *without('is_gallery')))
    assert records_of(path) == records_of(write_table(tmp_path, ROWS, name='whole.csv'))


def test_query_and_gallery(tmp_path):
    rows = list(ROWS)
    rows[4::2] = [row.replace('True,True', 'True,False') for row in rows[4::2]]
    rows[5::2] = [row.replace('True,True', '0,1') for row in rows[5::2]]
    _, records = read_table(write_table(tmp_path, rows))
    assert [record.part for record in records[4:]] == ['query', 'gallery'] * 2


@pytest.mark.parametrize('roles', ['True,False', 'False,False'])
def test_mixed_roles_are_refused(tmp_path, roles):
    rows = [*ROWS[:-1], ROWS[-1].replace('True,True', roles)]
    with pytest.raises(UserError, match='both roles, or every one exactly one'):
        read_table(write_table(tmp_path, rows))


def test_without_a_split_half_of_the_classes_train(tmp_path):
    path = write_table(tmp_path, *without('split'))
    draws = []
    for seed in range(8):
        records = read_table(path, seed)[1]
        splits = {record.label: record.part for record in records}
        assert sorted(splits.values()) == ['test', 'test', 'train', 'train']
        assert read_table(path, seed)[1] == records
        draws.append(tuple(sorted(splits.items())))
    assert len(set(draws)) > 1


BAD = {
    'blue,e/1.png,training,,,x': "split 'training'",
    '8,gone.png,train,,,x': "'gone.png': no such file",
    '8,../outside.png,train,,,x': 'not below the folder',
    '8,,train,,,x': "path '' is not below",
    ',a/1.png,train,,,x': 'no label',
    '8,a/1.png,validation,maybe,True,x': "is_query 'maybe'",
    '8,a/1.png,train': 'cells than columns',
    '8,a/1.png,train,,,x,y': 'cells than columns',
}


@pytest.mark.parametrize('bad', BAD)
def test_bad_rows_are_named_by_their_line(tmp_path, bad):
    folder = tmp_path / 'photos'
    write_image(tmp_path / 'outside.png')
    write_image(folder / 'e/1.png')
    path = write_table(folder, ROWS)
    write_lines(path, [HEADER, *ROWS[:3], bad, *ROWS[3:]])
    with pytest.raises(UserError) as refused:
        read_table(path)
    assert 'df.csv, line 5: ' in str(refused.value) and BAD[bad] in str(refused.value)


def test_the_first_of_many_bad_rows_are_named(tmp_path):
    path = write_table(tmp_path, ROWS)
    write_lines(path, [HEADER, *['8,gone.png,train,,,x'] * 30])
    with pytest.raises(UserError, match='30 bad rows') as refused:
        read_table(path)
    lines = str(refused.value).splitlines()
    assert len(lines) == 12 and lines[-1].strip() == 'and 20 more'


@pytest.mark.parametrize('column', ['path', 'label'])
def test_a_column_that_is_missing_is_named(tmp_path, column):
    path = write_table(tmp_path, ROWS)
    rows, header = without(column)
    write_lines(path, [header, *rows])
    with pytest.raises(UserError, match=rf'df\.csv: no column {column}'):
        read_table(path)


# Boxes

BOXED = 'path,label,split,x_1,x_2,y_1,y_2'


def test_boxes_have_the_order_of_the_columns(tmp_path):
    rows = ['a.png,1,train,2,9,3,14', 'b.png,1,train,2.0,9.4,3.0,14.0']
    rows.append('c.png,2,validation,,,,')
    records = read_table(write_table(tmp_path, rows, BOXED))[1]
    boxes = [record.box for record in records]
    assert boxes == [(2, 3, 9, 14), (2, 3, 9, 14), None]


@pytest.mark.parametrize(
    'box', ['9,2,3,14', '2,9,14,3', '2,9,3,', '2,9,3,x', '2,9,3,inf']
)
def test_boxes_that_make_no_sense_are_refused(tmp_path, box):
    path = write_table(tmp_path, [f'a.png,1,train,{box}'], BOXED)
    with pytest.raises(UserError, match=r'line 2: box'):
        read_table(path)


def test_boxes_are_cut_out(tmp_path):
    rows = [f'{name}.png,{name},train,2,9,3,14' for name in 'abcd']
    rows += ['e.png,e,validation,4,20,0,10', 'f.png,f,validation,,,,']
    table = write_table(tmp_path / 'photos', rows, BOXED)
    root = tmp_path / 'data'
    prepare(str(root), 'shop', table=table)
    split = load_split(str(root), 'shop', 'cropped')
    sizes = {
        name: image_size(root / 'shop' / name) for name in split.parts['test'].images
    }
    assert sizes == {'cropped/e.png': (16, 10), 'cropped/f.png': (24, 18)}
    crop = to_pixels(root / 'shop/cropped/e.png')
    assert (crop == to_pixels(tmp_path / 'photos/e.png')[:10, 4:20]).all()
    whole = load_split(str(root), 'shop').parts['test'].images
    assert whole == ['uncropped/e.png', 'uncropped/f.png']
    assert image_size(root / 'shop/uncropped/e.png') == (24, 18)


# As a dataset


@pytest.mark.parametrize('inside', [False, True])
def test_a_table_is_prepared_and_remembered(tmp_path, capsys, inside):
    root = tmp_path / 'data'
    folder = root / 'shop' if inside else tmp_path / 'photos'
    table = write_table(folder, ROWS)
    prepare(str(root), 'shop', table=table)
    split = load_split(str(root), 'shop')
    assert split.train.classes == ['3', '7']
    prefix = '' if inside else 'images/'
    assert split.query.images[0] == f'{prefix}c/1.png'
    capsys.readouterr()
    prepare(str(root), 'shop')
    assert 'nothing changed' in capsys.readouterr().out
    # a row less
    write_table(folder, ROWS[1:])
    prepare(str(root), 'shop')
    assert len(load_split(str(root), 'shop').train) == 3


def test_a_name_stays_with_its_table(tmp_path):
    root = tmp_path / 'data'
    prepare(str(root), 'shop', table=write_table(tmp_path / 'photos', ROWS))
    for options in (
        {'table': write_table(tmp_path / 'others', ROWS)},
        {'data_path': str(tmp_path / 'photos')},
        {'data_path': str(tmp_path / 'others')},
    ):
        with pytest.raises(UserError, match='shop is already the name of'):
            prepare(str(root), 'shop', **options)


def test_a_table_that_is_gone_is_named(tmp_path):
    root = tmp_path / 'data'
    table = write_table(tmp_path / 'photos', ROWS)
    prepare(str(root), 'shop', table=table)
    os.remove(table)
    with pytest.raises(UserError, match=r'table\.csv: no such file'):
        prepare(str(root), 'shop')


def test_training_and_test_images_are_needed(tmp_path):
    table = write_table(tmp_path, ROWS[:4])
    with pytest.raises(UserError, match='train images found'):
        prepare(str(tmp_path / 'data'), 'shop', table=table)


def test_a_table_may_begin_with_a_mark_and_hold_quoted_cells(tmp_path):
    """As Excel writes it."""
    write_image(tmp_path / 'a, b.png', noise())
    lines = ['\ufeffpath,label,split', '"a, b.png","x, y",train']
    write_lines(tmp_path / 'df.csv', lines)
    (record,) = read_table(str(tmp_path / 'df.csv'))[1]
    assert (record.path, record.label) == ('a, b.png', 'x, y')

"""Where a dataset is, which name it has, and when it has changed."""

import os

import pytest
from official import tree, write_classes, write_image
from test_own_images import ROWS, write_table

from areir.data.source import read_source
from areir.data.splits import load_split
from areir.errors import UserError
from data_utils import prepare


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


def test_an_absent_folder_is_refused(root):
    with pytest.raises(UserError, match='absent'):
        read_source(root, 'shoes', 'absent')


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


def test_the_fingerprint_depends_on_images_and_settings(root):
    write_classes(root / 'shoes')

    def fingerprint(image_size=8, seed=0):
        return read_source(root, 'shoes', seed=seed).fingerprint(image_size, seed)

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(image_size=16) != first
    assert fingerprint(seed=1) != first
    write_image(root / 'shoes/a/0.png')
    assert fingerprint() != first


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


def test_training_and_test_images_are_needed(root, tmp_path):
    table = write_table(tmp_path, ROWS[:4])
    with pytest.raises(UserError, match='train images found'):
        prepare(root, 'shop', table=table)

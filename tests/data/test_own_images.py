"""Your own images in folders of classes, and the names of datasets."""

import os

import pytest
from official import (
    tree,
    write_classes,
    write_image,
    write_lines,
)

from areir.data.source import read_source
from areir.data.splits import load_split
from areir.errors import UserError
from areir.scripts.data_utils import prepare


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
def test_training_and_test_images_are_needed(root, folder):
    write_classes(root / 'shoes' / folder, ['x'])
    (root / 'shoes/test').mkdir()
    with pytest.raises(UserError, match='shoes'):
        read_source(root, 'shoes')


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

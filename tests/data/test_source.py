"""Any folder of class folders is a dataset, wherever it is."""

import pytest
from official import tree, write_classes, write_image, write_lines

from areir.data.source import read_source
from areir.data.splits import load_split
from areir.errors import UserError
from data_utils import prepare


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


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

    assert classes_of(read_source(root, 'same', photos), 'train') == train
    halves = set()
    for seed in range(5):
        other = read_source(root, 'other', photos, seed)
        halves.add(frozenset(classes_of(other, 'train')))
    assert len(halves) > 1


@pytest.mark.parametrize('parts', [('train', 'test'), ('train', 'query', 'gallery')])
def test_folders_of_splits_are_used(root, parts):
    for part in parts:
        classes = ['x', 'y'] if part == 'train' else ['z']
        write_classes(root / 'shoes' / part, classes)
    dataset = read_source(root, 'shoes')
    assert list(dataset.counts) == list(parts)
    assert classes_of(dataset, 'train') == {'x', 'y'}
    assert 'train/x/0.png' in dataset.names('uncropped')
    for part in parts[1:]:
        images = [record for record in dataset.records if record.part == part]
        paths = [record.path for record in images]
        assert paths == [f'{part}/z/0.png', f'{part}/z/1.png']
        assert {record.label for record in images} == {'z'}


def test_linked_classes_are_read_and_circles_are_not(root, tmp_path):
    photos = tmp_path / 'photos'
    write_classes(photos, ['a', 'b'])
    write_classes(tmp_path / 'elsewhere', ['c'])
    (photos / 'c').symlink_to(tmp_path / 'elsewhere/c')
    (photos / 'a/top').symlink_to('..')
    (photos / 'b/self').symlink_to('self')
    (photos / 'b/gone').symlink_to('gone_since')
    names = read_source(root, 'shoes', photos).names('uncropped')
    assert sorted(names) == [f'images/{name}/{n}.png' for name in 'abc' for n in (0, 1)]


@pytest.mark.parametrize('classes', [[], ['a']])
def test_fewer_than_two_classes_are_refused(root, classes):
    (root / 'shoes').mkdir(parents=True)
    write_classes(root / 'shoes', classes)
    with pytest.raises(UserError, match='shoes'):
        read_source(root, 'shoes')


def test_a_folder_with_training_images_alone_is_refused(root):
    write_classes(root / 'shoes/train', ['a', 'b'])
    write_lines(root / 'shoes/test/a.png', ['no class folder'])
    with pytest.raises(UserError, match=r'shoes: train'):
        read_source(root, 'shoes')


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

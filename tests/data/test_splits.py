"""Split files are read, numbered, hashed, and refused if they are not whole."""

import pytest
import torch
from official import write_classes, write_isc

from areir.data.splits import (
    Part,
    Split,
    common_labels,
    hold_out,
    load_split,
    make_part,
    split_path,
)
from areir.errors import UserError
from areir.files import load_own, write_tensors
from areir.scripts.data_utils import prepare


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / 'data')


@pytest.fixture
def shoes(root, tmp_path):
    """A prepared dataset of 4 classes; returns its folder."""
    folder = tmp_path / 'data/shoes'
    write_classes(folder)
    prepare(root, 'shoes', image_size=8)
    return folder


def test_images_and_labels_are_in_the_order_of_the_labels():
    images_of = {2: ['b1'], 1: ['a2', 'a1'], 10: ['c1']}
    part = make_part(images_of, [1, 2, 10])
    assert part.images == ['a2', 'a1', 'b1', 'c1']
    assert part.labels.tolist() == [0, 0, 1, 2]
    part = make_part(images_of, [2, 10, 1])
    assert part.images == ['a2', 'a1', 'b1', 'c1']
    assert part.labels.tolist() == [2, 2, 0, 1]
    assert part.labels.dtype == torch.int64 and len(part) == 4


def test_test_images_query_each_other(root, shoes):
    split = load_split(root, 'shoes')
    assert list(split.parts) == ['train', 'test']
    assert split.query is split.parts['test'] and split.gallery is None
    assert split.available == len(split.query) - 1 == 3
    assert split.folder == str(shoes)
    assert len(split.train.classes) == len(split.query.classes) == 2
    assert not set(split.train.classes) & set(split.query.classes)
    for part in split.parts.values():
        for image, label in zip(part.images, part.labels):
            assert image.startswith(f'{part.classes[label]}/')


def test_queries_and_gallery_are_numbered_together(root, tmp_path):
    write_isc(tmp_path / 'data/isc')
    prepare(root, 'isc')
    path = split_path(root, 'isc', 'uncropped')
    content = load_own(path, ['train'], '')
    content['gallery']['id_00000001'] = content['train']['id_00000001']
    write_tensors({path: content})
    split = load_split(root, 'isc')
    assert list(split.parts) == ['train', 'query', 'gallery']
    assert split.query is split.parts['query']
    assert split.gallery is split.parts['gallery']
    classes = ['id_00000001', 'id_00000007']
    assert split.query.classes == split.gallery.classes == classes
    assert split.query.labels.tolist() == [1]
    assert split.gallery.labels.tolist() == [0, 1, 1]
    assert split.available == 3


def whole(classes):
    """A split of `classes` training classes with two images each."""
    images_of = {i: [f'{i}a', f'{i}b'] for i in range(classes)}
    parts = {
        'train': make_part(images_of, [*range(classes)]),
        'test': Part(['x'], torch.tensor([0]), ['x']),
    }
    return Split('data', {}, 'hash', parts)


@pytest.mark.parametrize(('classes', 'held'), [(3, 2), (11, 2), (13, 3), (40, 8)])
def test_a_fifth_of_the_training_classes_is_held_out(classes, held):
    split = hold_out(whole(classes), seed=3)
    train, val = split.train, split.parts['val']
    assert list(split.parts) == ['train', 'test', 'val']
    assert len(val.classes) == held and len(train.classes) == classes - held
    assert sorted([*train.classes, *val.classes]) == list(range(classes))
    for part in (train, val):
        assert part.classes == sorted(part.classes)
        assert part.labels.tolist() == [i // 2 for i in range(len(part))]
        expected = [f'{label}{name}' for label in part.classes for name in 'ab']
        assert part.images == expected


def test_the_seed_decides_what_is_held_out():
    first, second = (hold_out(whole(40), seed).parts['val'].classes for seed in (0, 1))
    assert first == [0, 12, 15, 21, 27, 29, 34, 38]  # published runs depend on it
    assert second != first


def test_absent_images_are_counted_and_named(root, shoes):
    (shoes / 'a/0.png').unlink()
    with pytest.raises(UserError, match=r'1 image gone, .* a/0\.png'):
        load_split(root, 'shoes')


def test_a_damaged_file_is_refused_by_name_and_prepared_again(root, shoes):
    path = split_path(root, 'shoes', 'uncropped')
    with open(path, 'rb') as file:
        content = file.read()
    with open(path, 'wb') as file:
        file.write(content[: len(content) // 2])
    with pytest.raises(UserError, match=r'shoes/uncropped_data_dicts\.pth'):
        load_split(root, 'shoes')
    write_tensors({path: {'train': {'a': ['a/0.png']}}})  # another file
    with pytest.raises(UserError, match=r'shoes/uncropped_data_dicts\.pth'):
        load_split(root, 'shoes')
    prepare(root, 'shoes', image_size=8)
    assert load_split(root, 'shoes').info['fingerprint']


def test_marks_and_distractors_of_a_split(tmp_path):
    images = {'train': {'a': ['a1', 'a2'], 'b': ['b1']}}
    images |= {'query': {'c': ['c1']}, 'gallery': {'-1': ['x'], 'c': ['c2', 'c3']}}
    info = {
        'counts': {'train': (3, 2), 'query': (1, 1), 'gallery': (2, 1)},
        'groups': {'c1': 'left', 'c3': 'right'},
        'files': {'c1': 0, 'c2': 0},
    }
    folder = tmp_path / 'shop'
    folder.mkdir()
    for name in ('a1', 'a2', 'b1', 'c1', 'x', 'c2', 'c3'):
        (folder / name).write_bytes(b'')
    path = str(folder / 'uncropped_data_dicts.pth')
    write_tensors({path: images | {'info': info}})
    split = load_split(str(tmp_path), 'shop')
    assert split.query.classes == split.gallery.classes == ['c']
    gallery = split.gallery
    assert gallery.images == ['x', 'c2', 'c3'] and gallery.labels.tolist() == [-1, 0, 0]
    assert gallery.groups.tolist() == [-1, -1, 1] and split.query.groups.tolist() == [0]
    assert gallery.files.tolist() == [-1, 0, -1] and split.query.files.tolist() == [0]
    rows = gallery.rows(torch.tensor([2, 0]))
    assert (rows.groups.tolist(), rows.labels.tolist()) == ([1, -1], [0, -1])
    assert common_labels([split.train, gallery]).tolist() == [0, 0, 1, -1, 2, 2]
    del info['groups']
    write_tensors({path: images | {'info': info}})
    assert load_split(str(tmp_path), 'shop').sha256 != split.sha256

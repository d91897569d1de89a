"""The official layouts are read as they are, with their traps."""

import shutil

import numpy as np
import pytest
import torch
from official import (
    CLOTHES,
    CUBS,
    image_size,
    noise,
    to_pixels,
    tree,
    write_car_csv,
    write_car_devkit,
    write_car_folder,
    write_classes,
    write_cub,
    write_image,
    write_isc,
    write_sop,
)
from PIL import Image

from areir.cli.preparation import DATASETS
from areir.data.images import load_image
from areir.data.layouts import KNOWN_DATASETS
from areir.data.source import read_source
from areir.errors import UserError
from areir.scripts.data_utils import prepare


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


def load(root, name, crop_type='uncropped'):
    """Return the content of a split file."""
    path = root / name / f'{crop_type}_data_dicts.pth'
    return torch.load(path, weights_only=True)


def test_help_names_the_datasets_that_are_known():
    assert tuple(KNOWN_DATASETS) == DATASETS


# CARS196


def test_car_as_one_folder(root, capsys):
    write_car_folder(root)
    prepare(root, 'car')
    for crop_type in ('uncropped', 'cropped'):
        split = load(root, 'car', crop_type)
        assert split['train'] == {
            1: [f'{crop_type}/000001.jpg'],
            98: [f'{crop_type}/000002.jpg'],
        }
        assert split['test'] == {
            99: [f'{crop_type}/000003.jpg'],
            100: [f'{crop_type}/000004.jpg'],
            196: [f'{crop_type}/008055.jpg'],
        }
        labels = [*split['train'], *split['test']]
        assert {type(label) for label in labels} == {int}
    # the published statistics, and fewer images than officially
    info = split['info']
    assert info['mean'] == (0.4853, 0.4965, 0.4295)
    assert info['counts'] == {'train': (2, 2), 'test': (3, 3)}
    assert '8,054 of 98' in info['warnings'][0]
    printed = capsys.readouterr().out
    for warning in info['warnings']:
        assert f'warning: car: {warning}' in printed


# 255 and 256: a sum or difference in uint8 would wrap
@pytest.mark.parametrize(
    ('name', 'box'),
    [
        ('000001.png', (1, 1, 255, 256)),
        ('000002.png', (255, 254, 256, 255)),
        ('000003.jpg', (101, 52, 255, 180)),
    ],
)
def test_car_crops_are_exact_to_the_pixel(root, name, box):
    write_image(root / 'car/car_ims' / name, noise((300, 280), seed=7))
    write_car_folder(root, [(name, box, 1), ('000009.jpg', (1, 1, 9, 9), 196)])
    prepare(root, 'car')
    crop = to_pixels(root / 'car/cropped' / name)
    x1, y1, x2, y2 = box
    source = to_pixels(root / 'car/car_ims' / name)[y1 - 1 : y2, x1 - 1 : x2]
    assert crop.shape == source.shape
    # noise: a shift by a pixel makes a difference of 80
    assert np.abs(crop - source).mean() <= (0 if name.endswith('png') else 4)


@pytest.mark.parametrize(
    ('devkit', 'nested'), [('devkit/', False), ('', False), ('devkit/', True)]
)
def test_car_as_two_folders(root, devkit, nested):
    write_car_devkit(root, devkit, nested)
    prepare(root, 'car')
    split = load(root, 'car', 'cropped')
    train = 'cropped/cars_train/' + 'cars_train/' * nested
    test = 'cropped/cars_test/' + 'cars_test/' * nested
    assert split['train'] == {14: [f'{train}00001.jpg'], 2: [f'{test}00002.jpg']}
    assert split['test'] == {190: [f'{train}00002.jpg'], 181: [f'{test}00001.jpg']}
    # images of one name in both folders, each with the box of its own table
    sizes = {
        f'{train}00001.jpg': (10, 11),
        f'{train}00002.jpg': (18, 15),
        f'{test}00001.jpg': (20, 13),
        f'{test}00002.jpg': (8, 3),
    }
    for path, size in sizes.items():
        assert image_size(root / 'car' / path) == size
        original = root / 'car' / path.removeprefix('cropped/')
        assert (root / f'car/un{path}').samefile(original)


def test_car_test_annotations_without_labels_are_refused(root):
    write_car_devkit(root, labels=False)
    before = tree(root)
    with pytest.raises(UserError, match=r'withlabels\.mat is missing'):
        prepare(root, 'car')
    assert tree(root) == before


def test_car_as_folders_of_class_names(root):
    write_car_csv(root)
    prepare(root, 'car')
    split = load(root, 'car', 'cropped')
    both = ['cropped/train/Car 1/00001.jpg', 'cropped/test/Car 1/00001.jpg']
    assert split['train'] == {1: both}
    van = 'Ram C-V Cargo Van Minivan 2012'
    assert split['test'] == {
        189: [f'cropped/train/{van}/00002.jpg'],
        99: ['cropped/test/Car 99/00003.jpg'],
    }
    sizes = [image_size(root / 'car' / path) for path in both]
    assert sizes == [(10, 8), (4, 4)]


# CUB-200-2011, Stanford Online Products, In-shop Clothes


@pytest.mark.parametrize('folder', ['cub/CUB_200_2011', 'cub'])
def test_cub(root, folder):
    write_cub(root / folder)
    prepare(root, 'cub')
    split = load(root, 'cub', 'cropped')
    expected = {label: [f'cropped/{path}'] for _, path, label, _ in CUBS}
    assert split['train'] == {label: expected[label] for label in (1, 100)}
    assert split['test'] == {label: expected[label] for label in (101, 200)}
    crops = [Image.open(root / 'cub/cropped' / path) for _, path, _, _ in CUBS]
    assert [crop.size for crop in crops] == [(10, 8), (24, 18), (10, 9), (7, 8)]
    source = to_pixels(root / folder / 'images' / CUBS[0][1])
    difference = to_pixels(crops[0]) - source[3:11, 2:12]  # 0-based, half-open
    assert np.abs(difference).mean() < 4
    assert to_pixels(crops[2]).min() > 250  # white: no black beyond its edge
    assert crops[3].mode == 'RGB'
    grey = to_pixels(load_image(root / 'cub' / load(root, 'cub')['test'][200][0]))
    assert grey.shape == (18, 24, 3)
    assert (grey == grey[..., :1]).all()


@pytest.mark.parametrize('folder', ['', 'Stanford_Online_Products/'])
def test_sop(root, folder):
    write_sop(root / 'sop' / folder)
    prepare(root, 'sop')
    split = load(root, 'sop')
    assert split['train'] == {
        1: [
            f'{folder}bicycle_final/111085122871_0.JPG',
            f'{folder}bicycle_final/111085122871_1.JPG',
        ],
        11318: [f'{folder}toaster_final/111085122871_0.JPG'],
    }
    lamp = f'{folder}lamp_final/271802113987_2.JPG'
    assert split['test'] == {11319: [lamp], 22634: [f'{folder}fan_final/1_0.JPG']}
    with Image.open(root / 'sop' / lamp) as stored:
        assert (stored.format, stored.mode) == ('GIF', 'P')
    gif = load_image(root / 'sop' / lamp)
    assert gif.mode == 'RGB' and gif.getpixel((5, 5)) == (200, 30, 60)
    assert not (root / 'sop/uncropped').exists()  # 120,053 files stay where they are


@pytest.mark.parametrize(
    ('folder', 'table', 'images'),
    [
        ('', 'Eval/', 'Img/img'),
        ('', '', 'img'),
        ('', 'Eval/', 'img/img'),
        ('', '', 'img_highres'),
        ('In-shop Clothes Retrieval Benchmark/', 'Eval/', 'Img/img'),
    ],
)
def test_isc(root, folder, table, images):
    write_isc(root / 'isc' / folder, table, images)
    prepare(root, 'isc')
    split = load(root, 'isc')
    paths = [f'{folder}{images}/{path}' for path, _, _ in CLOTHES]
    assert split['train'] == {'id_00000001': [paths[0]], 'id_00000002': [paths[1]]}
    assert split['query'] == {'id_00000007': [paths[2]]}
    assert split['gallery'] == {'id_00000007': paths[3:]}
    query, gallery = (to_pixels(root / 'isc' / path) for path in paths[2:4])
    assert (query != gallery).any()
    counts = {'train': (2, 2), 'query': (1, 1), 'gallery': (2, 1)}
    assert split['info']['counts'] == counts


@pytest.mark.parametrize(
    ('name', 'missing'),
    [
        ('car', 'cars_annos.mat'),
        ('cub', 'images.txt'),
        ('sop', 'Ebay_train.txt'),
        ('isc', 'list_eval_partition.txt'),
    ],
)
def test_a_folder_without_its_list_is_refused(root, name, missing):
    write_classes(root / name)
    with pytest.raises(UserError, match=missing):
        read_source(root, name)


def test_a_list_without_its_images_is_refused(root):
    write_sop(root / 'sop')
    for folder in root.glob('sop/*_final'):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match=r'Ebay_train\.txt names 3 images'):
        read_source(root, 'sop')

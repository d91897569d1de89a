"""HEIC and AVIF: found and read everywhere, the same way round; or counted."""

import os
import subprocess
import sys
import warnings

import numpy as np
import phone
import pytest
from conftest import REPOSITORY
from official import image_size, to_pixels, write_classes, write_image, write_lines
from PIL import Image, features

from areir.data import optional_formats
from areir.data.images import is_image, load_image
from areir.data.loading import make_loader
from areir.data.optional_formats import kind_by_content
from areir.data.splits import load_split
from areir.data.verification import verify_image
from areir.errors import UserError
from data_utils import prepare

optional = pytest.mark.parametrize('name', phone.names('photo.heic', 'photo.avif'))
ADVICE = [('HEIC', 'pip install pillow-heif'), ('AVIF', 'pip install --upgrade pillow')]
both_kinds = pytest.mark.parametrize(('kind', 'advice'), ADVICE)

# run in a process that has not met a HEIC file: prints whether pillow-heif is imported
FRESH = """
import sys
from areir.data.images import is_image, list_files, load_image
from areir.data.loading import make_loader
folder = sys.argv[1]
load_image(f'{folder}/photo.jpg')
print(is_image(f'{folder}/photo.jpg'), 'pillow_heif' in sys.modules)
paths = [f'{folder}/photo.heic', f'{folder}/photo.jpg']
for pixels, _, problems in make_loader(paths, 8, [[0, 1]], num_workers=1):
    pixels = pixels.int()
    print(list(problems), int((pixels[0] - pixels[1]).abs().max()) < 20)
print('pillow_heif' in sys.modules)
"""


def write_start(path, main, *compatible):
    """Write the first bytes of an ISO media file."""
    brands = main + bytes(4) + b''.join(compatible)
    size = (8 + len(brands)).to_bytes(4, 'big')
    path.write_bytes(size + b'ftyp' + brands + b'avif' * 4)
    return path


# Orientation


@optional
@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_orientation_is_that_of_a_jpeg(name, orientation, tmp_path):
    expected = load_image(phone.write_photo(tmp_path / 'photo.jpg', orientation))
    loaded = load_image(phone.write_photo(tmp_path / name, orientation))
    assert loaded.mode == 'RGB'
    assert loaded.size == ((48, 64) if orientation > 4 else (64, 48))
    assert phone.difference(loaded, expected) <= phone.LOSS


@optional
@pytest.mark.parametrize('orientation', range(1, 9))
def test_boxes_are_on_the_stored_pixels(name, orientation, tmp_path):
    """As in a JPEG, so that a dataset can be converted and keeps its boxes."""
    box = (4, 10, 60, 30)
    expected = load_image(phone.write_photo(tmp_path / 'photo.jpg', orientation), box)
    path = phone.write_photo(tmp_path / name, orientation)
    assert phone.difference(load_image(path, box), expected) <= phone.LOSS
    assert verify_image((path, box)) == ('', False)
    assert verify_image((path, (4, 10, 65, 30))) == ('', True)


@optional
def test_loader(name, tmp_path):
    paths = [phone.write_photo(tmp_path / each) for each in ('photo.jpg', name)]
    ((pixels, _, problems),) = make_loader(paths, 16, num_workers=0)
    assert list(problems) == ['', '']
    assert phone.difference(*pixels) <= phone.LOSS


@phone.needs('HEIC')
def test_workers_read_heic_and_nothing_else_imports_its_package(tmp_path):
    for name in ('photo.jpg', 'photo.heic'):
        phone.write_photo(tmp_path / name)
    command = [sys.executable, '-c', FRESH, str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert lines == ['True False', "['', ''] True", 'False'], result.stderr


# Which files


def test_kind_is_told_by_the_first_bytes(tmp_path):
    path = tmp_path / 'file'
    kinds = {
        (b'heic', b'mif1'): 'HEIC',
        (b'mif1', b'mif1', b'heic'): 'HEIC',
        (b'mif1', b'mif1', b'avif'): 'AVIF',
        (b'avif', b'mif1'): 'AVIF',
        (b'mif1',): 'HEIC',  # what follows the brands is no brand
        (b'isom', b'avc1'): None,
    }
    for brands, kind in kinds.items():
        assert kind_by_content(write_start(path, *brands)) == kind, brands
    for content in (b'', b'ftyp', b'\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01'):
        path.write_bytes(content)
        assert kind_by_content(path) is None


@optional
def test_a_file_of_another_name_is_read(name, tmp_path):
    path = phone.write_photo(tmp_path / name)
    expected = load_image(path)
    for other in ('photo.jpg', 'photo'):
        path = path.rename(tmp_path / other)
        assert is_image(str(path)) and phone.difference(load_image(path), expected) == 0


@optional
def test_half_a_file_is_refused_by_name(name, tmp_path):
    path = phone.write_photo(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name):
        load_image(path)


# Without the packages


@both_kinds
def test_a_file_that_cannot_be_read_says_which_package_does(
    kind, advice, tmp_path, monkeypatch
):
    phone.take_away(monkeypatch, kind)
    brand = kind.lower().encode()
    path = write_start(tmp_path / 'photo.jpg', brand)
    with pytest.raises(UserError) as refused:
        load_image(path)
    assert str(refused.value).startswith(f'{path}: ') and advice in str(refused.value)
    assert not is_image(f'photo.{kind.lower()}')


def test_a_pillow_that_knows_no_avif(monkeypatch):
    monkeypatch.delitem(features.modules, 'avif', raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert not optional_formats.can_read('AVIF')


# Datasets


@optional
def test_class_folders(name, tmp_path):
    write_classes(tmp_path / 'photos', ['a', 'b'], images=2)
    phone.write_photo(tmp_path / 'photos/b' / name.upper())
    root = tmp_path / 'data'
    prepare(str(root), 'shoes', str(tmp_path / 'photos'), image_size=8)
    split = load_split(str(root), 'shoes')
    images = [image for part in split.parts.values() for image in part.images]
    assert f'images/b/{name.upper()}' in images and len(images) == 5


@both_kinds
def test_class_folders_without_the_package(kind, advice, tmp_path, monkeypatch):
    phone.take_away(monkeypatch, kind)
    write_classes(tmp_path / 'photos', ['a', 'b'], images=2)
    for number in range(3):
        write_start(tmp_path / f'photos/b/{number}.{kind.lower()}', b'heic')
    with pytest.raises(UserError) as refused:
        prepare(str(tmp_path / 'data'), 'shoes', str(tmp_path / 'photos'))
    line = str(refused.value)
    assert f'3 {kind} files' in line and advice in line and '\n' not in line
    assert not os.path.exists(tmp_path / 'data')


@optional
def test_crops_are_jpegs_of_the_stored_box(name, tmp_path):
    folder = tmp_path / 'photos'
    phone.write_photo(folder / name)
    for other in ('a.png', 'b.png', 'c.png'):
        write_image(folder / other)
    rows = [f'{name},0,train,4,60,10,30', 'a.png,1,train,,,,']
    rows += ['b.png,2,validation,,,,', 'c.png,2,validation,,,,']
    write_lines(folder / 'df.csv', ['path,label,split,x_1,x_2,y_1,y_2', *rows])
    prepare(str(tmp_path / 'data'), 'shop', table=str(folder / 'df.csv'))
    crop = tmp_path / 'data/shop/cropped' / name
    with Image.open(crop) as image:
        assert image.format == 'JPEG'
    expected = load_image(phone.write_photo(tmp_path / 'photo.jpg'), (4, 10, 60, 30))
    assert image_size(crop) == (20, 56)
    assert phone.difference(to_pixels(crop), np.asarray(expected)) <= phone.LOSS

"""HEIC and AVIF photos are read everywhere, the same way round as JPEGs; or counted."""

import subprocess
import sys

import phone
import pytest
from conftest import REPOSITORY
from official import write_image, write_lines
from PIL import Image

from areir.data.images import is_image, load_image
from areir.errors import UserError
from data_utils import prepare

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


@phone.every_name
@pytest.mark.parametrize('orientation', [1, 6, 7])
def test_photos_are_turned_as_a_jpeg_is(name, orientation, tmp_path):
    expected = load_image(phone.write_photo(tmp_path / 'photo.jpg', orientation))
    loaded = load_image(phone.write_photo(tmp_path / name, orientation))
    assert loaded.mode == 'RGB'
    assert loaded.size == ((48, 64) if orientation > 4 else (64, 48))
    assert phone.difference(loaded, expected) <= phone.LOSS


@phone.needs_heic
def test_workers_read_heic_and_nothing_else_imports_its_package(tmp_path):
    for name in ('photo.jpg', 'photo.heic'):
        phone.write_photo(tmp_path / name)
    command = [sys.executable, '-c', FRESH, str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert lines == ['True False', "['', ''] True", 'False'], result.stderr


@phone.every_name
def test_a_file_of_another_name_is_read(name, tmp_path):
    path = phone.write_photo(tmp_path / name)
    expected = load_image(path)
    for other in ('photo.jpg', 'photo'):
        path = path.rename(tmp_path / other)
        assert is_image(str(path)) and phone.difference(load_image(path), expected) == 0


@phone.every_name
def test_half_a_file_is_refused_by_name(name, tmp_path):
    path = phone.write_photo(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name):
        load_image(path)


def test_without_the_package_a_message_names_it(tmp_path, monkeypatch):
    phone.take_heic_away(monkeypatch)
    path = tmp_path / 'photo.jpg'
    path.write_bytes(b'\x00\x00\x00\x18ftypheic' + bytes(12))
    with pytest.raises(UserError, match=r'photo\.jpg: .*pip install pillow-heif'):
        load_image(path)
    assert not is_image('photo.heic')


@phone.every_name
def test_a_dataset_of_photos_and_their_crops(name, tmp_path):
    folder = tmp_path / 'photos'
    phone.write_photo(folder / name.upper(), orientation=1)
    for other in ('a.png', 'b.png', 'c.png'):
        write_image(folder / other)
    rows = [f'{name.upper()},0,train,4,60,10,30', 'a.png,1,train,,,,']
    rows += ['b.png,2,validation,,,,', 'c.png,2,validation,,,,']
    write_lines(folder / 'df.csv', ['path,label,split,x_1,x_2,y_1,y_2', *rows])
    prepare(str(tmp_path / 'data'), 'shop', table=str(folder / 'df.csv'))
    with Image.open(tmp_path / 'data/shop/cropped' / name.upper()) as image:
        assert image.format == 'JPEG' and image.size == (56, 20)
        path = phone.write_photo(tmp_path / 'photo.jpg', orientation=1)
        expected = load_image(path, (4, 10, 60, 30))
        assert phone.difference(image, expected) <= phone.LOSS

"""HEIC and AVIF photos are read everywhere, the same way round as JPEGs; or counted."""

import sys

import numpy as np
import pytest
from official import write_image, write_lines
from photos import Counting, draw_photos, update
from PIL import Image

from areir.data import images
from areir.data.images import is_image, load_image
from areir.errors import UserError
from areir.scripts.data_utils import prepare

LOSS = 12  # of 255, by which a pixel of two encodings of a picture differs at most
FAKE_HEIC = b'\x00\x00\x00\x18ftypheic' + bytes(12)
needs_heic = pytest.mark.skipif(
    not images.register_heic(), reason='pip install pillow-heif'
)
every_name = pytest.mark.parametrize(
    'name', [pytest.param('photo.heic', marks=needs_heic), 'photo.avif']
)


def write_photo(path, orientation=6):
    """Write a picture, 64 x 48, with an EXIF orientation, as a camera does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 48))
    pixels = np.stack([x, y, (1 - x) * (1 - y)], axis=2)
    picture = Image.fromarray((40 + 170 * pixels).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    # with an Exif in place of its bytes, pillow-heif does not turn the picture
    picture.save(path, exif=exif.tobytes(), quality=95)
    return path


def difference(one, other):
    """Return the largest difference of two images of equal size."""
    assert one.size == other.size
    return np.abs(np.subtract(one, other, dtype=int)).max()


def take_heic_away(monkeypatch):
    """Make HEIC unreadable, as if pillow-heif were not installed."""
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    monkeypatch.setattr(images, 'register_heic', images.register_heic.__wrapped__)


@pytest.fixture
def photos(tmp_path):
    return draw_photos(tmp_path / 'photos')


@every_name
def test_photos_are_turned_as_a_jpeg_is_whatever_their_name(name, tmp_path):
    expected = load_image(write_photo(tmp_path / 'jpeg.jpg'))
    path = write_photo(tmp_path / name)
    for other in (name, 'photo.jpg', 'photo'):
        path = path.rename(tmp_path / other)
        loaded = load_image(path)
        assert is_image(str(path)) and loaded.size == (48, 64)
        assert difference(loaded, expected) <= LOSS
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match='photo: '):
        load_image(path)


def test_without_the_package_a_message_names_it(tmp_path, monkeypatch):
    take_heic_away(monkeypatch)
    path = tmp_path / 'photo.jpg'
    path.write_bytes(FAKE_HEIC)
    with pytest.raises(UserError, match=r'photo\.jpg: .*pip install pillow-heif'):
        load_image(path)
    assert not is_image('photo.heic')


@every_name
def test_a_dataset_of_photos_and_their_crops(name, tmp_path):
    folder = tmp_path / 'photos'
    write_photo(folder / name.upper(), orientation=1)
    for other in ('a.png', 'b.png', 'c.png'):
        write_image(folder / other)
    rows = [f'{name.upper()},0,train,4,60,10,30', 'a.png,1,train,,,,']
    rows += ['b.png,2,validation,,,,', 'c.png,3,validation,,,,']
    write_lines(folder / 'df.csv', ['path,label,split,x_1,x_2,y_1,y_2', *rows])
    prepare(str(tmp_path / 'data'), 'shop', table=str(folder / 'df.csv'))
    with Image.open(tmp_path / 'data/shop/cropped' / name.upper()) as image:
        assert image.format == 'JPEG' and image.size == (56, 20)
        path = write_photo(tmp_path / 'photo.jpg', orientation=1)
        assert difference(image, load_image(path, (4, 10, 60, 30))) <= LOSS


@needs_heic
@pytest.mark.parametrize('hidden', [False, True])
def test_once_the_package_is_there_the_files_are_read(
    hidden, photos, tmp_path, monkeypatch, capsys
):
    path = write_photo(photos / 'photo.heic')
    if hidden:  # under the name of another format
        path = path.rename(photos / 'hidden.jpg')
    with monkeypatch.context() as patch:
        take_heic_away(patch)
        index = update(photos, tmp_path / 'index')
        assert len(index.paths) == 7 and list(index.problems) == ['hidden.jpg'] * hidden
        assert hidden or 'left out 1 HEIC file:' in capsys.readouterr().out
        again = Counting()
        update(photos, tmp_path / 'index', embed=again)
        assert again.images == 0
    index = update(photos, tmp_path / 'index')
    assert (index.embedded, len(index.paths), index.problems) == (1, 8, {})

"""A gallery and queries with HEIC and AVIF files, with and without their packages."""

import numpy as np
import phone
import pytest
from photos import Counting, draw_photos, update
from toy import ToyCollection, on_circle

from areir.errors import UserError
from areir.gallery.queries import embed_queries, find_queries


class Colours:
    """Embeds an image by its mean red and green."""

    image_size = 4

    def __call__(self, pixels):
        return pixels.float().mean((2, 3))[:, :2]


class ColourCollection(ToyCollection):
    """A collection that embeds further images."""

    def load_embedder(self):
        return Colours()


@pytest.fixture
def collection(tmp_path):
    return ColourCollection(tmp_path / 'photos', ['a.png', 'b.png'], on_circle(0, 10))


@pytest.fixture
def photos(tmp_path):
    return draw_photos(tmp_path / 'photos')


@phone.every_name
def test_the_index_of_turned_photos_is_that_of_a_jpeg(name, photos, tmp_path, capsys):
    for each in ('photo.jpg', name):
        phone.write_photo(photos / 'c' / each)
    phone.write_photo(photos / 'c/upright.jpg', orientation=1)
    index = update(photos, tmp_path / 'index')
    assert len(index.paths) == 10 and not capsys.readouterr().out
    rows = dict(zip(index.paths, index.vectors.rows()))
    jpeg, other = rows['c/photo.jpg'], rows[f'c/{name}']
    upright = rows['c/upright.jpg']
    assert np.abs(jpeg - other).max() < 0.02 < np.abs(jpeg - upright).max()
    assert update(photos, tmp_path / 'index').embedded == 0


@phone.needs_heic
@pytest.mark.parametrize('hidden', [False, True])
def test_once_the_package_is_there_the_files_are_read(
    hidden, photos, tmp_path, monkeypatch, capsys
):
    path = phone.write_photo(photos / 'photo.heic')
    if hidden:  # under the name of another format
        path = path.rename(photos / 'hidden.jpg')
    with monkeypatch.context() as patch:
        phone.take_heic_away(patch)
        index = update(photos, tmp_path / 'index')
        assert len(index.paths) == 7 and list(index.problems) == ['hidden.jpg'] * hidden
        assert hidden or 'notice: 1 HEIC files' in capsys.readouterr().out
        again = Counting()
        update(photos, tmp_path / 'index', embed=again)
        assert again.images == 0
    index = update(photos, tmp_path / 'index')
    assert (index.embedded, len(index.paths), index.problems) == (1, 8, {})


@phone.every_name
def test_a_folder_of_queries(name, collection, tmp_path):
    path = phone.write_photo(tmp_path / 'queries' / name)
    queries = find_queries(str(path.parent), collection)
    assert [query.name for query in queries] == [str(path)]
    assert embed_queries(queries, collection) == queries


def test_queries_without_a_package(collection, tmp_path, capsys, monkeypatch):
    phone.take_heic_away(monkeypatch)
    jpeg = phone.write_photo(tmp_path / 'queries/photo.jpg')
    path = tmp_path / 'queries/photo.heic'
    path.write_bytes(b'\x00\x00\x00\x18ftypheic' + bytes(12))
    queries = find_queries(str(path.parent), collection)
    assert [query.name for query in queries] == [str(jpeg)]
    assert 'notice: 1 HEIC files' in capsys.readouterr().out

    (query,) = find_queries(str(path), collection)  # that file alone
    with pytest.raises(UserError) as refused:
        embed_queries([query], collection)
    line = str(refused.value)
    assert line.startswith(f'{path}: ') and 'pip install' in line and '\n' not in line

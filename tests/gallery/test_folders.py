"""The files of a folder: which are images, and of which class."""

import os

import numpy as np
import pytest
from photos import draw, draw_photos, update
from PIL import Image

from areir.data.own_images import recognise
from areir.gallery.folders import class_names


@pytest.fixture
def photos(tmp_path):
    return draw_photos(tmp_path / 'photos')


def test_all_kinds_of_files(photos, tmp_path):
    frames = [Image.new('RGB', (9, 9), colour) for colour in ('red', 'blue')]
    for name in ('animated.gif', 'animated.webp'):
        frames[0].save(photos / name, save_all=True, append_images=frames[1:])
    deep = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    Image.fromarray(deep).save(photos / 'deep.tif')
    Image.new('RGB', (1, 1), 'red').save(photos / 'one.bmp')
    Image.new('CMYK', (9, 9)).save(photos / 'cmyk.jpg')
    Image.new('RGBA', (32, 32)).save(photos / 'clear.ico')
    Image.new('RGB', (9, 9), 'green').save(photos / 'without suffix', 'PNG')
    images = set(os.listdir(photos)) - {'a', 'b'}
    Image.new('1', (20_000, 20_000)).save(photos / 'huge.png')
    (photos / 'notes.txt').write_text('P3 is not enough to be an image')
    (photos / 'empty.jpg').write_bytes(b'')
    (photos / 'broken link.jpg').symlink_to('nowhere')
    index = update(photos, tmp_path / 'index')
    assert len(index.paths) == 14 and images <= set(index.paths)
    assert set(index.problems) == {'huge.png', 'empty.jpg', 'broken link.jpg'}
    assert '400 million' in index.problems['huge.png']
    again = update(photos, tmp_path / 'index')
    # they are listed again, but not read again
    assert again.embedded == 0 and again.problems == index.problems


def test_postscript_is_not_given_to_another_program(photos, tmp_path):
    script = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n'
    for name in ('drawing.eps', 'disguised.jpg', 'bare'):
        (photos / name).write_bytes(script + b'showpage\n%%EOF\n')
    index = update(photos, tmp_path / 'index')
    assert list(index.problems) == ['disguised.jpg'] and len(index.paths) == 7
    assert 'cannot identify' in index.problems['disguised.jpg']


def test_links_and_loops(photos, tmp_path):
    (photos / 'a/loop').symlink_to(photos)
    draw(tmp_path / 'elsewhere/0.png', 1)  # a name that a/0.png has
    (photos / 'linked').symlink_to(tmp_path / 'elsewhere')
    (photos / 'b/link.png').symlink_to(photos / 'a/0.png')
    paths = update(photos, tmp_path / 'index').paths
    assert len(paths) == 9 and {'linked/0.png', 'a/0.png', 'b/link.png'} <= set(paths)


def test_a_folder_that_cannot_be_read_is_listed(photos, tmp_path, monkeypatch):
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith('/b'):
            raise PermissionError(13, 'Permission denied')
        return scandir(folder)

    monkeypatch.setattr(os, 'scandir', refusing)
    index = update(photos, tmp_path / 'index')
    assert index.problems == {'b/': 'Permission denied'} and len(index.paths) == 4


@pytest.mark.parametrize(
    ('paths', 'names'),
    [
        (['a/1.png', 'b/2.png', 'b/deep/3.png'], ['a', 'b', 'b']),
        (['a/1.png', 'b/2.png', '3.png'], ['a', 'b', None]),
        (['1.png', '2.png'], [None, None]),
        (['a/1.png', 'a/2.png'], [None, None]),
        (['train/a/1.png', 'test/b/2.png'], ['a', 'b']),
        (['train/a/1.png', 'b/2.png'], ['train', 'b']),
    ],
)
def test_class_folders_are_the_classes(paths, names):
    assert class_names(recognise(paths)) == names

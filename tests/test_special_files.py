"""A FIFO, a socket or a device among images is left out, not waited for."""

import pytest
from official import write_classes, write_sop
from photos import draw_photos, update
from special import KINDS, in_time, make_special

from areir.data.images import list_files
from areir.data.source import read_source
from areir.errors import UserError

pytestmark = pytest.mark.usefixtures(in_time.__name__)


def test_a_gallery_is_indexed_without_them(tmp_path):
    photos = draw_photos(tmp_path / 'photos')
    for kind in KINDS:
        make_special(photos / 'a' / f'{kind}.png', kind)
    assert len(list_files(photos)) == 7
    index = update(photos, tmp_path / 'index')
    assert len(index.paths) == 7 and not index.problems


def test_a_dataset_is_read_without_them(tmp_path):
    photos = tmp_path / 'photos'
    write_classes(photos)
    make_special(photos / 'a/it.png')
    dataset = read_source(tmp_path / 'data', 'shoes', photos)
    assert len(dataset.records) == 8


def test_a_list_of_a_dataset_in_its_place_is_named(tmp_path):
    write_sop(tmp_path / 'sop')
    make_special(tmp_path / 'sop/Ebay_train.txt')
    with pytest.raises(UserError, match=r'Ebay_train\.txt is missing'):
        read_source(tmp_path, 'sop')

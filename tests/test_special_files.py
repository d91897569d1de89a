"""A FIFO, a socket or a device in the place of a file is refused, not waited for."""

import pytest
from official import write_classes, write_sop
from photos import draw_photos, update
from special import KINDS, in_time, make_special

from areir.data.images import list_files, load_image
from areir.data.lists import read_csv
from areir.data.source import read_source
from areir.errors import UserError
from areir.evaluation.embeddings_file import load_entries
from areir.files import load_tensors

pytestmark = pytest.mark.usefixtures(in_time.__name__)


def read_labels(path):
    return load_entries(path, labels=path)


def read_listed_images(path):
    return list(read_csv(path, ['label']))


@pytest.mark.parametrize(
    ('kind', 'suffix', 'read'),
    [
        *[(kind, '.pth', load_tensors) for kind in KINDS],
        ('FIFO', '.png', load_image),
        ('FIFO', '.heic', load_image),
        ('FIFO', '.npy', load_entries),
        ('FIFO', '.npz', load_entries),
        ('FIFO', '.npy', read_labels),
        ('FIFO', '.csv', read_listed_images),
    ],
)
def test_readers_refuse_it_by_name(tmp_path, kind, suffix, read):
    path = make_special(tmp_path / f'it{suffix}', kind)
    with pytest.raises(UserError, match=f'it{suffix}: .*regular') as refused:
        read(str(path))
    assert '\n' not in str(refused.value)


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

"""A FIFO, a socket or a device in the place of a file is refused, not waited for."""

import json

import pytest
from official import write_classes, write_sop
from photos import Counting, assert_same, draw_photos, update
from special import KINDS, in_time, make_special

from areir.data.images import is_image, list_files, load_image
from areir.data.source import read_source
from areir.data.tables import read_csv
from areir.errors import UserError
from areir.evaluation.embeddings_file import load_entries
from areir.files import load_tensors
from areir.gallery.queries import images_below
from areir.gallery.vectors_file import VectorsFile
from areir.output.run_files import read_provenance

pytestmark = pytest.mark.usefixtures(in_time.__name__)
every_kind = pytest.mark.parametrize('kind', KINDS)


@every_kind
@pytest.mark.parametrize(
    'read',
    [
        load_image,
        load_tensors,
        lambda path: load_entries(path),
        lambda path: load_entries(path, labels_csv=path),
        lambda path: read_csv(path, [('label',)], dict),
        VectorsFile,
    ],
)
@pytest.mark.parametrize('suffix', ['', '.npy', '.npz', '.png', '.heic'])
def test_readers_refuse_it_by_name(tmp_path, kind, read, suffix):
    path = make_special(tmp_path / f'it{suffix}', kind)
    with pytest.raises(UserError, match=f'it{suffix}: .*regular') as refused:
        read(str(path))
    assert '\n' not in str(refused.value)


@every_kind
def test_folders_are_listed_without_it(tmp_path, kind):
    photos = draw_photos(tmp_path / 'photos')
    paths = [make_special(photos / 'a' / name, kind) for name in ('it', 'it.png')]
    assert not is_image(paths[0])
    special = []
    assert len(list_files(photos, special=special)) == 7
    assert sorted(special) == ['a/it', 'a/it.png']
    assert len(images_below(str(photos))) == 7


@every_kind
def test_a_gallery_is_indexed_without_it(tmp_path, capsys, kind):
    photos = draw_photos(tmp_path / 'photos')
    for name in ('it', 'it.png', 'it.txt'):
        make_special(photos / 'a' / name, kind)
    index = update(photos, tmp_path / 'index')
    assert len(index.paths) == 7 and not index.problems
    output = capsys.readouterr().out
    assert 'notice: 3 files' in output and 'such as a/it\n' in output


def test_a_dataset_is_read_without_it(tmp_path):
    photos = tmp_path / 'photos'
    write_classes(photos, ['a', 'b'])
    make_special(photos / 'a/it.png')
    dataset = read_source(tmp_path / 'data', 'shoes', photos)
    assert len(dataset.records) == 4 and dataset.left_out == ['a/it.png']


def test_a_list_of_a_dataset_in_its_place_is_named(tmp_path):
    write_sop(tmp_path / 'sop')
    make_special(tmp_path / 'sop/Ebay_train.txt')
    with pytest.raises(UserError, match=r'missing.*Ebay_train\.txt: not a regular'):
        read_source(tmp_path, 'sop')


@pytest.mark.parametrize('name', ['index.pth', 'vectors_*[0-9a-f].npy'])
def test_an_index_with_it_is_built_again(tmp_path, name):
    photos = draw_photos(tmp_path / 'photos')
    index = update(photos, tmp_path / 'index')
    (path,) = (tmp_path / 'index').glob(name)
    make_special(path)
    counting = Counting()
    again = update(photos, tmp_path / 'index', embed=counting)
    assert counting.images == 7
    assert_same(again, update(photos, tmp_path / 'new'))
    assert index.paths == again.paths


@pytest.mark.parametrize('suffix', ['jsonl', 'f32'])
def test_a_journal_with_it_is_not_used(tmp_path, capsys, suffix):
    photos = draw_photos(tmp_path / 'photos')
    (tmp_path / 'index').mkdir()
    lines = tmp_path / 'index/journal_a.jsonl'
    lines.write_text(json.dumps({}) + '\n')
    make_special(lines.with_suffix(f'.{suffix}'))
    assert update(photos, tmp_path / 'index').embedded == 7
    assert f'{lines} is damaged' in capsys.readouterr().out


def test_the_page_of_a_run_does_without_it(tmp_path):
    path = make_special(tmp_path / 'run.json')
    assert 'damaged' in read_provenance(str(path)).problem

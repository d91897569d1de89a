"""Databases: found below --results_root, searched, and their images and models."""

import os
import shutil

import pytest
import torch
from trained import embed, save_database, save_model

from areir.cli.searching import DEFAULT_DATABASE, DEFAULT_NETWORK
from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.gallery.collection import DatabaseCollection
from areir.gallery.databases import find_model, image_folder, load_database
from areir.gallery.queries import find_queries, query_paths, search_queries
from areir.scripts.model import TrainedModel


@pytest.fixture
def open_database(tmp_path):
    """Open a database of two classes of four photos, with these fields changed."""
    toy = tmp_path / 'data/toy'
    sizes = {'train_classes': 2, 'test_classes': 2, 'images_per_class': 4}
    draw_sample(str(tmp_path / 'photos'), **sizes, side=32)
    shutil.copytree(tmp_path / 'photos/test', toy)
    saved = save_model(tmp_path / 'toy_model.pth')
    path = str(tmp_path / 'toy_data_base.pth')

    def opened(**changed):
        save_database(path, toy, saved, 'toy_model.pth', **changed)
        database, _ = load_database(path, 'nowhere')
        return DatabaseCollection(database, path, str(toy), TrainedModel, 'cpu')

    return opened


def test_a_database_image_is_searched_by_its_stored_embedding(open_database):
    collection = open_database()
    (query,) = find_queries([collection.path_of(3)], collection)
    assert (query.index, query.label) == (3, 'figure_3')
    embeddings = collection.database['embeddings']
    assert torch.equal(query.embedding, embeddings[3])
    ((_, (scores, indices)),) = search_queries([query], collection, 7)
    expected = embeddings @ query.embedding
    order = expected.argsort(descending=True).tolist()
    order.remove(3)
    assert indices == order
    assert scores == pytest.approx(expected[order].tolist(), abs=1e-5)


def test_a_model_of_another_epoch_is_refused(open_database):
    with pytest.raises(UserError, match=r'toy_model\.pth'):
        _ = open_database(version='other').trained


def test_stored_queries_may_retrieve_the_whole_gallery(open_database, tmp_path):
    """As in In-shop Clothes, whose queries are not part of the gallery."""
    source = tmp_path / 'photos/test/figure_4/figure_4_02.png'
    stored = embed(save_model(tmp_path / 'toy_model.pth'), [source])
    collection = open_database(
        query_embeddings=stored,
        query_labels=torch.tensor([1]),
        query_images=['query/2.png'],
    )
    file = tmp_path / 'data/toy/query/2.png'
    file.parent.mkdir()
    shutil.copy(source, file)
    for name in (str(file), 'toy/query/2.png', 'query/2.png'):
        (query,) = find_queries(query_paths(name, collection.folder), collection)
        assert (query.index, query.label) == (-1, 'figure_4')
        assert query.picture == str(file) and torch.equal(query.embedding, stored[0])
    ((_, (_, indices)),) = search_queries([query], collection, 8)
    assert sorted(indices) == list(range(8))


@pytest.mark.parametrize('folder', ['', 'nowhere'])
def test_nothing_trained_yet(tmp_path, folder):
    root = str(tmp_path / folder)
    assert find_model(None, root)[0] == DEFAULT_NETWORK
    with pytest.raises(UserError, match=r'nothing is trained yet .*train\.py'):
        load_database(DEFAULT_DATABASE, root)


def test_the_newest_model_is_the_default(tmp_path):
    for age, name in enumerate('bac'):
        path = tmp_path / f'{name}_model.pth'
        path.write_text('')
        os.utime(path, (1000 - age, 1000 - age))
    path, note = find_model(None, str(tmp_path))
    assert path == str(tmp_path / 'b_model.pth') and 'newest of 3' in note


def test_a_model_of_the_sample_is_not_the_default(tmp_path):
    root = str(tmp_path)
    for age, data_name in enumerate(['sample', 'sample', 'shoes']):
        path = tmp_path / f'{data_name}_{age}_model.pth'
        save_model(path, data_name=data_name)
        os.utime(path, (1000 - age, 1000 - age))
    path, note = find_model(None, root)
    assert path == str(tmp_path / 'shoes_2_model.pth') and 'sample' in note
    os.remove(path)
    name, note = find_model(None, root)
    assert name == DEFAULT_NETWORK and '--model sample_0_model.pth' in note
    chosen = find_model('sample_0_model.pth', root)
    assert chosen == (str(tmp_path / 'sample_0_model.pth'), '')


def test_the_images_are_found_where_they_were_or_where_the_user_says(
    tmp_path, monkeypatch
):
    database = {'images': ['0.png'], 'data_name': 'toy', 'data_root': '../data'}
    path = str(tmp_path / 'results/toy_data_base.pth')
    for folder in ('results', 'data/toy', 'moved/toy'):
        (tmp_path / folder).mkdir(parents=True)
    for root in ('data', 'moved'):
        (tmp_path / root / 'toy/0.png').write_text('')
    assert image_folder(database, path, None) == str(tmp_path / 'data/toy')
    moved = str(tmp_path / 'moved')
    assert image_folder(database, path, moved) == str(tmp_path / 'moved/toy')
    monkeypatch.chdir(tmp_path)
    assert image_folder(database, path, None) == 'data/toy'  # the shorter way
    (tmp_path / 'linked').symlink_to(tmp_path / 'results')
    linked = str(tmp_path / 'linked/toy_data_base.pth')
    assert image_folder(database, linked, None) == 'data/toy'
    with pytest.raises(UserError, match='--data_root'):
        image_folder(database, path, 'nowhere')

"""Databases: their queries and their models."""

import shutil

import pytest
import torch
from trained import embed, save_database, save_model

from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.gallery.collection import DatabaseCollection
from areir.gallery.databases import load_database
from areir.gallery.queries import find_queries, search_queries
from model import TrainedModel


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
    (query,) = find_queries(collection.path_of(3), collection)
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
        open_database(version='other').load_model()


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
        (query,) = find_queries(name, collection)
        assert (query.index, query.label) == (-1, 'figure_4')
        assert query.file == str(file) and torch.equal(query.embedding, stored[0])
    ((_, (_, indices)),) = search_queries([query], collection, 8)
    assert sorted(indices) == list(range(8))

"""What is searched: databases and folders, their queries, and their models."""

import math
import shutil

import pytest
import torch
from trained import CALIBRATION, embed, save_database, save_model

from areir.data.images import list_files
from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.gallery.collection import DatabaseCollection, FolderCollection
from areir.gallery.databases import load_database
from areir.gallery.index import update_index
from areir.gallery.queries import find_queries, search_queries
from areir.matching.thresholds import threshold_of
from model import TrainedModel

CPU = torch.device('cpu')


@pytest.fixture
def photos(tmp_path):
    """A folder of 16 photos, those of two classes below test/."""
    folder = tmp_path / 'photos'
    sizes = {'train_classes': 2, 'test_classes': 2, 'images_per_class': 4}
    draw_sample(str(folder), **sizes, side=32)
    return folder


@pytest.fixture
def open_database(photos, tmp_path):
    """Open a database of the photos below test/, with these fields changed."""
    toy = tmp_path / 'data/toy'
    shutil.copytree(photos / 'test', toy)
    saved = save_model(tmp_path / 'toy_model.pth')
    path = str(tmp_path / 'toy_data_base.pth')

    def opened(**changed):
        save_database(path, toy, saved, 'toy_model.pth', **changed)
        database, _ = load_database(path, 'nowhere')
        return DatabaseCollection(database, path, str(toy), TrainedModel, CPU)

    return opened


@pytest.fixture
def folder_collection(photos, tmp_path):
    save_model(tmp_path / 'toy_model.pth')
    trained = TrainedModel(str(tmp_path / 'toy_model.pth'))
    embedder = trained.embedder(CPU)
    place = str(photos), str(tmp_path / 'index')
    index = update_index(*place, {'model': 'toy'}, 32, embedder)
    return FolderCollection(str(photos), index, trained, embedder)


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


def test_images_of_a_folder_do_not_find_themselves(folder_collection, photos, tmp_path):
    collection = folder_collection
    assert collection.images == list_files(str(photos))
    assert collection.classes[0] == 'figure_3'
    path = collection.path_of(5)
    (tmp_path / 'link.png').symlink_to(path)
    for name in (path, str(tmp_path / 'link.png'), collection.images[5]):
        (query,) = find_queries(name, collection)
        assert (query.index, query.file) == (5, path)
        ((_, (_, indices)),) = search_queries([query], collection, 15)
        assert sorted(indices) == [index for index in range(16) if index != 5]


def test_a_threshold_depends_on_the_number_of_images(folder_collection):
    score, calibrated = threshold_of(folder_collection)
    assert score == pytest.approx(0.5 + 0.4 * math.log(16) / math.log(100))
    assert calibrated
    folder_collection.calibration = {**CALIBRATION, 'sizes': [1, 10]}
    assert threshold_of(folder_collection) == (0.9, False)

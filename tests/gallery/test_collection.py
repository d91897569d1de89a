"""What is searched: databases and folders, their queries, and their models."""

import math
import os
import shutil

import pytest
import torch
from trained import CALIBRATION, embed, save_database, save_model

from areir.data.images import list_files
from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.gallery import approximate
from areir.gallery.collection import DatabaseCollection, FolderCollection
from areir.gallery.databases import load_database
from areir.gallery.index import update_index
from areir.gallery.queries import embed_queries, find_queries, search_queries
from areir.matching.thresholds import threshold_of
from model import TrainedModel

CPU = torch.device('cpu')
SIZES = {'train_classes': 2, 'test_classes': 2, 'images_per_class': 4, 'side': 32}


class World:
    """A dataset `toy`, its model and the database of the test images."""

    def __init__(self, root):
        self.root = root
        self.photos = root / 'photos'
        draw_sample(str(self.photos), **SIZES)
        self.toy = root / 'data/toy'
        shutil.copytree(self.photos / 'test', self.toy)
        self.saved = save_model(root / 'toy_model.pth')
        self.path = str(root / 'toy_data_base.pth')
        self.save()

    def save(self, **changed):
        """Write the database, by default with the model beside it."""
        changed = {'model': 'toy_model.pth', **changed}
        self.database = save_database(self.path, self.toy, self.saved, **changed)

    def open_database(self, open_model=TrainedModel):
        database, path = load_database(self.path, 'nowhere')
        folder = str(self.toy)
        return DatabaseCollection(database, path, folder, open_model, CPU)

    def open_folder(self, approximately=False):
        trained = TrainedModel(str(self.root / 'toy_model.pth'))
        embedder = trained.embedder(CPU)
        folder, index = str(self.photos), str(self.root / 'index')
        index = update_index(folder, index, {'model': 'toy'}, 32, embedder)
        if not approximately:
            return FolderCollection(folder, index, trained, embedder)
        by_faiss = approximate.open_approximate(index)
        return FolderCollection(folder, index, trained, embedder, by_faiss.search)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def no_model(path):
    raise AssertionError('the model is not needed')


def test_a_database_image_needs_no_model(world):
    collection = world.open_database(no_model)
    name = str(world.toy / world.database['images'][3])
    (query,) = find_queries(name, collection)
    assert (
        query.embedding is not None and query.index == 3 and query.label == 'figure_3'
    )
    assert torch.equal(query.embedding, world.database['embeddings'][3])
    ((_, (scores, indices)),) = search_queries([query], collection, 7)
    expected = world.database['embeddings'] @ query.embedding
    order = expected.argsort(descending=True).tolist()
    order.remove(3)
    assert indices == order
    assert scores == pytest.approx(expected[order].tolist(), abs=1e-5)


def test_an_image_outside_a_database_is_embedded_by_its_model(world):
    collection = world.open_database()
    name = str(world.photos / 'train/figure_1/figure_1_01.png')
    queries = find_queries(name, collection)
    assert queries[0].embedding is None and queries[0].label is None
    (query,) = embed_queries(queries, collection)
    (expected,) = embed(world.saved, [name])  # bf16 where the hardware has it
    assert torch.allclose(query.embedding, expected, atol=0.05)
    assert collection.load_model() is collection.load_model()


@pytest.mark.parametrize('change', ['missing', 'version'])
def test_a_model_that_does_not_fit_the_database_is_refused(world, change):
    if change == 'missing':
        os.remove(world.root / 'toy_model.pth')
    else:
        world.save(version='other')
    collection = world.open_database()
    with pytest.raises(UserError, match=r'toy_model\.pth'):
        collection.load_model()


def test_stored_queries_may_retrieve_the_whole_gallery(world):
    """As in In-shop Clothes, whose queries are not part of the gallery."""
    source = world.toy / 'figure_4/figure_4_02.png'
    world.save(
        query_embeddings=embed(world.saved, [source]),
        query_labels=torch.tensor([1]),
        query_images=['query/2.png'],
    )
    (world.toy / 'query').mkdir()
    shutil.copy(source, world.toy / 'query/2.png')
    collection = world.open_database(no_model)
    for name in (str(world.toy / 'query/2.png'), 'toy/query/2.png', 'query/2.png'):
        (query,) = find_queries(name, collection)
        assert (
            query.embedding is not None
            and query.index == -1
            and query.label == 'figure_4'
        )
        assert query.file == str(world.toy / 'query/2.png')
    ((_, (_, indices)),) = search_queries([query], collection, 8)
    assert sorted(indices) == list(range(8))
    assert collection.names == [*world.database['images'], 'query/2.png']


# Folders


def test_a_folder_is_searched_and_its_images_do_not_find_themselves(world):
    collection = world.open_folder()
    assert collection.images == list_files(str(world.photos))
    assert collection.classes[0] == 'figure_3'
    path = collection.path_of(5)
    (world.root / 'link.png').symlink_to(path)
    for name in (path, str(world.root / 'link.png'), collection.images[5]):
        (query,) = find_queries(name, collection)
        assert (query.index, query.file) == (5, path)
        ((_, (_, indices)),) = search_queries([query], collection, 15)
        assert sorted(indices) == [index for index in range(16) if index != 5]


def test_an_approximate_collection_finds_what_it_can(world):
    pytest.importorskip('faiss', reason='faiss is optional')
    exact, other = world.open_folder(), world.open_folder(approximately=True)
    queries = find_queries(str(world.photos / 'train'), exact)
    expected = search_queries(queries, exact, 8)
    assert len(queries) == 8
    assert search_queries(queries, other, 8) == expected


def test_a_threshold_depends_on_the_number_of_images(world):
    collection = world.open_folder()
    score, calibrated = threshold_of(collection)
    assert score == pytest.approx(0.5 + 0.4 * math.log(16) / math.log(100))
    assert calibrated
    collection.calibration = {**CALIBRATION, 'sizes': [1, 10]}
    assert threshold_of(collection) == (0.9, False)
    collection.calibration = None
    assert threshold_of(collection) is None


# Queries


def test_queries_that_cannot_be_read_are_left_out(world, capsys):
    folder = world.root / 'queries'
    (folder / 'more').mkdir(parents=True)
    shutil.copy(world.photos / 'train/figure_1/figure_1_01.png', folder / 'one.png')
    shutil.copy(world.photos / 'train/figure_2/figure_2_01.png', folder / 'more/2.png')
    (folder / 'broken.jpg').write_text('no image')
    (folder / 'notes.txt').write_text('no image')
    (folder / 'li\nk.png').symlink_to('nowhere')
    collection = world.open_folder()
    queries = find_queries(str(folder), collection)
    queries = embed_queries(queries, collection)
    names = [query.name for query in queries]
    assert names == [f'{folder}/more/2.png', f'{folder}/one.png']
    output = capsys.readouterr().out
    assert f'{folder}/broken.jpg is left out: cannot identify' in output
    assert rf'{folder}/li\nk.png is left out' in output


def test_queries_that_are_not_there_are_refused(world):
    collection = world.open_folder()
    (world.root / 'empty').mkdir()
    for name in ('nowhere.jpg', str(world.root / 'empty')):
        with pytest.raises(UserError, match=f'--query_img_name {name}: '):
            find_queries(name, collection)
    broken = world.root / 'empty/broken.jpg'
    broken.write_text('no image')
    for name in (broken, broken.parent):
        queries = find_queries(str(name), collection)
        with pytest.raises(UserError, match=r'broken\.jpg: cannot identify'):
            embed_queries(queries, collection)

"""TrainedModel.embed and Gallery give a program of one's own what the scripts write."""

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import trained
from conftest import Project
from PIL import Image

from areir import Gallery, load_model
from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.gallery.databases import find_model


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """The path of a model of random weights."""
    path = tmp_path_factory.mktemp('model') / 'toy_model.pth'
    trained.save_model(path)
    return path


@pytest.fixture(scope='module')
def loaded(model):
    return load_model(model)


@pytest.fixture(scope='module')
def figures(tmp_path_factory):
    """A folder of 16 figures of 4 classes, in class folders."""
    folder = tmp_path_factory.mktemp('figures')
    sizes = {'train_classes': 2, 'test_classes': 2, 'images_per_class': 4}
    draw_sample(str(folder / 'drawn'), **sizes, side=90)
    for path in folder.glob('drawn/*/*'):
        shutil.move(path, folder)
    shutil.rmtree(folder / 'drawn')
    return folder


@pytest.fixture
def photos(figures, tmp_path):
    """A copy of the figures that a test may change."""
    return shutil.copytree(figures, tmp_path / 'photos')


@pytest.fixture
def gallery(photos, loaded, tmp_path):
    return Gallery(photos, loaded, tmp_path / 'results', 'cpu')


@pytest.fixture
def ask(model, tmp_path):
    """A function that calls inference.py and returns what it prints."""
    project = Project(tmp_path / 'my project')
    flags = ['--model', model, '--results_root', tmp_path / 'results', '--device=cpu']
    return lambda *more: project.ask('inference.py', *flags, *more)


def equal_rows(table, path):
    written = pd.read_csv(path)
    columns = [name for name in table if name != 'query' or 'query' in written]
    pd.testing.assert_frame_equal(
        table[columns].reset_index(drop=True), written, check_dtype=False
    )


# The vectors of pictures


def test_files_images_and_arrays_have_the_same_vectors(loaded, figures):
    paths = sorted(map(str, figures.glob('*/*')))
    vectors = loaded.embed(paths, 'cpu')
    assert vectors.dtype == np.float32 and vectors.shape == (16, loaded.dimensions)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    read = [Image.open(path).convert('RGB') for path in paths]
    arrays = [np.asarray(image) for image in read]
    mixed = [Path(paths[0]), *read[1:6], *arrays[6:]]
    for pictures in (map(Path, paths), pd.Series(paths), read, np.stack(arrays), mixed):
        assert np.array_equal(loaded.embed(pictures, 'cpu'), vectors)
    assert np.array_equal(loaded.embed(map(Image.open, paths), 'cpu'), vectors)
    for one in (paths[3], Path(paths[3]), read[3], arrays[3]):
        assert np.array_equal(loaded.embed(one, 'cpu'), loaded.embed(paths[3:4], 'cpu'))
    assert loaded.embed([], 'cpu').shape == (0, loaded.dimensions)


def test_many_files_are_read_by_other_processes(loaded, figures):
    paths = sorted(map(str, figures.glob('*/*')))
    vectors = loaded.embed(5 * paths, 'cpu')
    assert np.allclose(vectors, np.tile(loaded.embed(paths, 'cpu'), (5, 1)), atol=0.01)
    images = map(Image.open, 5 * paths)
    assert np.array_equal(loaded.embed(images, 'cpu'), vectors)


@pytest.mark.parametrize(
    ('picture', 'text'),
    [
        (np.zeros((8, 8, 3)), r'picture 1: float64 \(8, 8, 3\) is no picture'),
        (np.zeros((3, 8, 8), np.uint8), r'picture 1: uint8 \(3, 8, 8\) is'),
        (np.zeros((0, 8, 3), np.uint8), r'picture 1: uint8 \(0, 8, 3\) is'),
        (None, r'picture 1: object \(\) is no picture'),
        ('nine.png', r'nine\.png: no such file or folder; did you mean fine\.png'),
        (Path('broken.png'), r'^broken\.png: cannot identify image file$'),
        (Path('.'), r'^\.: .*Is a directory$'),
    ],
    ids=str,
)
def test_what_is_no_picture_is_named(
    loaded, gallery, tmp_path, monkeypatch, picture, text
):
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (9, 9), 'red').save('fine.png')
    Path('broken.png').write_text('no image')
    with pytest.raises(UserError, match=text):
        loaded.embed(['fine.png', picture], 'cpu')


def test_wrong_choices_are_refused(loaded, figures, gallery, tmp_path):
    for name, call in {
        'device': lambda: loaded.embed([], 'gpu'),
        '--device': lambda: Gallery(figures, loaded, device='gpu'),
        '--index': lambda: Gallery(figures, loaded, index='none'),
        '--strictness': lambda: gallery.duplicates('very'),
        '--retrieval_num': lambda: gallery.search(np.zeros((8, 8), np.uint8), k=0),
        '--false_match_rate': lambda: gallery.calibrate(5),
        '--format': lambda: gallery.export(tmp_path, 'csv'),
        'nope.pth: no .* and no such file': lambda: load_model('nope.pth'),
    }.items():
        with pytest.raises(UserError, match=name):
            call()


# The search


def test_rows_are_those_of_inference(gallery, photos, tmp_path, ask):
    queries = tmp_path / 'queries'
    queries.mkdir()
    for number, path in enumerate(sorted(photos.glob('*/*1.png'))):
        image = Image.open(path).resize((60, 70))
        image.save(queries / f'{number}.png')
    paths = sorted(queries.iterdir())
    ask('--gallery', photos, '--calibrate')
    ask('--gallery', photos, '--query_img_name', queries, '--retrieval_num', 3)
    gallery = Gallery(photos, gallery.model, tmp_path / 'results', 'cpu')
    table = gallery.search(paths, 3)
    assert list(table)[:5] == ['query', 'rank', 'path', 'class', 'score']
    assert {'match', 'predicted_class', 'confidence'} < set(table)
    assert table['query'].tolist() == [str(path) for path in paths for _ in range(3)]
    table['query'] = [Path(path).name for path in table['query']]
    equal_rows(table, tmp_path / 'results/queries_answers/retrieved.csv')
    arrays = [np.asarray(Image.open(path).convert('RGB')) for path in paths]
    of_arrays = gallery.search(arrays, 3)
    assert of_arrays['query'].tolist() == [i for i in range(4) for _ in range(3)]
    pd.testing.assert_frame_equal(table.iloc[:, 1:], of_arrays.iloc[:, 1:])

    # an image of the gallery, by its path there, does not retrieve itself
    ask('--gallery', photos, '--query_img_name', 'figure_2/figure_2_02.png')
    table = gallery.search('figure_2/figure_2_02.png')
    equal_rows(table, tmp_path / 'results/figure_2_02/retrieved.csv')
    assert len(table) == 8 and table['query'][0] not in table['path'].tolist()
    unread = gallery.search(Image.open(photos / table['query'][0]))
    pd.testing.assert_frame_equal(table.iloc[:, 1:], unread.iloc[:, 1:])


def test_pictures_that_cannot_be_searched(gallery, tmp_path, capsys):
    fine, broken = tmp_path / 'fine.png', tmp_path / 'broken.png'
    Image.effect_noise((40, 40), 90).save(fine)
    broken.write_text('no image')
    assert set(gallery.search([broken, fine])['query']) == {str(fine)}
    assert f'notice: {broken} is left out: cannot identify' in capsys.readouterr().out
    for pictures, text in ((broken, 'cannot identify'), ('a.png', 'a.png: no such')):
        with pytest.raises(UserError, match=text):
            gallery.search(pictures)
    with pytest.raises(UserError, match='no pictures'):
        gallery.search([])
    assert not gallery.search(Image.new('RGB', (40, 40), 'red'))['match'].any()


def test_the_model_is_found_as_by_inference(photos, model, tmp_path, capsys):
    shutil.copy(model, tmp_path / 'mine_model.pth')
    for name in (None, 'mine_model.pth', tmp_path / 'mine_model.pth'):
        gallery = Gallery(str(photos), name, str(tmp_path), 'cpu')
        assert gallery.model.path == find_model(name, str(tmp_path))[0]
    assert not capsys.readouterr().out
    for folder, name, text in (
        (photos, 'resnet17', 'resnet17: no network'),
        (tmp_path / 'photo', model, 'photo: no such .* photos?'),
        (model, model, 'not a folder'),
    ):
        with pytest.raises(UserError, match=text):
            Gallery(folder, name, tmp_path)


# What changes


def test_update_tells_what_has_changed(gallery, photos):
    assert gallery.update() == (16, 0, 0, 0, {})
    one, other, *_ = sorted(photos.glob('*/*'))
    one.rename(photos / 'new.png')
    Image.new('RGB', (20, 20), 'red').save(other)
    (photos / 'broken.png').write_text('no image')
    earlier = gallery.collection
    changes = gallery.update()
    assert changes[:4] == (16, 1, 1, 1) and list(changes.problems) == ['broken.png']
    assert 'new.png' in gallery.collection.images
    assert 'new.png' not in earlier.images and len(earlier) == 16
    assert gallery.search(photos / 'new.png', 15)['path'].nunique() == 15


def test_searches_go_on_during_updates(gallery, photos, tmp_path):
    """Each finds all images of one update, never a mixture."""
    query = tmp_path / 'query.png'
    Image.effect_noise((40, 40), 90).save(query)
    added = sorted(photos.glob('figure_1/*'))
    ended, failures = threading.Event(), []

    def search():
        while not ended.is_set():
            try:
                found = gallery.search(query, 100)['path']
                assert len(found) == found.nunique() and (len(found) - 16) % 4 == 0
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(4):
        folder = tmp_path / f'{number}'
        folder.mkdir()
        for path in added:
            shutil.copy(path, folder)
        shutil.move(folder, photos / f'new_{number}')
        assert gallery.update().new == 4
        time.sleep(0.05)
    ended.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(gallery.search(query, 100)) == 32


# What else it does


def test_the_threshold_of_inference(gallery, photos, tmp_path, ask):
    calibration = gallery.calibrate(0.05)
    assert gallery.collection.calibration == calibration
    output = ask('--gallery', photos, '--calibrate', '--false_match_rate', 0.05)
    assert f'{calibration["threshold"]:.3f}' in output
    again = Gallery(photos, gallery.model, tmp_path / 'results', 'cpu')
    assert again.collection.calibration == calibration


def test_duplicates_of_inference(gallery, photos, tmp_path, ask):
    for path in list(photos.glob('*/*'))[:3]:
        shutil.copy(path, photos)
    ask('--gallery', photos, '--query_img_name', photos, '--strictness', 'strict')
    gallery.update()
    table = gallery.duplicates('strict')
    assert len(table) >= 6
    equal_rows(table, tmp_path / 'results/photos_duplicates/duplicates.csv')


def test_exports_of_inference(gallery, photos, tmp_path, ask, capsys):
    ask('--gallery', photos, '--export', tmp_path / 'theirs')
    capsys.readouterr()
    paths = gallery.export(tmp_path / 'ours')
    assert not capsys.readouterr().out
    assert paths == [
        f'{tmp_path}/ours/{name}' for name in ('vectors.npy', 'images.csv')
    ]
    for path in map(Path, paths):
        assert path.read_bytes() == (tmp_path / 'theirs' / path.name).read_bytes()

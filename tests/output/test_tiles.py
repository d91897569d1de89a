"""The images of the page: which are shown, in which order, with which caption."""

import base64
import math

import pytest
import torch
from pages import make_database
from PIL import Image

from areir.output.report import find_results
from areir.output.run_statistics import query_and_gallery
from areir.output.tiles import TileMaker, thumbnails


def make_tiles(folder, database):
    images = query_and_gallery(database)
    results = find_results(images, database, progress=False)
    return results, TileMaker(results, database['classes'], str(folder), False)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tiles')
    names = [f'class {number}' for number in range(12)]
    return make_tiles(folder, make_database(folder, names, each=2))


def test_answers_are_the_nearest_images_in_order(made):
    results, tiles = made
    query = results.worst[0]
    row = tiles.query_row(query)
    images = results.images
    paths = [images.images[index] for index in results.nearest[query].tolist()]
    assert [tile.path for tile in row.answers] == paths
    scores = [tile.score for tile in row.answers]
    assert scores == sorted(scores, reverse=True)
    label = int(images.query_labels[query])
    for tile in row.answers:
        is_right = images.labels[images.images.index(tile.path)] == label
        assert tile.kind == ('right' if is_right else 'wrong')
    assert row.query.kind == 'query' and row.query.path == images.query_images[query]
    assert row.query.score is None and row.query.picture.startswith('data:image/jpeg')


def test_a_right_image_beyond_the_nearest_comes_last(made):
    results, tiles = made
    ranks = results.ranks['rank']
    far = [query for query in results.worst if ranks[query] > 8]
    near = [query for query in results.worst if ranks[query] <= 8]
    assert far and near
    for query in far:
        later = tiles.query_row(query).later
        assert later.kind == 'right' and later.rank == ranks[query]
        best = results.statistics.best.best_right[query].item()
        assert later.score == pytest.approx(best)
    assert all(tiles.query_row(query).later is None for query in near)


def test_example_of_a_class(made):
    results, tiles = made
    rows = tiles.class_rows()
    assert len(rows) == len(results.classes) > 0
    for row in rows:
        assert row.query.class_name == row.name
        assert row.answer.kind == 'wrong'
        assert row.answer.class_name == row.confusions[0][0]


def test_margin_without_wrong_images(tmp_path):
    database = make_database(tmp_path)
    database['labels'] = torch.zeros(24, dtype=torch.int64)
    results, tiles = make_tiles(tmp_path, database)
    row = tiles.query_row(results.best[0])
    assert row.margin == math.inf and row.no_wrong_image


def test_images_that_cannot_be_read_have_no_picture(tmp_path):
    database = make_database(tmp_path)
    for image in database['images']:
        (tmp_path / image).write_bytes(b'no image')
    results, tiles = make_tiles(tmp_path, database)
    row = tiles.query_row(results.worst[0])
    assert row.query.picture is None and row.query.title.endswith('.png')


def test_thumbnails(tmp_path):
    wide, missing = str(tmp_path / 'wide.png'), str(tmp_path / 'none.png')
    Image.new('RGB', (1000, 10), 'red').save(wide)
    (tmp_path / 'damaged.png').write_bytes(b'no image')
    paths = [wide, missing, str(tmp_path / 'damaged.png')]
    drawn = thumbnails(paths)
    assert [drawn[path] is None for path in paths] == [False, True, True]
    small = tmp_path / 'small.jpg'
    small.write_bytes(base64.b64decode(drawn[wide].partition(',')[2]))
    with Image.open(small) as image:
        assert image.size == (96, 1)

"""The pairs of images of a folder: duplicates and matches."""

import shutil

import pandas as pd
import pytest
import torch
from PIL import Image, ImageFilter
from torch.nn import functional as F
from toy import ToyCollection, draw_noise, on_circle
from trained import CALIBRATION

from areir.gallery import queries
from areir.output import pairs

PATHS = ['a.png', 'b.jpg', 'c.png', 'copy.png', 'same pixels.bmp', 'z.png']


@pytest.fixture
def collection(tmp_path):
    """b is a blurred a; copy and `same pixels` show c; z is like none."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    for number, name in enumerate(['a.png', 'c.png', 'z.png']):
        draw_noise(folder / name, number, size=(16, 16))
        with Image.open(folder / name) as image:
            image.resize((160, 160), Image.Resampling.NEAREST).save(folder / name)
    with Image.open(folder / 'a.png') as image:
        blurred = image.filter(ImageFilter.GaussianBlur(0.4))
        blurred.save(folder / 'b.jpg', quality=95)
    shutil.copy(folder / 'c.png', folder / 'copy.png')
    with Image.open(folder / 'c.png') as image:
        image.save(folder / 'same pixels.bmp')
    vectors = on_circle(0, 1, 90, 90, 90, 115)
    return ToyCollection(folder, PATHS, vectors, list('xxyyyz'), CALIBRATION)


def table_of(collection, k=5):
    found = pairs.find_pairs(collection, k)
    kinds = pairs.kinds_of_pairs(found, collection)
    return pairs.pairs_table(found, kinds, collection)


def test_pairs_are_of_three_kinds(collection, tmp_path):
    table = table_of(collection)
    assert list(table) == [
        *('kind', 'score', 'path', 'class', 'other_path', 'other_class')
    ]
    names = [
        (kind, path.rpartition('/')[2], other.rpartition('/')[2])
        for kind, path, other in zip(table['kind'], table['path'], table['other_path'])
    ]
    assert names == [
        ('identical', 'c.png', 'copy.png'),
        ('near-duplicate', 'c.png', 'same pixels.bmp'),
        ('near-duplicate', 'copy.png', 'same pixels.bmp'),
        ('near-duplicate', 'a.png', 'b.jpg'),
        ('same item', 'c.png', 'z.png'),
        ('same item', 'copy.png', 'z.png'),
        ('same item', 'same pixels.bmp', 'z.png'),
    ]
    assert table['class'].tolist()[3:5] == ['x', 'y']
    assert table['path'].iloc[0] == f'{tmp_path}/photos/c.png'


def test_without_a_threshold_only_duplicates_are_reported(collection, capsys):
    collection.calibration = None
    table = table_of(collection)
    assert table['kind'].tolist() == ['identical'] + ['near-duplicate'] * 3
    pairs.print_pairs(table, collection)
    output = capsys.readouterr().out
    assert '1 identical, 3 near-duplicate pairs; 1 of 6 images are in none' in output


def test_an_image_that_is_gone_is_no_duplicate(collection):
    found = pairs.find_pairs(collection, 5)
    (path,) = [p for p in collection.images if p == 'copy.png']
    shutil.move(f'{collection.folder}/{path}', f'{collection.folder}/away')
    kinds = dict(zip(found, pairs.kinds_of_pairs(found, collection)))
    assert kinds[2, 3] == 'same item' and kinds[0, 1] == 'near-duplicate'


def test_the_pairs_are_written(collection, tmp_path, capsys):
    table = table_of(collection)
    target = pairs.pairs_folder(collection, str(tmp_path / 'results'))
    assert target == f'{tmp_path}/results/photos_pairs'
    for _ in range(2):  # an earlier one is replaced
        pairs.write_pairs(table, target)
    written = pd.read_csv(f'{target}/pairs.csv')
    assert written['path'].tolist() == table['path'].tolist()
    with Image.open(f'{target}/pairs.png') as image:
        assert image.width > 8 * 192 and image.height > 2 * 192
    pairs.print_pairs(table, collection)
    assert '3 same item pairs; 0 of 6 images' in capsys.readouterr().out


def test_no_pairs_at_all(collection, tmp_path):
    table = table_of(collection).head(0)
    target = str(tmp_path / 'results/none')
    pairs.write_pairs(table, target)
    assert len(pd.read_csv(f'{target}/pairs.csv')) == 0


def test_every_pair_that_reaches_the_threshold_is_found(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(queries, 'TOGETHER', 7)
    generator = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(40, 3, generator=generator))
    paths = [f'{number}.png' for number in range(40)]
    collection = ToyCollection(tmp_path, paths, vectors, calibration=CALIBRATION)
    found = pairs.find_pairs(collection, 39)
    scores = (vectors.double() @ vectors.double().T).float()
    near = (scores.triu(1) >= collection.threshold.score).nonzero().tolist()
    assert set(found) == {tuple(pair) for pair in near}
    for (one, other), score in found.items():
        assert score == pytest.approx(scores[one, other].item())

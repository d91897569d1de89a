"""The table, the picture and the summary of the pairs of a folder."""

import pandas as pd
import pytest
from PIL import Image
from toy import photo_pairs

from areir.matching import duplicates
from areir.output import pairs


@pytest.fixture
def collection(tmp_path):
    return photo_pairs(tmp_path / 'photos')


def table_of(collection):
    found = duplicates.find_pairs(collection, 5)
    kinds = duplicates.kinds_of_pairs(found, collection)
    return pairs.pairs_table(found, kinds, collection)


def test_a_table_is_sorted_by_kind_and_score(collection, tmp_path):
    table = table_of(collection)
    kinds = ['identical', *['near-duplicate'] * 3, *['same item'] * 3]
    assert table['kind'].tolist() == kinds
    scores = table['score'].tolist()
    assert scores[1:4] == sorted(scores[1:4], reverse=True)
    first = [table[name].iloc[0] for name in ('path', 'class', 'other_path')]
    folder = tmp_path / 'photos'
    assert first == [f'{folder}/c.png', 'y', f'{folder}/copy.png']


def test_the_pairs_are_written(collection, tmp_path, capsys):
    collection.calibration = None  # so only duplicates are reported
    table = table_of(collection)
    assert table['kind'].tolist() == ['identical'] + ['near-duplicate'] * 3
    results = str(tmp_path / 'results')
    for _ in range(2):  # an earlier one is replaced
        path = pairs.write_pairs(table, collection, results)
    assert path == f'{results}/photos_pairs/pairs.csv'
    assert pd.read_csv(path)['path'].tolist() == table['path'].tolist()
    with Image.open(f'{results}/photos_pairs/pairs.png') as image:
        assert image.width > 8 * 192
    pairs.write_pairs(table[:0], collection, results)
    assert len(pd.read_csv(path)) == 0
    pairs.print_pairs(table, collection)
    output = capsys.readouterr().out
    assert '1 identical, 3 near-duplicate pairs; 1 of 6 images' in output

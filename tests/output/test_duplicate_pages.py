"""The table, the pages and the summary of the copies in a folder."""

import pandas as pd
import pytest
from toy import photo_pairs

from areir.matching import duplicates
from areir.matching.duplicates import Group, Likeness
from areir.output.duplicates import write_duplicates


@pytest.fixture
def collection(tmp_path):
    return photo_pairs(tmp_path / 'photos')


def test_groups_are_written(collection, tmp_path, capsys):
    identical = duplicates.find_identical(collection)
    pairs = duplicates.find_pairs(collection, 5, identical)
    groups = duplicates.find_groups(pairs, identical, collection, 0.75)
    same_items = duplicates.same_items(pairs, groups, collection)
    for _ in range(2):  # an earlier answer is replaced
        path = write_duplicates(groups, same_items, collection, tmp_path / 'results')
    folder = tmp_path / 'results/photos_duplicates'
    assert path == f'{folder}/duplicates.csv'
    table = pd.read_csv(path)
    # same.bmp is the largest file of three; b.jpg is smaller than a.png
    wanted = [
        (1, 'near-duplicate', 'keep', 'same.bmp', 'y'),
        (1, 'near-duplicate', 'remove', 'c.png', 'y'),
        (1, 'near-duplicate', 'remove', 'copy.png', 'y'),
        (2, 'near-duplicate', 'keep', 'b.jpg', 'x'),
        (2, 'near-duplicate', 'remove', 'a.png', 'x'),
    ]
    columns = ['group', 'kind', 'action', 'path', 'class']
    assert list(table[columns].itertuples(index=False, name=None)) == wanted
    assert table['width'].tolist() == [160] * 5
    same = pd.read_csv(folder / 'same_items.csv')
    assert same[['path', 'other_path']].to_numpy().tolist() == [['same.bmp', 'z.png']]
    html = (folder / 'duplicates.html').read_text()
    assert html.count('data:image/jpeg') == 5 and 'http:' not in html
    assert f'{tmp_path.as_uri()}/photos/same.bmp' in html
    output = capsys.readouterr().out
    assert 'identical: 0 groups, 0 files; near-duplicate: 2 groups, 5 files' in output
    assert 'same item: 1 pair; 3 of 6 images could go' in output


def test_a_page_has_a_hundred_groups(collection, tmp_path, capsys):
    collection.calibration = None
    same = Likeness(1.0, 'identical')
    groups = [Group(0, {number: same}) for number in (1, 2, 3)] * 34
    write_duplicates(groups, {}, collection, str(tmp_path))
    folder = tmp_path / 'photos_duplicates'
    names = ['duplicates.csv', 'duplicates.html', 'duplicates_2.html']
    assert sorted(path.name for path in folder.iterdir()) == names
    assert 'duplicates_2.html' in (folder / 'duplicates.html').read_text()
    assert (folder / 'duplicates_2.html').read_text().count('<h3>') == 2
    assert 'same item' not in capsys.readouterr().out


def test_other_products_are_to_be_looked_at(collection, tmp_path, capsys):
    likes = (1.0, 'identical'), (0.9, 'recoloured'), (0.95, 'mirrored')
    others = {index: Likeness(*like) for index, like in enumerate(likes, 1)}
    path = write_duplicates([Group(0, others)], {}, collection, str(tmp_path))
    actions = pd.read_csv(path)['action'].tolist()
    assert actions == ['keep', 'remove', 'look', 'look']
    output = capsys.readouterr().out
    assert 'mirrored: 1 group, 4 files' in output and '1 of 6 images could' in output


def test_no_copies(collection, tmp_path):
    path = write_duplicates([], {}, collection, str(tmp_path))
    assert len(pd.read_csv(path)) == 0
    html = (tmp_path / 'photos_duplicates/duplicates.html').read_text()
    assert 'No file is a copy of another' in html

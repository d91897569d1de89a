"""Databases and models below --results_root: found, checked, and their images."""

import os

import pytest
import torch
from trained import CALIBRATION

from areir.cli.searching import DEFAULT_DATABASE
from areir.errors import UserError
from areir.files import write_tensors
from areir.gallery.databases import (
    find_database,
    find_model,
    image_folder,
    load_database,
)


def database(**changed):
    return {
        'embeddings': torch.zeros(8, 6),
        'labels': torch.tensor([0, 1] * 4),
        'images': [f'{number}.png' for number in range(8)],
        'classes': ['a', 'b'],
        'data_name': 'toy',
        'data_root': 'data',
        'model': 'toy_model.pth',
        'version': 'x',
        'ensemble_size': 2,
        'calibration': CALIBRATION,
        **changed,
    }


def load(folder, contents):
    write_tensors({str(folder / 'toy_data_base.pth'): contents})
    return load_database('toy_data_base.pth', str(folder))


def test_a_database_is_loaded_by_name_or_path(tmp_path):
    loaded, path = load(tmp_path, database())
    assert loaded.keys() == database().keys()
    assert path == str(tmp_path / 'toy_data_base.pth')
    assert load_database(path, 'elsewhere')[1] == path


def test_a_database_of_an_earlier_version_has_no_calibration(tmp_path):
    older = database()
    del older['calibration'], older['ensemble_size']
    load(tmp_path, older)


QUERIES = {
    'query_embeddings': torch.zeros(2, 6),
    'query_labels': torch.tensor([0, 1]),
    'query_images': ['x.png', 'y.png'],
}


@pytest.mark.parametrize(
    'changed',
    [
        {'calibration': {'x': 1}},
        {'calibration': {**CALIBRATION, 'thresholds': []}},
        {'calibration': {**CALIBRATION, 'low': 'x'}},
        {'labels': torch.zeros(3, dtype=torch.int64)},
        {'labels': torch.full((8,), 9)},
        {'labels': torch.full((8,), -1)},
        {'labels': torch.zeros(8)},
        {'labels': 'x'},
        {'images': []},
        {'images': [1] * 8},
        {'embeddings': 'x'},
        {'embeddings': torch.zeros(8, 7)},
        {'embeddings': torch.zeros(8)},
        {'classes': []},
        {'data_root': 3},
        {'ensemble_size': 0},
        {**QUERIES, 'query_images': ['x.png']},
        {**QUERIES, 'query_labels': torch.tensor([0, 2])},
    ],
)
def test_a_damaged_database_is_refused(tmp_path, changed):
    with pytest.raises(UserError, match=r'--data_base toy_data_base\.pth: damaged \('):
        load(tmp_path, database(**changed))


def test_a_database_with_queries_is_loaded(tmp_path):
    assert 'query_images' in load(tmp_path, database(**QUERIES))[0]


@pytest.mark.parametrize('contents', [[1], {'embeddings': 1}])
def test_another_file_is_refused(tmp_path, contents):
    with pytest.raises(UserError, match=r'--data_base toy_data_base\.pth: not a'):
        load(tmp_path, contents)


# Which file


def test_a_missing_file_is_named_with_those_there_are(tmp_path):
    load(tmp_path, database())
    with pytest.raises(UserError, match=r'--data_base x: .* toy_data_base\.pth'):
        find_database('x', str(tmp_path))
    with pytest.raises(UserError, match=r'--model x: no such file, .*none'):
        find_model('x', str(tmp_path))


@pytest.mark.parametrize('folder', ['', 'nowhere'])
def test_nothing_trained_yet(tmp_path, folder):
    root = str(tmp_path / folder)
    model, note = find_model(None, root)
    assert model == 'resnet18' and 'ImageNet' in note and root in note
    with pytest.raises(UserError, match=r'nothing is trained yet .*train\.py'):
        load_database(DEFAULT_DATABASE, root)


def test_the_newest_model_is_the_default(tmp_path):
    for age, name in enumerate('bac'):
        path = tmp_path / f'{name}_model.pth'
        path.write_text('')
        os.utime(path, (1000 - age, 1000 - age))
    path, note = find_model(None, str(tmp_path))
    assert path == str(tmp_path / 'b_model.pth') and 'newest of 3' in note
    assert find_model('c_model.pth', str(tmp_path))[0] == str(tmp_path / 'c_model.pth')


# Where the images are


def test_the_images_are_found_where_they_were_or_where_the_user_says(
    tmp_path, monkeypatch
):
    (tmp_path / 'results').mkdir()
    path = str(tmp_path / 'results/toy_data_base.pth')
    contents = database(data_root='../data')
    for root in ('data', 'moved'):
        (tmp_path / root / 'toy').mkdir(parents=True)
        (tmp_path / root / 'toy/0.png').write_text('')
    assert image_folder(contents, path, None) == str(tmp_path / 'data/toy')
    moved = str(tmp_path / 'moved')
    assert image_folder(contents, path, moved) == str(tmp_path / 'moved/toy')
    monkeypatch.chdir(tmp_path)
    assert image_folder(contents, path, None) == 'data/toy'  # the shorter way
    (tmp_path / 'linked').symlink_to(tmp_path / 'results')
    linked = str(tmp_path / 'linked/toy_data_base.pth')
    assert image_folder(contents, linked, None) == 'data/toy'
    with pytest.raises(UserError, match='--data_root'):
        image_folder(contents, path, 'nowhere')

"""Databases and models below --results_root: found, loaded, and their images."""

import os

import pytest

from areir.cli.searching import DEFAULT_DATABASE
from areir.errors import UserError
from areir.gallery.databases import KEYS, find_model, image_folder, load_database

DATABASE = {
    **dict.fromkeys(KEYS),
    'images': ['0.png'],
    'data_name': 'toy',
    'data_root': '../data',
}


@pytest.mark.parametrize('folder', ['', 'nowhere'])
def test_nothing_trained_yet(tmp_path, folder):
    root = str(tmp_path / folder)
    assert find_model(None, root)[0] == 'resnet18'
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


def test_the_images_are_found_where_they_were_or_where_the_user_says(
    tmp_path, monkeypatch
):
    path = str(tmp_path / 'results/toy_data_base.pth')
    for folder in ('results', 'data/toy', 'moved/toy'):
        (tmp_path / folder).mkdir(parents=True)
    for root in ('data', 'moved'):
        (tmp_path / root / 'toy/0.png').write_text('')
    assert image_folder(DATABASE, path, None) == str(tmp_path / 'data/toy')
    moved = str(tmp_path / 'moved')
    assert image_folder(DATABASE, path, moved) == str(tmp_path / 'moved/toy')
    monkeypatch.chdir(tmp_path)
    assert image_folder(DATABASE, path, None) == 'data/toy'  # the shorter way
    (tmp_path / 'linked').symlink_to(tmp_path / 'results')
    linked = str(tmp_path / 'linked/toy_data_base.pth')
    assert image_folder(DATABASE, linked, None) == 'data/toy'
    with pytest.raises(UserError, match='--data_root'):
        image_folder(DATABASE, path, 'nowhere')

"""MATLAB files of annotations: damaged ones end in one line, not in a crash."""

import random

import numpy as np
import official
import pytest
from scipy.io import savemat

from areir.data import cars
from areir.data.cars import read_mat
from areir.errors import UserError


@pytest.fixture
def path(tmp_path):
    """The annotations of three images."""
    path = str(tmp_path / 'cars_annos.mat')
    rows = np.zeros(3, dtype=[('class', object), ('fname', object)])
    for number, row in enumerate(rows):
        row['class'], row['fname'] = np.uint8(number + 1), f'{number}.jpg'
    savemat(path, {'annotations': rows})
    return path


def test_columns_are_read_by_name(path):
    assert read_mat(path) == {
        'class': [1, 2, 3],
        'fname': ['0.jpg', '1.jpg', '2.jpg'],
    }


@pytest.mark.slow
def test_random_damage_is_one_line(path, seed):
    """In the reading process itself some of these would end Python with SIGSEGV."""
    with open(path, 'rb') as file:
        content = file.read()
    rng = random.Random(seed)
    for _ in range(20):
        damaged = bytearray(content)
        for _ in range(rng.randrange(2, 25)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with open(path, 'wb') as file:
            file.write(damaged)
        try:
            columns = read_mat(path)
        except UserError as error:
            assert path in str(error)
        else:
            assert all(isinstance(values, list) for values in columns.values())


def test_a_process_that_dies_is_a_damaged_file(path, monkeypatch):
    monkeypatch.setattr(cars, 'parse_mat', official.die)
    with pytest.raises(UserError, match=r'cars_annos\.mat is damaged'):
        read_mat(path)


@pytest.mark.parametrize(
    ('annotations', 'reason'),
    [
        (np.arange(6), ': annotations is not a struct array'),
        ('text', ': annotations is not a struct array'),
        ({'class': np.arange(6)}, ', row 1: class is not one value'),
    ],
)
def test_other_annotations_are_refused(tmp_path, annotations, reason):
    path = str(tmp_path / 'cars_annos.mat')
    savemat(path, {'annotations': annotations})
    with pytest.raises(UserError, match=rf'cars_annos\.mat{reason}'):
        read_mat(path)

"""Vectors shortened by the principal components of the folder itself."""

import os
import shutil

import numpy as np
import pytest
import torch
from photos import PIXEL_FORMAT, SETTINGS, draw, draw_photos, embed, flip_bit
from trained import CALIBRATION

from areir.errors import UserError
from areir.gallery import index as shortening
from areir.gallery.index import store_calibration, update_index
from areir.gallery.vectors import VectorsFile
from areir.networks.projection import Projection, fit_projection


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Seven photos, which are just enough for components."""
    monkeypatch.setattr(shortening, 'LEAST_IMAGES', 7)
    monkeypatch.setattr(shortening, 'DIMENSIONS', 3)
    return draw_photos(tmp_path / 'photos')


@pytest.fixture
def update(photos, tmp_path):
    """Bring the index up to date and return it."""

    def called(name='index', settings=SETTINGS):
        return update_index(
            str(photos),
            str(tmp_path / name),
            settings,
            PIXEL_FORMAT,
            embed,
            shortened=True,
        )

    return called


def whole_vectors(index):
    """Return the vectors before they were shortened."""
    path = index.vectors.path.replace('shortened_', 'vectors_')
    return torch.from_numpy(np.array(VectorsFile(path, 6).array))


def add_photos(photos, numbers):
    for number in numbers:
        draw(photos / 'c' / f'{number}.png', number)


def test_vectors_are_those_of_a_projection(update):
    index = update()
    whole = whole_vectors(index)
    expected = fit_projection(whole, 3, shortening.WHITENING)
    assert index.vectors.dimensions == 3
    np.testing.assert_allclose(index.vectors.array, expected(whole), atol=1e-5)
    given = Projection(**index.components)(whole)
    np.testing.assert_allclose(index.vectors.array, given, atol=1e-6)


def test_few_images_keep_their_vectors(update, photos):
    (photos / 'a/0.png').unlink()
    index = update()
    assert index.components is None and index.vectors.dimensions == 6


def test_components_stay_until_the_images_have_doubled(update, photos, capsys):
    first = update()
    add_photos(photos, range(10, 16))  # 13 images
    second = update()
    assert second.embedded == 6 and len(second.vectors) == 13
    assert torch.equal(first.components['matrix'], second.components['matrix'])
    assert 'fitted again' not in capsys.readouterr().out
    add_photos(photos, [20])
    third = update()
    output = capsys.readouterr().out
    assert 'fitted again, to 14 images' in output and 'threshold' not in output
    assert not torch.equal(first.components['matrix'], third.components['matrix'])
    fresh = update('another')
    np.testing.assert_allclose(third.vectors.array, fresh.vectors.array, atol=1e-6)


def test_a_sample_is_used_of_many_images(update, photos, monkeypatch):
    monkeypatch.setattr(shortening, 'MOST_IMAGES', 4)
    index = update()
    whole = whole_vectors(index)
    expected = fit_projection(whole[::2], 3, shortening.WHITENING)
    np.testing.assert_allclose(index.vectors.array, expected(whole), atol=1e-5)


# The threshold of --calibrate


def test_a_threshold_stays_with_the_components(update, photos):
    """But not with another network."""
    store_calibration(update(), CALIBRATION)
    add_photos(photos, [40])
    shutil.rmtree(photos / 'b')
    assert update().calibration == CALIBRATION
    for path in photos.glob('*/*.png'):
        os.utime(path)
    again = update()
    assert again.embedded == 5 and again.calibration == CALIBRATION
    assert update(settings={**SETTINGS, 'model': 'b'}).calibration is None


def test_a_threshold_goes_when_components_are_fitted(update, photos, capsys):
    (photos / 'a/0.png').unlink()
    store_calibration(update(), CALIBRATION)  # of whole vectors
    for numbers in ([40], range(41, 48)):
        add_photos(photos, numbers)
        index = update()
        assert index.components and index.calibration is None
        assert 'run --calibrate again' in capsys.readouterr().out
        store_calibration(index, CALIBRATION)


def test_an_index_that_has_changed_is_not_calibrated(update, photos):
    index = update()
    add_photos(photos, [50])
    update()
    with pytest.raises(UserError, match='has changed'):
        store_calibration(index, CALIBRATION)


@pytest.mark.parametrize('damage', ['missing', 'a flipped bit'])
def test_damaged_vectors_are_shortened_again(update, capsys, damage):
    index = update()
    store_calibration(index, CALIBRATION)
    expected = np.array(index.vectors.array)
    if damage == 'missing':
        os.remove(index.vectors.path)
    else:
        flip_bit(index.vectors.path, 41)
    again = update()
    (notice,) = capsys.readouterr().out.splitlines()
    assert index.vectors.path in notice
    assert again.embedded == 0 and again.calibration == CALIBRATION
    assert np.array_equal(again.vectors.array, expected)
    names = sorted(name.split('_')[0] for name in os.listdir(index.folder))
    assert names == ['index.sqlite', 'shortened', 'shortened', 'vectors']

"""The features of a frozen trunk: their file, its name, and the batches from it."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from experiments import draw_split, paths_of
from small import HARDWARE, TinyEnsemble
from special import largest_file
from torch import nn

from areir.data.images import PixelFormat, load_image
from areir.data.loading import make_loader
from areir.scripts.model import EnsembleLoss
from areir.training.batches import CropAndFlip, EpochSampler, InOrder
from areir.training.trainer import Trainer
from areir.training.trunk_features import (
    ensure_features,
    feature_batches,
    fingerprint,
    view_features,
)

CPU = torch.device('cpu')
SIDE = 16
PIXEL_FORMAT = PixelFormat(SIDE, [0.5, 0.4, 0.3], [0.25, 0.2, 0.3])


@pytest.fixture
def paths(tmp_path):
    return paths_of(draw_split(tmp_path / 'photos', SIDE), 'train')


@pytest.fixture
def trainer():
    """A trainer whose trunk is frozen."""
    model = TinyEnsemble(2)
    model.trunk.requires_grad_(False).eval()
    return Trainer(model, EnsembleLoss(nn.CrossEntropyLoss(), 2), 1e-3, HARDWARE)


def views_of(paths):
    sampler = InOrder(len(paths), 4, epochs=[1, 2, 3, 4])
    transform = CropAndFlip(len(paths), PIXEL_FORMAT, seed=1, least_area=0.3)
    return make_loader(paths, PIXEL_FORMAT, sampler, 0, transform=transform)


# The name


def test_the_name_depends_on_images_weights_and_settings(paths, trainer):
    trunk = trainer.model.trunk
    name = fingerprint(paths, trunk, [SIDE, 0.4])
    assert len(name) == 32 and name == fingerprint(paths, trunk, [SIDE, 0.4])
    names = {name, fingerprint(paths, trunk, [SIDE, 0.5])}
    names.add(fingerprint(paths[::-1], trunk, [SIDE, 0.4]))
    names.add(fingerprint(paths[:-1], trunk, [SIDE, 0.4]))
    os.utime(paths[3], (1, 1))
    names.add(fingerprint(paths, trunk, [SIDE, 0.4]))
    with torch.no_grad():
        trunk[0].weight[0, 0, 0, 0] += 1
    names.add(fingerprint(paths, trunk, [SIDE, 0.4]))
    assert len(names) == 6


# The file


def test_features_of_every_view_by_hand(paths, trainer):
    """Those of the training images as they are seen in epochs 1 to 4."""
    loader = views_of(paths)
    features = torch.cat(list(view_features(loader, trainer)))
    assert features.shape == (40, 8, 14, 14) and features.dtype == torch.float16
    for number in range(40):
        view, index = divmod(number, 10)
        image = load_image(paths[index])
        pixels = loader.dataset.transform(image, index, epoch=view + 1)
        wanted = trainer.model.trunk(PIXEL_FORMAT.normalise(pixels[None]))
        torch.testing.assert_close(
            features[number].float(), wanted[0], rtol=1e-3, atol=1e-3
        )


def ensure(folder, name, paths, trainer):
    """Return the path of a file of features that `ensure_features` has looked after."""
    path = str(folder / f'{name}.npy')
    ensure_features(path, views_of(paths), trainer, [])
    return path


def test_the_file_holds_all_views_and_another_one_is_removed(paths, trainer, tmp_path):
    ensure(tmp_path / 'features', 'older', paths, trainer)
    path = ensure(tmp_path / 'features', 'name', paths, trainer)
    assert os.listdir(tmp_path / 'features') == ['name.npy']
    wanted = torch.cat(list(view_features(views_of(paths), trainer)))
    assert np.array_equal(np.load(path), wanted.numpy())


@pytest.mark.parametrize('place', [9, 1000])  # in the header, and in the features
def test_features_with_a_flipped_bit_are_computed_again(
    paths, trainer, tmp_path, capsys, place
):
    path = ensure(tmp_path / 'it', 'name', paths, trainer)
    content = Path(path).read_bytes()
    flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
    Path(path).write_bytes(flipped)
    ensure(tmp_path / 'it', 'name', paths, trainer)
    assert f'{path} is damaged' in capsys.readouterr().out
    assert Path(path).read_bytes() == content
    ensure(tmp_path / 'it', 'name', paths, trainer)
    assert not capsys.readouterr().out


def test_a_full_disk_is_an_error_that_names_the_file(paths, trainer, tmp_path):
    with largest_file(40_000), pytest.raises(OSError, match=r'name\.npy cannot be'):
        ensure(tmp_path / 'it', 'name', paths, trainer)
    assert os.listdir(tmp_path / 'it') == []


# Batches


def epoch_of(features, sampler, epoch, start=0):
    """Return the batches of an epoch; meta-labels are the numbers of the images."""
    sampler.set_epoch(epoch, start)
    loader = SimpleNamespace(batch_sampler=sampler)
    meta_labels = torch.arange(20)[:, None]
    rows = torch.contiguous_format
    return list(feature_batches(features, rows, loader, meta_labels, CPU))


@pytest.fixture
def features():
    """Features of 3 views of 20 images: the view and the number of the image."""
    views, numbers = np.divmod(np.arange(60), 20)
    return np.stack([views, numbers], axis=1).astype(np.float16)[:, :, None, None]


def test_features_and_meta_labels_of_a_batch_belong_together(features):
    sampler = EpochSampler(20, 4, seed=3)
    batches = epoch_of(features, sampler, 2)
    for (values, labels), rows in zip(batches, sampler.batches):
        assert torch.equal(labels[:, 0], rows)
        assert torch.equal(values[:, 1, 0, 0].long(), rows)
    views = torch.cat([values[:, 0, 0, 0] for values, _ in batches])
    assert views.unique().tolist() == [0, 1, 2]

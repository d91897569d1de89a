"""A checkpoint is whole or absent, and the one before it is kept."""

import os

import pytest
import torch

from areir.files import WriteError, temporary_name
from areir.training import checkpoints

FILES = {
    'state': {'epoch': 1},
    'trunk': {'weights': {'a': torch.ones(3)}, 'optimizer': {}, 'criterion': {}},
}


def names(root):
    return [os.path.basename(path) for path in checkpoints.list_checkpoints(root)]


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / 'run_checkpoint')


def test_the_newest_is_listed_first_and_other_names_are_not(root):
    assert checkpoints.list_checkpoints(root) == []
    order = ['epoch_0002_batch_000001', 'epoch_0001_batch_1234567']
    order += ['epoch_0001_batch_000010', 'epoch_0001_batch_000009']
    others = ['partial', 'epoch_0003_batch_1', '.epoch_0003_batch_000001.part']
    for name in order + others:
        os.makedirs(os.path.join(root, name))
    assert names(root) == order


def test_the_last_two_are_kept(root):
    os.makedirs(temporary_name(os.path.join(root, 'epoch_0001_batch_000001')))
    for batch in range(1, 5):
        checkpoints.write(root, 1, batch, FILES)
    left = ['epoch_0001_batch_000003', 'epoch_0001_batch_000004']
    assert sorted(os.listdir(root)) == left


@pytest.mark.parametrize(
    'error',
    [
        OSError(28, 'No space left on device'),
        RuntimeError('PytorchStreamWriter failed writing file'),
    ],
)
def test_a_full_disk_leaves_the_checkpoint_before(root, monkeypatch, error):
    checkpoints.write(root, 1, 1, FILES)
    save = torch.save

    def full_disk(value, file):
        save(value, file)
        if 'trunk' in file.name:
            raise error

    monkeypatch.setattr(torch, 'save', full_disk)
    with pytest.raises(WriteError, match='epoch_0001_batch_000002') as failed:
        checkpoints.write(root, 1, 2, FILES)
    assert str(error.args[-1]) in str(failed.value)
    assert os.listdir(root) == ['epoch_0001_batch_000001']

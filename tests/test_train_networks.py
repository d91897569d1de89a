"""train.py and inference.py with a network of each kind: each layout, and RoPE."""

import pytest
import timm
import torch
from train_runs import EVERY_BATCH, assert_same_run, dying

from areir.training.trainer import Trainer

SHORT = [
    *('--data_name', 'small', '--batch_size', '8', '--meta_class_size', '3'),
    *('--ensemble_size', '2', '--num_epochs', '1', '--num_workers', '0'),
    *('--recalls', '1,2', '--precision', 'fp32', '--mirror', 'no'),
]
FROZEN = ['--frozen_stages', 3]
NETWORKS = {
    'tokens, and dropout': ('test_vit_relpos', 32, []),
    'a rotary position embedding, frozen': ('eva02_tiny_patch14_224', 28, FROZEN),
    'channels last, frozen': ('test_mambaout', 32, FROZEN),
}


@pytest.mark.parametrize('kind', NETWORKS)
def test_a_run_that_dies_goes_on(small, tmp_path, kind):
    """What a network drops by chance depends on the seed alone."""
    model_type, side, flags = NETWORKS[kind]
    weights = tmp_path / 'weights.pth'
    torch.manual_seed(1)
    torch.save(timm.create_model(model_type).state_dict(), weights)
    flags = [*SHORT, *flags, '--weights', weights, '--image_size', side]
    flags += ['--model_type', model_type]
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    small.ask('train.py', *flags, '--results_root', whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, 'step', dying(Trainer.step, 3))
        small.call('train.py', *flags, *EVERY_BATCH, '--results_root', stopped)
    small.ask('train.py', *flags, '--resume', '--results_root', stopped)
    assert_same_run(whole, stopped, f'small_uncropped_{model_type}_2_3')

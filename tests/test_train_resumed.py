"""Runs of the current recipe that die at any moment and go on; the frozen trunk.

The network is slim, and runs die in this process; see test_train_interrupted.
"""

import os
import random
import shutil
import signal

import pytest
import torch
from slim import use_slim_backbone
from train_runs import EVERY_BATCH, assert_same_run, dying, read

from areir import processes
from areir.files import load_tensors
from areir.training import trunk_features
from areir.training.trainer import Trainer

SHORT = [
    *('--image_size', '32', '--batch_size', '8', '--ensemble_size', '2'),
    *('--meta_class_size', '3', '--num_epochs', '3', '--num_workers', '0'),
    *('--recalls', '1,2', '--precision', 'fp32'),
]
RUN = 'small_uncropped_resnet18_2_3'
FROZEN = ['--frozen_stages', 3]
KINDS = {
    'as it is': [],
    'all that is trained': ['--freeze_bn', 'no', '--dimensions', 0, '--mirror', 'no'],
    'other choices': [
        *('--shared_stages', 2, '--schedule', 'step', '--warmup', 0),
        *('--embedding', 'logits', '--test_every', 2),
    ],
    'frozen': FROZEN,
    'large images': ['--image_size', 16, '--crop_area', 1],  # there are copies of them
}


@pytest.fixture(scope='module')
def train(slim, weights):
    """Call train.py with a slim backbone; return (exit code, output, errors)."""

    def called(results, *flags):
        words = ['--data_name', 'small', '--weights', weights, *SHORT]
        return slim.call('train.py', *words, '--results_root', results, *flags)

    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        yield called


def succeed(train, *arguments):
    code, output, errors = train(*arguments)
    assert code == 0, errors
    return output


@pytest.fixture(scope='module', params=KINDS)
def kind(request, train, tmp_path_factory):
    """(flags, results of a run with them that nothing disturbs)."""
    flags = KINDS[request.param]
    results = tmp_path_factory.mktemp('whole')
    succeed(train, results, *flags)
    return flags, results


def test_a_run_that_dies_goes_on(train, kind, tmp_path, seed):
    """In a batch, then twice before a file is moved to its place."""
    flags, whole = kind
    moments = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, 'step', dying(Trainer.step, moments.randint(2, 12)))
        code, _, errors = train(tmp_path, *flags, *EVERY_BATCH)
    assert code == 1 and 'Killed' in errors
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, 'replace', dying(os.replace, moments.randint(1, 6)))
            code, _, errors = train(tmp_path, *flags, '--resume')
        assert code == 0 or 'Killed' in errors
    succeed(train, tmp_path, *flags, '--resume')
    assert_same_run(whole, tmp_path, RUN)
    names = ['curves.svg', 'data_base.pth', 'model.pth', 'results.csv', 'run.json']
    names += ['trunk_features'] if flags == FROZEN else []
    assert sorted(os.listdir(tmp_path)) == [f'{RUN}_{name}' for name in names]


def test_copies_of_large_images_change_nothing(train, tmp_path):
    flags = [*KINDS['large images'], '--num_epochs', 2]
    outputs = [
        succeed(train, tmp_path / copies, *flags, '--copies', copies)
        for copies in ('yes', 'no')
    ]
    assert ['reduced copies' in output for output in outputs] == [True, False]
    assert_same_run(tmp_path / 'yes', tmp_path / 'no', RUN)


# The frozen trunk


def test_a_frozen_trunk_stays_and_its_features_are_kept(
    train, slim, weights, tmp_path, monkeypatch
):
    root = tmp_path / 'data'
    shutil.copytree(slim.root / 'data', root, symlinks=True)
    written, write = [], trunk_features.write_views

    def count_and_write(*arguments):
        written.append(1)
        write(*arguments)

    monkeypatch.setattr(trunk_features, 'write_views', count_and_write)
    flags = [*FROZEN, '--data_root', root]
    succeed(train, tmp_path, *flags)
    saved = read(tmp_path, 'model', RUN)['state_dict']
    state = load_tensors(str(weights))
    names = {
        'trunk.0.0.network.stem.0.0.weight': 'stem.0.0.weight',
        'trunk.2.0.1.running_mean': 'layer3.1.running_mean',
    }
    for name, loaded in names.items():
        assert torch.equal(saved[name], state[loaded])
    trained = saved['heads.0.stages.0.0.0.weight']
    assert not torch.equal(trained, state['layer4.0.weight'])
    succeed(train, tmp_path, *flags)
    assert len(written) == 1
    images = sorted(path for path in root.rglob('*.png') if 'train' in str(path))
    os.utime(images[0], (1, 1))
    succeed(train, tmp_path, *flags)
    assert len(written) == 2


def test_a_signal_stops_while_features_are_computed(train, tmp_path):
    """The run need not compute those of all images first."""
    signals, batches = [], []
    view_features = trunk_features.view_features

    def stop_at_once(*arguments):
        for features in view_features(*arguments):
            batches.append(1)
            signals.append(signal.SIGTERM)
            yield features

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trunk_features, 'view_features', stop_at_once)
        patch.setattr(processes, 'catch_signals', lambda: signals)
        patch.setattr(trunk_features, 'BATCH', 4)
        code, _, errors = train(tmp_path, *FROZEN)
    assert code == 130 and '--resume' in errors.splitlines()[-1]
    assert len(batches) <= 2

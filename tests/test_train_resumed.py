"""Runs of every recipe that die at any moment and go on.

The network is slim, and runs die in this process; see test_train_interrupted.
"""

import json
import os
import random
import shutil
import signal

import pytest
import torch
from slim import build_backbone, use_slim_backbone
from test_train_interrupted import Killed, die_at_batch, kill_after_move
from torch import nn
from torchvision.ops import StochasticDepth
from train_runs import EVERY_BATCH, assert_same_run

import model
from areir import processes
from areir.training import trunk_features

SHORT = [
    *('--image_size', '32', '--batch_size', '8', '--ensemble_size', '2'),
    *('--meta_class_size', '3', '--num_epochs', '3', '--num_workers', '0'),
    *('--recalls', '1,2', '--precision', 'fp32'),
]
RUN = 'small_uncropped_resnet18_2_3'
MOVING = ['--freeze_trunk', 'no', '--freeze_bn', 'no']
KINDS = {
    'current': [],
    'all that is trained': MOVING,
    'two stages shared': ['--shared_stages', 2],
    'long features': [*MOVING, '--dimensions', 0, '--embedding', 'features'],
    'no mirror': ['--mirror', 'no'],
    'schedule': ['--schedule', 'cosine', '--warmup', 0.4, '--label_smoothing', 0.2],
    'crops': [*MOVING, '--crop_area', 0.3, '--schedule', 'step', '--warmup', 0],
    'frozen': ['--freeze_trunk', 'yes', '--shared_stages', 3],
    'frozen statistics': ['--freeze_trunk', 'no', '--freeze_bn', 'yes'],
}


@pytest.fixture
def train(slim, slim_backbone, weights):
    """Call train.py and return (exit code, output, errors)."""

    def called(results, *flags):
        words = ['--data_name', 'small', '--weights', weights, *SHORT]
        return slim.call('train.py', *words, '--results_root', results, *flags)

    return called


def succeed(train, *arguments):
    code, output, errors = train(*arguments)
    assert code == 0, errors
    return output


@pytest.fixture(scope='module', params=KINDS)
def kind(request, slim, weights, tmp_path_factory):
    """(flags, results of a run with them that nothing disturbs)."""
    flags = KINDS[request.param]
    results = tmp_path_factory.mktemp('whole')
    words = ['--data_name', 'small', '--weights', weights, *SHORT, *flags]
    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        code, _, errors = slim.call('train.py', *words, '--results_root', results)
    assert code == 0, errors
    return flags, results


def test_a_run_that_dies_in_a_batch_goes_on(train, kind, tmp_path, seed):
    flags, whole = kind
    with pytest.MonkeyPatch.context() as patch:
        die_at_batch(patch, random.Random(seed).randint(2, 12))
        code, _, errors = train(tmp_path, *flags, *EVERY_BATCH)
    assert code == 1 and 'Killed' in errors
    assert 'resumed    epoch' in succeed(train, tmp_path, *flags, '--resume')
    assert_same_run(whole, tmp_path, RUN)


def test_a_run_that_dies_between_files_goes_on(train, kind, tmp_path, seed):
    """Twice. Without --checkpoint_minutes there are 6 checkpoints and their files."""
    flags, whole = kind
    moments = random.Random(seed)
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            kill_after_move(patch, moments.randint(1, 10))
            code, _, errors = train(tmp_path, *flags, '--resume')
        assert code == 0 or 'Killed' in errors
    succeed(train, tmp_path, *flags, '--resume')
    assert_same_run(whole, tmp_path, RUN)


def test_the_results_have_no_leftovers(kind):
    _, whole = kind
    names = ['curves.svg', 'data_base.pth', 'model.pth', 'results.csv', 'run.json']
    record = json.loads((whole / f'{RUN}_run.json').read_text())
    if record['arguments']['freeze_trunk'] == 'yes':
        names.append('trunk_features')
        (file,) = os.listdir(whole / f'{RUN}_trunk_features')
        assert file.endswith('.npy') and not file.startswith('.')
    assert sorted(os.listdir(whole)) == [f'{RUN}_{name}' for name in names]


def test_a_run_that_dies_while_it_computes_features_goes_on(train, tmp_path):
    """What it had written is removed."""
    flags = KINDS['frozen']
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    succeed(train, whole, *flags)
    view_features = trunk_features.view_features

    def die_after_two(*arguments):
        features = view_features(*arguments)
        yield next(features)
        yield next(features)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trunk_features, 'view_features', die_after_two)
        code, _, errors = train(stopped, *flags)
    assert code == 1 and 'Killed' in errors
    assert not any(stopped.rglob('*.npy'))
    succeed(train, stopped, *flags, '--resume')
    assert len(list((stopped / f'{RUN}_trunk_features').iterdir())) == 1
    assert_same_run(whole, stopped, RUN)


def test_features_that_are_lost_are_computed_again(train, tmp_path):
    flags = KINDS['frozen']
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    succeed(train, whole, *flags)
    with pytest.MonkeyPatch.context() as patch:
        die_at_batch(patch, 6)
        train(stopped, *flags, *EVERY_BATCH)
    shutil.rmtree(stopped / f'{RUN}_trunk_features')
    succeed(train, stopped, *flags, '--resume')
    assert_same_run(whole, stopped, RUN)


@pytest.mark.parametrize('number', [1, 3])
def test_a_signal_stops_while_features_are_computed(train, tmp_path, number):
    """The run need not compute those of all images first."""
    flags, signals, batches = KINDS['frozen'], [], []
    view_features = trunk_features.view_features

    def stop_after(*arguments):
        for features in view_features(*arguments):
            batches.append(1)
            if len(batches) == number:
                signals.append(signal.SIGTERM)
            yield features

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trunk_features, 'view_features', stop_after)
        patch.setattr(processes, 'catch_signals', lambda: signals)
        patch.setattr(trunk_features, 'BATCH', 4)
        code, _, errors = train(tmp_path, *flags)
    assert code == 130 and '--resume' in errors.splitlines()[-1]
    assert len(batches) <= number + 1


# Networks that drop branches by chance


def build_dropping(model_type, num_classes):
    """A backbone with the stochastic depth of ConvNeXt, EfficientNet and Swin."""
    network = build_backbone(model_type, num_classes)
    network.layer1 = nn.Sequential(network.layer1, StochasticDepth(0.3, 'row'))
    network.layer3 = nn.Sequential(network.layer3, StochasticDepth(0.3, 'row'))
    return network


@pytest.fixture
def dropping(train, monkeypatch):
    monkeypatch.setattr(model, 'build_backbone', build_dropping)


FROM_SCRATCH = ['--weights', 'none', '--ensemble_size', 3]
DROPPING_RUN = 'small_uncropped_resnet18_3_3'


def test_stochastic_depth_depends_on_the_seed_alone(train, dropping, tmp_path):
    for name in ('one', 'two'):
        succeed(train, tmp_path / name, *FROM_SCRATCH)
        torch.rand(5)
    assert_same_run(tmp_path / 'one', tmp_path / 'two', DROPPING_RUN)


@pytest.mark.parametrize('batch', [3, 6])
def test_stochastic_depth_goes_on_as_it_was(train, dropping, tmp_path, batch):
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    torch.manual_seed(0)  # as in two processes, which begin with the same state
    succeed(train, whole, *FROM_SCRATCH)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        die_at_batch(patch, batch)
        train(stopped, *FROM_SCRATCH, *EVERY_BATCH)
    torch.manual_seed(0)
    succeed(train, stopped, *FROM_SCRATCH, '--resume')
    assert_same_run(whole, stopped, DROPPING_RUN)

"""Runs of every recipe that die at any moment and go on, and files of older versions.

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
from train_runs import EVERY_BATCH, assert_same_run, checkpoints, read, read_table

import model
from areir import processes
from areir.cli.recipes import BEFORE_RECIPES, RECIPES
from areir.files import load_tensors
from areir.training import trunk_features
from areir.training.run import MODEL_ARGS_BEFORE

SHORT = [
    *('--image_size', '32', '--batch_size', '8', '--ensemble_size', '2'),
    *('--meta_class_size', '3', '--num_epochs', '3', '--num_workers', '0'),
    *('--recalls', '1,2', '--precision', 'fp32'),
]
RUN = 'small_uncropped_resnet18_2_3'
OLD = 'car_uncropped_resnet18_2_3'
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


def test_the_published_protocol_draws_its_weights_in_the_trunk(train, tmp_path):
    """So with --freeze_trunk it is refused, or trains the same from stored features."""
    flags = ['--protocol', 'published', '--freeze_trunk', 'yes']
    code, _, errors = train(tmp_path / 'one', *flags)
    if code:
        assert code == 2 and '--freeze_trunk' in errors.splitlines()[-1]
        return
    shutil.copytree(tmp_path / 'one', tmp_path / 'two')
    succeed(train, tmp_path / 'two', *flags)
    assert_same_run(tmp_path / 'one', tmp_path / 'two', f'{RUN}_published')


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


# Files from before there were recipes


@pytest.fixture(scope='module')
def car(slim, tmp_path_factory):
    """A folder of datasets that has the small dataset by the name of a published one.

    Its default recipe is that of 2019, which was the only one.
    """
    root = tmp_path_factory.mktemp('car') / 'data'
    shutil.copytree(slim.root / 'data', root, symlinks=True)
    os.rename(root / 'small', root / 'car')
    return ['--data_name', 'car', '--data_root', root]


@pytest.fixture(scope='module')
def finished(slim, car, weights, tmp_path_factory):
    """Results of a run of the car dataset."""
    results = tmp_path_factory.mktemp('finished')
    words = [*car, '--weights', weights, *SHORT, '--results_root', results]
    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        code, _, errors = slim.call('train.py', *words)
    assert code == 0, errors
    return results


def make_older(results, run):
    """Take what older versions did not write out of the files of a run."""
    for folder in checkpoints(results, run):
        path = os.path.join(folder, 'state.pth')
        state = load_tensors(path)
        for name in [*BEFORE_RECIPES, 'test_every']:
            if name not in ('ensemble_size', 'batch_size', 'lr'):
                state['settings'].pop(name, None)
        del state['seconds']
        for row in state['rows']:
            del row['train_seconds']
        torch.save(state, path)
    path = results / f'{run}_run.json'
    if path.exists():
        record = json.loads(path.read_text())
        for name in ('finished', 'tested_epochs', 'csv_checksum', 'checksum'):
            record.pop(name, None)
        for name in [*BEFORE_RECIPES, 'test_every']:
            if name not in ('ensemble_size', 'batch_size', 'lr'):
                del record['arguments'][name]
        path.write_text(json.dumps(record))
    path = results / f'{run}_model.pth'
    if path.exists():
        saved = load_tensors(str(path))
        del saved['projection']
        for name in MODEL_ARGS_BEFORE:
            del saved['model_args'][name]
        torch.save(saved, path)


@pytest.mark.parametrize('batch', [3, 7])
def test_an_older_checkpoint_goes_on(train, car, finished, tmp_path, batch):
    with pytest.MonkeyPatch.context() as patch:
        die_at_batch(patch, batch)
        train(tmp_path, *car, *EVERY_BATCH)
    make_older(tmp_path, OLD)
    assert 'resumed    epoch' in succeed(train, tmp_path, *car, '--resume')
    assert_same_run(finished, tmp_path, OLD)


def test_an_older_checkpoint_of_own_data_goes_on(train, tmp_path):
    """After it is renamed as the CHANGELOG says."""
    flags = ['--recipe', '2019']
    with pytest.MonkeyPatch.context() as patch:
        die_at_batch(patch, 7)
        train(tmp_path, *flags, *EVERY_BATCH)
    make_older(tmp_path, f'{RUN}_2019')
    output = succeed(train, tmp_path, *flags, '--resume')
    assert 'resumed    epoch' in output
    assert len(read_table(tmp_path, f'{RUN}_2019')) == 3


def test_an_older_run_is_finished(train, car, finished, tmp_path):
    results = tmp_path / 'results'
    shutil.copytree(finished, results)
    make_older(results, OLD)
    assert f'{OLD} is finished' in succeed(train, results, *car, '--resume')
    flags = ['--recipe', 'current', '--resume']
    code, output, _ = train(results, *car, *flags, '--num_epochs', 1)
    assert code == 0 and f'{OLD}_current' in output  # another run


def test_an_older_model_and_database_are_used(
    slim, train, car, finished, tmp_path, request
):
    results = tmp_path / 'results'
    shutil.copytree(finished, results)
    query = slim.root / 'data/small' / read(results, 'data_base', OLD)['images'][2]
    flags = [*car[2:], '--results_root', results, '--query_img_name', query]
    galleries = (
        ['--data_base', f'{OLD}_data_base.pth'],
        ['--gallery', slim.root / 'data/photos/test', '--heat_maps'],
    )
    tables = []
    for older in (False, True):
        if older:
            make_older(results, OLD)
        for gallery in galleries:
            code, _, errors = slim.call('inference.py', *flags, *gallery)
            assert code == 0, errors
            path = results / query.stem / 'retrieved.csv'
            tables.append(path.read_text())
            shutil.rmtree(path.parent)
    assert tables[:2] == tables[2:]
    weights = results / f'{OLD}_model.pth'
    more = ['--weights', weights, '--recipe', 'current', '--freeze_trunk', 'yes']
    more += ['--shared_stages', RECIPES['2019']['shared_stages']]
    succeed(train, tmp_path / 'more', *more)
    old, new = load_tensors(str(weights)), read(tmp_path / 'more', 'model', RUN)
    name = 'trunk.layer1.0.weight'
    assert torch.equal(old['state_dict'][name], new['state_dict'][name])

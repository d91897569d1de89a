"""train.py with the current recipe: epoch 0, components, frozen trunk, resume."""

import json
import os
import shutil

import pandas as pd
import pytest
import torch
from test_train_interrupted import stop_at
from train_runs import assert_same_run, read, start
from train_runs import finish as finish_process

from areir.cli.recipes import RECIPES
from areir.data.images import load_image, to_pixels
from areir.files import load_tensors
from areir.training import trunk_features
from model import TrainedModel

SHORT = [
    *('--data_name', 'small', '--image_size', '32', '--num_epochs', '2'),
    *('--num_workers', '0', '--recalls', '1,2', '--precision', 'fp32'),
    *('--batch_size', '8'),
]
HEADS = RECIPES['current']['ensemble_size']
RUN = f'small_uncropped_resnet18_{HEADS}_6'
HELD_OUT = f'small_uncropped_resnet18_{HEADS}_4'  # --select val trains on 4 classes


def train(slim, results, *flags):
    """Run train.py in this process and return what it printed."""
    words = [*SHORT, '--results_root', results, *flags]
    code, output, errors = slim.call('train.py', *words)
    assert code == 0, errors
    return output


def test_a_run_without_flags(slim, slim_backbone, tmp_path):
    output = train(slim, tmp_path, '--weights', 'none', '--dimensions', 16)
    assert 'before training: R@1' in output and 'recipe     current' in output
    table = pd.read_csv(tmp_path / f'{RUN}_results.csv')
    assert table['epoch'].tolist() == [0, 1, 2]
    assert table['train_loss'].isna().tolist() == [True, False, False]
    assert table['train_seconds'].is_monotonic_increasing
    arguments = json.loads((tmp_path / f'{RUN}_run.json').read_text())['arguments']
    assert arguments['recipe'] == 'current' and arguments['dimensions'] == 16
    assert arguments['crop_area'] < 1 and arguments['mirror'] == 'yes'

    database = read(tmp_path, 'data_base', RUN)
    embeddings = database['embeddings']
    assert embeddings.shape == (30, 16) and database['ensemble_size'] == 1
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(30), atol=1e-5)
    trained = TrainedModel(str(tmp_path / f'{RUN}_model.pth'))
    assert trained.dimensions == 16
    # the scripts that read it
    path = tmp_path / f'{RUN}_data_base.pth'
    image = slim.root / 'data/small' / database['images'][3]
    flags = ['--results_root', tmp_path, '--data_base', path.name]
    flags += ['--query_img_name', image, '--retrieval_num', 3, '--heat_maps']
    assert slim.call('inference.py', *flags)[0] == 0
    assert slim.call('evaluate.py', path)[0] == 0
    flags = ['--results_root', tmp_path, '--data_base', path.name, '--report']
    assert slim.call('inference.py', *flags)[0] == 0


def test_a_new_image_gets_the_embedding_of_the_database(slim, slim_backbone, tmp_path):
    train(slim, tmp_path, '--weights', 'none')
    database = read(tmp_path, 'data_base', RUN)
    trained = TrainedModel(str(tmp_path / f'{RUN}_model.pth'))
    embedder = trained.embedder(torch.device('cpu'))
    image = load_image(str(slim.root / 'data/small' / database['images'][7]))
    vector = embedder(to_pixels(image, 32)[None])[0]
    assert vector @ database['embeddings'][7] > 0.99


RESUMED = {
    'as it is': [],
    'one stage shared': ['--shared_stages', 1, '--embedding', 'features'],
    'logits': ['--embedding', 'logits', '--dimensions', 0],
    'step': ['--schedule', 'step', '--crop_area', 1, '--mirror', 'no'],
    'tested once': ['--test_every', 2, '--label_smoothing', 0],
    'val': ['--select', 'val', '--whitening', 0.5],
    'frozen': ['--freeze_trunk', 'yes', '--freeze_bn', 'yes'],
}


@pytest.mark.parametrize('kind', RESUMED)
@pytest.mark.parametrize('batches', [2, 5])
def test_resumed_equals_uninterrupted(
    slim, slim_backbone, weights, tmp_path, kind, batches
):
    initial = weights if kind == 'frozen' else 'none'
    flags = ['--weights', initial, *RESUMED[kind]]
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    train(slim, whole, *flags)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, batches)
        words = [*SHORT, '--results_root', stopped, *flags]
        assert slim.call('train.py', *words)[0] == 130
    train(slim, stopped, *flags, '--resume')
    run = f'{HELD_OUT}_select_val' if kind == 'val' else RUN
    assert_same_run(whole, stopped, run)
    projections = (
        read(results, 'model', run)['projection'] for results in (whole, stopped)
    )
    first, second = projections
    assert (first is None) == (kind == 'logits')
    if first:
        assert torch.equal(first['matrix'], second['matrix'])


def test_other_recipes_do_not_resume(slim, slim_backbone, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 2)
        words = [*SHORT, '--results_root', tmp_path, '--weights', 'none']
        assert slim.call('train.py', *words)[0] == 130
    code, _, errors = slim.call('train.py', *words, '--resume', '--crop_area', 0.9)
    assert code == 2 and '--crop_area 0.9' in errors


def test_a_frozen_trunk_stays_and_its_features_are_kept(
    slim, slim_backbone, weights, tmp_path, monkeypatch
):
    root = tmp_path / 'data'
    shutil.copytree(slim.root / 'data', root, symlinks=True)
    flags = ['--weights', weights, '--data_root', root, '--freeze_trunk', 'yes']
    written = []
    write = trunk_features.write_views

    def count_and_write(*arguments):
        written.append(1)
        write(*arguments)

    monkeypatch.setattr(trunk_features, 'write_views', count_and_write)
    output = train(slim, tmp_path, *flags)
    assert 'freeze_trunk yes, freeze_bn yes' in output
    saved, state = read(tmp_path, 'model', RUN), load_tensors(str(weights))
    for name, value in state.items():
        if name.startswith(('conv1', 'bn1', 'layer1', 'layer2', 'layer3')):
            assert torch.equal(saved['state_dict'][f'trunk.{name}'], value), name
    for name in ('layer4.0.weight', 'layer4.1.running_mean'):
        same = torch.equal(saved['state_dict'][f'heads.0.{name}'], state[name])
        assert same == ('running' in name)  # batch norm keeps its statistics
    folder = tmp_path / f'{RUN}_trunk_features'
    (name,) = os.listdir(folder)
    train(slim, tmp_path, *flags)
    assert os.listdir(folder) == [name] and len(written) == 1

    images = sorted(path for path in root.rglob('*.png') if 'train' in str(path))
    os.utime(images[0], (1, 1))
    train(slim, tmp_path, *flags)
    assert os.listdir(folder) != [name] and len(written) == 2


def test_a_disk_without_space_for_the_features(
    slim, slim_backbone, weights, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(trunk_features.shutil, 'disk_usage', lambda path: usage)
    words = [*SHORT, '--results_root', tmp_path, '--weights', weights]
    code, _, errors = slim.call('train.py', *words, '--freeze_trunk', 'yes')
    assert code == 2 and '--freeze_trunk no' in errors


@pytest.mark.slow
@pytest.mark.parametrize('frozen', ['no', 'yes'])
def test_two_processes_give_the_numbers_of_one(slim, weights, tmp_path, frozen):
    flags = ['--weights', weights, '--freeze_trunk', frozen, '--recipe', 'current']
    flags += ['--num_epochs', 2, '--meta_class_size', 6, '--ensemble_size', HEADS]
    one, two = tmp_path / 'one', tmp_path / 'two'
    finish_process(start(slim, one, *flags))
    finish_process(start(slim, two, *flags, processes=2))
    first, second = (
        read(results, 'data_base', RUN)['embeddings'] for results in (one, two)
    )
    assert torch.cosine_similarity(first, second).min() > 0.9999

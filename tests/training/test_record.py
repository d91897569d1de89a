"""What a run writes and prints: rows, files, provenance, and its lines."""

import json
import math
import os
import shutil
import subprocess

import pytest
import torch
from conftest import REPOSITORY
from experiments import CLASSES, INFO, make_embeddings, make_experiment
from trained import CALIBRATION

from areir.training import record
from areir.training.result import Result
from areir.training.run import Progress
from model import EnsembleModel


@pytest.fixture(scope='module', params=['last', 'val'])
def epoch(request):
    """(experiment, Result of its second epoch, Progress) for two --select."""
    experiment = make_experiment(select=request.param)
    result = Result(experiment, 2, make_embeddings(experiment))
    done = {'batches': 4, 'loss': 6.0, 'accuracy': 2.0, 'seconds': 8.0, 'waited': 2.0}
    return experiment, result, Progress(epoch=2, **done, seconds_before=20.0)


# The commit


def test_the_commit_is_that_of_this_code(tmp_path, monkeypatch):
    shutil.copytree(os.path.join(REPOSITORY, 'areir'), tmp_path / 'areir')
    monkeypatch.setattr(record, '__file__', str(tmp_path / 'areir/training/record.py'))
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert record.git_commit() is None  # no git checkout
    git = ['git', '-C', tmp_path, '-c', 'user.name=a', '-c', 'user.email=a@b']
    for words in (['init', '-q'], ['add', '.'], ['commit', '-q', '-m', 'first']):
        subprocess.run([*git, *words], check=True)
    commit = record.git_commit()
    assert len(commit) == 40
    (tmp_path / 'areir/untracked.py').write_text('')
    assert record.git_commit() == commit
    (tmp_path / 'areir/errors.py').write_text('')
    assert record.git_commit() == commit + '+changes'


# What is written


def test_a_row_of_the_csv(epoch):
    experiment, result, progress = epoch
    row = record.csv_row(experiment, progress, result, 1e-5, 12.5)
    names = ['recall@1', 'recall@2', 'map@r', 'r_precision', 'mean_rank']
    columns = [f'test_{name}' for name in names]
    if experiment.args.select == 'val':
        columns += [f'val_{name}' for name in names if name != 'recall@2']
    before = ['epoch', 'train_loss', 'train_accuracy']
    after = ['lr', 'seconds', 'train_seconds', 'data_wait', 'protocol', 'select']
    assert list(row) == [*before, *columns, *after]
    assert [row[name] for name in before] == [2, 1.5, 0.5]
    select = experiment.args.select
    assert [row[name] for name in after] == [1e-5, 12.5, 28.0, 0.25, 'strict', select]
    assert row['test_map@r'] == result.metrics['map@r']


def test_the_row_before_training():
    """Seconds of training may be those of the features of a frozen trunk."""
    experiment = make_experiment(recipe='current')
    result = Result(experiment, 0, make_embeddings(experiment))
    row = record.csv_row(experiment, Progress(seconds=3.0), result, 0.0, 1.5)
    assert row['epoch'] == 0 and row['lr'] == 0 and row['seconds'] == 1.5
    assert math.isnan(row['train_loss']) and math.isnan(row['train_accuracy'])
    assert row['train_seconds'] == 3 and row['data_wait'] == 0
    line = record.epoch_line(experiment, row, result)
    recall = result.metrics['recall@1']
    assert line.startswith(f'before training: R@1 {recall:.2%}, ')
    assert 'loss' not in line and 'nan' not in line and line.endswith(', 2 s')


def test_model_and_database_have_one_version(epoch):
    experiment, result, _ = epoch
    model, database = record.result_files(
        experiment, result, {'trunk.weight': 1}, 'run'
    )
    again, _ = record.result_files(experiment, result, {}, 'run')
    assert len(model['version']) == 16 and model['version'] != again['version']
    for saved in (model, database):
        assert saved['version'] == model['version'] and saved['epoch'] == 2
        assert saved['select'] == experiment.args.select
        assert saved['protocol'] == 'strict' and saved['ensemble_size'] == 2
        assert saved['data_name'] == 'shoes' and saved['crop_type'] == 'uncropped'
        assert saved['calibration'] == result.calibration
    assert model['state_dict'] == {'trunk.weight': 1}
    assert model['partition'] is experiment.partition
    assert model['classes'] == list('uvwxyz')
    assert (model['mean'], model['std']) == (INFO['mean'], INFO['std'])
    assert model['image_size'] == 32 and model['projection'] is None
    with torch.device('meta'):
        EnsembleModel(**model['model_args'])  # takes them all


@pytest.mark.parametrize('gallery', [False, True])
def test_the_database_file(gallery):
    experiment = make_experiment(gallery, data_root='data', results_root='a/results')
    embeddings = make_embeddings(experiment)
    result = Result(experiment, 1, embeddings)
    _, database = record.result_files(experiment, result, {}, 'run')
    assert database['model'] == 'run_model.pth'
    assert database['classes'] == CLASSES
    assert database['data_root'] == '../../data'  # from the folder of the results
    places = {'gallery': '', 'query': 'query_'} if gallery else {'test': ''}
    for name, prefix in places.items():
        part = experiment.split.parts[name]
        assert torch.equal(database[f'{prefix}embeddings'], embeddings[name])
        assert torch.equal(database[f'{prefix}labels'], part.labels)
        assert database[f'{prefix}images'] == part.images
    assert ('query_images' in database) == gallery


def test_provenance(epoch):
    experiment, result, _ = epoch
    provenance = json.loads(json.dumps(record.provenance(experiment, result)))
    assert provenance['arguments'] == vars(experiment.args)
    assert provenance['commit'] == 'c0ffee' and provenance['epoch'] == 2
    assert provenance['device'].startswith('CPU')
    assert provenance['precision'] == 'fp32' and provenance['gpus'] == []
    assert provenance['processes'] == 1 and provenance['parameters'] == 1_234_567
    assert provenance['metrics'] == result.metrics
    assert provenance['calibration'] == result.calibration
    assert provenance['queries_without_positive'] == 0
    for name, (low, high) in provenance['intervals'].items():
        assert low <= provenance['metrics'][name] <= high
    data = provenance['data']
    assert data['split_sha256'] == 'abc' and data['counts']['test'] == [36, 6]
    assert data['warnings'] == INFO['warnings'] and data['layout'] == INFO['layout']
    held_out = ['r', 's'] if experiment.args.select == 'val' else []
    assert data['held_out'] == held_out
    assert provenance['versions']['torch'] == torch.__version__
    assert {'python', 'numpy', 'scipy', 'pandas'} <= provenance['versions'].keys()


# What is printed


def rows_of(*recalls, first=0):
    return [
        {'epoch': epoch, 'test_recall@2': recall}
        for epoch, recall in enumerate(recalls, first)
    ]


def test_training_that_sets_back_is_noticed():
    line, *rest = record.closing_lines(rows_of(0.5, 0.9, 0.4321), 2, CALIBRATION)
    assert '50.00%' in line and '43.21%' in line and line.startswith('notice: ')
    # better than the start, as good, or without a start to compare with
    for rows in (
        rows_of(0.5, 0.4, 0.51),
        rows_of(1.0, 1.0),
        rows_of(0.5, 0.4, first=1),
    ):
        assert record.closing_lines(rows, 2, CALIBRATION) == rest

"""What a run writes and prints: rows, files and provenance."""

import json
import os
import shutil
import subprocess

import pytest
import torch
from conftest import REPOSITORY
from experiments import INFO, make_embeddings, make_experiment
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
    wanted = {'epoch': 2, 'train_loss': 1.5, 'train_accuracy': 0.5}
    wanted |= {f'test_{name}': result.metrics[name] for name in names}
    select = experiment.args.select
    if select == 'val':
        names.remove('recall@2')
        wanted |= {f'val_{name}': result.val_metrics[name] for name in names}
    wanted |= {'lr': 1e-5, 'seconds': 12.5, 'train_seconds': 28.0, 'data_wait': 0.25}
    wanted |= {'protocol': 'strict', 'select': select}
    assert row == wanted and list(row) == list(wanted)


def test_model_and_database_have_one_version(epoch):
    experiment, result, _ = epoch
    model, database = record.result_files(
        experiment, result, {'trunk.weight': 1}, 'run'
    )
    again, _ = record.result_files(experiment, result, {}, 'run')
    assert model['version'] == database['version'] != again['version']
    assert model['epoch'] == database['epoch'] == 2
    assert model['ensemble_size'] == database['ensemble_size'] == 2
    assert model['calibration'] == database['calibration'] == result.calibration
    assert model['classes'] == list('uvwxyz')
    assert (model['mean'], model['std']) == (INFO['mean'], INFO['std'])
    with torch.device('meta'):
        EnsembleModel(**model['model_args'])  # takes them all


def test_provenance(epoch):
    experiment, result, _ = epoch
    provenance = json.loads(json.dumps(record.provenance(experiment, result)))
    assert provenance['arguments'] == vars(experiment.args)
    assert provenance['commit'] == 'c0ffee' and provenance['epoch'] == 2
    assert provenance['metrics'] == result.metrics
    assert provenance['calibration'] == result.calibration
    names = [name for name in result.metrics if name != 'mean_rank']
    assert list(provenance['intervals']) == names
    for name, (low, high) in provenance['intervals'].items():
        assert low <= provenance['metrics'][name] <= high
    data = provenance['data']
    assert data['split_sha256'] == 'abc' and data['counts']['test'] == [36, 6]
    held_out = ['r', 's'] if experiment.args.select == 'val' else []
    assert data['held_out'] == held_out
    assert provenance['versions']['torch'] == torch.__version__


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

"""What a run writes and prints: rows, files and provenance."""

import json
import os
import shutil
import subprocess

import pytest
import torch
from conftest import REPOSITORY
from experiments import PIXEL_FORMAT, make_embeddings, make_experiment

from areir import __version__
from areir.data.images import PixelFormat
from areir.scripts.model import EnsembleModel
from areir.training import record
from areir.training.result import Result
from areir.training.run import Progress

WHOLE_GALLERY = ['all_recall@1_trained', 'all_recall@1_new']


@pytest.fixture(scope='module', params=[('last', 'no'), ('val', 'yes')])
def epoch(request):
    """(experiment, Result of its second epoch, Progress) for two --select.

    The second has the figures of the whole gallery.
    """
    select, whole_gallery = request.param
    experiment = make_experiment(select=select, whole_gallery=whole_gallery)
    result = Result(experiment, 2, make_embeddings(experiment))
    done = {'batches': 4, 'loss': 6.0, 'accuracy': 2.0, 'seconds': 8.0, 'waited': 2.0}
    return experiment, result, Progress(epoch=2, **done, seconds_before=20.0)


# The commit


def test_the_commit_is_that_of_this_code(tmp_path, monkeypatch):
    shutil.copytree(os.path.join(REPOSITORY, 'areir'), tmp_path / 'areir')
    monkeypatch.setattr(record, '__file__', str(tmp_path / 'areir/training/record.py'))
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert record.git_commit() == __version__  # no git checkout
    git = ['git', '-C', tmp_path, '-c', 'user.name=a', '-c', 'user.email=a@b']
    for words in (['init', '-q'], ['add', '.'], ['commit', '-q', '-m', 'first']):
        subprocess.run([*git, *words], check=True)
    assert record.git_commit() == __version__  # somebody's, in which it is installed
    (tmp_path / 'train.py').write_text('')
    assert record.git_commit() == __version__
    for words in (['add', '.'], ['commit', '-q', '-m', 'second']):
        subprocess.run([*git, *words], check=True)
    commit = record.git_commit()
    assert len(commit) == 40
    (tmp_path / 'areir/untracked.py').write_text('')
    assert record.git_commit() == commit
    (tmp_path / 'areir/errors.py').write_text('')
    assert record.git_commit() == commit + '+changes'
    installed = shutil.copytree(tmp_path / 'areir', tmp_path / '.venv/areir')
    monkeypatch.setattr(record, '__file__', str(installed / 'training/record.py'))
    assert record.git_commit() == __version__  # not that of the project around it


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
        wanted |= {name: result.all_metrics[name] for name in WHOLE_GALLERY}
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
    assert PixelFormat(**model['pixel_format']) == PIXEL_FORMAT
    with torch.device('meta'):
        EnsembleModel(**model['model_args'])  # takes them all


def test_provenance(epoch):
    experiment, result, _ = epoch
    provenance = json.loads(json.dumps(record.provenance(experiment, result)))
    assert provenance['arguments'] == vars(experiment.args)
    assert provenance['commit'] == 'c0ffee' and provenance['epoch'] == 2
    assert provenance['metrics'] == {**result.metrics, **result.all_metrics}
    assert provenance['calibration'] == result.calibration
    names = [name for name in provenance['metrics'] if name != 'mean_rank']
    assert list(provenance['intervals']) == names
    for name, (low, high) in provenance['intervals'].items():
        assert low <= provenance['metrics'][name] <= high
    whole = WHOLE_GALLERY if experiment.args.select == 'val' else []
    assert names[4:] == whole
    data = provenance['data']
    assert data['split_sha256'] == 'abc' and data['counts']['test'] == [36, 6]
    held_out = ['r', 's'] if experiment.args.select == 'val' else []
    assert data['held_out'] == held_out
    assert provenance['versions']['torch'] == torch.__version__


# What is printed


def rows_of(*recalls, first=0, **whole):
    rows = []
    for epoch, recall in enumerate(recalls, first):
        rows.append({'epoch': epoch, 'test_recall@2': recall})
        rows[-1] |= {name: values[len(rows) - 1] for name, values in whole.items()}
    return rows


def test_training_that_sets_back_is_noticed():
    (line,) = record.setback_lines(rows_of(0.5, 0.9, 0.4321), 'recall@2')
    assert '50.00%' in line and '43.21%' in line and line.startswith('notice: ')
    # better than the start, as good, or without a start to compare with
    trained = {WHOLE_GALLERY[0]: (0.8, 0.9, 0.3)}  # fitted to before training, too
    for rows in (
        rows_of(0.5, 0.4, 0.51, **trained),
        rows_of(1.0, 1.0),
        rows_of(0.5, 0.4, first=1),
    ):
        assert record.setback_lines(rows, 'recall@2') == []


def test_the_figures_at_the_end(epoch):
    """Those of run.json, with their intervals."""
    experiment, result, _ = epoch
    run = record.provenance(experiment, result)
    text = '\n'.join(record.closing_lines(rows_of(0.5, 0.9), run))
    assert ('whole gallery' in text) == bool(result.all_metrics)
    for name in ['recall@1', *result.all_metrics]:
        assert f' {run["metrics"][name]:.2%}, ' in text
        assert f'{run["intervals"][name][0]:.2%} to ' in text
    assert 'threshold of a match' in text

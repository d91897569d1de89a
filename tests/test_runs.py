"""The table of runs below a folder, and the comparison of two of them."""

import json
import os
import re
import shutil

import pandas as pd
import pytest
from train_runs import RUN, train_slim

from areir.training.runs import read_runs


@pytest.fixture(scope='module')
def trained(small, tmp_path_factory):
    """A folder with a run, and one in a folder below it."""
    results = tmp_path_factory.mktemp('runs') / 'my results'
    train_slim(small, results, '--num_epochs', 1, '--recalls', '1,2')
    flags = ['--lr', '0.001', '--seed', 3, '--num_epochs', 2, '--test_every', 2]
    flags += ['--recipe', 'current', '--ensemble_size', 1, '--meta_class_size', 6]
    train_slim(small, results / 'next week', '--run_name', 'slow', *flags)
    return results


@pytest.fixture
def results(trained, tmp_path):
    """A copy of these runs, and a third one, chosen by its test."""
    results = shutil.copytree(trained, tmp_path / 'my results')
    for ending in ('run.json', 'results.csv', 'data_base.pth'):
        shutil.copy(results / f'{RUN}_{ending}', results / f'chosen_{ending}')
    change(results, 'chosen', select='test')
    return results


def change(results, run, **changed):
    """Change entries of a run.json; return its contents."""
    path = results / f'{run}_run.json'
    content = json.loads(path.read_text()) | changed
    path.write_text(json.dumps(content))
    return content


def reach(results, run, *figures):
    """Let a run have reached other figures, each with an interval."""
    names = 'recall@1', 'all_recall@1_trained', 'all_recall@1_new'
    limits = {name: [value - 0.125, value] for name, value in zip(names, figures)}
    change(results, run, metrics=dict(zip(names, figures)), intervals=limits)


def test_every_run_has_a_row(small, results):
    slow = change(results, 'next week/slow', commit='c0ffee012345+changes')
    reach(results, RUN, 0.5)
    reach(results, 'chosen', 0.25)
    reach(results, 'next week/slow', 0.75, 0.875, 0.625)
    output = small.ask('evaluate.py', results)
    assert output.startswith(f'3 runs below {results}')
    lines = output.splitlines()
    assert max(map(len, [lines[2], *lines[5:-1:2]])) <= 120
    assert lines[3] == 'small'
    assert lines[4] == (
        '  next week/slow: resnet18, current, weights none, seed 3, precision fp32, '
        'batch_size 8, lr 0.001, 32 px, 2 epochs'
    )
    figures = '75.00% (62.50 to 75.00)    87.50% (75.00 to 87.50)    62.50%'
    assert lines[5].strip().startswith(figures)
    assert re.search(rf' \d+ / \d+ +{slow["date"][:10]} +c0ffee0\+$', lines[5])
    assert lines[6].startswith(f'  {RUN}: resnet18, 2019, weights none')
    assert 'ensemble_size 3, meta_class_size 3, 32 px, 1 epoch' in lines[6]
    assert lines[7].split()[:6] == ['50.00%', '(37.50', 'to', '50.00)', '-', '-']
    assert lines[8].endswith('1 epoch, not comparable: epoch selected by test')
    assert lines[-1] == f'wrote {results}/runs.csv'


def test_the_table_is_written_in_full_precision(small, results):
    rows = json.loads(small.ask('evaluate.py', results, '--json'))
    table = pd.read_csv(results / 'runs.csv')
    assert list(table) == list(rows[0])
    assert [*table['name']] == [row['name'] for row in rows]
    for row, written in zip(rows, table.to_dict('records')):
        run = change(results, row['name'])
        assert row['recall@1'] == written['recall@1'] == run['metrics']['recall@1']
        assert row['date'] == written['date'] == run['date']
        csv = pd.read_csv(results / f'{row["name"]}_results.csv')
        assert row['train_seconds'] == written['train_seconds']
        assert row['train_seconds'] == csv['train_seconds'].iloc[-1] < row['seconds']
    assert small.ask('evaluate.py', results)  # runs.csv is no run


def test_runs_that_are_not_whole(small, results):
    change(results, RUN, finished=False, protocol='published', seconds=None)
    change(
        results, 'next week/slow', data={'counts': {'train': [36, 6]}, 'held_out': []}
    )
    path = results / 'chosen_run.json'
    shutil.copy(path, results / 'old_run.json')
    change(results, 'old', arguments={'data_name': 'small'})
    os.truncate(path, 100)
    (results / 'other_run.json').write_text('[1]')
    os.mkdir(results / 'folder_run.json')
    output = small.ask('evaluate.py', results)
    notices = {line for line in output.splitlines() if line.startswith('notice: ')}
    assert len(notices) == 4
    for name in ('chosen', 'other', 'old', 'folder'):
        assert any(f'{results}/{name}_run.json' in notice for notice in notices)
    rows = {row['name']: row for row in read_runs(results)}
    assert rows[RUN]['note'] == 'unfinished; not comparable: protocol published'
    assert rows[RUN]['seconds'] is None
    assert rows['next week/slow']['note'] == 'trained on all classes'


def test_two_runs_are_compared(small, results):
    flags = ['--compare', RUN, 'next week/slow', '--json']
    report = small.ask('evaluate.py', results, *flags)
    files = [results / f'{name}_data_base.pth' for name in (RUN, 'next week/slow')]
    of_files = small.ask('evaluate.py', files[0], '--compare', files[1], '--json')
    assert report == of_files
    assert 'difference' in json.loads(report)
    swapped = small.ask('evaluate.py', '--json', '--compare', files[1], files[0])
    assert swapped == of_files
    assert not os.path.exists(results / 'runs.csv')


def test_refusals(small, results):
    line = small.refuse('evaluate.py', results, '--compare', RUN, 'choosen')
    assert 'did you mean chosen_data_base.pth?' in line
    assert 'name two runs' in small.refuse('evaluate.py', results, '--compare', RUN)
    assert '--recalls' in small.refuse('evaluate.py', results, '--recalls', 1)
    assert 'no run of train.py' in small.refuse('evaluate.py', small.root / 'data')
    os.mkdir(results / 'runs.csv')
    assert 'runs.csv cannot be written' in small.refuse('evaluate.py', results)
    file = results / 'chosen_data_base.pth'
    assert 'single other' in small.refuse('evaluate.py', file, '--compare', file, file)
    assert 'give a file' in small.refuse('evaluate.py')

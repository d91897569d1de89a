"""A run: its name, its lock, how it resumes, and what it refuses."""

import argparse
import os
import signal
import subprocess
import sys

import pytest
from small import equal_weights, interrupt, make_run, make_trainer, train

from areir.errors import UserError
from areir.files import temporary_name
from areir.training.run import (
    Progress,
    read_results,
    run_name,
)

FLAGS = {
    'recipe': '2019',
    'data_name': 'car',
    'crop_type': 'uncropped',
    'model_type': 'resnet18',
    'with_se': 'yes',
    'ensemble_size': 48,
    'meta_class_size': 12,
    'protocol': 'strict',
    'select': 'last',
    'run_name': None,
}


@pytest.mark.parametrize(
    ('changes', 'extended', 'name'),
    [
        ({}, 0, 'car_uncropped_resnet18_48_12'),
        ({'with_se': 'no'}, 0, 'car_uncropped_resnet18_no_se_48_12'),
        ({'select': 'val'}, 0, 'car_uncropped_resnet18_48_12_select_val'),
        (
            {'select': 'test', 'protocol': 'published'},
            0,
            'car_uncropped_resnet18_48_12_published',
        ),
        ({}, 8, 'car_uncropped_resnet18_48_12_from_8'),
        ({'recipe': 'current'}, 0, 'car_uncropped_resnet18_48_12_current'),
        ({'data_name': 'shop'}, 0, 'shop_uncropped_resnet18_48_12_2019'),
        ({'run_name': 'mine'}, 8, 'mine'),
    ],
)
def test_names(changes, extended, name):
    assert run_name(argparse.Namespace(**{**FLAGS, **changes}), extended) == name


def test_the_name_of_a_transformer_does_not_tell_its_default_recipe():
    args = argparse.Namespace(**{**FLAGS, 'recipe': 'current'})
    assert run_name(args, 0, transformer=True) == 'car_uncropped_resnet18_48_12'


# Interrupted


@pytest.fixture
def interrupted(tmp_path):
    return interrupt(tmp_path)


def test_resumed_equals_uninterrupted(interrupted):
    run, batches = interrupted
    whole, resumed = make_trainer(), make_trainer()
    train(whole, batches)
    progress = run.begin(resumed)
    assert progress == Progress(batches=2, loss=2.0)
    train(resumed, batches[2:])
    assert equal_weights(whole.model, resumed.model)


def flip_bits(path):
    """Flip bits in the middle, in more bytes than the padding between tensors has."""
    with open(path, 'r+b') as file:
        content = bytearray(file.read())
        middle = len(content) // 2
        content[middle : middle + 100] = [byte ^ 4 for byte in content[middle:][:100]]
        file.seek(0)
        file.write(content)


def cut(path):
    os.truncate(path, os.path.getsize(path) // 2)


@pytest.mark.parametrize(
    ('name', 'damage'),
    [
        ('head_001', cut),
        ('state', flip_bits),
        ('trunk', os.remove),
    ],
)
def test_the_checkpoint_before_a_damaged_one_is_used(interrupted, capsys, name, damage):
    run, batches = interrupted
    newest, older = run.checkpoints()
    damaged = os.path.join(newest, f'{name}.pth')
    damage(damaged)
    whole, resumed = make_trainer(), make_trainer()
    train(whole, batches)
    assert run.begin(resumed).batches == 1
    assert damaged in capsys.readouterr().out
    assert run.checkpoints() == [older]  # the other one can be written again
    train(resumed, batches[1:])
    assert equal_weights(whole.model, resumed.model)


def test_no_readable_checkpoint_is_refused(interrupted):
    run, _ = interrupted
    for folder in run.checkpoints():
        cut(os.path.join(folder, 'trunk.pth'))
    with pytest.raises(UserError, match='small_checkpoint'):
        run.begin(make_trainer())
    assert len(run.checkpoints()) == 2


def test_other_settings_are_refused(interrupted, tmp_path):
    with pytest.raises(UserError, match='--lr'):
        make_run(tmp_path, lr=3e-4).begin(make_trainer())
    with pytest.raises(UserError, match='dataset'):
        make_run(tmp_path, split_sha256='other').begin(make_trainer())


def test_an_interrupted_run_must_be_resumed(interrupted):
    run, _ = interrupted
    leftover = temporary_name(run.path('model.pth'))
    open(leftover, 'w').close()
    with pytest.raises(UserError, match='--resume'):
        run.check_start(resume=False)
    assert run.check_start(resume=True, overwrite=True)
    assert not os.path.exists(leftover)  # of a killed process
    assert len(run.checkpoints()) == 2
    assert run.check_start(resume=False, overwrite=True)
    assert run.checkpoints() == []


# Finished


def finish(run, **settings):
    """Write what a finished run leaves."""
    saved = {**run.settings, **settings}
    record = {'arguments': saved, 'precision': 'fp32', 'calibration': None}
    record['data'] = {'split_sha256': saved['split_sha256']}
    os.makedirs(run.path('checkpoint'), exist_ok=True)
    run.keep({'epoch': 2}, {'epoch': 2}, record)
    run.write_csv(Progress(rows=[{'epoch': 1, 'loss': 0.5}, {'epoch': 2, 'loss': 0.2}]))
    run.end(Progress())


def test_a_finished_run_is_not_run_again(tmp_path):
    run = make_run(tmp_path)
    assert run.check_start(resume=True)  # nothing there yet
    finish(run)
    names = ['data_base.pth', 'model.pth', 'results.csv', 'run.json']
    assert sorted(os.listdir(tmp_path)) == [f'small_{name}' for name in names]
    assert not run.check_start(resume=True)
    assert sorted(os.listdir(tmp_path)) == [f'small_{name}' for name in names]
    assert run.check_start(resume=False)  # trained again
    finish(run, seed=5)
    for resume in (True, False):
        with pytest.raises(UserError, match=r'--seed 1: .* 5; --run_name.*--overwrite'):
            run.check_start(resume)
    assert sorted(os.listdir(tmp_path)) == [f'small_{name}' for name in names]
    assert run.check_start(resume=True, overwrite=True)


def test_a_run_without_checkpoints_that_is_not_finished_begins_again(tmp_path):
    run = make_run(tmp_path)
    run.write_csv(Progress(rows=[{'epoch': 1}]))
    run.keep({}, {}, {'arguments': {'seed': 5}, 'precision': 'fp32', 'data': {}})
    assert run.check_start(resume=False)


@pytest.mark.parametrize('text', ['', '[]', 'PK\x03\x04\x00'])
def test_a_damaged_run_json_is_named(tmp_path, text):
    run = make_run(tmp_path)
    finish(run)
    with open(run.path('run.json'), 'w') as file:
        file.write(text)
    for resume in (True, False):
        with pytest.raises(UserError, match=r'run\.json.*--overwrite'):
            run.check_start(resume)
    assert run.check_start(resume=False, overwrite=True)


def test_the_csv_is_read_with_what_a_spreadsheet_left(tmp_path):
    path = tmp_path / 'results.csv'
    path.write_text('epoch,loss\n1,0.5\n2,n/a\n,3\n')
    table = read_results(str(path))
    assert table['epoch'].tolist() == [1, 2]
    assert table['loss'].isna().tolist() == [False, True]
    for text in (b'', b'era\n1\n', b'PK\x03\x04\x00\xff\xfe'):
        path.write_bytes(text)
        with pytest.raises(UserError, match=r'results\.csv'):
            read_results(str(path))


# The lock

HOLD = """
import os, sys
from areir.training.run import Run
run = Run('small', sys.argv[1], {})
with run.locked():
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    print('held', flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_holds_no_lock(tmp_path):
    """Even while a process lives that it had forked, as loaders do."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'held\n'
    run = make_run(tmp_path)
    with pytest.raises(UserError, match='small is going on'), run.locked():
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(KeyError), run.locked():
        assert os.listdir(tmp_path) == ['small.lock']
        raise KeyError
    assert os.listdir(tmp_path) == []
    process.communicate('')


def test_where_there_are_no_locks_the_run_trains(tmp_path, monkeypatch, capsys):
    def refuse(lock, **options):
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr('filelock.FileLock.acquire', refuse)
    with make_run(tmp_path).locked():
        assert 'small.lock' in capsys.readouterr().err
    assert os.listdir(tmp_path) == []

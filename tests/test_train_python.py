"""train.py and data_utils.py called from Python, as in a notebook."""

import json
import os
import signal
import sys
import threading

import pandas as pd
import pytest
import torch
from conftest import draw_sample
from train_runs import FLAGS, RUN, assert_same_run, checkpoints, finish, start

from areir import prepare, train
from areir.errors import UserError
from areir.training.trainer import Trainer

SETTINGS = dict(zip([flag[2:] for flag in FLAGS[::2]], FLAGS[1::2]))
SETTINGS |= {'recalls': [1, 2, 4], 'num_epochs': 2}


@pytest.fixture
def notebook(slim, slim_backbone, tmp_path, monkeypatch):
    """Call train in another folder: (**flags) -> what it returns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['ipykernel_launcher.py', '-f', 'kernel.json'])

    def call(**flags):
        data_root = slim.root / 'data'  # a Path
        return train({**SETTINGS, 'data_root': data_root, **flags})

    return call


def state():
    """Return what a call could change in this process."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    random = torch.get_rng_state().tolist()
    return handlers, random, torch.get_num_threads(), dict(os.environ)


def test_two_trainings_equal_those_of_two_processes(
    slim, notebook, tmp_path, monkeypatch
):
    """They return what they wrote, and leave the process as it was."""
    monkeypatch.delenv('TQDM_DISABLE', raising=False)
    process = start(slim, tmp_path / 'process', '--num_epochs', 2, '--recalls', '1,2,4')
    torch.manual_seed(7)
    before = state()
    notebook(quiet=True, seed=1, num_workers=0)
    assert state() == before
    torch.rand(1)
    outcome = notebook(results_root='again')
    finish(process)
    assert_same_run(tmp_path / 'process', tmp_path / 'again')
    paths = outcome['paths']
    assert outcome['run'] == RUN and sorted(os.listdir('again')) == sorted(
        os.path.basename(path) for path in paths.values()
    )
    last = pd.read_csv(paths['results']).iloc[-1]
    figures = outcome['figures']
    assert list(figures)[:4] == ['recall@1', 'recall@2', 'recall@4', 'map@r']
    for name, value in figures.items():
        assert value == last[name if name in last else f'test_{name}']
    low, high = outcome['intervals']['all_recall@1_trained']
    assert low <= figures['all_recall@1_trained'] <= high
    with open(paths['run']) as file:
        script, *words = json.load(file)['command']
    assert script == 'train.py' and {'--recalls=1,2,4', '--num_epochs=2'} <= set(words)
    assert notebook(results_root='again', resume=True) == outcome  # nothing to do


def test_an_interrupted_cell_keeps_a_checkpoint(notebook, tmp_path):
    """Another one resumes, in a thread, which can have no handlers of signals."""
    whole = notebook(results_root='whole')
    step = Trainer.step

    def step_and_interrupt(*arguments):
        signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, 'step', step_and_interrupt)
        with pytest.raises(KeyboardInterrupt, match='--resume continues') as caught:
            notebook()
    (folder,) = checkpoints(tmp_path / 'results')
    assert folder.endswith('batch_000001')
    assert os.listdir('results') == [f'{RUN}_checkpoint']  # no lock
    frames = [row.frame.f_locals for row in caught.traceback]
    assert not any('trainer' in names for names in frames)  # its memory is free
    with pytest.raises(UserError, match='was interrupted: continue with --resume'):
        notebook()
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(notebook(resume=True)))
    thread.start()
    thread.join()
    assert outcomes[0]['figures'] == whole['figures']
    assert_same_run(tmp_path / 'whole', tmp_path / 'results')


def test_a_bad_flag_is_a_value_error(notebook, capsys):
    for flags, text in {
        ('num_epochs', 0): 'argument --num_epochs: ',
        ('epochs', 1): 'unrecognized arguments: --epochs=1',
        ('weights', 'none.pth'): '--weights none.pth: no such file',
    }.items():
        with pytest.raises(UserError, match=text):
            notebook(**dict([flags]))
    assert capsys.readouterr().err == ''
    with pytest.raises(UserError, match='needs a --data_name'):
        prepare({'csv': 'photos.csv'})


def test_a_dataset_is_prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {'train_classes': 3, 'test_classes': 2, 'images_per_class': 4}
    draw_sample('photos', **sizes, side=16)
    flags = {'data_path': tmp_path / 'photos', 'data_name': 'few', 'num_workers': 1}
    path = os.path.join('data', 'few', 'uncropped_data_dicts.pth')
    wanted = {
        'paths': {'uncropped': path},
        'counts': {'train': (12, 3), 'test': (8, 2)},
    }
    for _ in range(2):  # the second time nothing has changed
        assert prepare(flags) == {'few': wanted}
    assert os.path.isfile(path)
    broken = next((tmp_path / 'photos/train').glob('*/*.png'))
    broken.write_bytes(b'')
    with pytest.raises(UserError, match='cannot be read'):
        prepare(flags)
    wanted['counts']['train'] = (11, 3)
    for _ in range(2):
        assert prepare({**flags, 'skip_broken': True}) == {'few': wanted}

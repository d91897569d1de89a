"""Errors as one line: what a script prints, and its exit code."""

import sys
import time

import pytest
import torch

from areir.cli import make_parser
from areir.errors import UserError
from areir.files import WriteError
from areir.scripts import utils

FULL = OSError(28, 'No space left on device')


@pytest.fixture
def run(monkeypatch, capsys):
    """A call of run_script: (error that main raises) -> (exit code, stderr)."""
    monkeypatch.setattr(sys, 'argv', ['/some/where/train.py'])
    monkeypatch.setattr(utils.atexit, 'register', lambda function: None)
    monkeypatch.setattr(utils.signal, 'signal', lambda number, handler: None)
    monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)

    def run_script(error):
        def main():
            raise error

        with pytest.raises(SystemExit) as end:
            utils.run_script(main)
        return end.value.code, capsys.readouterr().err

    return run_script


@pytest.mark.parametrize(
    ('error', 'code', 'named'),
    [
        (UserError('a.pth: no such file'), 2, 'error: a.pth'),
        (FileNotFoundError(2, 'No such file or directory', 'a.pth'), 2, 'a.pth'),
        (WriteError('a.pth', FULL), 2, 'a.pth'),
        (MemoryError(), 2, '--batch_size'),
        (RuntimeError("[enforce] can't allocate memory: 9\nat"), 2, '--batch_size'),
        (torch.OutOfMemoryError('CUDA out of memory. Tried'), 2, '--batch_size'),
        (RuntimeError('DataLoader worker (pid(s) 7) exited\nand'), 2, 'pid(s) 7'),
        (KeyboardInterrupt(), 130, 'interrupted; '),
        (KeyboardInterrupt('saved in here'), 130, 'interrupted; saved in here'),
    ],
)
def test_what_is_no_bug_is_one_line(run, error, code, named):
    found, text = run(error)
    assert found == code and text.count('\n') == 1
    assert text.startswith('train.py: ') and named in text


@pytest.mark.parametrize('kind', [UserError, OSError])
def test_names_with_control_characters_stay_in_their_line(run, kind):
    """Only the lines of a listing are lines; letters of any script are kept."""
    code, text = run(kind('a\nb.png, c\x1b[2J.png, d\u2028é中.png: odd:\n  1\n  2'))
    names = r'a\nb.png, c\x1b[2J.png, d\u2028é中.png'
    assert (code, text) == (2, f'train.py: error: {names}: odd:\n  1\n  2\n')


def test_a_bug_keeps_its_traceback_and_asks_for_a_report(run):
    code, text = run(KeyError('odd'))
    assert code == 1
    assert text.startswith('Traceback') and 'in main' in text and 'odd' in text
    last = text.splitlines()[-1]
    assert last.startswith('train.py: error: ') and 'report' in last


def test_the_debug_variable_keeps_every_traceback(run, monkeypatch):
    monkeypatch.setenv('AREIR_DEBUG', '1')
    with pytest.raises(UserError):
        run(UserError('a'))


def test_other_processes_wait_before_they_speak(run, monkeypatch, capsys):
    """torchrun ends them meanwhile if rank 0 failed, too."""
    monkeypatch.setenv('RANK', '1')
    waited = []
    monkeypatch.setattr(time, 'sleep', waited.append)
    assert run(UserError('only here')) == (2, 'train.py: error: only here\n')
    parser = make_parser('')
    with pytest.raises(SystemExit) as end:
        utils.run_script(lambda: parser.parse_args(['--unknown']))
    assert end.value.code == 2 and '--unknown' in capsys.readouterr().err
    assert len(waited) == 2 and min(waited) >= 1

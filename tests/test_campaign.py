"""A small part of the campaign, and a check that it sees what it looks for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from campaign.calls import Ended
from campaign.verdicts import (
    CLEAR,
    CRASH,
    HANG,
    NAMELESS,
    RIGHT,
    TRACEBACK,
    WRONG,
    judge,
)

TESTS = Path(__file__).resolve().parent
LOOSE = """
import sys, zipfile
zipfile.ZipFile.testzip = lambda file: None
sys.argv = ['campaign', *sys.argv[1:]]
from campaign.__main__ import main
sys.exit(main())
"""
LINE = 'train.py: error: '


def campaign(tmp_path, *words, python=('-m', 'campaign')):
    """Run the campaign; return (exit status, what it printed)."""
    flags = ['--keep', tmp_path / 'kept', '--seed', 1, *words]
    done = subprocess.run(
        [sys.executable, *python, *map(str, flags)],
        env={**os.environ, 'PYTHONPATH': f'{TESTS}{os.pathsep}{TESTS.parent}'},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_small_part_of_the_campaign_finds_nothing(tmp_path):
    code, text = campaign(tmp_path, '--cases', 40)
    assert code == 0, text
    assert not (tmp_path / 'kept').exists()


@pytest.mark.slow
def test_a_loader_without_checks_is_found(tmp_path):
    """Bits are flipped inside tensors, and nobody looks at their checksums."""
    words = ['--only', 'weights of a network', '--damage', 'flip', '--cases', 8]
    code, text = campaign(tmp_path, *words, python=['-c', LOOSE])
    assert code == 1 and 'silently wrong' in text, text
    assert any((tmp_path / 'kept/silently_wrong').rglob('damaged'))


@pytest.mark.parametrize(
    ('outcome', 'code', 'text', 'same'),
    [
        (RIGHT, 0, 'notice: it.csv is damaged', True),
        (CLEAR, 0, 'notice: it.csv is damaged', False),
        (WRONG, 0, 'notice: something is damaged', False),
        (CLEAR, 2, f'{LINE}it.csv is damaged', False),
        (CLEAR, 2, f'{LINE}--labels: damaged', False),
        (NAMELESS, 2, f'{LINE}list index out of range', False),
        (TRACEBACK, 1, f'Traceback (most recent call last):\n{LINE}it.csv', False),
        (CRASH, -11, '', True),
    ],
)
def test_outcomes(outcome, code, text, same):
    ended = Ended(code, False, '', text)
    assert judge(ended, same, ['it.csv'], text) == outcome
    assert judge(Ended(code, True, '', text), same, ['it.csv']) == HANG

"""A small part of the campaign, and the outcomes that it tells apart."""

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
LINE = 'train.py: error: '


@pytest.mark.slow
def test_a_small_part_of_the_campaign_finds_nothing(tmp_path):
    flags = ['--keep', tmp_path / 'kept', '--seed', 1, '--cases', 30]
    done = subprocess.run(
        [sys.executable, '-m', 'campaign', *map(str, flags)],
        env={**os.environ, 'PYTHONPATH': f'{TESTS}{os.pathsep}{TESTS.parent}'},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / 'kept').exists()


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

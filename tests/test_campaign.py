"""A small part of the campaign, and the outcomes that it tells apart."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from campaign.calls import Ended
from campaign.verdicts import judge

TESTS = Path(__file__).resolve().parent
LINE = 'train.py: error: '


@pytest.mark.slow
def test_a_small_part_of_the_campaign_finds_nothing(tmp_path):
    flags = ['--seed', '1', '--cases', '30']
    done = subprocess.run(
        [sys.executable, '-m', 'campaign', *flags],
        env={**os.environ, 'PYTHONPATH': f'{TESTS}{os.pathsep}{TESTS.parent}'},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ('outcome', 'code', 'text', 'same'),
    [
        ('right', 0, 'notice: it.csv is damaged', True),
        ('clear line', 0, 'notice: it.csv is damaged', False),
        ('silently wrong', 0, 'notice: something is damaged', False),
        ('clear line', 2, f'{LINE}it.csv is damaged', False),
        ('clear line', 2, f'{LINE}--labels: damaged', False),
        ('nameless line', 2, f'{LINE}list index out of range', False),
        ('traceback', 1, f'Traceback (most recent call last):\n{LINE}it.csv', False),
        ('crash', -11, '', True),
    ],
)
def test_outcomes(outcome, code, text, same):
    ended = Ended(code, False, '', text)
    assert judge(ended, same, ['it.csv'], text) == outcome
    assert judge(Ended(code, True, '', text), same, ['it.csv']) == 'hang'

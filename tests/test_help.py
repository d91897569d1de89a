"""--help answers at once: without torch, and whatever happens to its output."""

import importlib
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

SCRIPTS = ('data_utils', 'train', 'inference', 'evaluate')
# packages that take long to import
HEAVY = {'torch', 'torchvision', 'numpy', 'pandas', 'scipy', 'PIL', 'matplotlib'}


def run_help(script, *flags, **options):
    command = [sys.executable, '-X', 'importtime', f'{script}.py', *flags]
    environment = {**os.environ, 'COLUMNS': '80'}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, text=True, **options
    )


def imported(lines):
    """Return the top-level packages that -X importtime lists."""
    names = [line.split('|')[-1].strip() for line in lines.splitlines()]
    return {name.partition('.')[0] for name in names}


@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.parametrize('flags', [['--help'], ['--json', '-h']])
def test_help_needs_no_torch(script, flags, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    ran = run_help(script, *flags, capture_output=True)
    assert ran.returncode == 0
    parser = importlib.import_module(script).get_parser()
    assert ran.stdout == parser.format_help()
    packages = imported(ran.stderr)
    assert 'areir' in packages and not packages & HEAVY


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_help_that_cannot_be_written_ends_in_one_line(unbuffered, monkeypatch):
    monkeypatch.setenv('PYTHONUNBUFFERED', unbuffered)
    with open('/dev/full', 'w') as full:
        ran = run_help('evaluate', '--help', stdout=full, stderr=subprocess.PIPE)
    lines = [line for line in ran.stderr.splitlines() if 'import time:' not in line]
    assert ran.returncode == 2
    assert len(lines) == 1 and 'is the disk full?' in lines[0]

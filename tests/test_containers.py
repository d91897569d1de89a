"""What containers limit: open files, /dev/shm, the user's home, folders to write to."""

import os
import resource
import subprocess
import sys
from functools import partial

import pytest
from train_runs import FLAGS, command

LIMIT = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64))


@pytest.mark.slow
def test_64_open_files_suffice(small, tmp_path):
    flags = ['--num_epochs', 1, '--num_workers', 8]
    words = command(small, tmp_path, *flags)
    done = subprocess.run(words, preexec_fn=LIMIT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '--num_workers 8' in done.stdout and 'ulimit -n' in done.stdout


@pytest.mark.parametrize(
    'script, flag, flags',
    [
        ('data_utils.py', 'data_root', ['--data_name', 'other', '--data_path']),
        ('train.py', 'results_root', FLAGS),
        ('inference.py', 'results_root', ['--gallery']),
    ],
)
def test_a_folder_to_write_to_is_asked_for_before_the_work(small, script, flag, flags):
    """Nothing can be written below /proc, not even by root."""
    if not os.path.isdir('/proc/self'):
        pytest.skip('no /proc here')
    photos = [] if flags is FLAGS else [small.root / 'data/photos']
    line = small.refuse(script, *flags, *photos, f'--{flag}', '/proc/areir')
    assert f'--{flag} /proc/areir' in line


@pytest.mark.parametrize('home', ['/', '/proc/none', '~'])
def test_a_user_without_a_home_gets_one(small, tmp_path, home):
    """/ is the home of an unknown user in Docker; root may write to it."""
    program = (
        'import os, utils; os.access = lambda path, mode: False; utils.need_home(); '
        'print(os.path.expanduser("~"))'
    )
    environment = {**os.environ, 'HOME': home, 'TMPDIR': str(tmp_path)}
    done = subprocess.run(
        [sys.executable, '-c', program],
        cwd=small.root,
        env=environment,
        capture_output=True,
        text=True,
    )
    new = tmp_path / f'areir_{os.getuid()}'
    assert done.stdout.strip() == str(new) and new.is_dir()
    assert str(new) in done.stderr

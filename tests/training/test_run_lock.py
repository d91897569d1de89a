"""The lock of a run: held by one process, released when it ends."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from areir.errors import UserError
from areir.training.run_lock import RunLock

HOLD = """
import sys, time
from areir.training.run_lock import RunLock
lock = RunLock(sys.argv[1])
lock.take()
{then}
print('held', flush=True)
time.sleep(100)
"""
FORK = """
import os
if os.fork() == 0:
    time.sleep(3)
    os._exit(0)
"""


def hold(prefix, then=''):
    """Start a process that holds the lock of a run."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD.format(then=then), str(prefix)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'held\n'
    return process


@pytest.fixture(scope='module')
def held(tmp_path_factory):
    """(process, prefix) of a run whose lock another process holds."""
    prefix = tmp_path_factory.mktemp('results') / 'run'
    process = hold(prefix)
    yield process, prefix
    process.kill()
    process.communicate()


def refusal(prefix):
    with pytest.raises(UserError) as refused:
        RunLock(str(prefix)).take()
    line = str(refused.value)
    assert '\n' not in line and line.startswith('run is going on: ')
    return line


def test_the_owner_is_named(held):
    process, prefix = held
    before = sorted(os.listdir(prefix.parent))
    for _ in range(2):  # asking leaves what is known of the owner
        line = refusal(prefix)
        assert f'process {process.pid}' in line
        assert re.search(r'since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d', line)
    assert sorted(os.listdir(prefix.parent)) == before


DAMAGED = (None, '', '{', '5', '[]', '{}', '[' * 100_000, '{"process": [1]}', b'\xff')


@pytest.mark.parametrize('text', DAMAGED, ids=range(len(DAMAGED)))
def test_without_its_text_the_lock_holds(held, text):
    _, prefix = held
    path = prefix.parent / 'run.lock.json'
    owner = path.read_bytes()
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = refusal(prefix)
    assert 'another process' in line and 'since' not in line
    path.write_bytes(owner)


@pytest.mark.parametrize('then', ['', FORK], ids=['alone', 'with a worker'])
def test_a_killed_process_holds_no_lock(tmp_path, then):
    """Even while a process lives that it had forked, as loaders do."""
    process = hold(tmp_path / 'run', then)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lock = RunLock(str(tmp_path / 'run'))
    lock.take()
    owner = json.loads((tmp_path / 'run.lock.json').read_text())
    assert owner['process'] == os.getpid()
    lock.release()
    assert os.listdir(tmp_path) == []
    process.communicate()


def test_a_process_that_ends_removes_the_files(tmp_path):
    process = hold(tmp_path / 'run', 'print("held", flush=True); sys.exit(3)')
    process.communicate()
    assert process.returncode == 3 and os.listdir(tmp_path) == []


def test_a_run_that_failed_in_this_process_can_begin_again(tmp_path):
    first, second = (RunLock(str(tmp_path / 'run')) for _ in range(2))
    first.take()
    second.take()
    second.release()
    assert os.listdir(tmp_path) == []
    process = hold(tmp_path / 'run')
    first.release()  # it holds nothing any more
    assert f'process {process.pid}' in refusal(tmp_path / 'run')
    process.kill()
    process.communicate()


def test_where_there_are_no_locks_the_run_trains(tmp_path, monkeypatch, capsys):
    def refuse(lock, **options):
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr('filelock.FileLock.acquire', refuse)
    RunLock(str(tmp_path / 'run')).take()
    assert 'run.lock' in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(OSError, match='file'):
        RunLock(str(tmp_path / 'file' / 'run')).take()

"""Worker processes end with their parent and survive what the parent has computed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from official import write_classes

from areir.data.verification import parallel, start_pool
from areir.errors import UserError

linux_only = pytest.mark.skipif(
    not os.path.isdir('/proc'), reason='processes are looked up in /proc'
)


def process_group(leader):
    """Return how many processes of a group are alive."""
    alive = 0
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = stat.read_text().rsplit(')', 1)[1].split()
        except OSError:  # it ended meanwhile
            continue
        alive += int(fields[2]) == leader and fields[0] != 'Z'
    return alive


def wait_until(condition, seconds):
    """Wait for condition() to be true; return whether it is."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def start(command):
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_group(process):
    """Kill a process and its workers, if any is left."""
    if process_group(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def square(number):
    return number**2


def square_or_die(number):
    if number == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def press_ctrl_c(number):
    """Send this worker what Ctrl-C sends to every process of a terminal."""
    os.kill(os.getpid(), signal.SIGINT)
    return number


def test_results_are_in_the_order_of_the_jobs():
    with start_pool(2) as pool:
        results = parallel(pool, square, range(100), 'squares')
        assert results == [number**2 for number in range(100)]
        assert parallel(pool, square, [], 'squares') == []


def test_a_killed_worker_is_reported():
    with start_pool(2) as pool, pytest.raises(UserError, match='--num_workers'):
        parallel(pool, square_or_die, range(40), 'squares')


def test_workers_leave_ctrl_c_to_their_parent():
    with start_pool(1) as pool:
        assert parallel(pool, press_ctrl_c, range(3), 'numbers') == [0, 1, 2]


@pytest.mark.slow
@linux_only
def test_workers_end_with_their_parent(tmp_path):
    write_classes(tmp_path / 'photos', ['a', 'b'], images=400)
    flags = {
        '--data_root': tmp_path / 'data',
        '--data_name': 'shoes',
        '--data_path': tmp_path / 'photos',
        '--num_workers': 2,
    }
    command = ['data_utils.py', *(word for flag in flags.items() for word in flag)]
    process = start(command)

    def started():
        return process_group(process.pid) >= 3 or process.poll() is not None

    try:
        assert wait_until(started, 60)
        assert process.poll() is None
        process.kill()
        process.wait()
        assert wait_until(lambda: process_group(process.pid) == 0, 20)
    finally:
        kill_group(process)


@pytest.mark.slow
@linux_only
def test_workers_start_after_multithreaded_arithmetic(tmp_path):
    """OpenMP's threads do not survive a fork: who waits for them waits forever."""
    write_classes(tmp_path / 'photos', ['a', 'b'])
    code = (
        'import sys, torch, data_utils; torch.rand(10 ** 7).sum(); '
        'data_utils.prepare(*sys.argv[1:])'
    )
    process = start(['-c', code, tmp_path / 'data', 'shoes', tmp_path / 'photos'])
    try:
        assert process.wait(timeout=60) == 0
    finally:
        kill_group(process)

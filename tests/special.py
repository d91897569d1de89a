"""FIFOs, sockets and devices: who opens one of them may wait for ever. Full disks."""

import contextlib
import os
import resource
import signal
import stat

import pytest

KINDS = ('FIFO', 'socket', 'device')


def make_special(path, kind='FIFO'):
    """Put a FIFO, a socket or a link to a device in the place of a file."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == 'device':
        path.symlink_to('/dev/zero')
    else:
        os.mknod(path, 0o600 | (stat.S_IFIFO if kind == 'FIFO' else stat.S_IFSOCK))
    return path


@pytest.fixture
def in_time():
    """Raise an error in a test that waits for two minutes."""

    def stop(*_):
        pytest.fail('it waits for ever')

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


@contextlib.contextmanager
def largest_file(size):
    """Let this process write no file of more than `size` bytes, as on a full disk."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, earlier[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)

"""FIFOs, sockets and devices: who opens one of them may wait for ever."""

import os
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
    """Raise an error in a test that waits for 20 seconds."""

    def stop(*_):
        pytest.fail('it waits for ever')

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)

"""The lock of a run: only one process at a time trains under its name.

    results/<run>.lock          locked by the process that trains
    results/<run>.lock.json     its id, its computer, and when it began

The operating system releases the lock when the process ends, however it ends. Both
files are removed when the run ends, and are left behind only if it is killed.
"""

import atexit
import contextlib
import errno
import json
import os
import socket
import sys
from datetime import datetime

import filelock

from areir.errors import UserError
from areir.files import remove, write_json

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


class RunLock:
    """Keeps other processes from training a run.

    A process may take the lock of a run again that failed in this process.
    prefix: path that the files of the run begin with.
    """

    def __init__(self, prefix):
        self.path = f'{prefix}.lock'
        self.owner_path = f'{prefix}.lock.json'
        self.lock = None  # while it is held

    def take(self):
        """Take the lock. Raises UserError if another process holds it."""
        os.makedirs(os.path.dirname(self.path) or '.', exist_ok=True)
        lock = filelock.FileLock(os.path.abspath(self.path), is_singleton=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(self.describe_owner()) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            line = f'{self.path} cannot be locked here: start this run only once'
            print(f'notice: {line}', file=sys.stderr)
            return
        self.lock = lock
        atexit.register(self.release)
        owner = {
            'process': os.getpid(),
            'computer': socket.gethostname(),
            'since': datetime.now().astimezone().isoformat(timespec='seconds'),
        }
        with contextlib.suppress(OSError):  # the lock holds without it
            write_json(self.owner_path, owner)

    def describe_owner(self):
        """Return the line that the run is going on, with what is known of its owner."""
        name = os.path.basename(self.path).removesuffix('.lock')
        owner = read_owner(self.owner_path)
        words = [
            f'{key} {owner[key]}' for key in ('process', 'computer') if key in owner
        ]
        who = ', '.join(words) or 'in another process'
        since = f', since {owner["since"]}' if 'since' in owner else ''
        return (
            f'{name} is going on: {who}{since}. Wait for it or stop it '
            f'({self.path} is locked)'
        )

    def release(self):
        """Release the lock and remove its files, if it is held."""
        if not self.lock:
            return
        lock, self.lock = self.lock, None
        atexit.unregister(self.release)
        if not lock.is_locked:  # released by a later run in this process
            return
        for path in (self.owner_path, self.path):
            with contextlib.suppress(OSError):  # Windows keeps a file that is open
                remove(path)
        lock.release(force=True)


def read_owner(path):
    """Return what a .lock.json says as {key: text}, or {} if it cannot be read."""
    try:
        with open(path, encoding='utf-8') as file:
            owner = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(owner, dict):
        return {}
    return {
        key: str(value)
        for key, value in owner.items()
        if isinstance(value, (str, int)) and str(value).isprintable()
    }

"""Run a script in a process forked from this one, which has imported torch already."""

import atexit
import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass

from areir.scripts import data_utils, evaluate, inference, train, utils

SCRIPTS = {
    'data_utils.py': data_utils.main,
    'evaluate.py': evaluate.main,
    'inference.py': inference.main,
    'train.py': train.main,
}
TIME_LIMIT = 300  # seconds after which a call hangs
LOOK = 0.005  # seconds between two looks at a call


@dataclass
class Ended:
    """A call that has ended."""

    code: int  # exit status; negative: the number of the signal
    hung: bool
    output: str
    errors: str

    @property
    def text(self):
        return self.output + self.errors


class Call:
    """A script that runs in the folder of a case, in a process group of its own.

    words: the script and its flags.
    """

    def __init__(self, words, folder):
        self.streams = [tempfile.TemporaryFile() for _ in range(2)]
        self.status = None
        self.pid = os.fork()
        if not self.pid:
            os.setpgid(0, 0)
            run_child(list(map(str, words)), folder, self.streams)
        with contextlib.suppress(OSError):  # the child may be first, and have ended
            os.setpgid(self.pid, self.pid)

    def is_running(self):
        """Whether the script has not ended yet."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is None

    def wait(self, seconds=TIME_LIMIT, until=None):
        """Wait for the end, and kill the script after some seconds; return an Ended.

        until: a function; the script is killed once it returns true.
        """
        limit = time.monotonic() + seconds
        while self.is_running() and time.monotonic() < limit:
            if until and until():
                break
            time.sleep(LOOK)
        hung = self.is_running()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # and whatever it has left behind
        while self.is_running():
            time.sleep(LOOK)
        texts = []
        for stream in self.streams:
            stream.seek(0)
            texts.append(stream.read().decode(errors='replace'))
            stream.close()
        return Ended(os.waitstatus_to_exitcode(self.status), hung, *texts)


def run_child(words, folder, streams):
    """Be the process of a call: run its script and end."""
    code = 1
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, stream in enumerate(streams, 1):
            os.dup2(stream.fileno(), number)
        sys.stdout = open(1, 'w', encoding='utf-8', closefd=False)
        sys.stderr = open(2, 'w', encoding='utf-8', closefd=False, buffering=1)
        sys.argv = words
        utils.run_script(SCRIPTS[words[0]])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
        os._exit(code)


def call(words, folder):
    """Run a script to its end; return an Ended."""
    return Call(words, folder).wait()

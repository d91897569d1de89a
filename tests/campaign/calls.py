"""Run a script in a process forked from this one, which has imported torch already."""

import atexit
import contextlib
import faulthandler
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass

import data_utils
import evaluate
import inference
import train
import utils
from campaign import page

SCRIPTS = {
    'data_utils.py': data_utils.main,
    'evaluate.py': evaluate.main,
    'inference.py': inference.main,
    'train.py': train.main,
    'page': page.main,
}
TIME_LIMIT = 120  # seconds after which a call hangs
MEMORY = 12 * 2**30  # bytes of addresses that a call may use
LOOK = 0.005  # seconds between two looks at a call


@dataclass
class Ended:
    """A call that has ended."""

    words: list
    code: int  # exit status; negative: the number of the signal
    hung: bool
    output: str
    errors: str

    @property
    def text(self):
        return self.output + self.errors


class Call:
    """A script that runs in the folder of a case, in a process group of its own.

    words: the script and its flags; before: called in the child before the script.
    """

    def __init__(self, words, folder, before=None):
        self.words = [str(word) for word in words]
        # pipes, because the size of files may be limited
        pipes = [os.pipe(), os.pipe()]
        self.pid = os.fork()
        if not self.pid:
            run_child(self.words, folder, [pipe[1] for pipe in pipes], before)
        self.streams = [pipe[0] for pipe in pipes]
        for reading, writing in pipes:
            os.close(writing)
            os.set_blocking(reading, False)
        self.texts = [b'', b'']
        self.status = None

    def is_running(self):
        """Whether the script has not ended yet."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        self.read()
        return self.status is None

    def read(self):
        """Read what the script has printed since the last time."""
        for place, stream in enumerate(self.streams):
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(stream, 1 << 16):
                    self.texts[place] += piece

    def kill(self, number=signal.SIGKILL):
        """Send a signal to the script and its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, seconds=TIME_LIMIT):
        """Wait for the end, or kill the script after some seconds; return an Ended."""
        limit = time.monotonic() + seconds
        while self.is_running() and time.monotonic() < limit:
            time.sleep(LOOK)
        hung = self.is_running()
        if hung and seconds:
            self.kill(signal.SIGUSR1)  # it prints where it is
            time.sleep(1)
        self.kill()  # and whatever it has left behind
        while self.is_running():
            time.sleep(LOOK)
        self.read()
        for stream in self.streams:
            os.close(stream)
        code = os.waitstatus_to_exitcode(self.status)
        texts = [text.decode(errors='replace') for text in self.texts]
        return Ended(self.words, code, hung, *texts)


def run_child(words, folder, streams, before):
    """Be the process of a call: run its script and end."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        redirect(streams)
        sys.argv = words
        if before:
            before()
        utils.run_script(SCRIPTS[words[0]])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def redirect(streams):
    """Let stdout and stderr be these streams, and stdin be empty."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout = open(1, 'w', encoding='utf-8', closefd=False)
    sys.stderr = open(2, 'w', encoding='utf-8', closefd=False, buffering=1)
    faulthandler.register(signal.SIGUSR1, file=2)


def call(words, folder, before=None, seconds=TIME_LIMIT):
    """Run a script to its end; return an Ended."""
    return Call(words, folder, before).wait(seconds)

"""What the scripts share: expected errors become one line."""

import atexit
import contextlib
import io
import multiprocessing
import os
import signal
import sys
import time
import traceback

import torch

from areir.errors import UserError, printable
from areir.interrupts import on_interrupt
from areir.processes import ignore_signals

BUG = 'this is a bug in AREIR; please report it with the traceback above'
OUT_OF_MEMORY = (
    'the GPU does not have enough memory: use a smaller --batch_size, or divide the '
    'heads among more GPUs with torchrun'
)
GRACE = 5  # seconds in which a second Ctrl-C changes nothing
CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # a RuntimeError


def run_script(main):
    """Call main() and turn expected failures into one line on stderr.

    UserError and OSError exit with 2 and their text, Ctrl-C and SIGTERM with 130.
    Anything else is a bug and keeps its traceback. AREIR_DEBUG=1 keeps the traceback of
    every failure. Under torchrun rank 0 prints the line, and another process only if it
    fails alone. A reader of stdout that stops early, such as `| head`, is no failure.
    """
    is_first = int(os.environ.get('RANK', 0)) == 0
    atexit.register(end_workers)
    atexit.register(ignore_signals)  # a second Ctrl-C would interrupt Python's exit
    catch_interrupts()
    for stream in (sys.stdout, sys.stderr):  # file names may hold any bytes
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    line, code = outcome(main, is_first)
    if code and not is_first:
        give_way()
    broken = output_error()
    if broken and not code and not isinstance(broken, BrokenPipeError):
        line, code = f'{script_name()}: error: {cannot_print(broken)}', 2
    if line:
        print(line, file=sys.stderr)
    if code is not None:
        sys.exit(code)


def outcome(main, is_first):
    """Call main(); return (line, exit code) of its failure, or ('', None).

    is_first: whether stderr is shown; otherwise what argparse writes is the line.
    """
    written = io.StringIO()
    stderr = contextlib.redirect_stderr(sys.stderr if is_first else written)
    try:
        with stderr:
            main()
    except SystemExit as error:
        return written.getvalue().strip(), error.code
    except BaseException as error:
        if os.environ.get('AREIR_DEBUG') == '1':
            raise
        text, code = explain(error)
        return f'{script_name()}: {text}', code
    return '', None


def script_name():
    """Return the name of the script that runs, as messages begin."""
    return os.path.basename(sys.argv[0])


def give_way():
    """Wait for torchrun, which ends this process if rank 0 has failed, too."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(10)  # on a busy machine, it takes seconds


def catch_interrupts():
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt, at most once in GRACE seconds.

    A second one would interrupt the clean-up after the first.
    """
    last = float('-inf')

    def interrupt(number, frame):
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > GRACE:
            raise KeyboardInterrupt

    on_interrupt(interrupt)


def output_error(text=''):
    """Write a text to stdout and flush; return the OSError if that fails, else None."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Python writes the rest of its buffer on exit, which must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def cannot_print(error):
    """Return the message for an OSError from writing to stdout."""
    return f'what is printed cannot be written, is the disk full? ({error.strerror})'


def is_of_stdout(error):
    """Whether an exception may be from writing to stdout: it names no file."""
    return isinstance(error, OSError) and error.errno and not error.filename


def explain(error):
    """Return (line, exit code) for an exception; print the traceback of a bug."""
    if isinstance(error, KeyboardInterrupt):
        text = str(error) or 'what was finished before is kept'
        return f'interrupted; {text}', 130
    if is_of_stdout(error) and (broken := output_error('\n')):
        if isinstance(broken, BrokenPipeError):
            return 'interrupted; nothing reads what it prints any more', 141
        return f'error: {cannot_print(broken)}', 2
    if isinstance(error, torch.OutOfMemoryError):
        return f'error: {OUT_OF_MEMORY}', 2
    if isinstance(error, MemoryError) or CPU_OUT_OF_MEMORY in str(error):
        return (
            'error: there is not enough memory: use a smaller --batch_size, '
            '--image_size or --ensemble_size, or divide the heads with torchrun'
        ), 2
    if isinstance(error, (UserError, OSError)):
        lines = str(error).strip().split('\n  ')  # a listing, see text_files.py
        return 'error: ' + '\n  '.join(map(printable, lines)), 2
    if 'DataLoader worker' in str(error):
        reason = str(error).splitlines()[0]
        return (
            'error: a process that decodes images was killed; is the memory full? '
            f'({reason})'
        ), 2
    traceback.print_exception(error)
    return f'error: {BUG}', 1


def end_workers():
    """Kill the loaders' processes: they ignore SIGTERM, and Python waits for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()

"""What the scripts share: --help at once, and what goes wrong as one line.

It imports no torch, so that scripts can import it before their slow imports.
"""

import _thread
import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback

from areir.errors import UserError, printable

BUG = 'this is a bug in AREIR; please report it with the traceback above'
GPU_MEMORY = (
    'the GPU does not have enough memory: use a smaller --batch_size, or divide the '
    'heads among more GPUs with torchrun'
)
MEMORY = (
    'there is not enough memory: use a smaller --batch_size, --image_size or '
    '--ensemble_size, or divide the heads with torchrun'
)
SIGNALS = signal.SIGINT, signal.SIGTERM
GRACE = 5  # seconds in which a second Ctrl-C changes nothing


def before_imports(get_parser):
    """Answer --help; let Ctrl-C and SIGTERM end the imports that follow with one line.

    They take seconds. Nothing is raised: a package that is being imported could catch
    it.
    """

    def end_at_once(number, frame):
        if is_first():
            os.write(2, os.fsencode(f'{script()}: interrupted; nothing has begun\n'))
        os._exit(130)

    if {'-h', '--help'} & set(sys.argv[1:]):
        run_script(lambda: print(get_parser().format_help(), end=''))
        sys.exit()
    on_interrupt(end_at_once)
    need_home()


def need_home():
    """Give caches of weights and fonts a folder if the user has no home to write to.

    Such a user, as containers have, would get a folder called ~. A home that cannot be
    written but has a cache stays.
    """
    home = os.path.expanduser('~')
    if os.access(home, os.W_OK) or os.path.isdir(os.path.join(home, '.cache')):
        return
    os.environ['HOME'] = os.path.join(tempfile.gettempdir(), f'areir_{os.getuid()}')
    os.makedirs(os.environ['HOME'], exist_ok=True)
    if is_first():
        line = (
            f'no home folder to write to, so weights are kept in {os.environ["HOME"]}'
        )
        print(f'notice: {line}; HOME=FOLDER names another', file=sys.stderr)


def run_script(main):
    """Call main() and turn expected failures into one line on stderr.

    UserError and OSError exit with 2 and their text, Ctrl-C and SIGTERM with 130.
    Anything else is a bug and keeps its traceback. AREIR_DEBUG=1 keeps the traceback of
    every failure. Under torchrun rank 0 prints the line, and another process only if it
    fails alone. A reader of stdout that stops early, such as `| head`, is no failure.
    """
    atexit.register(end_workers)
    interrupt_once()
    for stream in (sys.stdout, sys.stderr):  # file names may hold any bytes
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    line, code = '', None
    try:
        main()
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        on_interrupt(signal.SIG_IGN)  # a second Ctrl-C would interrupt the clean-up
        if os.environ.get('AREIR_DEBUG') == '1':
            raise
        line, code = explain(error)
    if code and not is_first():  # torchrun ends this process if rank 0 has failed, too
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)
    broken = flush_stdout()
    if broken and not code and not isinstance(broken, BrokenPipeError):
        line, code = explain(broken)
    if line:
        print(line, file=sys.stderr)
    if code is not None:
        sys.exit(code)


def explain(error):
    """Return (line, exit code) for an exception; print the traceback of a bug."""
    text, code = str(error), 2
    if isinstance(error, KeyboardInterrupt):
        line, code = f'interrupted; {text or "what was finished before is kept"}', 130
    elif isinstance(error, BrokenPipeError):
        line, code = 'interrupted; nothing reads what it prints any more', 141
    elif type(error).__name__ == 'OutOfMemoryError':  # of torch
        line = f'error: {GPU_MEMORY}'
    elif isinstance(error, MemoryError) or "can't allocate memory" in text:
        line = f'error: {MEMORY}'
    elif isinstance(error, (UserError, OSError)):
        lines = text.strip().split('\n  ')  # a listing, see data/lists.py
        line = 'error: ' + '\n  '.join(map(printable, lines))
    elif 'DataLoader worker' in text and 'us error' in text:  # Bus error
        line = 'error: /dev/shm is full: docker run --shm-size 1g, or --num_workers 0'
    elif 'DataLoader worker' in text:
        reason = text.splitlines()[0]
        line = f'error: is the memory full? An image reader was killed: {reason}'
    else:
        traceback.print_exception(error)
        line, code = f'error: {BUG}', 1
    return f'{script()}: {line}', code


def is_first():
    """Whether this is rank 0, the process of torchrun that prints."""
    return int(os.environ.get('RANK', 0)) == 0


def script():
    """Return the name of the script that runs, as messages begin."""
    return os.path.basename(sys.argv[0])


def on_interrupt(handler):
    """Call handler(number, frame) on Ctrl-C and SIGTERM.

    Under torchrun, SIGTERM still ends a process at once: another one has failed and
    reports why. A script that a shell starts in the background still ignores Ctrl-C.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    if 'RANK' not in os.environ:
        signal.signal(signal.SIGTERM, handler)


def interrupt_once():
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt, at most once in GRACE seconds.

    A second one would interrupt the clean-up after the first. Callbacks, such as those
    of fork, swallow errors: one that is swallowed is raised again.
    """
    last, caught, usual = float('-inf'), None, sys.unraisablehook

    def interrupt(number, frame):
        nonlocal last, caught
        before, last, caught = last, time.monotonic(), number
        if last - before > GRACE:
            raise KeyboardInterrupt

    def report(unraisable):
        nonlocal last
        if unraisable.exc_type is KeyboardInterrupt and caught:
            last = float('-inf')
            threading.Timer(0.1, _thread.interrupt_main, [caught]).start()
        else:
            usual(unraisable)

    on_interrupt(interrupt)
    sys.unraisablehook = report


def flush_stdout():
    """Flush stdout; return the OSError if that fails, else None."""
    if sys.stdout is None:  # closed before the script began
        return None
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python writes the rest of its buffer on exit, which must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def end_workers():
    """Kill the processes of loaders, which ignore SIGTERM, and ignore signals, too."""
    for number in SIGNALS:  # a second Ctrl-C would interrupt Python's exit
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'SIGCHLD'):  # Windows has none
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()

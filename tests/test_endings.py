"""How processes end: --help, signals, no reader, a full disk, and their workers."""

import importlib
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from conftest import REPOSITORY
from toy import draw_noise

SCRIPTS = 'data_utils', 'train', 'inference', 'evaluate'
# packages that take long to import
HEAVY = {'torch', 'torchvision', 'numpy', 'pandas', 'scipy', 'PIL', 'matplotlib'}

SCRIPT = """
import signal
import sys
sys.path.insert(0, {repository!r})
from areir.scripts import utils

def wait():
    print('ready', flush=True)
    signal.pause()

def main():
    {main}

utils.run_script(main)
"""
TIDY = """
    try:
        wait()
    finally:
        print('tidying', flush=True)
        sys.stdin.readline()
"""
LOAD = """
    from areir.data.images import PixelFormat
    from areir.data.loading import make_loader
    batches = iter(make_loader(sys.argv[1:], PixelFormat(8), num_workers=2))
    next(batches)
    wait()
"""
CALLBACK = """
    import threading
    class Callback:
        def __del__(self):
            wait()
    Callback()
    while True:
        threading.Event().wait(0.01)
"""
INTERRUPTED = 'script.py: interrupted; what was finished before is kept'
full_device = pytest.mark.skipif(
    not os.path.exists('/dev/full'), reason='needs /dev/full'
)


@pytest.fixture
def start_python():
    """A function that starts Python with these words and environment variables."""
    processes = []

    def start(*words, stdout=subprocess.PIPE, interrupts=True, **variables):
        handler = signal.default_int_handler if interrupts else signal.SIG_IGN
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=stdout,
            env=os.environ | variables,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def start(tmp_path, start_python):
    """A function that starts a script with this main; options: of start_python."""

    def start_script(main, *words, **options):
        path = tmp_path / 'script.py'
        body = textwrap.indent(textwrap.dedent(main).strip(), '    ').strip()
        path.write_text(SCRIPT.format(repository=REPOSITORY, main=body))
        return start_python(path, *words, PYTHONUNBUFFERED='', **options)

    return start_script


def end(process):
    """Return (exit code, lines of stderr)."""
    _, errors = process.communicate()
    return process.returncode, errors.splitlines()


# --help


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_imports_nothing_that_takes_long(start_python, script):
    process = start_python('-X', 'importtime', f'{script}.py', '--json', '-h')
    output, errors = process.communicate()
    assert process.returncode == 0
    assert (
        importlib.import_module(f'areir.scripts.{script}').get_parser().description
        in output
    )
    names = [line.split('|')[-1].strip() for line in errors.splitlines()]
    packages = {name.partition('.')[0] for name in names}
    assert 'areir' in packages and not packages & HEAVY


# Signals


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_one_line(start, number):
    process = start('wait()')
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(number)
    assert end(process) == (130, [INTERRUPTED])


@pytest.mark.parametrize('script', SCRIPTS)
def test_a_signal_during_the_imports_is_one_line(start_python, tmp_path, script):
    """They take seconds; here torch never ends."""
    slow = "import signal\nprint('ready', flush=True)\nsignal.pause()\n"
    (tmp_path / 'torch.py').write_text(slow)
    process = start_python(f'{script}.py', PYTHONPATH=str(tmp_path))
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, [f'{script}.py: interrupted; nothing has begun'])


def test_a_second_ctrl_c_does_not_disturb_the_end(start):
    process = start(TIDY)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == 'tidying\n'
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, [INTERRUPTED])


def test_ctrl_c_in_a_callback_ends_the_process(start):
    """Python swallows what callbacks raise, such as those of fork."""
    process = start(CALLBACK)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, [INTERRUPTED])


def test_a_shell_that_ignores_ctrl_c_is_obeyed(start):
    main = "print('ready', flush=True); sys.stdin.readline()"
    process = start(main, interrupts=False)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGINT)
    assert end(process) == (0, [])


# Output


def test_a_reader_that_stops_early_is_no_failure(start):
    process = start("sys.stdin.readline(); print('a'); print('b')")
    process.stdout.close()
    process.stdin.write('\n')
    process.stdin.flush()
    assert (process.stderr.read(), process.wait()) == ('', 0)


def test_work_that_nobody_reads_is_interrupted(start):
    process = start("[print('line', number) for number in range(100_000)]")
    assert process.stdout.readline() == 'line 0\n'
    process.stdout.close()
    line = 'script.py: interrupted; nothing reads what it prints any more\n'
    assert (process.stderr.read(), process.wait()) == (line, 141)


@full_device
@pytest.mark.parametrize('main', ["print('a')", "print('a', flush=True)"])
def test_output_to_a_full_disk_is_one_line(start, main):
    with open('/dev/full', 'w') as full:
        code, (line,) = end(start(main, stdout=full))
    assert code == 2 and 'No space left on device' in line


@full_device
def test_an_error_is_told_even_if_nothing_can_be_printed(start):
    with open('/dev/full', 'w') as full:
        process = start("print('a'); raise utils.UserError('b: damaged')", stdout=full)
        assert end(process) == (2, ['script.py: error: b: damaged'])


def test_a_closed_stdout_is_no_failure():
    code = "import utils; utils.run_script(lambda: print('a'))"
    shell = ['sh', '-c', 'exec "$@" >&-', 'sh', sys.executable, '-c', code]
    process = subprocess.run(shell, cwd=REPOSITORY, stderr=subprocess.PIPE)
    assert process.returncode == 0 and not process.stderr


def test_names_that_are_no_text_are_printed(start):
    process = start("print('\\udcff', 'é')")
    assert process.stdout.read() == '\\udcff é\n' and process.wait() == 0


# Workers


def test_loaders_end_with_a_killed_run(start, tmp_path):
    """Its workers hold its stderr, which ends when the last of them has ended."""
    paths = [tmp_path / f'{number}.png' for number in range(70)]
    for number, path in enumerate(paths):
        draw_noise(path, number)
    process = start(LOAD, *paths)
    assert process.stdout.readline() == 'ready\n'
    process.kill()
    process.communicate(timeout=60)

"""How scripts end: by signals, without a reader, on a full disk, and their workers."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_help import SCRIPTS
from toy import draw_noise

SCRIPT = """
    import sys
    import time
    sys.path.insert(0, {repository!r})
    import utils

    def main():
        {main}

    utils.run_script(main)
"""
WAIT = "print('ready', flush=True); time.sleep(60)"
WAIT_AND_TIDY = """
        try:
            print('ready', flush=True)
            time.sleep(60)
        finally:
            print('tidying', flush=True)
            time.sleep(1)
"""
LOAD = """
        from areir.data.loading import make_loader
        loader = make_loader(sys.argv[1:], 8, num_workers=2)
        batches = iter(loader)
        next(batches)
        print('ready', flush=True)
        time.sleep(60)
"""


@pytest.fixture
def start_python():
    """A function that starts Python with these words and environment variables."""
    processes = []

    def start(*words, stdout=subprocess.PIPE, interrupts=True, **variables):
        handler = signal.default_int_handler if interrupts else signal.SIG_IGN
        process = subprocess.Popen(
            [sys.executable, *words],
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
        lines = textwrap.dedent(main).strip().splitlines()
        body = '\n    '.join(lines)
        source = textwrap.dedent(SCRIPT).format(repository=REPOSITORY, main=body)
        path.write_text(source)
        return start_python(path, *words, PYTHONUNBUFFERED='', **options)

    return start_script


def end(process):
    """Return (exit code, lines of stderr)."""
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors.splitlines()


INTERRUPTED = 'script.py: interrupted; what was finished before is kept'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_one_line(start, number):
    process = start(WAIT)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(number)
    assert end(process) == (130, [INTERRUPTED])


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('script', SCRIPTS)
def test_a_signal_during_the_imports_is_one_line(
    start_python, tmp_path, script, number
):
    """They take seconds; here torch takes a minute."""
    slow = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"
    (tmp_path / 'torch.py').write_text(slow)
    process = start_python(f'{REPOSITORY}/{script}.py', PYTHONPATH=str(tmp_path))
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(number)
    assert end(process) == (130, [f'{script}.py: interrupted; nothing has begun'])


def test_a_second_ctrl_c_does_not_disturb_the_end(start):
    process = start(WAIT_AND_TIDY)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == 'tidying\n'
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        if process.poll() is not None:
            break
    assert end(process) == (130, [INTERRUPTED])


def test_a_shell_that_ignores_ctrl_c_is_obeyed(start):
    process = start(WAIT, interrupts=False)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    assert end(process) == (130, [INTERRUPTED])


def test_a_reader_that_stops_early_is_no_failure(start):
    process = start("time.sleep(0.2); print('a'); print('b')")
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ('', 0)


def test_work_that_nobody_reads_is_interrupted(start):
    process = start("[print('line', number) for number in range(100_000)]")
    assert process.stdout.readline() == 'line 0\n'
    process.stdout.close()
    line = 'script.py: interrupted; nothing reads what it prints any more\n'
    assert (process.stderr.read(), process.wait()) == (line, 141)


@pytest.mark.parametrize(
    'main', ["print('a')", "print('a', flush=True)", "print('a'); sys.exit(0)"]
)
def test_output_to_a_full_disk_is_one_line(start, main):
    with open('/dev/full', 'w') as full:
        code, (line,) = end(start(main, stdout=full))
    assert code == 2
    assert line == (
        'script.py: error: what is printed cannot be written, is the disk full? '
        '(No space left on device)'
    )


def test_an_error_is_told_even_if_nothing_can_be_printed(start):
    with open('/dev/full', 'w') as full:
        process = start("print('a'); raise utils.UserError('b: damaged')", stdout=full)
        assert end(process) == (2, ['script.py: error: b: damaged'])


def test_names_that_are_no_text_are_printed(start):
    process = start("print('\\udcff', 'é')")
    assert process.stdout.read() == '\\udcff é\n' and process.wait() == 0


def descendants(process):
    """Return the process ids of a process's children."""
    path = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    return [int(pid) for pid in path.read_text().split()]


def is_alive(pid):
    """Whether a process runs; one that has ended may wait for its parent."""
    try:
        return (
            Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
        )
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='needs /proc')
def test_loaders_end_with_a_killed_run(start, tmp_path):
    paths = [tmp_path / f'{number}.png' for number in range(70)]
    for number, path in enumerate(paths):
        draw_noise(path, number)
    process = start(LOAD, *paths)
    assert process.stdout.readline() == 'ready\n'
    workers = descendants(process)
    assert len(workers) >= 2 and all(map(is_alive, workers))
    process.kill()
    started = time.perf_counter()
    while any(map(is_alive, workers)):
        assert time.perf_counter() - started < 2
        time.sleep(0.02)

"""Progress: a bar in a terminal, a few lines in a log, nothing where nobody looks."""

import io
import sys

import pytest
import tqdm

from areir.bars import progress_bar, say


@pytest.fixture
def written(monkeypatch):
    """A function that loops for some seconds; it returns what stderr received."""

    def loop(seconds, is_terminal=False, update=False, **options):
        now, file = [0.0], io.StringIO()
        monkeypatch.setattr(tqdm.std, 'time', lambda: now[0])
        monkeypatch.setattr(sys, 'stderr', file)
        monkeypatch.setattr(file, 'isatty', lambda: is_terminal)
        with progress_bar(
            None if update else range(100), 'embedding', 100, **options
        ) as bar:
            for _ in range(100) if update else bar:
                now[0] += seconds / 100
                if update:
                    bar.update()
        return file.getvalue()

    return loop


@pytest.mark.parametrize('update', [False, True])
@pytest.mark.parametrize(
    ('seconds', 'percents'),
    [(5, []), (50, [60]), (100, [30, 60, 90]), (10_800, [*range(10, 101, 10)])],
)
def test_a_log_has_a_line_per_tenth_but_none_within_half_a_minute(
    written, seconds, percents, update
):
    text = written(seconds, update=update, unit='img', delay=1, leave=True)
    lines = text.splitlines()
    assert '\r' not in text
    assert [int(line.split('%')[0].split()[-1]) for line in lines] == percents
    assert all(line.startswith('embedding: ') and 'img' in line for line in lines)


def test_a_terminal_has_a_bar(written):
    assert written(1, is_terminal=True).count('\r') > 5


def test_a_notice_has_a_line_of_its_own(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, 'isatty', lambda: True)
    monkeypatch.setattr(sys, 'stderr', terminal)
    monkeypatch.setattr(sys, 'stdout', terminal)
    for step in progress_bar(range(10), 'indexing', mininterval=0):
        if step == 5:
            say('notice: one image is left out')
    before, after = terminal.getvalue().split('notice: one image is left out\n')
    assert before.endswith('\r') and '5/10' in before and '10/10' in after


def test_other_ranks_and_quiet_scripts_show_nothing(written, monkeypatch):
    monkeypatch.setattr('areir.bars.is_first', lambda: False)
    assert written(10_800) == written(1, is_terminal=True) == ''
    monkeypatch.undo()
    monkeypatch.setenv('TQDM_DISABLE', '1')
    assert written(10_800) == written(1, is_terminal=True) == ''

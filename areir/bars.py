"""How far a loop is: a bar in a terminal, a few lines in a log."""

import math
import os
import sys

from tqdm import tqdm

from areir.processes import is_first

PARTS, SECONDS = 10, 30  # a log has a line after a tenth and half a minute at least


class Log:
    """A file in which every text that tqdm writes becomes a line of its own."""

    def __init__(self, file):
        self.file = file

    def write(self, text):
        """Write a text as a line; leave out what only moves the cursor."""
        if text := text.strip():
            self.file.write(f'{text}\n')


def say(text, file=None):
    """Print a line to stdout, or to `file`; a bar that is open goes on below it."""
    tqdm.write(text, file or sys.stdout)


def progress_bar(iterable, description, total=None, **options):
    """Return a tqdm bar of `iterable` on stderr, which rank 0 shows.

    If stderr is no terminal, a line is written once a tenth is done since the last one
    and half a minute has passed. TQDM_DISABLE=1, which --quiet sets, shows nothing.
    iterable: or None, to call update() of the bar. total: its length, if it has none.
    options: of tqdm, such as unit, delay and leave.
    """
    total = len(iterable) if total is None else total
    shown = is_first() and sys.stderr and not os.environ.get('TQDM_DISABLE')
    options['disable'] = not shown
    if shown and not sys.stderr.isatty():
        options |= {'file': Log(sys.stderr), 'leave': False, 'delay': SECONDS}
        options |= {'miniters': total / PARTS, 'mininterval': SECONDS}
        options |= {'maxinterval': math.inf}
    return tqdm(iterable, description, total, **options)

"""What a script does before it imports torch, which takes seconds."""

import contextlib
import sys

from areir.interrupts import end_at_once, on_interrupt


def before_imports(get_parser):
    """Answer --help, and let Ctrl-C and SIGTERM end the imports with one line."""
    on_interrupt(end_at_once)
    answer_help(get_parser)


def answer_help(get_parser):
    """With --help on the command line, print the parser's help and exit.

    If the help cannot be written, the script goes on to `utils.run_script`, which
    reports the error.
    """
    if not {'-h', '--help'} & set(sys.argv[1:]):
        return
    with contextlib.suppress(OSError):
        # sys.stdout would keep in its buffer what it cannot write
        with open(1, 'w', closefd=False) as stdout:
            stdout.write(get_parser().format_help())
        sys.exit()

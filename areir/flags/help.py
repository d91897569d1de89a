"""Answer --help without waiting for torch."""

import contextlib
import sys


def answer_help(get_parser):
    """With --help on the command line, print the parser's help and exit.

    Scripts call this before they import torch, which takes seconds. If the help cannot
    be written, the script goes on to `utils.run_script`, which reports the error.
    """
    if not {'-h', '--help'} & set(sys.argv[1:]):
        return
    with contextlib.suppress(OSError):
        # sys.stdout would keep in its buffer what it cannot write
        with open(1, 'w', closefd=False) as stdout:
            stdout.write(get_parser().format_help())
        sys.exit()

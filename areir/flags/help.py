"""Answer --help at once."""

import contextlib
import sys


def answer_help(get_parser):
    """Print the help of a parser and end the script if it is asked for.

    Scripts call this before they import torch, which takes seconds. If the help cannot
    be written, the script goes on, and `utils.run_script` says why.
    """
    if not {'-h', '--help'} & set(sys.argv[1:]):
        return
    with contextlib.suppress(OSError):
        # not by sys.stdout, which would keep what it cannot write
        with open(1, 'w', closefd=False) as stdout:
            stdout.write(get_parser().format_help())
        sys.exit()

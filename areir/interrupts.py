"""Signal handlers for Ctrl-C and SIGTERM."""

import os
import signal
import sys


def on_interrupt(handler):
    """Call handler(number, frame) on Ctrl-C and SIGTERM.

    Under torchrun, SIGTERM still ends a process at once: another one has failed and
    reports why. A script that a shell starts in the background still ignores Ctrl-C.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    if 'RANK' not in os.environ:
        signal.signal(signal.SIGTERM, handler)


def end_at_once(number, frame):
    """While a script imports packages, print one line and exit with 130.

    Nothing is raised: a package that is being imported could catch it.
    """
    if int(os.environ.get('RANK', 0)) == 0:
        script = os.path.basename(sys.argv[0])
        os.write(2, os.fsencode(f'{script}: interrupted; nothing has begun\n'))
    os._exit(130)

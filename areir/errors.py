"""The error for whatever a user can fix, and names in messages."""

import re

# control characters, among them all that begin a new line
CONTROL = re.compile('[\0-\x1f\x7f-\x9f\u2028\u2029]')


class UserError(ValueError):
    """Bad input. The text names the file or flag and says what to do.

    Scripts print the text as one line and exit with 2; see `utils.run_script`.
    """


def printable(text):
    """Return a text with its control characters escaped, so that it stays one line.

    File names may hold any of them.
    """
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)

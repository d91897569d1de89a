"""The error for whatever a user can fix, and how messages show names of files."""

import re

# control characters and all line breaks
CONTROL = re.compile('[\0-\x1f\x7f-\x9f\u2028\u2029]')


class UserError(ValueError):
    """Bad input. The text names the file or flag and says what to do.

    Scripts print the text as one line and exit with 2; see `utils.run_script`.
    """


def printable(text):
    """Return a text, such as a file name, with control characters escaped."""
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)

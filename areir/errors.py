"""The error for whatever a user can fix, and how messages show names and counts."""

import difflib
import os
import re

# control characters and all line breaks
CONTROL = re.compile('[\0-\x1f\x7f-\x9f\u2028\u2029]')


class UserError(ValueError):
    """Bad input. The text names the file or flag and says what to do.

    Scripts print the text as one line and exit with 2; see `utils.run_script`.
    """


def optional(purpose, module, packages):
    """Return the package of a module that need not be installed.

    Raises UserError with the names for pip if it is missing; purpose: what needs it.
    """
    try:
        return __import__(module)
    except ImportError as error:
        raise UserError(f'{purpose}: first pip install {packages}') from error


def printable(text):
    """Return a text, such as a file name, with control characters escaped."""
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def counted(count, noun):
    """Write a count and its noun: '1 image', '2,000 images', '0 queries'."""
    if count != 1:
        noun = re.sub('y$', 'ie', re.sub('([sx]|tch)$', r'\1e', noun)) + 's'
    return f'{count:,} {noun}'


def did_you_mean(name, names):
    """Return '; did you mean NAME?' with the most similar of the names, or ''."""
    similar = difflib.get_close_matches(name, names, 1)
    return f'; did you mean {printable(similar[0])}?' if similar else ''


def missing(path):
    """Say that no file lies at a path, and what has a similar name."""
    first = path = os.path.normpath(path)
    if os.path.isdir(path):
        return 'it is a folder'
    while (folder := os.path.dirname(first)) and not os.path.lexists(folder):
        first = folder
    nor = '' if first == path else f', nor {first}'
    folder = folder or os.curdir
    can_list = os.path.isdir(folder) and os.access(folder, os.R_OK)
    names = os.listdir(folder) if can_list else []
    similar = did_you_mean(os.path.basename(first), names)
    return f'no such file or folder{nor}{similar}'

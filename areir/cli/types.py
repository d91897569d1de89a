"""Argparse types: functions that turn the text of a flag into its value."""

import argparse

LARGEST_IMAGE = 8192  # pixels per side of a network's input
RECALLS = (1, 2, 4, 8, 10, 20, 30, 40, 50, 100, 1000)  # K of recall@K


def integer(least, most):
    """Return an argparse type: an integer from `least` to `most`."""

    def convert(text):
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f'{text} is below {least}')
        if value > most:
            raise argparse.ArgumentTypeError(f'{text} is above {most}')
        return value

    convert.__name__ = 'integer'  # argparse's message if int() fails names it
    return convert


positive = integer(1, 1_000_000)
image_size = integer(1, LARGEST_IMAGE)


def path(text):
    """argparse type: the name of a file or folder."""
    if not text:
        raise argparse.ArgumentTypeError('empty: no such file or folder')
    return text


def integers(text):
    """argparse type: '1,2,4' as [1, 2, 4], without repeats; [] if it is empty."""
    try:
        numbers = [int(part) for part in text.split(',') if part.strip()]
    except ValueError:
        raise no_integers(text) from None
    return list(dict.fromkeys(numbers))


def listed_integers(text):
    """argparse type: as `integers`, but at least one."""
    numbers = integers(text)
    if not numbers:
        raise no_integers(text)
    return numbers


def no_integers(text):
    """Return the error for a text that is not a list of integers."""
    return argparse.ArgumentTypeError(
        f'{text!r} is not a list of integers such as 1,2,4'
    )

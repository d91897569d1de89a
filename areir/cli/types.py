"""Argparse types: functions that turn the text of a flag into its value."""

import argparse

LARGEST_IMAGE = 8192  # pixels per side of a network's input
STRICTNESS = {'loose': 0.5, 'normal': 0.75, 'strict': 0.9}
RECALLS = (1, 2, 4, 8, 10, 20, 30, 40, 50, 100, 1000)  # K of recall@K


def number(kind, least, most):
    """Return an argparse type: an int or float (`kind`) from `least` to `most`."""

    def convert(text):
        value = kind(text)
        if not least <= value <= most:  # nan is refused too
            raise argparse.ArgumentTypeError(f'{text} is not from {least} to {most}')
        return value

    convert.__name__ = kind.__name__  # argparse's message if kind() fails names it
    return convert


positive = number(int, 1, 1_000_000)
image_size = number(int, 1, LARGEST_IMAGE)
seed = number(int, 0, 2**63 - 1)


def path(text):
    """argparse type: the name of a file or folder."""
    if not text:
        raise argparse.ArgumentTypeError('empty: no such file or folder')
    return text


def svg(text):
    """argparse type: the name of an SVG to write, which may replace no other file."""
    if not text.lower().endswith('.svg'):
        raise argparse.ArgumentTypeError(f'{text!r}: name an .svg file')
    return text


def integers(text):
    """argparse type: '1,2,4' as [1, 2, 4], without repeats; [] if it is empty."""
    try:
        numbers = [int(part) for part in text.split(',') if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a list of integers such as 1,2,4'
        ) from None
    return list(dict.fromkeys(numbers))


def positives(text):
    """argparse type: as `integers`, but at least one, and each at least 1."""
    numbers = integers(text)
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f'{text!r}: each must be at least 1')
    return numbers


def strictness(text):
    """argparse type: a key of STRICTNESS, or a number from 0 to 1."""
    if text in STRICTNESS:
        return STRICTNESS[text]
    try:
        return number(float, 0, 1)(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is neither {", ".join(STRICTNESS)} nor a number from 0 to 1'
        ) from None

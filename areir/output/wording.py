"""How pages write numbers and texts: shares, intervals, counts, odd characters."""

import math

from areir.evaluation.intervals import NO_INTERVAL

SPACE = '\N{NO-BREAK SPACE}'


def number(value, digits=3):
    """Write a number with `digits` decimals; with None, as many as it needs."""
    return f'{value:g}' if digits is None else f'{value:.{digits}f}'


def share(value, digits=2):
    """Write a fraction as a percentage."""
    return number(100 * value, digits) + SPACE + '%'


def interval(low, high, write=share):
    """Write '95 % interval ... to ...', or why there is none.

    low, high: both None or NaN if there is none; write: `share` or `number`.
    """
    if low is None or math.isnan(low):
        return NO_INTERVAL
    return f'95{SPACE}% interval {write(low)} to {write(high)}'


def counted(count, noun):
    """Write a count with its noun: '1 image', '2,000 images'."""
    return f'{count:,} {noun}' if count == 1 else f'{count:,} {noun}s'


def valid_unicode(text):
    """Replace what is not valid Unicode: names of files may hold any bytes."""
    return text.encode('utf-8', 'surrogatepass').decode('utf-8', 'replace')

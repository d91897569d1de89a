"""How pages write numbers and texts: shares, intervals, counts, odd characters."""

import math

SPACE = '\N{NO-BREAK SPACE}'


def number(value, digits=3):
    """Write a number with `digits` decimals; with None, as many as it needs."""
    return f'{value:g}' if digits is None else f'{value:.{digits}f}'


def share(value, digits=2):
    """Write a fraction as a percentage."""
    return number(100 * value, digits) + SPACE + '%'


def interval(low, high, write=share):
    """Write '... to ...', or None if the interval is not known.

    low, high: numbers, None or NaN; write: `share` or `number`.
    """
    limits = (low, high)
    if any(limit is None or math.isnan(limit) for limit in limits):
        return None
    return f'{write(low)} to {write(high)}'


def counted(count, noun):
    """Write a count with its noun: '1 image', '2,000 images'."""
    return f'{count:,} {noun}' if count == 1 else f'{count:,} {noun}s'


def valid_unicode(text):
    """Replace what is not valid Unicode: names of files may hold any bytes."""
    return text.encode('utf-8', 'surrogatepass').decode('utf-8', 'replace')

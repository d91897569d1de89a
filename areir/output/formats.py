"""How the page of a run writes numbers: shares, intervals, decimal places."""

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

"""Check a saved calibration, read its threshold for a gallery's size, and describe it.

`calibration.calibrate` computes it. A model, a database or an index stores it.
"""

import math

import numpy as np

from areir.evaluation.intervals import describe_interval
from areir.schemas import find_problem, is_count, is_list, is_number


def is_rate(value):
    """Whether a value is a float, which may be NaN, or None."""
    return value is None or isinstance(value, float)


def is_limit(value):
    """Whether a value is a finite number or None."""
    return value is None or is_number(value)


def is_curve(value):
    """Whether a value is a list of three numbers or None.

    It is the curve of `votes.fit_confidence`.
    """
    return value is None or (is_list(value, is_number) and len(value) == 3)


def is_series(value):
    """Whether a value is an increasing list of numbers."""
    return is_list(value, is_number) and value == sorted(value)


SCHEMA = {
    'false_match_rate': lambda value: is_number(value) and 0 < value < 1,
    'gallery_size': is_count,
    **dict.fromkeys(('threshold', 'found'), is_number),
    **dict.fromkeys(('low', 'high'), is_limit),
    **dict.fromkeys(('realised', 'realised_low', 'realised_high'), is_rate),
    **dict.fromkeys(('sizes', 'thresholds'), is_series),
    **dict.fromkeys(('queries', 'classes'), is_count),
}


def is_calibration(value):
    """Whether a value is a calibration or None.

    A calibration is what `calibrate` returns.
    """
    if value is None:
        return True
    # older files have no confidence
    if find_problem(value, SCHEMA, {'confidence': is_curve}):
        return False
    if (value['low'] is None) != (value['high'] is None):
        return False
    sizes = value['sizes']
    return len(sizes) == len(value['thresholds']) > 0 and sizes[0] >= 1


def threshold_for(calibration, gallery_size):
    """Return (threshold, is_calibrated) for a gallery of this size.

    Between calibrated sizes the threshold is linear in the logarithm of the size.
    Beyond the largest one it stays the same, and is_calibrated is False.
    """
    sizes, thresholds = calibration['sizes'], calibration['thresholds']
    wanted = math.log(max(1, gallery_size))
    threshold = np.interp(wanted, np.log(sizes), thresholds)
    return float(threshold), gallery_size <= sizes[-1]


def threshold_lines(calibration):
    """Return the lines to print about a calibration; none if it is None."""
    if not calibration:
        return []
    interval = describe_interval(calibration['low'], calibration['high'], '{:.3f}')
    line = (
        'threshold of a match: {threshold:.3f}, {interval}, for {false_match_rate:.2%} '
        'false matches among {gallery_size:,} images; {found:.2%} of the true matches '
        'reach it'
    )
    return [line.format(**calibration, interval=interval), check_line(calibration)]


def check_line(calibration):
    """Return the line about the rate on classes that did not set the threshold."""
    realised = calibration['realised']
    if realised is None:
        return (
            f'notice: only {calibration["classes"]} classes set the threshold, too few '
            'to check it on others: do not rely on it'
        )
    low, high = calibration['realised_low'], calibration['realised_high']
    line = (
        f'false matches on classes that did not set the threshold: {realised:.2%}, '
        f'{describe_interval(low, high)}'
    )
    if low > calibration['false_match_rate']:
        line += (
            '; more than asked for: there are too few classes, or several classes have '
            'similar images'
        )
    return line

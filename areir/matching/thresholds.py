"""Read the threshold of a match from a calibration, and describe the calibration.

`calibration.calibrate` computes it. A model, a database or an index stores it.
"""

import math
from typing import NamedTuple

import numpy as np

from areir.errors import counted
from areir.evaluation.intervals import describe_interval


class Threshold(NamedTuple):
    """The lowest score at which two images match."""

    score: float
    calibrated: bool  # whether it was calibrated for galleries of this size


def threshold_for(calibration, gallery_size):
    """Return the Threshold for a gallery of this size.

    Between calibrated sizes it is linear in the logarithm of the size. Beyond the
    largest one it stays the same.
    """
    sizes, thresholds = calibration['sizes'], calibration['thresholds']
    wanted = math.log(max(1, gallery_size))
    score = np.interp(wanted, np.log(sizes), thresholds)
    return Threshold(float(score), gallery_size <= sizes[-1])


def threshold_of(collection):
    """Return the Threshold of a Collection, or None if it has no calibration."""
    if not collection.calibration:
        return None
    return threshold_for(collection.calibration, len(collection))


def digits_apart(*numbers, least=3, most=9):
    """Return how many digits after the point tell different numbers apart."""
    for digits in range(least, most):
        if len({f'{number:.{digits}f}' for number in numbers}) == len({*numbers}):
            return digits
    return most


def describe_threshold(calibration):
    """Return (threshold, its interval), as texts."""
    threshold, *limits = (calibration[name] for name in ('threshold', 'low', 'high'))
    digits = digits_apart(threshold, *(limit for limit in limits if limit is not None))
    form = f'{{:.{digits}f}}'
    return form.format(threshold), describe_interval(*limits, form)


def threshold_lines(calibration):
    """Return the lines to print about a calibration; none if it is None."""
    if not calibration:
        return []
    threshold, interval = describe_threshold(calibration)
    rate, images = calibration['false_match_rate'], calibration['gallery_size']
    line = (
        f'threshold of a match: {threshold}, {interval}, for {rate:.2%} false matches '
        f'among {counted(images, "image")}; {calibration["found"]:.2%} of the true '
        'matches reach it'
    )
    realised = calibration['realised']
    if realised is None:
        return [
            line,
            f'notice: only {counted(calibration["classes"], "class")} set the '
            'threshold, too few to check it on others: do not rely on it',
        ]
    low, high = calibration['realised_low'], calibration['realised_high']
    check = (
        f'false matches on classes that did not set the threshold: {realised:.2%}, '
        f'{describe_interval(low, high)}'
    )
    if low > calibration['false_match_rate']:
        check += (
            '; more than asked for: there are too few classes, or several classes have '
            'similar images'
        )
    return [line, check]

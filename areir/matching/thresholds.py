"""Read the threshold of a match from a calibration, and describe the calibration.

`calibration.calibrate` computes it. A model, a database or an index stores it.
"""

import math
from typing import NamedTuple

import numpy as np

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


def threshold_lines(calibration):
    """Return the lines to print about a calibration; none if it is None."""
    if not calibration:
        return []
    interval = describe_interval(calibration['low'], calibration['high'], '{:.3f}')
    line = (
        'threshold of a match: {threshold:.3f}, {interval}, for {false_match_rate:.2%} '
        'false matches among {gallery_size:,} images; {found:.2%} of the true matches '
        'reach it'
    ).format(**calibration, interval=interval)
    realised = calibration['realised']
    if realised is None:
        return [
            line,
            f'notice: only {calibration["classes"]} classes set the threshold, too few '
            'to check it on others: do not rely on it',
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

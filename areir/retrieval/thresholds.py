"""Check a saved calibration, read its threshold for a gallery's size, and describe it.

`calibration.calibrate` computes it. A model, a database or an index stores it.
"""

import math

import numpy as np

from areir.errors import UserError

NUMBERS = (
    'false_match_rate',
    'gallery_size',
    'threshold',
    'low',
    'high',
    'found',
    'queries',
    'classes',
)
OPTIONAL = ('realised', 'realised_low', 'realised_high')  # numbers or None


def check(calibration):
    """Raise UserError unless a calibration is None or what `calibrate` returns."""
    try:
        valid = calibration is None or is_valid(calibration)
    except (KeyError, TypeError, IndexError):
        valid = False
    if not valid:
        raise UserError('its calibration is damaged')


def is_valid(calibration):
    """Whether a dict holds what `calibrate` returns; it may also raise an error."""
    sizes, thresholds = calibration['sizes'], calibration['thresholds']
    numbers = [calibration[name] for name in NUMBERS]
    optional = [calibration[name] for name in OPTIONAL]
    curve = calibration.get('confidence')  # older files have none
    return (
        all(math.isfinite(number) for number in (*numbers, *sizes, *thresholds))
        and all(value is None or isinstance(value, float) for value in optional)
        and len(sizes) == len(thresholds) > 0
        and min(sizes) >= 1
        and (curve is None or (len(curve) == 3 and all(map(math.isfinite, curve))))
    )


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
    lines = [
        'match at {threshold:.3f} or above, 95 % interval {low:.3f} to {high:.3f}: '
        '{false_match_rate:.2%} false matches asked for among {gallery_size:,} images, '
        '{found:.2%} of the true matches found'.format(**calibration)
    ]
    if calibration['realised'] is None:
        lines.append(
            f'notice: {calibration["classes"]} classes set the threshold, which are '
            'too few to check it on others: do not rely on it'
        )
    else:
        line = (
            'false matches on classes that did not set the threshold: {realised:.2%}, '
            '95 % interval {realised_low:.2%} to {realised_high:.2%}'
        ).format(**calibration)
        if calibration['realised_low'] > calibration['false_match_rate']:
            line += (
                '; more than asked for: there are too few classes, or several classes '
                'have similar images'
            )
        lines.append(line)
    return lines

"""A saved threshold: check it, read it for a gallery's size, and describe it.

`calibration.calibrate` sets it. It is saved with a model, a database or an index.
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
OPTIONAL = ('realised', 'realised_low', 'realised_high')


def check(calibration):
    """Raise UserError unless it is None, or what `calibrate` returns."""
    try:
        valid = calibration is None or is_valid(calibration)
    except (KeyError, TypeError, IndexError):
        valid = False
    if not valid:
        raise UserError('its calibration is not one of train.py')


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
    """Return (threshold, whether it was calibrated for that) for a gallery size.

    Between the calibrated sizes the threshold is linear in their logarithm; beyond the
    last size it is that of the last.
    """
    sizes, thresholds = calibration['sizes'], calibration['thresholds']
    wanted = math.log(max(1, gallery_size))
    threshold = np.interp(wanted, np.log(sizes), thresholds)
    return float(threshold), gallery_size <= sizes[-1]


def threshold_lines(calibration):
    """Return the lines about the threshold of a calibration, or none without one."""
    if not calibration:
        return []
    lines = [
        'match at {threshold:.3f} or above, 95 % interval {low:.3f} to {high:.3f}: '
        '{false_match_rate:.2%} false matches asked for among {gallery_size:,} images, '
        '{found:.2%} of the true ones found'.format(**calibration)
    ]
    if calibration['realised'] is not None:
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

"""A saved threshold: its value for a gallery's size, and the lines about it."""

import pytest
from trained import CALIBRATION as SAVED

from areir.matching.thresholds import threshold_for, threshold_lines

CALIBRATION = {
    **SAVED,
    'threshold': 0.8123,
    'low': 0.7,
    'high': 0.9,
    'gallery_size': 1234,
    'realised_low': 0.005,
}


def test_thresholds_between_and_beyond_the_sizes():
    result = {'sizes': [1, 100, 10_000], 'thresholds': [0.1, 0.5, 0.9]}
    assert threshold_for(result, 100) == (pytest.approx(0.5), True)
    assert threshold_for(result, 1000) == (pytest.approx(0.7), True)
    assert threshold_for(result, 0) == (0.1, True)
    assert threshold_for(result, 1_000_000) == (0.9, False)


def test_lines_of_the_threshold():
    threshold, realised = threshold_lines(CALIBRATION)
    for text in ('0.812', '0.700', '0.900', '1.00%', '1,234 images', '50.00%'):
        assert text in threshold
    for text in ('2.00%', '0.50%', '4.00%'):
        assert text in realised
    more = threshold_lines({**CALIBRATION, 'realised_low': 0.015})[1]
    assert more.startswith(realised.replace('0.50%', '1.50%')) and len(more) > 100
    assert threshold_lines(None) == []


def test_lines_of_a_threshold_of_few_classes():
    unknown = dict.fromkeys(('low', 'high', 'realised', 'realised_low'))
    threshold, notice = threshold_lines({**CALIBRATION, **unknown, 'classes': 3})
    assert ': 0.812, no interval below 6 classes, for 1.00%' in threshold
    assert notice.startswith('notice: only 3 classes')

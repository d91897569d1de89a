"""A saved threshold: its value for a gallery's size, and the lines about it."""

import pytest
from trained import CALIBRATION

from areir.matching.thresholds import threshold_for, threshold_lines


def test_thresholds_between_and_beyond_the_sizes():
    result = {'sizes': [1, 100, 10_000], 'thresholds': [0.1, 0.5, 0.9]}
    assert threshold_for(result, 100) == (pytest.approx(0.5), True)
    assert threshold_for(result, 1000) == (pytest.approx(0.7), True)
    assert threshold_for(result, 0) == (0.1, True)
    assert threshold_for(result, 1_000_000) == (0.9, False)


def test_lines_of_the_threshold():
    threshold, realised = threshold_lines(CALIBRATION)
    for text in ('0.900', '0.800', '0.950', '1.00%', '100 images', '50.00%'):
        assert text in threshold
    for text in ('2.00%', '0.00%', '4.00%'):
        assert text in realised
    assert threshold_lines(None) == []
    unknown = dict.fromkeys(('low', 'high', 'realised', 'realised_low'))
    threshold, notice = threshold_lines({**CALIBRATION, **unknown, 'classes': 3})
    assert '0.900' in threshold and notice.startswith('notice: only 3 classes')

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


def test_a_threshold_of_few_classes_is_not_to_be_relied_on():
    unknown = dict.fromkeys(('low', 'high', 'realised', 'realised_low'))
    threshold, notice = threshold_lines({**CALIBRATION, **unknown, 'classes': 3})
    assert '0.900' in threshold and notice.startswith('notice: only 3 classes')

"""A saved threshold: its value for a gallery's size, and the lines about it."""

import pytest
from trained import CALIBRATION

from areir.matching.thresholds import (
    describe_threshold,
    digits_apart,
    threshold_for,
    threshold_lines,
)


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


@pytest.mark.parametrize(
    ('numbers', 'digits'),
    [
        ((0.5, 0.4, 0.6), 3),
        ((0.9991, 0.9988, 0.9993), 4),
        ((0.99991, 0.999908, 0.99992), 6),
        ((0.5, 0.5), 3),  # equal numbers have equal texts
        ((0.5, 0.5 + 1e-13), 9),
    ],
)
def test_digits_tell_numbers_apart(numbers, digits):
    assert digits_apart(*numbers) == digits


def test_the_ends_of_an_interval_differ():
    near = {**CALIBRATION, 'threshold': 0.99912, 'low': 0.99908, 'high': 0.99921}
    assert describe_threshold(near) == (
        '0.99912',
        '95 % interval 0.99908 to 0.99921',
    )

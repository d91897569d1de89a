"""How the page of a run writes numbers."""

import math

import pytest

from areir.output.wording import interval, number, share

SPACE = '\N{NO-BREAK SPACE}'


def test_numbers():
    assert number(0.12345) == '0.123' and number(2, 1) == '2.0'
    assert number(0.25, None) == '0.25' and number(3.0, None) == '3'


def test_shares():
    assert share(0.12345) == f'12.35{SPACE}%' and share(1, 0) == f'100{SPACE}%'
    assert share(0.1 + 0.2, None) == f'30{SPACE}%'


@pytest.mark.parametrize('low', [None, math.nan])
def test_unknown_intervals(low):
    assert interval(low, low) is None


def test_intervals():
    assert interval(0.1, 0.2) == f'10.00{SPACE}% to 20.00{SPACE}%'
    assert interval(0.1, 0.2, number) == '0.100 to 0.200'

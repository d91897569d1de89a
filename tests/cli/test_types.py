"""Argparse types: numbers between limits, and lists of numbers."""

import argparse

import pytest

from areir.cli import types


def test_positive():
    assert types.positive('7') == 7
    for text in ('0', '-3'):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            types.positive(text)
    for text in ('', 'x', '1.5'):
        with pytest.raises(ValueError):
            types.positive(text)
    assert types.positive('1000000') == 1_000_000
    with pytest.raises(argparse.ArgumentTypeError, match='1000001 is above 1000000'):
        types.positive('1000001')


def test_an_integer_between_limits(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--workers', type=types.integer(0, 4))
    assert parser.parse_args(['--workers', '4']).workers == 4
    for text, reason in {
        '5': '5 is above 4',
        '-1': '-1 is below 0',
        '1e20': "invalid integer value: '1e20'",
    }.items():
        with pytest.raises(SystemExit):
            parser.parse_args([f'--workers={text}'])
        assert f'argument --workers: {reason}\n' in capsys.readouterr().err


def test_integers():
    assert types.integers('1,2,4') == [1, 2, 4]
    assert types.integers(' 4, 1,4,,') == [4, 1]
    assert types.integers('') == []
    for text in ('1,x', 'all', '1.5'):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            types.integers(text)


@pytest.mark.parametrize('text', ['0', '8193', '100000', '1e20', 'x', ''])
def test_an_image_size_that_makes_no_sense(text):
    with pytest.raises((argparse.ArgumentTypeError, ValueError)):
        types.image_size(text)
    assert types.image_size('8192') == 8192

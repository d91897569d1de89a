"""Argparse types: numbers between limits, and lists of numbers."""

import argparse

import pytest

from areir.cli import types


def test_an_integer_between_limits(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--workers', type=types.integer(0, 4))
    assert parser.parse_args(['--workers', '4']).workers == 4
    for text in ('5', '-1', '1e20', '1.5', 'x', ''):
        with pytest.raises(SystemExit):
            parser.parse_args([f'--workers={text}'])
        assert 'argument --workers: ' in capsys.readouterr().err


def test_integers():
    assert types.integers('1,2,4') == [1, 2, 4]
    assert types.integers(' 4, 1,4,,') == [4, 1]
    assert types.integers('') == []
    with pytest.raises(argparse.ArgumentTypeError):
        types.listed_integers('')
    for text in ('1,x', 'all', '1.5'):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            types.integers(text)

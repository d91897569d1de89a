"""Argparse types: numbers between limits, and lists of numbers."""

import argparse

import pytest

from areir.cli import make_parser, types
from areir.errors import UserError


@pytest.mark.parametrize(
    ('kind', 'good', 'bad'),
    [
        (int, '4', ['5', '-1', '1e20', '1.5', 'x', '']),
        (float, '0.5', ['4.01', '-0.1', 'nan', 'inf', 'x', '']),
    ],
)
def test_a_number_between_limits(kind, good, bad):
    parser = make_parser('')
    parser.add_argument('--workers', type=types.number(kind, 0, 4))
    assert parser.parse_args(['--workers', good]).workers == kind(good)
    for text in bad:
        with pytest.raises(UserError, match='argument --workers: '):
            parser.parse_args([f'--workers={text}'])


def test_integers():
    assert types.integers('1,2,4') == [1, 2, 4]
    assert types.integers(' 4, 1,4,,') == types.positives('4,1') == [4, 1]
    assert types.integers('') == []
    for text in ('1,x', 'all', '1.5'):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            types.integers(text)
    for text in ('', '1,0', '-1'):
        with pytest.raises(argparse.ArgumentTypeError):
            types.positives(text)


def test_flags_from_a_dict(tmp_path):
    parser = make_parser('')
    parser.add_argument('--recalls', type=types.positives)
    parser.add_argument('--lr', type=float, default=0.5)
    parser.add_argument('--root', type=types.path)
    parser.add_argument('--mirror', choices=['yes', 'no'])
    parser.add_argument('--overwrite', action='store_true')
    flags = {'recalls': (1, 2), 'lr': None, 'root': tmp_path, 'mirror': True}
    args = parser.parse_args({**flags, 'overwrite': False})
    wanted = {'recalls': [1, 2], 'lr': 0.5, 'root': str(tmp_path), 'mirror': 'yes'}
    assert vars(args) == {**wanted, 'overwrite': False, 'quiet': False}
    args = parser.parse_args({'overwrite': True, 'mirror': False, 'lr': -1e-3})
    assert (args.overwrite, args.mirror, args.lr) == (True, 'no', -1e-3)
    for flags, text in {
        ('recalls', 'x'): 'argument --recalls: .*x',
        ('sed', 1): 'unrecognized arguments: --sed=1',
        ('overwrite', 'yes'): 'argument --overwrite: ',
        ('lr', True): 'argument --lr: .*yes',
    }.items():
        with pytest.raises(UserError, match=text):
            parser.parse_args(dict([flags]))


def test_help_ends_with_the_default():
    parser = make_parser('')
    parser.add_argument('--seed', type=int, default=0, help='drawn from')
    parser.add_argument('--gpus', type=types.integers, default=[0, 1], help='used')
    parser.add_argument('--name', help='unknown')
    parser.add_argument('--json', action='store_true', help='print JSON')
    text = parser.format_help()
    assert 'drawn from [default value is 0]' in text
    assert "used [default value is '0,1']" in text
    assert text.count('default value') == 2


def test_strictness_is_a_word_or_a_number():
    assert types.strictness('strict') > types.strictness('loose')
    assert types.strictness('0.7') == 0.7
    for text in ('sharp', '1.1', 'nan'):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            types.strictness(text)

"""A run's CSV and run.json, whole, damaged or missing."""

import json
import math
import zlib

import pytest
from pages import CSV, PROVENANCE

from areir.output.run_files import read_curves, read_provenance, readable


def test_curves(tmp_path):
    path = tmp_path / 'run_results.csv'
    path.write_text(CSV)
    curves = read_curves(str(path), 2)
    titles = [chart.title for chart in curves.charts]
    assert len(titles) == len({chart.key for chart in curves.charts}) == 4
    assert [title for title, _ in curves.columns][2:4] == ['R@1', 'R@2']
    epochs = [epoch for epoch, _ in curves.rows]
    assert epochs == [1, 2, 3] and curves.rows[0][1] == [2.5, 0.25, 0.5, 0.75, 0.125]
    assert math.isnan(curves.rows[2][1][1])
    assert curves.kept == 2 and not curves.is_last and curves.problem is None


@pytest.mark.parametrize('kept, is_last', [(3, True), (4, True), (0, False)])
def test_curves_of_the_last_epoch(tmp_path, kept, is_last):
    path = tmp_path / 'run_results.csv'
    path.write_text(CSV)
    assert read_curves(str(path), kept).is_last == is_last


@pytest.mark.parametrize(
    'content, reason',
    [
        (None, 'missing'),
        ('', 'damaged'),
        ('\x00\x01', 'damaged'),
        ('epoch\nx\n', 'damaged'),
        ('loss\n1\n', 'damaged'),
        ('[1, 2]', 'damaged'),
        ('epoch,loss\n1,0.5', 'damaged: its last line is cut off'),
    ],
)
def test_unreadable_csv(tmp_path, content, reason):
    path = tmp_path / 'run_results.csv'
    if content is not None:
        path.write_text(content)
    curves = read_curves(str(path), 1)
    assert curves.problem == f'run_results.csv is {reason}' and not curves.charts


def test_provenance(tmp_path):
    path = tmp_path / 'run.json'
    path.write_text(json.dumps(PROVENANCE))
    run = read_provenance(str(path))
    assert run.problem is None and run.arguments == PROVENANCE['arguments']
    assert run.command[:3] == ['python', 'train.py', '--data_name']
    assert run.command[3].startswith("'") and run.command[3].endswith("'")
    parts = 'train: 10 images of 5 classes; test: 24 images of 4 classes'
    assert run.counts == parts
    assert (run.commit, run.split_hash, run.device) == ('abc', 'cafe', 'CPU')


@pytest.mark.parametrize('content', [None, '', '{"a": ', '[1, 2]', '[' * 100_000])
def test_unreadable_run_json(tmp_path, content):
    path = tmp_path / 'run.json'
    if content is not None:
        path.write_text(content)
    run = read_provenance(str(path))
    assert run.problem == f'run.json is {"missing" if content is None else "damaged"}'
    assert run.command is None and run.arguments is None and run.counts is None


def test_parts_of_the_wrong_kind_are_left_out(tmp_path):
    path = tmp_path / 'run.json'
    path.write_text(json.dumps({'data': [], 'arguments': 3, 'command': 'x'}))
    run = read_provenance(str(path))
    assert run.problem is run.command is run.arguments is run.counts is None


@pytest.mark.parametrize(
    'value, text',
    [
        (None, 'not recorded'),
        (True, 'yes'),
        (False, 'no'),
        (1e-4, '0.0001'),
        (1, '1'),
        ('a', 'a'),
        ({}, 'none'),
        ([], 'none'),
        ({'a': 1, 'b': [True, None]}, 'a 1, b yes, not recorded'),
    ],
)
def test_readable(value, text):
    assert readable(value) == text


def test_a_number_that_has_changed_is_damage(tmp_path):
    path = tmp_path / 'results.csv'
    path.write_text('epoch,test_recall@1\n1,0.5\n')
    checksum = zlib.crc32(path.read_bytes())
    assert read_curves(str(path), 1, checksum).rows == [(1, [0.5])]
    path.write_text('epoch,test_recall@1\n1,0.7\n')
    curves = read_curves(str(path), 1, checksum)
    changed = 'results.csv is damaged: it has changed since the run ended'
    assert curves.problem == changed and not curves.rows

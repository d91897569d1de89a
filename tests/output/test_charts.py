"""The figures of a run: which curves there are, drawings, descriptions."""

import base64
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
from trained import CALIBRATION

from areir.output import charts
from areir.output.charts import (
    Panel,
    curve_chart,
    curve_panels,
    draw_curves,
    number,
    share,
)
from areir.output.run_statistics import SCORE_BINS, Estimate

ROWS = pd.DataFrame(
    {
        'epoch': [1, 2, 3],
        'train_loss': [2.5, math.inf, 1.0],
        'train_accuracy': [0.25, 0.5, math.nan],
        'test_recall@1': [0.5, 0.6, 0.7],
        'test_recall@10': [0.7, 0.8, 0.9],
        'test_map@r': [0.1, 0.2, 0.3],
        'val_recall@1': [math.nan] * 3,
        'protocol': ['strict'] * 3,
    }
)
RECALL = Panel('Recall', {'test_recall@1': 'R@1', 'test_recall@10': 'R@10'}, share)


def svg(chart):
    """Return the SVG of a chart, checked to be one that loads nothing."""
    kind, _, data = chart[0].partition(',')
    assert kind == 'data:image/svg+xml;base64'
    text = base64.b64decode(data).decode()
    assert ElementTree.fromstring(text).tag.endswith('svg')
    assert 'url(http' not in text and '<image' not in text
    return text


def histogram(places):
    """Return a histogram (SCORE_BINS,) from {bin: share}."""
    shares = np.zeros(SCORE_BINS)
    shares[list(places)] = list(places.values())
    return shares


# Curves


def test_panels():
    loss, accuracy, recall, map_at_r = curve_panels(ROWS)
    assert loss.columns == {'train_loss': ''} and loss.write is number
    assert accuracy.columns == {'train_accuracy': ''} and accuracy.write is share
    assert recall.columns == RECALL.columns
    assert map_at_r.columns == {'test_map@r': ''}


def test_panels_of_other_columns():
    rows = pd.DataFrame({'epoch': [1], 'val_recall@1': [0.5], 'test_recall@<b>': [1]})
    (held_out,) = curve_panels(rows)
    assert list(held_out.columns) == ['val_recall@1']


def test_equal_rows_give_equal_bytes_whatever_the_user_has_set(tmp_path):
    import matplotlib

    draw_curves(ROWS, str(tmp_path / 'a.svg'))
    with matplotlib.rc_context({'font.size': 20, 'svg.fonttype': 'none'}):
        draw_curves(ROWS, str(tmp_path / 'b.svg'))
        assert matplotlib.rcParams['font.size'] == 20
    content = (tmp_path / 'a.svg').read_bytes()
    assert content == (tmp_path / 'b.svg').read_bytes() and b'dc:date' not in content
    groups = [group.get('id', '') for group in ElementTree.fromstring(content).iter()]
    assert sum(name.startswith('axes_') for name in groups) == 4


@pytest.mark.parametrize('rows', [ROWS[:1], ROWS[['epoch', 'train_loss']]])
def test_short_runs(tmp_path, rows, recwarn):
    draw_curves(rows, str(tmp_path / 'curves.svg'))
    assert (tmp_path / 'curves.svg').stat().st_size > 0
    assert not recwarn.list


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=r'missing.curves\.svg'):
        draw_curves(ROWS, str(tmp_path / 'missing/curves.svg'))


def test_a_chart_describes_its_curves():
    chart = curve_chart(RECALL, ROWS, kept=2)
    svg(chart)
    first = f'R@1 {share(0.5)} at epoch 1, {share(0.7)} at epoch 3'
    second = f'R@10 {share(0.7)} at epoch 1, {share(0.9)} at epoch 3'
    assert chart[1] == f'Recall, by epoch: {first}; {second}'
    assert chart == curve_chart(RECALL, ROWS, kept=2)


def test_only_an_earlier_epoch_is_marked():
    last, earlier = (svg(curve_chart(RECALL, ROWS, kept)) for kept in (3, 2))
    assert 'stroke-dasharray' in earlier and 'stroke-dasharray' not in last


# Heads and scores


@pytest.mark.parametrize('low', [0.2, math.nan])
def test_heads(low, recwarn):
    recalls = [Estimate('1', 0.25, low, 0.3), Estimate('2', 0.5, math.nan, math.nan)]
    chart = charts.heads_chart(recalls)
    svg(chart)
    assert chart[1].endswith(f': 1 heads {share(0.25)}; 2 heads {share(0.5)}')
    assert not recwarn.list


@pytest.mark.parametrize('low', [0.8, None])
def test_scores(low):
    shares = {'wrong': histogram({40: 0.75, 50: 0.25}), 'right': histogram({80: 1})}
    chart = charts.score_chart('Scores', shares, {**CALIBRATION, 'low': low})
    assert 'stroke-dasharray' in svg(chart)
    assert f'wrong: at most {share(0.75)}, at about -0.19' in chart[1]
    assert f'right: at most {share(1)}, at about 0.61' in chart[1]
    assert chart[1].endswith('threshold 0.900')


def test_scores_of_one_kind_without_a_threshold(recwarn):
    shares = {'wrong': histogram({3: 1}), 'right': histogram({})}
    chart = charts.score_chart('Scores', shares, None)
    assert 'stroke-dasharray' not in svg(chart)
    assert 'threshold' not in chart[1] and not recwarn.list

"""The curves of a run: drawings and descriptions."""

import base64
import math
import re
import xml.etree.ElementTree as ElementTree

import pandas as pd
import pytest

from areir.output.charts import Panel, curve_chart, draw_curves, share

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


def test_a_chart_describes_its_curves():
    chart = curve_chart(RECALL, ROWS, kept=2)
    assert 'stroke-dasharray' in svg(chart)
    assert 'stroke-dasharray' not in svg(curve_chart(RECALL, ROWS, kept=3))
    first = f'R@1 {share(0.5)} at epoch 1, {share(0.7)} at epoch 3'
    second = f'R@10 {share(0.7)} at epoch 1, {share(0.9)} at epoch 3'
    assert chart[1] == f'Recall, by epoch: {first}; {second}'


def test_no_two_curves_of_a_chart_have_one_colour():
    columns = {f'test_recall@{k}': f'R@{k}' for k in range(1, 15)}
    rows = pd.DataFrame({'epoch': [1, 2], **{name: [0.5, 0.6] for name in columns}})
    text = svg(curve_chart(Panel('Recall', columns, share), rows, kept=2))
    colours = set(re.findall('stroke: (#[0-9a-f]{6})', text)) - {'#000000'}
    assert len(colours) == 14

"""The charts of the page: their drawings, ticks and descriptions."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pandas as pd
import pytest
import torch
from pages import CALIBRATION, SPACE

from areir.output import charts
from areir.output.curves import Panel
from areir.output.run_statistics import SCORE_BINS, HeadsRecall
from areir.output.wording import share

ROWS = pd.DataFrame(
    {'epoch': [1, 2, 3], 'a': [0.2, 0.4, 0.6], 'b': [0.1, 0.5, 0.605], 'c': [0, 0, 0.1]}
)
RECALL = Panel('Recall', {'R@1': 'a', 'R@2': 'b', 'R@4': 'c'}, True)


def elements(chart):
    """Return the elements of a drawing; its root is made here."""
    return list(ElementTree.fromstring(f'<svg>{chart.drawing}</svg>').iter())[1:]


def texts(chart):
    return [element.text for element in elements(chart) if element.tag == 'text']


def counts(places):
    """Return a histogram (SCORE_BINS,) from {bin: count}."""
    histogram = torch.zeros(SCORE_BINS, dtype=torch.int64)
    for place, count in places.items():
        histogram[place] = count
    return histogram


def check_drawing(chart):
    """A drawing has the page's colours and fonts, and nothing from elsewhere."""
    tags = {element.tag for element in elements(chart)}
    assert tags <= {'g', 'path', 'text', 'defs', 'use'}
    styles = [element.get('style', '') for element in elements(chart)]
    assert not any('font-family' in style or '#0000' in style for style in styles)
    used = ' '.join(styles)
    assert set(re.findall(r'#\w+', used)) <= {'#000000'}  # of invisible edges
    assert 'url(' not in chart.drawing and 'http' not in chart.drawing
    ids = [element.get('id') for element in elements(chart) if element.get('id')]
    assert len(ids) == len(set(ids))
    assert all(name.startswith(f'{chart.key}-') for name in ids)
    links = [element.get('href') for element in elements(chart)]
    assert {link for link in links if link} == {f'#{name}' for name in ids}
    assert all(text and '$' not in text for text in texts(chart))


@pytest.mark.parametrize(
    'low, high, expected',
    [
        (0, 1, [0, 0.5, 1]),
        (0.2, 0.83, [0.2, 0.4, 0.6, 0.8, 1]),
        (0.63, 2.44, [0.5, 1, 1.5, 2, 2.5]),
    ],
)
def test_round_ticks(low, high, expected):
    assert charts.round_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize('value', [0.0, 3.0, -1e-9, 1e6])
def test_round_ticks_of_one_value(value):
    ticks = charts.round_ticks(value, value)
    assert len(ticks) > 1 and ticks[0] <= value <= ticks[-1]


@pytest.mark.parametrize(
    'first, last, expected', [(1, 1, [1]), (1, 2, [1, 2]), (1, 20, [1, 10, 20])]
)
def test_epoch_ticks(first, last, expected):
    assert charts.epoch_ticks(first, last) == {epoch: str(epoch) for epoch in expected}


def test_curve_chart():
    chart = charts.curve_chart('curve-0', RECALL, ROWS, kept=2)
    check_drawing(chart)
    assert chart.title == 'Recall, by epoch'
    described = chart.description.split('; ')
    start, end = share(0.2), share(0.6)
    assert described[0] == f'R@1 {start} at epoch 1, {end} at epoch 3'
    assert len(described) == 3
    assert {'1', '2', '3', f'0{SPACE}%', f'R@1 60.0{SPACE}%'} <= set(texts(chart))


def test_a_line_that_ends_close_to_another_is_left_out():
    chart = charts.curve_chart('curve-0', RECALL, ROWS, kept=3)
    labels = [text.split()[0] for text in texts(chart) if text.startswith('R@')]
    assert labels == ['R@1', 'R@4']
    assert 'R@2' in chart.description


def test_only_an_earlier_epoch_is_marked():
    def dashes(kept):
        chart = charts.curve_chart('curve-0', RECALL, ROWS, kept)
        return chart.drawing.count('stroke-dasharray')

    assert [dashes(kept) for kept in (0, 1, 2, 3)] == [0, 1, 1, 0]


@pytest.mark.parametrize('values', [[1.5], [0.0, 0.0], [-2.0, math.nan, 1e9]])
def test_curve_chart_of_odd_values(values):
    rows = pd.DataFrame({'epoch': range(1, len(values) + 1), 'loss': values})
    panel = Panel('Loss', {'': 'loss'}, False)
    check_drawing(charts.curve_chart('curve-0', panel, rows, kept=1))


def test_heads_chart():
    recalls = [HeadsRecall(1, 0.25, 0.2, 0.3), HeadsRecall(2, 0.5, math.nan, math.nan)]
    chart = charts.heads_chart(recalls)
    check_drawing(chart)
    assert chart.description == f'1 heads {share(0.25)}; 2 heads {share(0.5)}'
    assert {'1', '2', f'20{SPACE}%', f'50.0{SPACE}%'} <= set(texts(chart))
    assert chart.title.endswith(f'heads, with 95{SPACE}% intervals')
    without = charts.heads_chart(recalls[1:])
    check_drawing(without)
    assert without.title.endswith('heads')


def test_heads_chart_of_one_head():
    check_drawing(charts.heads_chart([HeadsRecall(1, 1.0, 1.0, 1.0)]))


def test_score_chart():
    wrong, right = counts({40: 3, 50: 1}), counts({80: 1})
    chart = charts.score_chart('scores-0', 'Scores', wrong, right, CALIBRATION)
    check_drawing(chart)
    assert {'✗ wrong', '✓ right', 'threshold 0.750'} <= set(texts(chart))
    assert chart.description == (
        f'wrong: highest share {share(0.75)} at a score of about -0.19; '
        f'right: highest share {share(1)} at a score of about 0.61'
    )


def test_score_chart_of_a_threshold_without_an_interval():
    few = {**CALIBRATION, 'threshold': 0.99, 'low': None, 'high': None}
    chart = charts.score_chart('s', 'Scores', counts({40: 3}), counts({80: 1}), few)
    check_drawing(chart)
    assert {'threshold 0.990', '1'} <= set(texts(chart))


def test_score_chart_of_one_kind_without_threshold():
    chart = charts.score_chart('s', 'Scores', counts({3: 2}), counts({}), None)
    check_drawing(chart)
    assert not any('threshold' in text for text in texts(chart))
    assert 'right: highest share 0.00' in chart.description


def test_equal_charts_have_equal_drawings():
    first, second = (charts.curve_chart('k', RECALL, ROWS, 2) for _ in range(2))
    assert first == second
    other = charts.curve_chart('other', RECALL, ROWS, 2)
    assert other.drawing == first.drawing.replace('"k-', '"other-').replace(
        '#k-', '#other-'
    )


def test_settings_of_the_user_change_nothing():
    import matplotlib

    expected = charts.curve_chart('k', RECALL, ROWS, 2)
    with matplotlib.rc_context({'lines.linewidth': 9, 'svg.fonttype': 'path'}):
        assert charts.curve_chart('k', RECALL, ROWS, 2) == expected
        assert matplotlib.rcParams['lines.linewidth'] == 9


def test_texts_are_escaped():
    panel = Panel('<b>', {'$<i>&$': 'a'}, True)
    chart = charts.curve_chart('k', panel, ROWS, 3)
    assert '&lt;i&gt;&amp;' in chart.drawing and '<i>' not in chart.drawing

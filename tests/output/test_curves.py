"""The curves of a run: which there are, and the figure for a paper."""

import math
import xml.etree.ElementTree as ElementTree

import pandas as pd
import pytest

from areir.errors import UserError
from areir.output.curves import curve_panels, draw_curves

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


def test_panels():
    loss, accuracy, recall, map_at_r = curve_panels(ROWS)
    assert loss.columns == {'': 'train_loss'} and not loss.is_share
    assert accuracy.columns == {'': 'train_accuracy'} and accuracy.is_share
    assert recall.columns == {'R@1': 'test_recall@1', 'R@10': 'test_recall@10'}
    assert map_at_r.columns == {'': 'test_map@r'}


def test_panels_of_other_columns():
    rows = pd.DataFrame({'epoch': [1], 'val_recall@1': [0.5], 'test_recall@<b>': [1]})
    (held_out,) = curve_panels(rows)
    assert list(held_out.columns.values()) == ['val_recall@1']


@pytest.mark.parametrize('ending', ['svg', 'pdf'])
def test_equal_rows_give_equal_bytes(tmp_path, ending):
    path = tmp_path / f'run_curves.{ending}'
    contents = []
    for _ in range(2):
        draw_curves(ROWS, str(path))
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert b'Date' not in contents[0] and b'dc:date' not in contents[0]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_figure_is_an_svg_with_a_line_for_each_column(tmp_path):
    path = tmp_path / 'curves.svg'
    draw_curves(ROWS, str(path))
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith('svg')
    axes = [group for group in root.iter() if group.get('id', '').startswith('axes_')]
    assert len(axes) == 4


@pytest.mark.parametrize(
    'rows', [ROWS[:1], ROWS[['epoch', 'train_loss']], ROWS[['epoch']], ROWS[:0]]
)
def test_short_runs(tmp_path, rows, recwarn):
    path = tmp_path / 'curves.svg'
    draw_curves(rows, str(path))
    assert path.stat().st_size > 0
    assert not recwarn.list


def test_settings_of_the_user_change_nothing(tmp_path):
    import matplotlib

    draw_curves(ROWS, str(tmp_path / 'a.svg'))
    with matplotlib.rc_context({'font.size': 20, 'svg.fonttype': 'none'}):
        draw_curves(ROWS, str(tmp_path / 'b.svg'))
        assert matplotlib.rcParams['font.size'] == 20
    assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(UserError, match=r'curves\.png'):
        draw_curves(ROWS, str(tmp_path / 'curves.png'))
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=r'missing.curves\.svg'):
        draw_curves(ROWS, str(tmp_path / 'missing/curves.svg'))

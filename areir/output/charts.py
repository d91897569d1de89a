"""The figures of a run, drawn by matplotlib as SVG.

The curves by epoch are one figure for a paper, <run>_curves.svg, and single charts on
the page of the run, which also shows recall by number of heads and the scores.
"""

import base64
import io
import math
import re
from functools import partial
from typing import NamedTuple

import numpy as np

from areir.files import atomic_path
from areir.output.wording import number, share

WIDTH, HEIGHT = 2.25, 1.9  # of a chart in inches
COLOURS = '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00'
RIGHT, WRONG, *_ = COLOURS
DASHED = {'color': 'black', 'linewidth': 0.8, 'linestyle': '--'}
STYLE = {
    'font.size': 8,
    'axes.titlesize': 8,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.linewidth': 0.6,
    'xtick.major.width': 0.6,
    'ytick.major.width': 0.6,
    'lines.linewidth': 1.3,
    'lines.markersize': 3,
    'legend.frameon': False,
    'legend.fontsize': 7,
    'legend.handlelength': 1.2,
    'svg.hashsalt': 'areir',  # equal figures give equal bytes
}


class Chart(NamedTuple):
    """A figure on the page of a run."""

    picture: str  # an SVG as a data URI
    description: str  # its title and numbers, for people who cannot see it


def make_chart(description, draw):
    """Return the Chart that draw(axes) draws."""
    file = io.BytesIO()
    save_svg(file, [draw], columns=1)
    encoded = base64.b64encode(file.getvalue()).decode()
    return Chart(f'data:image/svg+xml;base64,{encoded}', description)


def save_svg(file, drawings, columns):
    """Draw functions draw(axes) as charts side by side and save them to a file.

    The user's settings of matplotlib change nothing.
    """
    # imported here because it takes a second, which only figures need
    from matplotlib import style
    from matplotlib.figure import Figure

    lines = -(-len(drawings) // columns)
    size = WIDTH * columns, HEIGHT * lines
    with style.context(['default', STYLE]):
        figure = Figure(figsize=size, layout='constrained')
        for place, draw in enumerate(drawings, 1):
            draw(figure.add_subplot(lines, columns, place))
        figure.savefig(file, format='svg', metadata={'Date': None, 'Creator': None})


# Curves by epoch


class Panel(NamedTuple):
    """One chart of curves: its title and {label of a line: column of the CSV}."""

    title: str
    columns: dict
    is_share: bool  # the values are fractions, written as percentages

    def write(self, value):
        """Write a value of the curves."""
        return share(value) if self.is_share else number(value)


def curve_panels(rows):
    """Return the Panels of a run's rows, a DataFrame with `epoch`.

    Columns that the rows lack or that hold no number are left out.
    """
    recalls = [column for column in rows if re.fullmatch(r'test_recall@\d+', column)]
    recalls = {'R@' + column.partition('@')[2]: column for column in recalls}
    panels = (
        Panel('Training loss', {'': 'train_loss'}, False),
        Panel('Training accuracy', {'': 'train_accuracy'}, True),
        Panel('Test Recall@K', recalls, True),
        Panel('Test MAP@R', {'': 'test_map@r'}, True),
        Panel('Recall@1 of held-out classes', {'': 'val_recall@1'}, True),
    )
    present = []
    for panel in panels:
        columns = {
            label: column
            for label, column in panel.columns.items()
            if column in rows and rows[column].notna().any()
        }
        if columns:
            present.append(panel._replace(columns=columns))
    return present


def draw_curves(rows, path):
    """Draw the curves of a run by epoch as one figure for a paper, an SVG file.

    rows: a DataFrame of the rows of <run>_results.csv. Equal rows give equal bytes.
    Raises WriteError if the file cannot be written.
    """
    drawings = [partial(draw_panel, panel, rows, None) for panel in curve_panels(rows)]
    columns = 2 if len(drawings) == 4 else min(len(drawings), 3)
    with atomic_path(path) as temporary:
        save_svg(temporary, drawings, columns)


def curve_chart(panel, rows, kept):
    """Return the Chart of a Panel; kept: the epoch to mark, unless it is the last."""
    lines = []
    for label, column in panel.columns.items():
        points = curve_points(rows, column).to_numpy().tolist()
        ends = [
            f'{panel.write(value)} at epoch {epoch:g}'
            for epoch, value in (points[0], points[-1])
        ]
        lines.append(f'{label} {", ".join(ends)}'.strip())
    description = f'{panel.title}, by epoch: {"; ".join(lines)}'
    return make_chart(description, partial(draw_panel, panel, rows, kept))


def curve_points(rows, column):
    """Return the finite values of a column with their epochs, a DataFrame."""
    points = rows[['epoch', column]].replace([math.inf, -math.inf], math.nan)
    return points.dropna()


def draw_panel(panel, rows, kept, axes):
    """Draw the lines of a Panel, and a dashed line at the epoch `kept` or None."""
    from matplotlib.ticker import MaxNLocator

    scale = 100 if panel.is_share else 1
    for place, (label, column) in enumerate(panel.columns.items()):
        points = curve_points(rows, column)
        marker = 'o' if len(points) == 1 else None
        look = {'label': label, 'color': COLOURS[place % len(COLOURS)]}
        axes.plot(points['epoch'], scale * points[column], marker=marker, **look)
    if kept is not None and kept < rows['epoch'].max():
        axes.axvline(kept, **DASHED)
    axes.set_title(panel.title + (' (%)' if panel.is_share else ''))
    axes.set_xlabel('epoch')
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.margins(x=0.02)
    if len(panel.columns) > 1:
        # beside the lines, in their order
        axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), reverse=True)


# Heads and scores


def heads_chart(recalls):
    """Return the Chart of Recall@1 by number of heads: [Estimate]."""
    numbers = [f'{row.name} heads {share(row.value)}' for row in recalls]
    description = f'Recall@1 by number of heads: {"; ".join(numbers)}'
    return make_chart(description, partial(draw_heads, recalls))


def draw_heads(recalls, axes):
    """Draw Recall@1 by number of heads; vertical lines are its intervals."""
    places = range(len(recalls))
    values, lows, highs = (
        [100 * limit for limit in limits]
        for limits in zip(*(row[1:] for row in recalls))
    )
    axes.vlines(places, lows, highs, color=RIGHT, alpha=0.5)
    axes.plot(places, values, 'o-', color=RIGHT)
    axes.set_xticks(places, [row.name for row in recalls])
    axes.set_xlabel('heads')
    axes.set_title('Recall@1 (%), with 95 % intervals')


def score_chart(title, shares, calibration):
    """Return the Chart of the scores of wrong and right images.

    shares: histograms {'wrong', 'right': (bins,)} from -1 to 1; calibration: a dict
    with the threshold to mark, or None.
    """
    peaks = []
    for kind, heights in shares.items():
        peak, bins = int(heights.argmax()), len(heights)
        middle = (2 * peak + 1) / bins - 1
        peaks.append(f'{kind}: at most {share(heights[peak])}, at about {middle:.2f}')
    description = f'{title}: {"; ".join(peaks)}'
    if calibration:
        description += f'; threshold {number(calibration["threshold"])}'
    return make_chart(description, partial(draw_scores, title, shares, calibration))


def draw_scores(title, shares, calibration, axes):
    """Draw two histograms, and a dashed line at the threshold with its interval."""
    taken = (shares['wrong'] + shares['right']).nonzero()[0]
    first, last = taken[0], taken[-1] + 1
    edges = np.linspace(-1, 1, len(shares['right']) + 1)[first : last + 1]
    for kind, sign, colour in (('wrong', '✗', WRONG), ('right', '✓', RIGHT)):
        heights = 100 * shares[kind][first:last]
        look = {'color': colour, 'alpha': 0.5, 'label': f'{sign} {kind}'}
        axes.stairs(heights, edges, fill=True, **look)
    if calibration:
        axes.axvline(calibration['threshold'], label='threshold', **DASHED)
        low, high = calibration['low'], calibration['high']
        if low is not None:
            axes.axvspan(low, high, color='black', alpha=0.1, linewidth=0)
    axes.set_xlabel('score')
    axes.set_title(f'{title} (%)')
    axes.figure.legend(loc='outside lower center', ncols=3)

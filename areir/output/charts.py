"""The figures of a run, drawn by matplotlib as SVG.

The curves by epoch are one figure for a paper, <run>_curves.svg, and single charts on
the page of the run, which also shows recall by number of heads and the scores.
"""

import base64
import io
from functools import partial
from typing import NamedTuple

import numpy as np

from areir.errors import UserError, counted
from areir.evaluation.roc import curves
from areir.files import atomic_path

# how values are written, on the page of a run, too
share, number = '{:.2%}'.format, '{:.3f}'.format
WIDTH, HEIGHT = 2.25, 1.9  # of a chart in inches
COLOURS = '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00'
RIGHT, WRONG, *_ = COLOURS
# columns of the CSV
WHOLE_GALLERY = {'all_recall@1_trained': 'R@1 trained', 'all_recall@1_new': 'R@1 new'}
DASHED = {'color': 'black', 'linewidth': 0.8, 'linestyle': '--'}
STYLE = {
    'font.size': 8,
    'axes.titlesize': 8,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'lines.linewidth': 1.3,
    'lines.markersize': 3,
    'legend.frameon': False,
    'legend.fontsize': 7,
    'legend.handlelength': 1.2,
    'svg.hashsalt': 'areir',  # equal figures give equal bytes
}


def make_chart(description, draw):
    """Return (what draw(axes) draws, an SVG as a data URI; its text alternative)."""
    file = io.BytesIO()
    save_svg(file, [draw], columns=1)
    encoded = base64.b64encode(file.getvalue()).decode()
    return f'data:image/svg+xml;base64,{encoded}', description


def save_svg(file, drawings, columns):
    """Save charts, functions draw(axes), side by side to an open file or a path.

    The user's settings of matplotlib change nothing.
    """
    # imported here because it takes a second, which only figures need
    from matplotlib import style
    from matplotlib.figure import Figure

    lines = -(-len(drawings) // columns)
    with style.context(['default', STYLE]):
        figure = Figure((WIDTH * columns, HEIGHT * lines), layout='constrained')
        for place, draw in enumerate(drawings, 1):
            draw(figure.add_subplot(lines, columns, place))
        figure.savefig(file, format='svg', metadata={'Date': None, 'Creator': None})


class Panel(NamedTuple):
    """One chart of curves: its title and {column of the CSV: label of its line}."""

    title: str
    columns: dict
    write: object  # `share` or `number`, which writes a value


def curve_panels(rows):
    """Return the Panels of a run's rows, a DataFrame; empty columns are left out."""
    present = rows.columns[rows.notna().any()]
    recalls = present[present.str.fullmatch(r'test_recall@\d+')]
    recalls = {column: column.replace('test_recall', 'R') for column in recalls}
    panels = []
    for title, columns, write in (
        ('Training loss', {'train_loss': ''}, number),
        ('Training accuracy', {'train_accuracy': ''}, share),
        ('Test Recall@K', recalls, share),
        ('Whole gallery', WHOLE_GALLERY, share),
        ('Test MAP@R', {'test_map@r': ''}, share),
        ('Recall@1 of held-out classes', {'val_recall@1': ''}, share),
    ):
        if columns := {name: columns[name] for name in columns if name in present}:
            panels.append(Panel(title, columns, write))
    return panels


def draw_curves(rows, path):
    """Draw the curves of a run, a DataFrame, as one figure for a paper, an SVG file.

    Equal rows give equal bytes. Raises WriteError if the file cannot be written.
    """
    drawings = [partial(draw_panel, panel, rows, None) for panel in curve_panels(rows)]
    columns = 2 if len(drawings) == 4 else min(len(drawings), 3)
    with atomic_path(path) as temporary:
        save_svg(temporary, drawings, columns)


def curve_chart(panel, rows, kept):
    """Return the chart of a Panel; kept: the epoch to mark, unless it is the last."""
    lines = []
    for column, label in panel.columns.items():
        points = rows[['epoch', column]].dropna().to_numpy()[[0, -1]]
        ends = [f'{panel.write(value)} at epoch {epoch:g}' for epoch, value in points]
        lines.append(f'{label} {", ".join(ends)}'.strip())
    description = f'{panel.title}, by epoch: {"; ".join(lines)}'
    return make_chart(description, partial(draw_panel, panel, rows, kept))


def distinct_colours(count):
    """Return COLOURS, or as many of a colour map if there are more lines."""
    from matplotlib import colormaps

    if count <= len(COLOURS):
        return COLOURS
    return colormaps['turbo'](np.linspace(0.05, 0.95, count))


def draw_panel(panel, rows, kept, axes):
    """Draw the lines of a Panel, and a dashed line at the epoch `kept` or None."""
    from matplotlib.ticker import MaxNLocator

    is_share = panel.write is share
    colours = distinct_colours(len(panel.columns))
    for colour, (column, label) in zip(colours, panel.columns.items()):
        points = rows[['epoch', column]].dropna()
        marker = 'o' if len(points) == 1 else None
        values = points[column] * (100 if is_share else 1)
        axes.plot(points['epoch'], values, color=colour, label=label, marker=marker)
    if kept is not None and kept < rows['epoch'].max():
        axes.axvline(kept, **DASHED)
    axes.set_title(panel.title + (' (%)' if is_share else ''))
    axes.set_xlabel('epoch')
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.margins(x=0.02)
    if len(panel.columns) > 1:
        # beside the lines, in their order
        axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), reverse=True)


def heads_chart(recalls):
    """Return the chart of Recall@1 by number of heads, [Estimate]."""

    def draw(axes):
        heads, *limits = zip(*recalls)
        values, lows, highs = 100 * np.array(limits)
        axes.vlines(heads, lows, highs, color=RIGHT, alpha=0.5)
        axes.plot(heads, values, 'o-', color=RIGHT)
        axes.set_xlabel('heads')
        axes.set_title('Recall@1 (%), with 95 % intervals')

    numbers = [
        f'{counted(int(row.name), "head")} {share(row.value)}' for row in recalls
    ]
    return make_chart(f'Recall@1 by number of heads: {"; ".join(numbers)}', draw)


def score_chart(title, shares, calibration):
    """Return the chart of the scores of wrong and right images.

    shares: histograms {'wrong', 'right': (bins,)} from -1 to 1; calibration: holds the
    threshold to mark, or None.
    """

    def draw(axes):
        taken = (shares['wrong'] + shares['right']).nonzero()[0]
        first, last = taken[0], taken[-1] + 1
        edges = np.linspace(-1, 1, len(shares['right']) + 1)[first : last + 1]
        for kind, sign, colour in (('wrong', '✗', WRONG), ('right', '✓', RIGHT)):
            heights, label = 100 * shares[kind][first:last], f'{sign} {kind}'
            axes.stairs(heights, edges, fill=True, color=colour, alpha=0.5, label=label)
        if calibration:
            axes.axvline(calibration['threshold'], label='threshold', **DASHED)
            low, high = calibration['low'], calibration['high']
            if low is not None:
                axes.axvspan(low, high, color='black', alpha=0.1, linewidth=0)
        axes.set_xlabel('score')
        axes.set_title(f'{title} (%)')
        axes.figure.legend(loc='outside lower center', ncols=3)

    peaks = []
    for kind, heights in shares.items():
        peak = int(heights.argmax())
        middle = (2 * peak + 1) / len(heights) - 1
        peaks.append(f'{kind}: at most {share(heights[peak])}, at about {middle:.2f}')
    description = f'{title}: {"; ".join(peaks)}'
    if calibration:
        description += f'; threshold {number(calibration["threshold"])}'
    return make_chart(description, draw)


def draw_roc(pairs, path):
    """Draw the curve of true by false matches to an SVG.

    pairs: counts (2, classes, BINS) of wrong and right ones, see
    `evaluation.roc`. Raises UserError if there are none of one kind.
    """
    false, true = curves(pairs.sum(dim=1)).numpy()
    if not (false.any() and true.any()):
        raise UserError(f'{path}: right and wrong pairs are needed for a curve')
    lowest = false[false > 0][0]

    def draw(axes):
        axes.plot(100 * false, 100 * true, color=RIGHT)
        axes.set_xscale('log')
        axes.set_xlim(100 * min(lowest, 1e-4), 100)
        axes.set_ylim(0, 100)
        axes.set_xlabel('false matches (% of wrong pairs)')
        axes.set_title('true matches (% of right pairs)')

    with atomic_path(path) as temporary:
        save_svg(temporary, [draw], columns=1)

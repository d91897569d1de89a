"""The curves of a run by epoch: which ones there are, and a figure for a paper."""

import math
import os
import re
from typing import NamedTuple

from areir.errors import UserError
from areir.files import atomic_path

PANEL_SIZE = 2.25, 1.9  # width and height in inches
COLOURS = '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00'
STYLE = {
    'font.size': 8,
    'axes.titlesize': 8,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.linewidth': 0.6,
    'xtick.major.width': 0.6,
    'ytick.major.width': 0.6,
    'lines.linewidth': 1.3,
    'legend.frameon': False,
    'legend.fontsize': 7,
    'legend.handlelength': 1.2,
    'pdf.fonttype': 42,  # TrueType, which publishers ask for
    'svg.hashsalt': 'areir',  # equal curves give equal bytes
}
WITHOUT_DATE = {
    '.svg': {'Date': None, 'Creator': None},
    '.pdf': {'CreationDate': None, 'Creator': None, 'Producer': None},
}


class Panel(NamedTuple):
    """One chart of a run: its title and {label of a line: column of the CSV}."""

    title: str
    columns: dict
    is_share: bool  # the values are fractions, written as percentages


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
    """Draw the curves of a run by epoch as one figure for a paper.

    rows: a DataFrame of the rows of <run>_results.csv; path: ends in .svg or .pdf.
    Equal rows give equal bytes. Raises UserError for another ending, and WriteError if
    the file cannot be written.
    """
    # imported here because it takes a second, which only this figure needs
    from matplotlib import style
    from matplotlib.figure import Figure

    ending = os.path.splitext(path)[1]
    if ending not in WITHOUT_DATE:
        raise UserError(f'{path}: curves are drawn as .svg or .pdf')
    panels = curve_panels(rows)
    count = max(1, len(panels))
    columns = 2 if count == 4 else min(count, 3)
    lines = -(-count // columns)
    size = PANEL_SIZE[0] * columns, PANEL_SIZE[1] * lines
    with style.context(['default', STYLE]):
        figure = Figure(figsize=size, layout='constrained' if panels else None)
        for place, panel in enumerate(panels, 1):
            draw_panel(figure.add_subplot(lines, columns, place), panel, rows)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=ending[1:], metadata=WITHOUT_DATE[ending])


def draw_panel(axes, panel, rows):
    """Draw the lines of a Panel into matplotlib axes."""
    from matplotlib.ticker import MaxNLocator

    scale = 100 if panel.is_share else 1
    for place, (label, column) in enumerate(panel.columns.items()):
        colour = COLOURS[place % len(COLOURS)]
        line = rows[['epoch', column]].replace([math.inf, -math.inf], math.nan)
        line = line.dropna()
        marker = 'o' if len(line) == 1 else None
        values = scale * line[column]
        axes.plot(line['epoch'], values, label=label, color=colour, marker=marker, ms=3)
    axes.set_title(panel.title + (' (%)' if panel.is_share else ''))
    axes.set_xlabel('epoch')
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.margins(x=0.02)
    if len(panel.columns) > 1:
        # beside the lines, in their order
        axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), reverse=True)

"""The charts on the page of a run, drawn by matplotlib as SVG.

The template puts each drawing into an <svg> with a title and a description for screen
readers. Colours are those of the style sheet, so that one drawing is readable in light
and in dark: matplotlib draws in stand-ins, and `to_page` replaces them by the names of
CSS variables.
"""

import io
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from areir.output.run_statistics import bin_edges
from areir.output.wording import number, share

WIDTH, HEIGHT = 280, 190  # of a chart, in pixels at its natural size
LEFT, BOTTOM = 46, 26  # margins, which hold the labels of the ticks
LINE_APART = 15  # pixels between the ends of two lines that are both labelled
LETTER = 7.4  # width of a letter in pixels, on the safe side
COLOURS = {
    '#000001': 'var(--right)',
    '#000002': 'var(--wrong)',
    '#000003': 'var(--text)',
    '#000004': 'var(--soft)',
    '#000005': 'var(--line)',
}
RIGHT, WRONG, TEXT, SOFT, GRID = COLOURS
DASHED = {'color': TEXT, 'linewidth': 1.5, 'linestyle': (0, (2.7, 2))}
STYLE = {
    'font.size': 11.5,
    'text.color': TEXT,
    'text.parse_math': False,
    'axes.edgecolor': GRID,
    'axes.facecolor': 'none',
    'axes.axisbelow': True,
    'axes.xmargin': 0,
    'axes.ymargin': 0,
    'axes.spines.left': False,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.spines.bottom': False,
    'figure.facecolor': 'none',
    'grid.color': GRID,
    'grid.linewidth': 1,
    'xtick.color': GRID,
    'ytick.color': GRID,
    'xtick.labelcolor': SOFT,
    'ytick.labelcolor': SOFT,
    'xtick.major.size': 0,
    'ytick.major.size': 0,
    'xtick.major.pad': 9,
    'ytick.major.pad': 8,
    'lines.linewidth': 2,
    'lines.markersize': 7,
    'lines.solid_capstyle': 'butt',
    'lines.markeredgewidth': 0,
    'svg.fonttype': 'none',
    'svg.hashsalt': 'areir',
}


@dataclass
class Chart:
    """A chart for the template: drawing holds the contents of an <svg>."""

    key: str  # unique on the page
    title: str
    description: str  # its numbers, for screen readers
    drawing: str
    width: int = WIDTH
    height: int = HEIGHT


class Canvas:
    """A matplotlib figure of the size of a chart, with one pair of axes.

    A context manager: inside it matplotlib has our settings, whatever the user's are.
    """

    def __init__(self, right, top=14):
        """right, top: margins in pixels."""
        width, height = WIDTH - right - LEFT, HEIGHT - top - BOTTOM
        box = (LEFT, BOTTOM, width, height)
        self.box = [size / (WIDTH, HEIGHT)[i % 2] for i, size in enumerate(box)]

    def __enter__(self):
        # imported here because it takes a second, which only the page needs
        from matplotlib import style
        from matplotlib.figure import Figure

        self.settings = style.context(['default', STYLE])
        self.settings.__enter__()
        self.figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        self.axes = self.figure.add_axes(self.box)
        self.axes.grid(axis='y')
        return self

    def __exit__(self, *error):
        self.settings.__exit__(*error)

    def set_ticks(self, x_ticks, y_ticks):
        """Set the ticks {value: label} of both axes, which end at the outer ones."""
        self.axes.set_xticks(list(x_ticks), list(x_ticks.values()))
        self.axes.set_yticks(list(y_ticks), list(y_ticks.values()))
        self.axes.set_xlim(*limits(x_ticks))
        self.axes.set_ylim(*limits(y_ticks))

    def height_of(self, value):
        """Return where a y value is drawn, in pixels from the bottom."""
        return self.axes.transData.transform((0, value))[1]

    def label_end(self, x, y, text):
        """Mark the end of a line with a dot and write `text` beside it."""
        self.axes.plot([x], [y], 'o', color=RIGHT)
        self.axes.annotate(
            text,
            (x, y),
            xytext=(8, 0),
            textcoords='offset points',
            verticalalignment='center_baseline',
            fontweight='bold',
        )

    def label_corner(self, x, text, alignment, colour):
        """Write above the axes at their left (x = 0) or right end (x = 1)."""
        self.axes.annotate(
            text,
            (x, 1),
            xycoords='axes fraction',
            xytext=(0, 29),
            textcoords='offset points',
            horizontalalignment=alignment,
            fontweight='bold',
            color=colour,
        )

    def drawing(self, key):
        """Return what is drawn as the contents of an <svg>; key: see `to_page`."""
        for artist in self.axes.findobj():
            artist.set_clip_on(False)
        buffer = io.StringIO()
        without = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
        self.figure.savefig(buffer, format='svg', metadata=without)
        return to_page(buffer.getvalue(), key)


def limits(ticks):
    """Return the outer ticks, or an axis around the only one."""
    low, high = min(ticks), max(ticks)
    return (low, high) if low < high else (low - 1, high + 1)


def to_page(svg, key):
    """Return the contents of matplotlib's SVG, ready to be put into an HTML page.

    It has no namespaces and no style element, its fonts and colours are the page's, and
    ids remain only where they are used. key: what these ids start with, so that they
    are unique on the page.
    """
    root = ElementTree.fromstring(svg)
    used = {href[1:] for href in map(href_of, root.iter()) if href}
    for element in root.iter():
        element.tag = element.tag.rpartition('}')[2]
        element.tail = None
        href, name = href_of(element), element.attrib.pop('id', None)
        if href:
            element.attrib = {
                attribute: value
                for attribute, value in element.attrib.items()
                if not attribute.endswith('href')
            }
            element.set('href', f'#{key}-{href[1:]}')
        if name in used:
            element.set('id', f'{key}-{name}')
        if 'style' in element.attrib:
            element.set('style', page_style(element.get('style')))
    groups = [element for element in root if element.tag == 'g']
    return ''.join(ElementTree.tostring(group, encoding='unicode') for group in groups)


def href_of(element):
    """Return what an element refers to, '#id', or None."""
    for attribute, value in element.attrib.items():
        if attribute.rpartition('}')[2] == 'href':
            return value
    return None


def page_style(style):
    """Return a style attribute with the page's font family and colours."""
    rules = [rule.strip() for rule in style.split(';')]
    rules = [rule for rule in rules if not rule.startswith('font-family')]
    style = '; '.join(rules)
    for stand_in, colour in COLOURS.items():
        style = style.replace(stand_in, colour)
    return style


def round_ticks(low, high, count=4):
    """Return about `count` round numbers that enclose low and high."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(count, steps=[1, 2, 5, 10])
    return locator.tick_values(low, high).tolist()


def value_ticks(low, high, write, count=4):
    """Return round ticks {value: label}; write: `share` or `number`."""
    return {value: write(value, None) for value in round_ticks(low, high, count)}


# The charts


def curve_chart(key, panel, rows, kept):
    """Return the Chart of a Panel of curves.py by epoch.

    kept: the epoch that is marked, unless it is the last. Of lines that end close to
    each other only the first is drawn.
    """
    write = share if panel.is_share else number
    curves = {
        label: list(rows[['epoch', column]].dropna().itertuples(index=False, name=None))
        for label, column in panel.columns.items()
    }
    ends = {
        label: f'{label} {write(points[-1][1], 1 if panel.is_share else 3)}'.strip()
        for label, points in curves.items()
    }
    values = [value for points in curves.values() for _, value in points]
    first, last = rows['epoch'].min(), rows['epoch'].max()

    y_ticks = value_ticks(min(values), max(values), write)
    with Canvas(right=12 + LETTER * max(map(len, ends.values()))) as canvas:
        canvas.set_ticks(epoch_ticks(first, last), y_ticks)
        if first <= kept < last:
            canvas.axes.axvline(kept, **DASHED)
        draw_lines(canvas, curves, ends)
        drawing = canvas.drawing(key)

    descriptions = []
    for label, points in curves.items():
        (start, start_value), (end, end_value) = points[0], points[-1]
        said = (
            f'{label} {write(start_value)} at epoch {start:g}, '
            f'{write(end_value)} at epoch {end:g}'
        )
        descriptions.append(said.strip())
    title = f'{panel.title}, by epoch'
    return Chart(key, title, '; '.join(descriptions), drawing)


def epoch_ticks(first, last):
    """Return ticks {epoch: label} at the ends and in the middle."""
    epochs = {first, last}
    if last - first > 1:
        epochs.add(round((first + last) / 2))
    return {epoch: f'{epoch:g}' for epoch in sorted(epochs)}


def draw_lines(canvas, curves, ends):
    """Draw curves {label: [(epoch, value)]} whose ends have the labels `ends`."""
    taken = []
    for label, points in curves.items():
        epochs, values = zip(*points)
        end = canvas.height_of(values[-1])
        if any(abs(end - other) < LINE_APART for other in taken):
            continue
        canvas.axes.plot(epochs, values, color=RIGHT, alpha=0.55 if taken else 1)
        canvas.label_end(epochs[-1], values[-1], ends[label])
        taken.append(end)


def heads_chart(recalls):
    """Return the Chart of [HeadsRecall] by number of heads, with intervals."""
    places = range(len(recalls))
    values = [row.recall for row in recalls]
    lows = [row.recall if math.isnan(row.low) else row.low for row in recalls]
    highs = [row.recall if math.isnan(row.high) else row.high for row in recalls]

    x_ticks = {place: str(row.heads) for place, row in zip(places, recalls)}
    with Canvas(right=60) as canvas:
        canvas.set_ticks(x_ticks, value_ticks(min(lows), max(highs), share))
        canvas.axes.vlines(places, lows, highs, color=RIGHT, alpha=0.55)
        canvas.axes.plot(places, values, 'o-', color=RIGHT)
        canvas.label_end(places[-1], values[-1], share(values[-1], 1))
        drawing = canvas.drawing('heads-chart')

    title = 'Recall@1 by number of heads'
    if not math.isnan(recalls[0].low):
        title += ', with 95\N{NO-BREAK SPACE}% intervals'
    said = [f'{row.heads} heads {share(row.recall)}' for row in recalls]
    return Chart('heads-chart', title, '; '.join(said), drawing)


def score_chart(key, title, wrong, right, calibration):
    """Return the Chart of the scores of wrong and right images, as shares of each kind.

    wrong, right (SCORE_BINS,): counts; calibration: the threshold to mark, or None.
    """
    shares = {
        kind: (counts / counts.sum().clamp(min=1)).tolist()
        for kind, counts in (('wrong', wrong), ('right', right))
    }
    edges = bin_edges()
    taken = (wrong + right).nonzero().flatten().tolist()
    ends = [edges[taken[0]], edges[taken[-1] + 1]]
    if calibration:
        marked = [calibration[name] for name in ('low', 'threshold', 'high')]
        ends += [score for score in marked if score is not None]
    x_ticks = value_ticks(min(ends), max(ends), number)
    highest = max(*shares['wrong'], *shares['right'])

    with Canvas(right=14, top=42) as canvas:
        canvas.set_ticks(x_ticks, value_ticks(0, highest, share, count=3))
        draw_histogram(canvas.axes, shares['wrong'], edges, WRONG)
        draw_histogram(canvas.axes, shares['right'], edges, RIGHT)
        if calibration:
            draw_threshold(canvas.axes, calibration)
        canvas.label_corner(0, '✗ wrong', 'left', WRONG)
        canvas.label_corner(1, '✓ right', 'right', RIGHT)
        drawing = canvas.drawing(key)

    said = []
    for kind, heights in shares.items():
        peak = heights.index(max(heights))
        middle = (edges[peak] + edges[peak + 1]) / 2
        said.append(
            f'{kind}: highest share {share(heights[peak])} at a score of about '
            f'{middle:.2f}'
        )
    return Chart(key, title, '; '.join(said), drawing)


def draw_histogram(axes, heights, edges, colour):
    """Draw the steps of a histogram from its first to its last bin that is not 0."""
    inside = [place for place, height in enumerate(heights) if height]
    if inside:
        first, last = inside[0], inside[-1] + 1
        axes.stairs(
            heights[first:last],
            edges[first : last + 1],
            fill=True,
            facecolor=(colour, 0.22),
            edgecolor=colour,
            linewidth=1.5,
        )


def draw_threshold(axes, calibration):
    """Mark the threshold of a calibration and its interval, if it has one."""
    threshold = calibration['threshold']
    limits = calibration['low'], calibration['high']
    if None not in limits:
        axes.axvspan(*limits, facecolor=(TEXT, 0.13), edgecolor='none')
    axes.axvline(threshold, 0, 1.05, **DASHED)
    low, high = axes.get_xlim()
    near_edge = (threshold - low) / (high - low) > 0.65
    axes.annotate(
        f'threshold {threshold:.3f}',
        (threshold, 1),
        xycoords=('data', 'axes fraction'),
        xytext=(0, 11),
        textcoords='offset points',
        horizontalalignment='right' if near_edge else 'center',
        fontweight='bold',
    )

"""One page that shows a finished run: what the model finds, and where it fails.

The page is a single file of HTML without scripts, that opens from disk and loads nothing: charts are SVG, thumbnails
are data in it. Whatever comes from data, such as names of classes, is escaped. `inference.py` calls `write_report`.
"""
import base64
import contextlib
import html
import io
import json
import math
import os
import shlex
from collections import Counter

import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

import data_utils
import retrieval
import utils

NEIGHBOURS, QUERIES, PER_CLASS, CLASSES = 8, 8, 2, 10  # shown: of a query, of the best and worst, of a class, worst
SAMPLE, BLOCK = 2000, 128                              # queries whose pairs are counted, and held at a time
BINS = 100                                             # of scores from -1 to 1
THUMBNAIL = 96                                         # pixels
WIDTH, HEIGHT, LEFT, BOTTOM = 280, 190, 46, 26         # of a chart, and of its margins
PROTOCOLS = {'strict': 'an embedding depends on its own image alone.',
             'published': "that of the method's first figures: in testing, too, every batch multiplies each head's "
                          'input by a random weight, and batches are in the order of the classes, so images of a batch '
                          'resemble each other, whatever they show.'}
SELECTIONS = {'last': 'the last epoch is kept, so nothing was chosen by its result.',
              'val': 'the best epoch on training classes that were held out is kept; the test set chose nothing.',
              'test': 'the best epoch on the test classes is kept, which flatters its figures.'}
STYLE = '''
:root { color-scheme: light dark; --page: #fbfbfa; --text: #1c2127; --soft: #59626c; --line: #d9dde1; --tile: #eef0f2;
  --right: #1c5fa8; --wrong: #ad4a06; --note: #fdf1e2 }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --text: #e4e7ea; --soft: #a3adb7; --line: #353c43;
  --tile: #22272c; --right: #7fb4f0; --wrong: #f2a765; --note: #33261a } }
* { box-sizing: border-box }
html { scroll-padding-top: 1rem }
body { margin: 0; background: var(--page); color: var(--text); overflow-wrap: anywhere; line-height: 1.55;
  font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif }
a { color: var(--right); text-underline-offset: .2em }
:focus-visible { outline: 3px solid var(--right); outline-offset: 3px; border-radius: 2px }
.skip { position: absolute; left: -99rem; padding: .5rem 1rem; background: var(--page) }
.skip:focus { left: 1rem; top: .5rem; z-index: 2 }
.frame { max-width: 88rem; margin: auto; padding: 2rem clamp(1rem, 3vw, 3rem) 5rem }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0 0 2rem; padding: 0; list-style: none }
nav a { display: inline-block; padding: .2rem 0; text-decoration: none }
nav a:hover { text-decoration: underline }
h1, h2, h3 { line-height: 1.2; text-wrap: balance; font-weight: 650 }
h1 { margin: 0 0 1rem; font-size: clamp(1.5rem, 4vw, 2.25rem); letter-spacing: -.015em }
h2 { margin: 0 0 1rem; font-size: 1.4rem }
h3 { margin: 2.5rem 0 .5rem; font-size: 1.08rem }
p { max-width: 44rem; margin: 0 0 1rem }
section { margin-top: 3rem; padding-top: 2rem; border-top: 1px solid var(--line) }
.kind, .soft, figcaption, caption { color: var(--soft) }
.kind { margin: 0 0 .35rem; font-size: .9rem }
.lead { font-size: 1.15rem }
.note { max-width: 44rem; padding: .8rem 1rem; background: var(--note); border-left: 4px solid var(--wrong) }
.key { display: flex; flex-wrap: wrap; gap: 1.25rem 3rem; margin: 1.75rem 0 0 }
.key div { display: flex; flex-direction: column }
.key dt, .key .soft { font-size: .9rem; color: var(--soft) }
.key dd { margin: 0; font-variant-numeric: tabular-nums }
.key .large { font-size: 1.75rem; font-weight: 600; line-height: 1.3 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: 1.75rem 2rem }
.charts > * { min-width: 0 }
.charts figure { max-width: 21rem }
.charts + p { margin-top: 1.5rem }
figure { margin: 0 }
.charts figcaption { margin-bottom: .35rem; color: var(--text); font-weight: 600 }
svg { display: block; width: 100%; height: auto; font-size: 11.5px; font-variant-numeric: tabular-nums }
svg text { fill: var(--soft) }
svg .strong { fill: var(--text); font-weight: 600 }
svg .line { fill: none; stroke: var(--right); stroke-width: 2; stroke-linejoin: round }
svg .faint { opacity: .55 }
svg .dot { fill: var(--right) }
svg .grid { stroke: var(--line) }
svg .mark { stroke: var(--text); stroke-width: 1.5; stroke-dasharray: 4 3 }
svg .band { fill: var(--text); opacity: .13 }
svg .bars { fill-opacity: .22; stroke-width: 1.5 }
svg .right { fill: var(--right); stroke: var(--right) }
svg .wrong { fill: var(--wrong); stroke: var(--wrong) }
svg text.right, svg text.wrong { stroke: none; font-weight: 600 }
.scroll { max-width: 100%; overflow-x: auto; overflow-wrap: normal }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
caption { padding-bottom: .5rem; text-align: left }
td { white-space: nowrap }
.words { white-space: normal }
th, td { padding: .45rem 1.25rem .45rem 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top }
th:first-child, .words { text-align: left }
.words { min-width: 8rem; max-width: 22rem; overflow-wrap: anywhere }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom }
tbody th { font-weight: 500 }
details { margin-top: 1rem }
summary { width: fit-content; padding: .2rem 0; color: var(--right); cursor: pointer }
.row { display: flex; gap: .75rem; margin: 0; padding: .3rem 0 .6rem; list-style: none }
.row .asked { position: sticky; left: 0; padding-right: .75rem; background: var(--page) }
.row .later { padding-left: 1rem; border-left: 1px solid var(--line) }
.tile { width: 5.5rem; font-size: .82rem; line-height: 1.3; overflow-wrap: anywhere }
.tile img, .gone { display: block; width: 5.5rem; height: 5.5rem; border: 3px solid var(--soft); object-fit: contain;
  background: var(--tile) }
.gone { padding: .2rem; overflow: hidden; color: var(--text); font-size: .7rem }
.tile.right > :first-child { border-color: var(--right) }
.tile.wrong > :first-child { border: 3px dashed var(--wrong) }
.tile b { display: block; margin-top: .25rem; font-variant-numeric: tabular-nums; white-space: nowrap }
.tile.right b { color: var(--right) }
.tile.wrong b { color: var(--wrong) }
.clip { display: -webkit-box; overflow: hidden; -webkit-box-orient: vertical; -webkit-line-clamp: 2 }
.head { margin: 1rem 0 0; font-size: .92rem }
.sign { font-weight: 600; white-space: nowrap }
.sign.right { color: var(--right) }
.sign.wrong { color: var(--wrong) }
.facts { display: grid; grid-template-columns: minmax(0, 1fr); margin: 0 0 1rem; max-width: 60rem }
.facts dt { color: var(--soft) }
.facts dd { margin: 0 0 .9rem }
code { display: block; font-family: ui-monospace, 'Cascadia Mono', Menlo, 'Liberation Mono', monospace;
  font-size: .9em }
code span { display: inline-block }
@media (max-width: 74.9rem) { .charts > p { grid-column: 1 / -1 } }
@media (min-width: 40rem) { .facts { grid-template-columns: 10rem minmax(0, 1fr); gap: 0 1.5rem } }
@media (min-width: 75rem) {
  .frame { display: grid; grid-template-columns: 11rem minmax(0, 1fr); gap: 3rem }
  nav ul { position: sticky; top: 2rem; flex-direction: column }
}
'''


# What is shown


def query_and_gallery(database):
    """The queries and the gallery of a database, and each query's own place in the gallery, or -1."""
    alone = 'query_embeddings' not in database
    parts = ('embeddings', 'labels', 'images')
    found = {f'query_{part}': database[part if alone else f'query_{part}'] for part in parts}
    count = len(found['query_labels'])
    own = torch.arange(count) if alone else torch.full((count,), -1)
    return {**found, **{part: database[part] for part in parts}, 'own': own, 'alone': alone,
            'available': len(database['labels']) - alone}


def rank_heads(found, ensemble_size, progress=False):
    """({heads: (recall@1, its interval)} of the first 1, 2, 4, ... and all heads, the ranks of all)."""
    heads = [*(2 ** power for power in range(ensemble_size.bit_length()) if 2 ** power < ensemble_size), ensemble_size]
    names = ['query_embeddings', 'query_labels'] + ['embeddings', 'labels'] * (not found['alone'])
    size = found['embeddings'].shape[1] // ensemble_size
    recalls, ranks = {}, None
    for count in tqdm(heads, desc='ranking by the first heads', disable=not progress, leave=False):
        ranks = retrieval.rank_positives(*(found[name][:, :count * size] if 'embeddings' in name else found[name]
                                           for name in names))
        values = {'recall@1': retrieval.measures(ranks, [1])['recall@1']}
        recalls[count] = (values['recall@1'].mean().item(),
                          retrieval.confidence_intervals(values, found['query_labels'])['recall@1'])
    return recalls, ranks


def score_statistics(found, progress=False, sample=SAMPLE):
    """What the scores say of right and wrong images: every query's best of each kind (best_right, best_wrong, -inf
    where there is none, and nearest_right, its index), and how the scores of a sample of queries with all images
    spread over BINS (right, wrong: counts; sampled: how many queries). Held for a BLOCK of queries at a time."""
    query, gallery, count = found['query_embeddings'], found['embeddings'], len(found['query_labels'])
    sampled = torch.zeros(count, dtype=torch.bool)
    sampled[torch.randperm(count, generator=torch.Generator().manual_seed(0))[:sample]] = True
    best_right, best_wrong = torch.empty(2, count)
    nearest_right, spread = torch.empty(count, dtype=torch.int64), torch.zeros(2, BINS, dtype=torch.int64)
    with retrieval.full_precision(query.device):
        for rows in tqdm(torch.arange(count).split(BLOCK), desc='scores', disable=not progress, leave=False):
            scores = retrieval.products(query, gallery, rows, slice(None), torch.float32)
            wrong = found['query_labels'][rows, None] != found['labels']
            right = ~wrong & (torch.arange(len(gallery)) != found['own'][rows, None])
            best_right[rows], nearest_right[rows] = scores.masked_fill(~right, -torch.inf).max(dim=1)
            best_wrong[rows] = scores.masked_fill(~wrong, -torch.inf).amax(dim=1)
            chosen = sampled[rows]
            for kind, mask in enumerate((right, wrong)):
                spread[kind] += histogram(scores[chosen][mask[chosen]])
    return {'best_right': best_right, 'nearest_right': nearest_right, 'best_wrong': best_wrong,
            'right': spread[0], 'wrong': spread[1], 'sampled': int(sampled.sum())}


def histogram(scores):
    """How many scores lie in each of BINS from -1 to 1."""
    return torch.bincount(((scores + 1) * (BINS / 2)).long().clamp(0, BINS - 1), minlength=BINS)


def lowest_classes(labels, rank, nearest_labels, nearest_scores, count=CLASSES):
    """The classes of lowest recall@1, below 1: dicts of label, queries, recall, confusions [(label, how many)] of the
    wrong nearest images, and example, the query whose image of the most frequent of these scores highest. All
    arguments are of the queries; those without a right image, whose rank is 0, do not count."""
    rows = []
    for label in labels[rank > 1].unique().tolist():
        own = ((labels == label) & (rank > 0)).nonzero().flatten()
        missed = own[rank[own] > 1]
        confusions = Counter(nearest_labels[missed].tolist()).most_common()
        alike = missed[nearest_labels[missed] == confusions[0][0]]
        rows.append({'label': label, 'queries': len(own), 'recall': 1 - len(missed) / len(own),
                     'confusions': confusions, 'example': int(alike[nearest_scores[alike].argmax()])})
    return sorted(rows, key=lambda row: (row['recall'], -row['queries']))[:count]


def pick(values, labels, wanted, count=QUERIES, per_class=PER_CLASS):
    """The queries of highest value among those wanted, (N,) bool, at most so many of a class."""
    order = values.masked_fill(~wanted, -torch.inf).argsort(descending=True, stable=True)
    picked, seen = [], Counter()
    for query in order[:int(wanted.sum())].tolist():
        seen[int(labels[query])] += 1
        if seen[int(labels[query])] <= per_class:
            picked.append(query)
        if len(picked) == count:
            break
    return picked


def thumbnails(paths, progress=False):
    """{path: data URI of a small JPEG, or None where the image cannot be read}."""
    found = {}
    for path in tqdm(paths, desc='thumbnails', disable=not progress, leave=False):
        try:
            image = data_utils.load_image(path)
        except ValueError:
            found[path] = None
            continue
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, 'JPEG', quality=80)
        found[path] = 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()
    return found


def read(path, parse):
    """(what parse makes of a file, None), or (None, why it cannot be read)."""
    try:
        with open(path, encoding='utf-8') as file:
            return parse(file), None
    except (ValueError, OSError, RecursionError) as error:
        why = 'missing' if isinstance(error, FileNotFoundError) else 'damaged'
        return None, f'{os.path.basename(path)} is {why}'


def parse_rows(file):
    """The rows of a run's CSV, numbers only. Raises ValueError if it has none."""
    rows = pd.read_csv(file).apply(pd.to_numeric, errors='coerce').replace([math.inf, -math.inf], math.nan)
    rows = rows.dropna(subset=['epoch']) if 'epoch' in rows else rows[:0]
    if rows.empty:
        raise ValueError('no epochs')
    return rows


def parse_run(file):
    """A run's provenance. Raises ValueError if it is no dict."""
    run = json.load(file)
    if not isinstance(run, dict):
        raise ValueError('no dict')
    return run


# HTML


def text(value):
    """Any value as text of HTML, in which it is nothing but text."""
    return html.escape(str(value).encode('utf-8', 'surrogatepass').decode('utf-8', 'replace'))


def name(value):
    """A name from data, which keeps its direction of writing to itself."""
    return f'<bdi>{text(value)}</bdi>'


def plain(value, digits=3):
    """A number with so many digits behind the point, None for as many as it has."""
    return f'{value:.{digits}f}' if digits is not None else f'{value:g}'


def share(value, digits=2):
    return plain(100 * value, digits) + '\N{NO-BREAK SPACE}%'


def interval(pair, form=share, bare=False):
    """'95 % interval ... to ...', or the bare numbers, as far as it is known."""
    if None in pair or any(map(math.isnan, pair)):
        return 'no interval'
    return ('' if bare else '95\N{NO-BREAK SPACE}% interval ') + f'{form(pair[0])} to {form(pair[1])}'


def table(caption, head, rows, words=()):
    """A table in a region that scrolls; cells are HTML, those of the columns `words` are not numbers."""
    kinds = [' class="words"' if place in words else '' for place in range(len(head))]
    titles = ''.join(f'<th scope="col"{kind}>{text(title)}</th>' for kind, title in zip(kinds, head))
    kinds = [' class="words"' if place in words else '' for place in range(len(head))]
    titles = ''.join(f'<th scope="col"{kind}>{text(title)}</th>' for kind, title in zip(kinds, head))
    body = ''.join(f'<tr><th scope="row"{kinds[0]}>{first}</th>'
                   + ''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds[1:], rest)) + '</tr>\n'
                   for first, *rest in rows)
    return (f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}"><table>'
            f'<caption>{text(caption)}</caption><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table></div>\n')


def tile(pictures, path, class_name, right=None, caption='', note=''):
    """A thumbnail with its caption; whether it is right (None for a query) is said by frame, sign and text."""
    kind, sign = {True: ('right', '✓ '), False: ('wrong', '✗ '), None: ('query', '')}[right]
    title, picture = os.path.basename(path), pictures[path]
    missing = f'<span class="gone">{name(title)}</span>'
    image = (f'<img src="{picture}" width="{THUMBNAIL}" height="{THUMBNAIL}" title="{text(path)}" '
             f'alt="{kind}: {text(class_name)}, {text(title)}">') if picture else missing
    return (f'<figure class="tile {kind}">{image}<figcaption><b>{sign}{caption}</b>{note}'
            f'<span class="clip" title="{text(class_name)}">{name(class_name)}</span></figcaption></figure>')


# Charts


def scale(low, high, start, stop):
    """The function that takes low ... high to start ... stop, or its only value to the middle."""
    return lambda value: start + (stop - start) * ((value - low) / (high - low) if high > low else 0.5)


def round_ticks(low, high, count=4):
    """About so many round numbers that enclose low and high."""
    span = high - low or abs(high) or 1
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step * count >= span * 0.999)
    first = math.floor(round(low / step, 6))
    return [round((first + place) * step, 10) for place in range(max(2, math.ceil(round(high / step, 6)) - first + 1))]


def label(x, y, content, anchor='start', kind=''):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{text(content)}</text>'


def chart(key, title, description, x_ticks, y_ticks, draw, right=14, top=14):
    """A figure. Ticks are {value: text} and span the axes; draw(x, y), which are given the scales, is what is in it."""
    x = scale(min(x_ticks), max(x_ticks), LEFT, WIDTH - right)
    y = scale(min(y_ticks), max(y_ticks), HEIGHT - BOTTOM, top)
    axes = ''.join(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - right:.1f}"/>'
                   + label(LEFT - 8, y(value) + 4, mark, 'end') for value, mark in y_ticks.items())
    axes += ''.join(label(x(value), HEIGHT - 6, mark, 'middle') for value, mark in x_ticks.items())
    return (f'<figure><figcaption>{text(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-labelledby="{key}-name {key}-text"><title id="{key}-name">{text(title)}</title>'
            f'<desc id="{key}-text">{text(description)}</desc>{axes}{draw(x, y)}</svg></figure>\n')


def curve_chart(key, title, rows, columns, form, kept):
    """Columns {label: name} of a run's rows by epoch; of lines that end too near to another only the first."""
    curves = {mark: list(rows[['epoch', column]].dropna().itertuples(index=False, name=None))
              for mark, column in columns.items()}
    curves = {mark: points for mark, points in curves.items() if points}
    if not curves:
        return ''
    values = [value for points in curves.values() for _, value in points]
    epochs = rows['epoch'].min(), rows['epoch'].max()
    middle = {round(sum(epochs) / 2)} if epochs[1] - epochs[0] > 1 else set()

    ends = {mark: f'{mark} {form(points[-1][1], 1 if form is share else 3)}'.strip() for mark, points in curves.items()}

    def draw(x, y):
        drawn, taken = '', []
        if epochs[0] <= kept < epochs[1]:
            drawn += f'<path class="mark" d="M{x(kept):.1f} 14V{HEIGHT - BOTTOM}"/>'
        for mark, points in curves.items():
            end = y(points[-1][1])
            if any(abs(end - other) < 15 for other in taken):
                continue
            path = ' '.join(f'{x(epoch):.1f},{y(value):.1f}' for epoch, value in points)
            drawn += (f'<polyline class="line{" faint" if taken else ""}" points="{path}"/>'
                      f'<circle class="dot" cx="{x(points[-1][0]):.1f}" cy="{end:.1f}" r="3.5"/>'
                      + label(x(points[-1][0]) + 8, end + 4, ends[mark], 'start', 'strong'))
            taken.append(end)
        return drawn
    said = '; '.join(f'{mark} {form(points[0][1])} at epoch {points[0][0]:g}, {form(points[-1][1])} at epoch '
                     f'{points[-1][0]:g}'.strip() for mark, points in curves.items())
    return chart(key, title, said, {epoch: f'{epoch:g}' for epoch in sorted({*epochs, *middle})},
                 {value: form(value, None) for value in round_ticks(min(values), max(values))}, draw,
                 right=12 + 7.4 * max(map(len, ends.values())))


def heads_chart(recalls):
    """Recall@1 with its interval by number of heads."""
    counts, places = list(recalls), range(len(recalls))
    ends = [pair if not math.isnan(pair[0]) else (value, value) for value, pair in recalls.values()]
    values = [value for value, _ in recalls.values()]

    def draw(x, y):
        points = ' '.join(f'{x(place):.1f},{y(value):.1f}' for place, value in enumerate(values))
        bars = ''.join(f'<path class="line faint" d="M{x(place):.1f} {y(low):.1f}V{y(high):.1f}"/>'
                       f'<circle class="dot" cx="{x(place):.1f}" cy="{y(value):.1f}" r="3.5"/>'
                       for place, value, (low, high) in zip(places, values, ends))
        return f'<polyline class="line" points="{points}"/>{bars}' + label(
            x(places[-1]) + 8, y(values[-1]) + 4, share(values[-1], 1), 'start', 'strong')
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    said = '; '.join(f'{count} heads {share(value)}' for count, value in zip(counts, values))
    return chart('heads-chart', 'Recall@1 by number of heads, with 95\N{NO-BREAK SPACE}% intervals', said,
                 {place: str(count) for place, count in zip(places, counts)},
                 {value: share(value, None) for value in round_ticks(low, high)}, draw, right=60)


def score_chart(key, title, spreads, calibration):
    """Shares of the scores of right and wrong images, {'right': counts (BINS,), 'wrong': ...}, with the threshold."""
    shares = {kind: (counts / counts.sum().clamp(min=1)).tolist() for kind, counts in spreads.items()}
    taken = sum(spreads.values()).nonzero().flatten()
    edges = [taken.min().item() * 2 / BINS - 1, (taken.max().item() + 1) * 2 / BINS - 1]
    if calibration:
        edges += [calibration['low'], calibration['high']]
    x_ticks, y_ticks = round_ticks(min(edges), max(edges)), round_ticks(0, max(map(max, shares.values())), 3)

    def draw(x, y):
        drawn = ''
        for kind, heights in shares.items():
            inside = [place for place, height in enumerate(heights) if height]
            if inside:
                steps = ''.join(f'V{y(heights[place]):.1f}H{x((place + 1) * 2 / BINS - 1):.1f}'
                                for place in range(inside[0], inside[-1] + 1))
                start = f'{x(inside[0] * 2 / BINS - 1):.1f} {y(0):.1f}'
                drawn += f'<path class="bars {kind}" d="M{start}{steps}V{y(0):.1f}Z"/>'
        if calibration:
            low, high, line = (x(calibration[part]) for part in ('low', 'high', 'threshold'))
            drawn += (f'<path class="band" d="M{low:.1f} 42H{high:.1f}V{HEIGHT - BOTTOM}H{low:.1f}Z"/>'
                      f'<path class="mark" d="M{line:.1f} 36V{HEIGHT - BOTTOM}"/>'
                      + label(line, 31, f'threshold {calibration["threshold"]:.3f}',
                              'end' if line > WIDTH * 0.75 else 'middle', 'strong'))
        return drawn + label(LEFT, 13, '✗ wrong', 'start', 'wrong') + label(WIDTH - 14, 13, '✓ right', 'end', 'right')
    said = '; '.join(f'{kind}: highest share {share(max(heights))} at a score of about '
                     f'{(heights.index(max(heights)) + 0.5) * 2 / BINS - 1:.2f}' for kind, heights in shares.items())
    return chart(key, title, said, {value: f'{value:g}' for value in x_ticks},
                 {value: share(value, None) for value in y_ticks}, draw, top=42)


# Sections


def summary_section(run, database, found, values, calibration):
    """Title, one line, a warning where figures are not comparable, and the key figures."""
    protocol, select = (database.get(part, 'not recorded') for part in ('protocol', 'select'))
    intervals = retrieval.confidence_intervals(values, found['query_labels'])
    means = {measure: value.mean().item() for measure, value in values.items()}
    how = 'each queries all others' if found['alone'] else f'they query a gallery of {len(found["labels"]):,}'
    warning = '' if protocol == 'strict' and select != 'test' else (
        '<p class="note" role="note"><strong>⚠ Not comparable with strict figures.</strong> '
        f'Protocol {text(protocol)}: {PROTOCOLS.get(protocol, "")} '
        f'Selection {text(select)}: {SELECTIONS.get(select, "")}</p>')
    figures = [(title, share(means[measure]), interval(intervals[measure])) for title, measure in
               (('Recall@1', 'recall@1'), ('MAP@R', 'map@r'), ('R-precision', 'r_precision'))]
    if calibration:
        figures.append(('Found above the threshold', share(calibration['found']),
                        f'at {share(calibration["false_match_rate"], None)} false matches'))
    shown = ''.join(f'<div><dt>{title}</dt><dd class="large">{value}</dd><dd class="soft">{note}</dd></div>'
                    for title, value, note in figures)
    return (f'<header><p class="kind">Run of AREIR</p><h1>{name(run)}</h1><p class="lead">Recall@1 is '
            f'<strong>{share(means["recall@1"])}</strong> ({interval(intervals["recall@1"])}), protocol '
            f'{text(protocol)}: {len(found["query_labels"]):,} images of {len(found["query_labels"].unique()):,} '
            f'classes, {how}.</p>{warning}<dl class="key">{shown}</dl></header>\n')


def curves_section(rows, problem, kept):
    if problem:
        return f'<p>{text(problem)}: there are no curves.</p>'
    recalls = [column for column in rows if column.startswith('test_recall@')]
    panels = (('Training loss', {'': 'train_loss'}, plain), ('Training accuracy', {'': 'train_accuracy'}, share),
              ('Test recall@K', {'R@' + column.split('@')[1]: column for column in recalls}, share),
              ('Test MAP@R', {'': 'test_map@r'}, share), ('Recall@1 of held-out classes', {'': 'val_recall@1'}, share))
    panels = [(title, {mark: column for mark, column in columns.items() if column in rows}, form)
              for title, columns, form in panels]
    charts = ''.join(curve_chart(f'curve-{place}', f'{title}, by epoch', rows, columns, form, kept)
                     for place, (title, columns, form) in enumerate(panels))
    shown = [(mark or title, column, form) for title, columns, form in panels for mark, column in columns.items()]
    numbers = [[f'{row["epoch"]:g}', *('' if math.isnan(row[column]) else form(row[column])
                                       for _, column, form in shown)] for row in rows.to_dict('records')]
    which = f'epoch {text(kept)}' + (', the dashed line' if kept < rows['epoch'].max() else '')
    return (f'<div class="charts">{charts}</div>\n<p class="soft">Lines that would end too close to another are left '
            f'to the table. The database is of {which}.</p>\n<details><summary>The numbers</summary>'
            + table('Every epoch', ['Epoch', *(mark for mark, _, _ in shown)], numbers) + '</details>')


def heads_section(recalls):
    rows = [(count, share(value), interval(pair, bare=True)) for count, (value, pair) in recalls.items()]
    return ('<p>The embedding of an ensemble contains those of smaller ones: this is what the first so many heads find '
            f'by themselves.</p><div class="charts">{heads_chart(recalls)}'
            + table('Recall@1 of the first heads', ['Heads', 'Recall@1', '95\N{NO-BREAK SPACE}% interval'], rows)
            + '</div>')


def classes_section(lowest, classes, found, neighbours, pictures):
    if not lowest:
        return '<p>No query that has a right image is answered by a wrong one.</p>'
    rows = []
    for row in lowest:
        query, other = row['example'], int(neighbours[1][row['example'], 0])
        pair = (tile(pictures, found['query_images'][query], classes[row['label']], None, 'query')
                + tile(pictures, found['images'][other], classes[found['labels'][other]], False,
                       f'{float(neighbours[0][query, 0]):.3f}'))
        confusions = [f'{name(classes[label])}\N{NO-BREAK SPACE}({count})' for label, count in row['confusions']]
        more = f', {len(confusions) - 4} more' if len(confusions) > 4 else ''
        rows.append((name(classes[row['label']]), row['queries'], share(row['recall']),
                     ', '.join(confusions[:4]) + more, f'<div class="row">{pair}</div>'))
    return ('<p>The classes of lowest recall@1 and, of their wrong nearest images, the most frequent classes. The '
            'example is the query that an image of the most frequent of these scores highest for, and that image.</p>'
            + table('Classes of lowest recall@1', ['Class', 'Queries', 'Recall@1', 'Taken for (queries)', 'Example'],
                    rows, words=(0, 3, 4)))


def query_rows(queries, kind, classes, found, neighbours, ranks, statistics, pictures):
    """A row for each query: it, its nearest images, and the first right one where that comes later."""
    parts = []
    for query in queries:
        scores, indices = (part[query].tolist() for part in neighbours)
        label, path, rank = found['query_labels'][query], found['query_images'][query], int(ranks['rank'][query])

        def answer(index, score, note='', label=label):
            return tile(pictures, found['images'][index], classes[found['labels'][index]],
                        bool(found['labels'][index] == label), f'{score:.3f}', note)
        items = f'<li class="asked">{tile(pictures, path, classes[label], None, "query")}</li>' + ''.join(
            f'<li>{answer(index, score)}</li>' for index, score in zip(indices, scores))
        best_right, best_wrong = (float(statistics[part][query]) for part in ('best_right', 'best_wrong'))
        said = (f'first right image at place {rank:,}' if rank > 1 else
                'there is no wrong image' if best_wrong == -math.inf else
                f'{best_right - best_wrong:.3f} ahead of every wrong image')
        if rank > len(indices):
            later = answer(int(statistics['nearest_right'][query]), best_right, f'place {rank:,}')
            items += f'<li class="later">{later}</li>'
        parts.append(f'<p class="head">{name(path)} <span class="soft">{said}</span></p><div class="scroll" '
                     f'role="region" tabindex="0" aria-label="{text(f"{kind} query {path} and its nearest images")}">'
                     f'<ol class="row">{items}</ol></div>\n')
    return ''.join(parts)


def queries_section(worst, best, *evidence):
    return ('<p>Each query with its nearest images and their scores, at most two queries of a class: '
            '<span class="sign right">✓ solid blue frame</span> where the class is right, '
            '<span class="sign wrong">✗ dashed orange frame</span> where it is wrong.</p>'
            '<h3>Worst</h3><p>The queries whose first right image comes latest; where it is not among the nearest, it '
            'stands at the end of the row.</p>' + (query_rows(worst, 'Worst', *evidence) or '<p>There are none.</p>')
            + '<h3>Best</h3><p>The queries whose nearest image is right and scores furthest above every wrong one.</p>'
            + (query_rows(best, 'Best', *evidence) or '<p>There are none.</p>'))


def scores_section(statistics, queries, calibration):
    best = {kind: statistics[f'best_{kind}'] for kind in ('wrong', 'right')}
    spreads = {kind: histogram(scores[scores > -torch.inf]) for kind, scores in best.items()}
    whose = 'all queries' if statistics['sampled'] == queries else f'{statistics["sampled"]:,} queries drawn at random'
    every = {kind: statistics[kind] for kind in spreads}
    charts = (score_chart('scores-all', 'Scores of all pairs', every, calibration)
              + score_chart('scores-best', 'Best score of each query', spreads, calibration))
    said = ('<p>This run has no threshold: it was trained before thresholds were set, or had too few classes to set '
            'one.</p>')
    if calibration:
        rate, found = share(calibration['false_match_rate'], None), share(calibration['found'])
        said = (f'<p>The threshold is <strong>{calibration["threshold"]:.3f}</strong> '
                f'({interval((calibration["low"], calibration["high"]), plain)}): of queries that have nothing of '
                f'their class in a gallery of {calibration["gallery_size"]:,} images, {rate} are to get an answer '
                f'above it, a false match. It was set with {calibration["queries"]:,} queries of '
                f'{calibration["classes"]:,} classes. Of the queries that have a right image, <strong>{found}</strong> '
                'find one: their nearest image is right and above the threshold. ')
        said += 'Classes are too few to check the rate on others.</p>' if calibration['realised'] is None else (
            f'On classes that did not set it, the rate of false matches was {share(calibration["realised"])} '
            f'({interval((calibration["realised_low"], calibration["realised_high"]))}).</p>')
    columns = [(counts / counts.sum().clamp(min=1)).tolist() for part in (every, spreads) for counts in part.values()]
    numbers = [(f'{place * 2 / BINS - 1:.2f} to {(place + 1) * 2 / BINS - 1:.2f}', *map(share, row))
               for place, row in enumerate(zip(*columns)) if any(row)]
    return ('<p>How right images score, and wrong ones, in shares of each kind, since wrong ones are many more. First '
            f'every image that a query is compared with, of {whose}; then of each query the best right and the best '
            f'wrong image, which is what a threshold judges.</p><div class="charts">{charts}{said}</div>\n'
            '<details><summary>The numbers</summary>'
            + table('Shares of scores', ['Score', 'Wrong, all pairs', 'Right, all pairs', 'Best wrong', 'Best right'],
                    numbers) + '</details>')


def plain_text(value):
    """A value of JSON as a text to read."""
    if isinstance(value, dict):
        return ', '.join(f'{key} {plain_text(part)}' for key, part in value.items()) or 'none'
    if isinstance(value, list):
        return ', '.join(map(plain_text, value)) or 'none'
    return {None: 'not recorded', True: 'yes', False: 'no'}.get(value, str(value)) if not isinstance(value, float) \
        else f'{value:g}'


def provenance_section(run, problem, database):
    run = run or {}
    data = run['data'] if isinstance(run.get('data'), dict) else {}
    counts = data.get('counts')
    with contextlib.suppress(AttributeError, TypeError, ValueError):  # else as it stands
        counts = '; '.join(f'{part}: {images:,} images of {classes:,} classes'
                           for part, (images, classes) in counts.items())
    protocol, select = (database.get(part) for part in ('protocol', 'select'))
    command = run.get('command')
    command = ['python', *command] if isinstance(command, list) else ['not', 'recorded']
    command = ' '.join(f'<span>{text(shlex.quote(str(part)))}</span>' for part in command)
    facts = {'Command': f'<code>{command}</code>',
             'Protocol': f'{text(plain_text(protocol))}: {PROTOCOLS.get(protocol, "")}',
             'Selection': f'{text(plain_text(select))}: {SELECTIONS.get(select, "")}',
             'Epoch kept': text(plain_text(database.get('epoch'))),
             'Data': text(f'{database["data_name"]} ({database.get("crop_type", "")}); {plain_text(counts)}'),
             'Hash of the split': f'<code>{text(plain_text(data.get("split_sha256")))}</code>',
             'Commit': f'<code>{text(plain_text(run.get("commit")))}</code>',
             'Versions': text(plain_text(run.get('versions'))),
             'Device': text(f'{plain_text(run.get("device"))}; {plain_text(run.get("precision"))}')}
    if data.get('warnings'):
        facts['Warnings'] = text(plain_text(data['warnings']))
    given = run['arguments'] if isinstance(run.get('arguments'), dict) else {}
    arguments = [(text(argument), text(plain_text(value))) for argument, value in given.items()]
    return ((f'<p>{text(problem)}: what only it holds is not recorded here.</p>' if problem else '')
            + ''.join(['<dl class="facts">', *(f'<dt>{title}</dt><dd>{value}</dd>' for title, value in facts.items())])
            + '</dl>' + ('<details><summary>All arguments</summary>'
                         + table('Arguments', ['Argument', 'Value'], arguments, words=(0, 1)) + '</details>'
                         if arguments else ''))


def page(run, header, sections):
    """The whole page from its header and sections [(title, HTML)]."""
    ids = [title.split()[0].lower() for title, _ in sections]
    links = ''.join(f'<li><a href="#{key}">{title}</a></li>' for key, (title, _) in zip(ids, sections))
    body = ''.join(f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>\n{content}'
                   '</section>\n' for key, (title, content) in zip(ids, sections))
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'; '
            'img-src data:; base-uri \'none\'; form-action \'none\'">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{text(run)}, a run of AREIR</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
            '<a class="skip" href="#main">To the results</a>\n<div class="frame">\n'
            f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main id="main" tabindex="-1">\n{header}{body}'
            '</main>\n</div>\n</body>\n</html>\n')


def write_report(results_root, database_path, database, folder, progress=True):
    """Write the page of a finished run below results_root and return its path.

    database is what lies at database_path, as train.py wrote it; beside it are the run's CSV and JSON, each of which
    may be missing. folder is where paths of images start. Raises ValueError if there is nothing to retrieve.
    """
    run = os.path.basename(database_path).removesuffix('_data_base.pth')
    beside = os.path.join(os.path.dirname(database_path), run)
    rows, no_rows = read(f'{beside}_results.csv', parse_rows)
    provenance, no_provenance = read(f'{beside}_run.json', parse_run)
    found = query_and_gallery(database)
    if not found['available']:
        raise ValueError(f'{database_path}: a single image, there is nothing that it could retrieve')
    labels, classes, calibration = found['query_labels'], database['classes'], database.get('calibration')

    recalls, ranks = rank_heads(found, database.get('ensemble_size', 1), progress)
    statistics = score_statistics(found, progress)
    neighbours = retrieval.search(found['query_embeddings'], found['embeddings'], min(NEIGHBOURS, found['available']),
                                  found['own'])
    nearest = neighbours[1][:, 0]
    lowest = lowest_classes(labels, ranks['rank'], found['labels'][nearest], neighbours[0][:, 0])
    worst = pick(ranks['rank'].double(), labels, ranks['rank'] > 1)
    best = pick(statistics['best_right'] - statistics['best_wrong'], labels, ranks['rank'] == 1)

    asked = [*(row['example'] for row in lowest), *worst, *best]
    answers = {int(index) for query in asked for index in (*neighbours[1][query], statistics['nearest_right'][query])}
    images = {found['query_images'][query] for query in asked} | {found['images'][index] for index in answers}
    drawn = thumbnails([os.path.join(folder, image) for image in sorted(images)], progress)
    pictures = {image: drawn[os.path.join(folder, image)] for image in images}

    without = int((ranks['rank'] == 0).sum())
    lost = (f'<p>{without:,} queries have no right image to find: they are misses in every recall, and left out of '
            'classes and queries below.</p>') if without else ''
    header = summary_section(run, database, found, retrieval.measures(ranks, [1]), calibration)
    path = os.path.join(results_root, f'{run}_report.html')
    utils.save_text(page(run, header, [
        ('Curves', curves_section(rows, no_rows, database.get('epoch', 0))),
        ('Heads', heads_section(recalls)),
        ('Classes', lost + classes_section(lowest, classes, found, neighbours, pictures)),
        ('Queries', queries_section(worst, best, classes, found, neighbours, ranks, statistics, pictures)),
        ('Scores', scores_section(statistics, len(labels), calibration)),
        ('Provenance', provenance_section(provenance, no_provenance, database))]), path)
    return path

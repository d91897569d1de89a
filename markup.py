"""What a page of HTML without scripts is made of: escaped texts, tables, thumbnails, charts as SVG, its style."""
import html
import math
import os

THUMBNAIL = 96                                  # pixels
BINS = 100                                      # of scores from -1 to 1
WIDTH, HEIGHT, LEFT, BOTTOM = 280, 190, 46, 26  # of a chart, and of its margins
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

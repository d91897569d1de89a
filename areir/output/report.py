"""The page of a finished run: what the model retrieves, and where it fails.

The page is a single HTML file without scripts that opens from disk and loads nothing:
the style sheet, the charts (SVG), the map (PNG) and the thumbnails are inside. Its text
and markup are in templates/, which escape whatever comes from data, such as the names
of classes.
"""

import base64
import functools
import math
import os
import shlex

import numpy as np
from PIL import Image

from areir.data.images import image_bytes, load_image
from areir.errors import UserError, counted
from areir.evaluation.intervals import describe_interval
from areir.evaluation.metrics import measures
from areir.files import write_text
from areir.matching.thresholds import describe_threshold
from areir.output import charts, maps, run_statistics
from areir.output.charts import number, share
from areir.training.run import read_results, read_run_json

NEIGHBOURS = 8  # nearest images shown for a query
THUMBNAIL = 96  # pixels
NUMBERED = 10  # classes on the map
TEMPLATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'templates')


def write_report(results_root, database_path, database, folder):
    """Write the page of a finished run and return its path, in results_root.

    database: the contents of the file database_path. The run's CSV and JSON lie beside
    that file; each of them may be missing. folder: that image paths are relative to.
    """
    prefix = database_path.removesuffix('_data_base.pth')  # of the run's files
    run = os.path.basename(prefix)
    images = run_statistics.SearchedImages(database)
    # the last is the name of the label -1
    database = {**database, 'classes': [*database['classes'], 'no class']}
    record, record_problem = read(read_run_json, f'{prefix}_run.json')
    rows, curves_problem = read(read_results, f'{prefix}_results.csv')
    curves = {} if curves_problem else describe_curves(rows, database['epoch'])
    results = describe_results(images, database, folder)
    if not database.get('trained'):  # else the gallery is the whole one
        results['figures'][1:1] = whole_gallery_figures(record or {})
    page = {
        'run': run,
        'heads': record and record['arguments'].get('ensemble_size'),
        'database': database,
        'images': images,
        'record': record,
        'record_problem': record_problem,
        'curves_problem': curves_problem,
        **curves,
        **results,
    }
    path = os.path.join(results_root, f'{run}_report.html')
    write_text(path, render(page))
    return path


def render(page, template='report.html.jinja'):
    """Return the HTML of a page. page: {name in the template: value}."""
    import jinja2  # only pages need it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    writers = {'share': share, 'number': number, 'count': '{:,}'.format}
    environment.filters.update(writers, quote=shlex.quote)
    environment.globals.update(interval=describe_interval, zip=zip, counted=counted)
    html = environment.get_template(template).render(page)
    return html.encode(errors='replace').decode()  # file names may hold any bytes


def read(reader, path):
    """Return (reader(path), None), or (None, why the file cannot be read)."""
    try:
        return reader(path), None
    except (UserError, OSError) as error:
        reason = 'missing' if isinstance(error, FileNotFoundError) else 'damaged'
        return None, f'{os.path.basename(path)} is {reason}'


def describe_curves(rows, kept):
    """Return what the page shows of a run's CSV; kept: the epoch of the database."""
    rows = rows.replace([math.inf, -math.inf], math.nan)
    panels = charts.curve_panels(rows)
    table = {'Epoch': rows['epoch'].map('{:g}'.format)}
    for panel in panels:
        for column, label in panel.columns.items():
            texts = rows[column].map(panel.write, na_action='ignore')
            table[label or panel.title] = texts.fillna('')
    return {
        'curves': [charts.curve_chart(panel, rows, kept) for panel in panels],
        'curve_table': table,
        'is_marked': kept < rows['epoch'].max(),
    }


def whole_gallery_figures(record):
    """Return the Estimates of recall@1 in the whole gallery that run.json holds."""
    metrics, intervals = record.get('metrics', {}), record.get('intervals', {})
    titles = {
        'all_recall@1_trained': 'Whole gallery: trained classes',
        'all_recall@1_new': 'Whole gallery: new classes',
    }
    return [
        run_statistics.Estimate(title, metrics[name], *intervals[name])
        for name, title in titles.items()
        if name in metrics
    ]


def describe_results(images, database, folder):
    """Return what the page shows of SearchedImages. folder: see `write_report`."""
    recalls, ranks = run_statistics.rank_heads(images, database['ensemble_size'])
    statistics = run_statistics.score_statistics(images)
    k = min(NEIGHBOURS, images.available)
    scores, nearest = images.nearest(k)
    labels, rank, values = images.query_labels, ranks['rank'], measures(ranks, [1])
    figures = {'recall@1': 'Recall@1', 'map@r': 'MAP@R', 'r_precision': 'R-precision'}
    figures |= {'map': 'mAP'} if 'map' in values else {}
    worst = run_statistics.pick(rank.double(), labels, rank > 1)
    best = run_statistics.pick(statistics.margin, labels, rank == 1)
    tiles = TileMaker(images, (scores, nearest), database['classes'], folder)
    first_labels, first_scores = images.labels[nearest[:, 0]], scores[:, 0]
    classes = []
    for row in run_statistics.lowest_classes(labels, rank, first_labels, first_scores):
        query = row.example
        answer = tiles.tile(query, nearest[query, 0], scores[query, 0])
        classes.append((row, tiles.tile(query), answer))
    pairs, bests = statistics.pair_shares, statistics.best_shares
    calibration = database['calibration']
    return {
        'figures': [
            run_statistics.estimate(title, values[name], labels)
            for name, title in figures.items()
        ],
        'recalls': recalls,
        'heads_chart': charts.heads_chart(recalls),
        'threshold': calibration and describe_threshold(calibration),
        'without_right': int((rank == 0).sum()),
        'classes': classes,
        **describe_map(images, first_labels, [row.label for row, *_ in classes]),
        'worst': [tiles.row(query, rank, statistics) for query in worst],
        'best': [tiles.row(query, rank, statistics) for query in best],
        'sampled': statistics.sampled,
        'score_charts': [
            charts.score_chart('Scores of all pairs', pairs, calibration),
            charts.score_chart('Best scores of each query', bests, calibration),
        ],
        'score_rows': score_rows(*pairs.values(), *bests.values()),
    }


def describe_map(images, nearest_labels, lowest):
    """Return what the page shows of the map of SearchedImages' queries.

    nearest_labels (Q,): those of their nearest images; lowest: labels to show first.
    """
    labels, nearest = images.query_labels.numpy(), nearest_labels.numpy()
    rows = maps.choose_images(labels, lowest)
    labels, nearest = labels[rows], nearest[rows]
    try:
        points = maps.place_images(images.query.numpy()[rows])
    except UserError as error:
        return {'map': None, 'map_problem': error}
    numbered = list(dict.fromkeys(labels))[:NUMBERED]
    picture = maps.draw_map(points, labels, nearest, numbered)
    return {
        'map': data_uri(picture, 'PNG', optimize=True),
        'mapped': len(rows),
        'ringed': (labels != nearest).mean(),
        'numbered': numbered,
    }


def score_rows(*histograms):
    """Return a row of texts for each bin in use: the bin, its share per histogram."""
    edges = np.linspace(-1, 1, len(histograms[0]) + 1)
    rows = []
    for low, high, *shares in zip(edges, edges[1:], *histograms):
        if any(shares):
            rows.append([f'{low:.2f} to {high:.2f}', *map(share, shares)])
    return rows


class TileMaker:
    """Makes tiles, thumbnails with captions, of SearchedImages' queries and answers.

    nearest: (scores, indices) of the nearest images, (Q, k) each; classes: names by
    label; folder: see `write_report`.
    """

    def __init__(self, images, nearest, classes, folder):
        self.images, self.classes, self.folder = images, classes, folder
        self.scores, self.indices = nearest
        self.picture = functools.cache(thumbnail)

    def tile(self, query, index=None, score=None):
        """Return the tile of a query, or of gallery image `index` as its answer."""
        images = self.images
        if index is None:
            kind, label = 'query', images.query_labels[query]
            path = images.query_images[query]
        else:
            path, label = images.images[index], images.labels[index]
            kind = 'right' if label == images.query_labels[query] else 'wrong'
            score = float(score)
        picture = self.picture(os.path.join(self.folder, path))
        tile = {'kind': kind, 'path': path, 'class_name': self.classes[label]}
        return {**tile, 'picture': picture, 'score': score}

    def row(self, query, rank, statistics):
        """Return (tile, note, answers) of a query that has a right image.

        The answers are the tiles of the nearest images, and of the first right one if
        it is not among them. rank (Q,): that of each query's first right image.
        """
        rank, margin = int(rank[query]), float(statistics.margin[query])
        found = list(zip(self.indices[query], self.scores[query]))
        found = [pair for pair in found if pair[1] > -math.inf]  # few are not ignored
        if rank > len(found):
            best = statistics.best
            found.append((best.nearest_right[query], best.best_right[query]))
        answers = [self.tile(query, index, score) for index, score in found]
        if rank > 1:
            note = f'the first right image has rank {rank:,}'
        elif margin == math.inf:
            note = 'there is no wrong image'
        else:
            note = f'{number(margin)} above every wrong image'
        return self.tile(query), note, answers


def thumbnail(path):
    """Return an image as the data URI of a small JPEG, None if it cannot be read."""
    try:
        image = load_image(path, least=THUMBNAIL)
    except UserError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return data_uri(image, 'JPEG', quality=80)


def data_uri(image, kind, **options):
    """Return an image as the data URI of a file; options: of pillow's `save`."""
    encoded = base64.b64encode(image_bytes(image, kind, **options)).decode()
    return f'data:image/{kind.lower()};base64,{encoded}'

"""The page of a finished run: what the model retrieves, and where it fails.

The page is a single HTML file without scripts that opens from disk and loads nothing:
the style sheet, the charts (SVG) and the thumbnails are inside. Its text and markup are
in templates/, which escape whatever comes from data, such as the names of classes.
`inference.py --report` calls `write_report`.
"""

import os
from dataclasses import dataclass

import torch

from areir.errors import UserError
from areir.evaluation.intervals import NO_INTERVAL, confidence_intervals
from areir.evaluation.metrics import measures
from areir.evaluation.ranking import search
from areir.files import write_text
from areir.output import charts, run_statistics, wording
from areir.output.run_files import read_curves, read_provenance, readable
from areir.output.tiles import TileMaker

NEIGHBOURS = 8  # nearest images that are shown of a query
TEMPLATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'templates')


def write_report(results_root, database_path, database, folder, progress=True):
    """Write the page of a finished run and return its path, in results_root.

    database: what the file database_path holds, as train.py wrote it. The run's CSV and
    JSON are beside that file; each of them may be missing. folder: where the paths of
    images start. Raises UserError if there is nothing to retrieve.
    """
    run = os.path.basename(database_path).removesuffix('_data_base.pth')
    beside = os.path.join(os.path.dirname(database_path), run)
    images = run_statistics.query_and_gallery(database)
    if not images.available:
        raise UserError(
            f'{database_path}: it holds a single image, which has nothing to retrieve'
        )
    results = find_results(images, database, progress)
    tiles = TileMaker(results, database['classes'], folder, progress)
    csv_path, provenance = (
        f'{beside}_results.csv',
        read_provenance(f'{beside}_run.json'),
    )
    page = {
        'run': run,
        'database': database,
        'images': images,
        'results': results,
        'calibration': database.get('calibration'),
        'figures': key_figures(images, results.ranks),
        'curves': read_curves(
            csv_path, database.get('epoch', 0), provenance.csv_checksum
        ),
        'heads_chart': charts.heads_chart(results.recalls),
        'classes': tiles.class_rows(),
        'worst': [tiles.query_row(query) for query in results.worst],
        'best': [tiles.query_row(query) for query in results.best],
        'scores': describe_scores(results.statistics, database.get('calibration')),
        'provenance': provenance,
    }
    path = os.path.join(results_root, f'{run}_report.html')
    write_text(path, render(page))
    return path


def render(page):
    """Return the HTML of a page, {name: what the template shows}."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    writers = {'share': wording.share, 'number': wording.number}
    environment.filters.update(**writers, interval=wording.interval, readable=readable)
    environment.globals.update(writers, no_interval=NO_INTERVAL)
    html = environment.get_template('report.html.jinja').render(page)
    return wording.valid_unicode(html)


# What the model retrieves


@dataclass(eq=False)
class Results:
    """What the queries of a run retrieve, and which of them the page shows."""

    images: run_statistics.SearchedImages
    recalls: list  # of HeadsRecall
    ranks: dict  # of metrics.rank_positives
    statistics: run_statistics.ScoreStatistics
    scores: torch.Tensor  # (Q, K) of the nearest images
    nearest: torch.Tensor  # (Q, K) their indices in the gallery
    classes: list  # of ClassRecall
    worst: list  # queries
    best: list  # queries

    @property
    def without_right(self):
        """The number of queries that have no right image."""
        return int((self.ranks['rank'] == 0).sum())


def find_results(images, database, progress):
    """Return the Results of SearchedImages."""
    recalls, ranks = run_statistics.rank_heads(
        images, database.get('ensemble_size', 1), progress
    )
    statistics = run_statistics.score_statistics(images, progress)
    k = min(NEIGHBOURS, images.available)
    scores, nearest = search(images.query, images.gallery, k, images.own)

    labels, rank = images.query_labels, ranks['rank']
    nearest_labels = images.labels[nearest[:, 0]]
    classes = run_statistics.lowest_classes(labels, rank, nearest_labels, scores[:, 0])
    worst = run_statistics.pick(rank.double(), labels, rank > 1)
    best = run_statistics.pick(statistics.margin, labels, rank == 1)
    return Results(
        images, recalls, ranks, statistics, scores, nearest, classes, worst, best
    )


@dataclass
class KeyFigure:
    """A key figure with its 95 % interval."""

    title: str
    value: float
    low: float
    high: float


def key_figures(images, ranks):
    """Return the KeyFigures of all heads: Recall@1 comes first."""
    values = measures(ranks, [1])
    intervals = confidence_intervals(values, images.query_labels)
    titles = {'recall@1': 'Recall@1', 'map@r': 'MAP@R', 'r_precision': 'R-precision'}
    return [
        KeyFigure(title, values[name].mean().item(), *intervals[name])
        for name, title in titles.items()
    ]


# Scores


@dataclass
class Scores:
    """The charts of the scores and their numbers."""

    charts: list
    rows: list  # of (low, high, shares): wrong and right, of all pairs, then best


def describe_scores(statistics, calibration):
    """Return the Scores of ScoreStatistics."""
    pairs = statistics.wrong_counts, statistics.right_counts
    best = statistics.best_wrong_counts, statistics.best_right_counts
    drawn = [
        charts.score_chart('scores-all', 'Scores of all pairs', *pairs, calibration),
        charts.score_chart(
            'scores-best', 'Best score of each query', *best, calibration
        ),
    ]
    counts = torch.stack([*pairs, *best]).double()
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).T.tolist()
    edges = run_statistics.bin_edges()
    rows = zip(edges[:-1], edges[1:], shares)
    return Scores(drawn, [row for row in rows if any(row[2])])

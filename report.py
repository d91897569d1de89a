"""One page that shows a finished run: what the model finds, and where it fails.

The page is a single file of HTML without scripts, that opens from disk and loads nothing: charts are SVG, thumbnails
are data in it. Whatever comes from data, such as names of classes, is escaped. `inference.py` calls `write_report`.
"""
import base64
import contextlib
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
from markup import (
    BINS,
    THUMBNAIL,
    curve_chart,
    heads_chart,
    interval,
    name,
    page,
    plain,
    score_chart,
    share,
    table,
    text,
    tile,
)

NEIGHBOURS, QUERIES, PER_CLASS, CLASSES = 8, 8, 2, 10  # shown: of a query, of the best and worst, of a class, worst
SAMPLE, BLOCK = 2000, 128                              # queries whose pairs are counted, and held at a time
PROTOCOLS = {'strict': 'an embedding depends on its own image alone.',
             'published': "that of the method's first figures: in testing, too, every batch multiplies each head's "
                          'input by a random weight, and batches are in the order of the classes, so images of a batch '
                          'resemble each other, whatever they show.'}
SELECTIONS = {'last': 'the last epoch is kept, so nothing was chosen by its result.',
              'val': 'the best epoch on training classes that were held out is kept; the test set chose nothing.',
              'test': 'the best epoch on the test classes is kept, which flatters its figures.'}


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

"""Evaluate any embeddings exactly, with 95 % intervals over classes.

python evaluate.py FILE                    # recall@k, MAP@R and R-precision
python evaluate.py FILE --compare OTHER    # and the difference from another file
python evaluate.py FILE --verification     # and: are two images of one class?

FILE is a database of train.py or of the original code, or a .npz, .pt, .safetensors or
.h5 file that holds `embeddings` and `labels` and, if the queries are separate, also
`query_embeddings` and `query_labels`. It may also be a table (.csv, .tsv, .parquet) or
a .npy file of vectors, whose labels may be in a second file:

python evaluate.py vectors.npy --labels images.csv

With a folder, the runs of train.py below it are listed, also in its file runs.csv:

python evaluate.py results/
python evaluate.py results/ --compare RUN OTHER    # two of them, on the same queries
"""

import contextlib
import io
import itertools
import json
import os
import sys
import warnings

from areir.cli.evaluation import get_parser
from areir.cli.types import RECALLS
from areir.scripts import utils

if __name__ == '__main__':
    utils.before_imports(get_parser)  # the imports below take seconds

import pandas as pd
import torch

from areir.errors import UserError, counted, missing, printable
from areir.evaluation.embeddings_file import match_queries, rank_file
from areir.evaluation.intervals import (
    NO_INTERVAL,
    class_means,
    compare,
    confidence_intervals,
    nan_to_none,
)
from areir.evaluation.metrics import check_ks, measures, summary, without_lone_queries
from areir.evaluation.roc import verification
from areir.files import make_writable, write_table
from areir.hardware import limit_threads
from areir.training.runs import FIGURES, read_runs

NOT_COMPARABLE = 'not comparable with strict figures'


def get_args():
    parser = get_parser()
    args = parser.parse_args()
    if args.file is None and args.compare:
        args.file = args.compare.pop()  # --compare OTHER FILE
    if args.file is None:
        parser.error('give a file of embeddings, or a folder of runs')
    if os.path.isdir(args.file):
        check_folder(args, parser)
    elif len(args.compare) > 1:
        parser.error('--compare: a single other file')
    if args.device is None:
        args.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if not is_usable(args.device):
        parser.error(
            f'--device {args.device}: not on this machine, or without float64; choose '
            'cpu or, if there is a GPU, cuda'
        )
    if isinstance(args.verification, str):
        make_writable(os.path.dirname(args.verification) or '.', '--verification')
    return args


def check_folder(args, parser):
    """Set file and compare to the databases of two runs, if two are compared."""
    if not args.compare:
        for flag in ('labels', 'metric', 'recalls', 'verification', 'evaluate_heads'):
            if getattr(args, flag):
                parser.error(f'--{flag} is for a file, and {args.file} is a folder')
        return
    if len(args.compare) != 2:
        parser.error(f'--compare: name two runs of {args.file}')
    files = [os.path.join(args.file, f'{run}_data_base.pth') for run in args.compare]
    for run, file in zip(args.compare, files):
        if not os.path.isfile(file):
            raise UserError(f'--compare {run}: {file}: {missing(file)}')
    args.file, *args.compare = files


def is_usable(device):
    """Whether torch computes in float64 on a device here; mps does not."""
    try:
        # torch knows some names only from old code, and warns
        with warnings.catch_warnings(action='ignore'):
            torch.empty(0, device=device, dtype=torch.float64).cpu()
    except Exception:  # each kind of device fails in its own way
        return False
    return True


def main():
    args = get_args()
    limit_threads()
    is_folder = os.path.isdir(args.file)
    # notices of what is read; with --json, they must not be part of it
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        report = read_runs(args.file) if is_folder else evaluate_file(args)
    with contextlib.suppress(BrokenPipeError):  # of `| head`, which stops early
        if args.json:
            print(json.dumps(report, indent=2, ensure_ascii=False))
        elif is_folder:
            print_runs(args.file, report)
        else:
            print_report(report)
    if is_folder:
        path = os.path.join(args.file, 'runs.csv')
        write_table(path, pd.DataFrame(report))
        print(f'wrote {path}', file=sys.stderr if args.json else sys.stdout)


# The report


def evaluate_file(args):
    """Return the report as a dict, which --json prints as it is."""
    verifies = args.verification is not None
    options = args.labels, args.metric, verifies
    result = rank_file(args.file, args.device, None, *options)
    if result.labels_unused and not args.compare:
        raise UserError(f'--labels {args.labels}: {args.file} holds its labels')
    ks = args.recalls or [k for k in RECALLS if k <= result.available]
    check_ks(ks, result.available)
    values = measures(result.ranks, ks)
    labels = result.query.labels
    how = 'each queries all others, itself excluded by its index'
    if result.gallery:
        how = f'they query a gallery of {result.available:,}'
    if args.metric:
        how = f'{how}; ranked by {args.metric}'
    report = {
        'file': args.file,
        'queries': len(labels),
        'classes': len(labels.unique()),
        'dimensions': result.dimensions,
        'how': how,
        **result.found,
        'metrics': summary(result.ranks, ks),
        'intervals': confidence_intervals(values, labels),
        'per_class_metrics': class_means(values, labels),
        'per_class_intervals': confidence_intervals(values, labels, per_class=True),
    }
    if report['metrics']['queries_without_positive']:
        queries, metrics = without_lone_queries(result.ranks, ks)
        report['without_lone_queries'] = {'queries': queries, 'metrics': metrics}
    if args.evaluate_heads:
        report['heads'] = {
            heads: recall_of_heads(args, heads) for heads in args.evaluate_heads
        }
    if verifies:
        report['verification'] = verification(result.pairs)
        if args.verification is not True:
            from areir.output.charts import draw_roc  # imports matplotlib, a second

            draw_roc(result.pairs, args.verification)
    for path in args.compare:
        report |= compare_files(args, path, result, values, ks)
    return nan_to_none(report)


def recall_of_heads(args, heads):
    """Return Recall@1 of the first `heads` heads, with its interval."""
    with contextlib.redirect_stdout(io.StringIO()):  # its notices were printed
        result = rank_file(args.file, args.device, heads, args.labels, args.metric)
    hits = measures(result.ranks, [1])['recall@1']
    interval = confidence_intervals({'recall@1': hits}, result.query.labels)['recall@1']
    return {'recall@1': hits.mean().item(), 'interval': interval}


def compare_files(args, path, result, values, ks):
    """Return the report's entries about the file of --compare: other and difference.

    values: the measures of each query of `result`.
    """
    other = rank_file(path, args.device, None, args.labels, args.metric)
    if result.labels_unused and other.labels_unused:
        raise UserError(f'--labels {args.labels}: both files hold their labels')
    order = match_queries(result, other)
    others = {name: value[order] for name, value in measures(other.ranks, ks).items()}
    names = ('difference', 'low', 'high', 'p')
    compared = compare(values, others, result.query.labels)
    return {
        'other': {
            'file': path,
            **other.found,
            'metrics': summary(other.ranks, ks),
        },
        'difference': {
            metric: dict(zip(names, numbers)) for metric, numbers in compared.items()
        },
    }


# Printing


def print_report(report):
    print(
        f'{report["file"]}: {counted(report["queries"], "image")} of '
        f'{counted(report["classes"], "class")}, '
        f'{counted(report["dimensions"], "dimension")}; {report["how"]}'
    )
    print_warning(report)
    if 'other' in report:
        print_warning(report['other'])
    print_metrics(report)
    if 'without_lone_queries' in report:
        print_without_lone_queries(report)
    if 'verification' in report:
        print_verification(report['verification'])
    if 'heads' in report:
        print_heads(report['heads'])
    if 'other' in report:
        print_comparison(report)


def percent(value):
    return '       -' if value is None else f'{value:8.2%}'


def percents(values):
    return ' '.join(map(percent, values))


def print_warning(result):
    """Print notices, and a warning if figures are flattered or not comparable."""
    for notice in result.get('notices', []):
        print(f'notice: {result["file"]}: {notice}')
    if result.get('trained'):
        print(f'{result["file"]}: training used these classes: optimistic figures')
    protocol, select = result.get('protocol'), result.get('select')
    if protocol in (None, 'strict') and select != 'test':
        return
    print(
        f'{result["file"]}: protocol {protocol or "unknown"}, epoch selected by '
        f'{select or "unknown"}: {NOT_COMPARABLE}'
    )


def interval_title(report):
    """Return the title of a column of intervals."""
    unknown = None in report['intervals']['map@r']
    return NO_INTERVAL if unknown else '95 % interval (classes)'


def print_metrics(report):
    metrics, title = report['metrics'], interval_title(report)
    print(f'{"":<22}   {title:<28}per class   {title}')
    for name, interval in report['intervals'].items():
        per_class = percent(report['per_class_metrics'][name])
        limits = percents(report['per_class_intervals'][name])
        print(
            f'{name:<14}{percent(metrics[name])}   {percents(interval):<28}'
            f'{per_class:>9}   {limits}'
        )
    rank, without = metrics['mean_rank'], metrics['queries_without_positive']
    rank = '       -' if rank is None else f'{rank:8.1f}'
    print(f'{"mean rank":<14}{rank}   of the nearest image of the class')
    print(f'{"no positive":<14}{without:8,}   queries, counted as misses')


def print_without_lone_queries(report):
    without = report['without_lone_queries']
    lone = report['queries'] - without['queries']
    print(
        f'\nwithout the {counted(lone, "lone query")}, which nothing can answer, as '
        'pytorch-metric-learning reports it'
    )
    for name, value in without['metrics'].items():
        print(f'{name:<14}{percent(value)}')


def print_verification(rows):
    print('\ntrue matches at a share of false ones, of all pairs')
    for name, (value, *interval) in rows.items():
        kind, _, share = name.partition('@')
        title = f'at {float(share):.2%}' if share else kind.replace('_', ' ')
        note = 'too few pairs' if value is None else percents(interval)
        print(f'{title:<16}{percent(value)}   {note}')


def print_heads(rows):
    print('\nrecall@1 of the first heads')
    for heads, row in rows.items():
        print(f'{heads:<14}{percent(row["recall@1"])}   {percents(row["interval"])}')


def print_comparison(report):
    other = report['other']
    print(f'\ncompared with {other["file"]}, on the same queries')
    columns = f'{"":<14}{"other":>8}{"difference":>12}'
    print(f'{columns}   {interval_title(report):<31}p')
    for name, row in report['difference'].items():
        print(
            f'{name:<14}{percent(other["metrics"][name])}'
            f'{percent(row["difference"]):>12}   '
            f'{percents([row["low"], row["high"]])}{row["p"]:14.4f}'
        )


# Runs


def print_runs(folder, runs):
    print(
        f'{counted(len(runs), "run")} below {folder}: Recall@1 with its 95 % interval'
    )
    titles = 'new among new', 'whole gallery: trained', 'whole gallery: new'
    columns = ''.join(f'{title:<27}' for title in titles)
    print(f'\n    {columns}{"train / all s":<15}{"date":<12}commit')
    for data, group in itertools.groupby(runs, lambda run: run['data']):
        print(printable(data))
        for run in group:
            what = ', '.join(filter(None, map(run.get, ('network', 'recipe', 'note'))))
            print(printable(f'  {run["name"]}: {what}'))
            figures = ''.join(f'{figure_of_run(run, name):<27}' for name in FIGURES)
            seconds = (run['train_seconds'], run['seconds'])
            times = '-' if None in seconds else '{:,.0f} / {:,.0f}'.format(*seconds)
            date, commit = (run[name] or '-' for name in ('date', 'commit'))
            commit = commit[:7] + '+' * commit.endswith('+changes')
            print(f'    {figures}{times:<15}{date[:10]:<12}{commit}')


def figure_of_run(run, name):
    """Return a figure of a run and its interval, if it has them."""
    value, low, high = (run[name + end] for end in ('', '_low', '_high'))
    if value is None or low is None:
        return '-' if value is None else f'{value:.2%}'
    return f'{value:.2%} ({100 * low:.2f} to {100 * high:.2f})'


if __name__ == '__main__':
    utils.run_script(main)

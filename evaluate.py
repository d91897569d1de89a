"""Evaluate any embeddings exactly, with 95 % intervals over classes.

python evaluate.py FILE                    # recall@k, MAP@R and R-precision
python evaluate.py FILE --compare OTHER    # and the difference from another file
python evaluate.py FILE --verification     # and: are two images of one class?

FILE is a database of train.py or of the original code, or a .npz, .pt, .safetensors or
.h5 file that holds `embeddings` and `labels` and, if the queries are separate, also
`query_embeddings` and `query_labels`. It may also be a table (.csv, .tsv, .parquet) or
a .npy file of vectors, whose labels may be in a second file:

python evaluate.py vectors.npy --labels images.csv
"""

import contextlib
import io
import json
import os
import sys
import warnings

from areir.cli.evaluation import get_parser
from areir.cli.types import RECALLS
from areir.scripts import utils

if __name__ == '__main__':
    utils.before_imports(get_parser)  # the imports below take seconds

import torch

from areir.errors import UserError, counted
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
from areir.files import make_writable
from areir.hardware import limit_threads

NOT_COMPARABLE = 'not comparable with strict figures'


def get_args():
    parser = get_parser()
    args = parser.parse_args()
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


def is_usable(device):
    """Whether torch computes in float64 on a device here; mps does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch knows some names only from old code
            torch.empty(0, device=device, dtype=torch.float64).cpu()
    except Exception:  # each kind of device fails in its own way
        return False
    return True


def main():
    args = get_args()
    limit_threads()
    # notices of what is read; with --json, they must not be part of it
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        report = evaluate_file(args)
    with contextlib.suppress(BrokenPipeError):  # of `| head`, which stops early
        if args.json:
            print(json.dumps(report, indent=2, ensure_ascii=False))
        else:
            print_report(report)


# The report


def evaluate_file(args):
    """Return the report as a dict, which --json prints as it is."""
    verifies = args.verification is not None
    options = args.labels, args.metric, verifies
    result = rank_file(args.file, args.device, None, *options)
    if result.labels_unused and args.compare is None:
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
    if args.compare is not None:
        report |= compare_files(args, result, values, ks)
    return nan_to_none(report)


def recall_of_heads(args, heads):
    """Return Recall@1 of the first `heads` heads, with its interval."""
    with contextlib.redirect_stdout(io.StringIO()):  # its notices were printed
        result = rank_file(args.file, args.device, heads, args.labels, args.metric)
    hits = measures(result.ranks, [1])['recall@1']
    interval = confidence_intervals({'recall@1': hits}, result.query.labels)['recall@1']
    return {'recall@1': hits.mean().item(), 'interval': interval}


def compare_files(args, result, values, ks):
    """Return the report's entries about --compare: other and difference.

    values: the measures of each query of `result`.
    """
    other = rank_file(args.compare, args.device, None, args.labels, args.metric)
    if result.labels_unused and other.labels_unused:
        raise UserError(f'--labels {args.labels}: both files hold their labels')
    order = match_queries(result, other)
    others = {name: value[order] for name, value in measures(other.ranks, ks).items()}
    names = ('difference', 'low', 'high', 'p')
    compared = compare(values, others, result.query.labels)
    return {
        'other': {
            'file': args.compare,
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


if __name__ == '__main__':
    utils.run_script(main)

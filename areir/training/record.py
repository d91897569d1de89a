"""What a run writes and prints: CSV, model, database, provenance, console lines."""

import argparse
import math
import os
import platform
import secrets
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from areir import __version__
from areir.cli.recipes import RECIPES
from areir.data.images import PixelFormat
from areir.data.splits import Split, join_marks
from areir.errors import counted
from areir.evaluation.intervals import class_means, describe_interval, nan_to_none
from areir.files import relative_path
from areir.hardware import Hardware
from areir.matching.thresholds import threshold_lines
from areir.training.run import model_args

PACKAGES = 'torchvision', 'pillow', 'numpy', 'scipy', 'pandas'
RECIPE_FLAGS = list(RECIPES['2019'])[3:]  # those before have lines of their own
# which epoch is kept, for each --select
KEPT_EPOCH = {
    'last': 'the last epoch',
    'val': 'the best epoch on held-out training classes',
    'test': 'the best epoch on the test classes: flattered by that choice',
}
OPTIMISTIC = 'notice: training used these classes, so this figure is optimistic'
NO_THRESHOLD = (
    'no threshold of a match: too few classes were held out to set one; '
    '--threshold_from RUN takes that of an earlier run of this recipe'
)


def git_commit():
    """Return the commit of this code, '...+changes' if edited, or else its version.

    An installed package has no commit, even if it lies in somebody's repository: in a
    checkout, git knows train.py beside the package.
    """
    describe = 'describe', '--always', '--abbrev=40', '--exclude=*', '--dirty=+changes'
    git = ['git', '-C', os.path.abspath(f'{__file__}/../../..')]
    options = {'capture_output': True, 'text': True, 'check': True}
    try:
        subprocess.run([*git, 'ls-files', '--error-unmatch', 'train.py'], **options)
        return subprocess.run([*git, *describe], **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return __version__


@dataclass
class Experiment:
    """What a run is made of: all that its records need apart from the results."""

    args: argparse.Namespace
    split: Split
    recalls: list  # the K of recall@K
    partition: torch.Tensor  # int64 (E, classes)
    pixel_format: PixelFormat
    hardware: Hardware
    world: int  # processes, which divide the heads or the images as args.parallel says
    calibration: dict | None = None  # that of --threshold_from
    parameters: int = 0  # trainable ones of the whole ensemble, once it is built
    command: list = field(default_factory=lambda: sys.argv)
    commit: str = field(default_factory=git_commit)


def csv_row(experiment, progress, result, lr, seconds):
    """Return the row of an epoch in <run>_results.csv."""
    batches = progress.batches or math.nan  # none before training
    return {
        'epoch': result.epoch,
        'train_loss': progress.loss / batches,
        'train_accuracy': progress.accuracy / batches,
        **{f'test_{name}': value for name, value in result.metrics.items()},
        **{f'val_{name}': value for name, value in result.val_metrics.items()},
        **result.all_metrics,
        'lr': lr,
        'seconds': seconds,
        'train_seconds': progress.seconds_before + progress.seconds,
        'data_wait': progress.waited / max(progress.seconds, 1e-9),
        'protocol': experiment.args.protocol,
        'select': experiment.args.select,
    }


def result_files(experiment, result, state_dict, run_name):
    """Return the contents of <run>_model.pth and <run>_data_base.pth.

    One version ties them together. The database holds the test images; those of
    training if there is no test. If the queries are not the gallery, the names of their
    entries in the database begin with query_. Distractors have the label -1.
    """
    args, split = experiment.args, experiment.split
    common = {
        'data_name': args.data_name,
        'crop_type': args.crop_type,
        'version': secrets.token_hex(8),
        'epoch': result.epoch,
        'protocol': args.protocol,
        'select': args.select,
        # of the embeddings, one after the other; a projection mixes them
        'ensemble_size': 1 if result.projection else args.ensemble_size,
        'calibration': result.calibration,
    }
    projection = result.projection
    model = {
        **common,
        'state_dict': state_dict,
        'partition': experiment.partition,
        'classes': split.train.classes,
        'model_args': model_args(args),
        'projection': projection and dict(projection.named_buffers()),
        'pixel_format': asdict(experiment.pixel_format),
    }
    data_root = os.path.realpath(args.data_root)
    results_root = os.path.realpath(args.results_root)
    database = {
        **common,
        'model': f'{run_name}_model.pth',
        'classes': split.query.classes,
        'data_root': relative_path(data_root, results_root),
    }
    for name in split.test_parts:
        prefix, part = 'query_' if name == 'query' else '', split.parts[name]
        database[f'{prefix}embeddings'] = result.embeddings[name]
        database[f'{prefix}labels'] = part.labels
        database[f'{prefix}images'] = part.images
        for mark, numbers in join_marks([part]).items():
            database[f'{prefix}{mark}'] = numbers
    if not split.test_parts:
        parts = [result.parts[name] for name in result.trained]
        embeddings = [result.embeddings[name] for name in result.trained]
        database['trained'] = True
        database['embeddings'] = torch.cat(embeddings)
        database['labels'] = torch.cat([part.labels for part in parts])
        database['images'] = [image for part in parts for image in part.images]
        database |= join_marks(parts)
    return model, database


def provenance(experiment, result):
    """Return the contents of <run>_run.json."""
    args, split = experiment.args, experiment.split
    hardware, info = experiment.hardware, experiment.split.info
    metrics = {**result.metrics, **result.all_metrics}
    per_class = class_means(result.values, result.labels) if result.metrics else {}
    versions = {'python': platform.python_version(), 'torch': torch.__version__}
    versions |= {name: version(name) for name in PACKAGES}
    held_out = split.parts['val'].classes if 'val' in split.parts else []
    return {
        'date': datetime.now(UTC).isoformat(timespec='seconds'),
        'command': experiment.command,
        'arguments': vars(args),
        'commit': experiment.commit,
        'device': hardware.name,
        'precision': hardware.precision,
        'gpus': hardware.gpus,
        'processes': experiment.world,
        'parameters': experiment.parameters,
        'protocol': args.protocol,
        'select': args.select,
        'versions': versions,
        'data': {
            'counts': info['counts'],
            'warnings': info['warnings'],
            'leaks': info.get('leaks', {}),
            'layout': info['layout'],
            'split_sha256': split.sha256,
            'held_out': held_out,
        },
        'pixel_format': asdict(experiment.pixel_format),
        'epoch': result.epoch,
        'queries_without_positive': result.queries_without_positive,
        'metrics': nan_to_none(metrics),
        'per_class_metrics': per_class,
        'intervals': nan_to_none(result.intervals),
        'calibration': result.calibration,
    }


def opening_lines(experiment, run_name, sampler):
    """Return the lines before the first epoch, with --quiet only warnings.

    sampler: an EpochSampler.
    """
    args, hardware = experiment.args, experiment.hardware
    info, parts = experiment.split.info, experiment.split.parts
    warnings = [f'warning: {args.data_name}: {line}' for line in info['warnings']]
    if args.quiet:
        return warnings
    counts = ', '.join(
        f'{name} {counted(count, "image")} of {counted(classes, "class")}'
        for name, (count, classes) in info['counts'].items()
    )
    se = 'se-' if args.with_se == 'yes' else ''
    more = f' and {len(hardware.gpus) - 1} more' if len(hardware.gpus) > 1 else ''
    divided = 'heads' if args.parallel == 'heads' else 'images of each batch'
    world = f', {experiment.world} processes divide the {divided}'
    world = world if experiment.world > 1 else ''
    native = '' if hardware.native_bf16 else 'not '
    recipe = ', '.join(f'{flag} {getattr(args, flag)}' for flag in RECIPE_FLAGS)
    has_groups = experiment.split.query.groups is not None
    held = f'; {len(parts["val"].classes)} classes held out' if 'val' in parts else ''
    return [
        f'run        {run_name}',
        f'data       {args.data_name} ({args.crop_type}): {counts}',
        f'model      {se}{args.model_type}, {counted(args.ensemble_size, "head")} of '
        f'{counted(args.meta_class_size, "meta-class")}, {experiment.parameters:,} '
        f'parameters, weights: {args.weights}',
        f'device     {hardware.name}{more}{world}, {hardware.precision} '
        f'(bf16 is {native}native here)',
        f'recipe     {args.recipe}: {recipe}',
        f'training   {counted(args.num_epochs, "epoch")} of '
        f'{counted(len(sampler.batches), "batch")} of {sampler.batch_size}, '
        f'lr {args.lr}{held}',
        f'reported   protocol {args.protocol}, {KEPT_EPOCH[args.select]}'
        + ('' if args.protocol == 'strict' else '; not comparable with strict figures')
        + ('; a query ignores images of its class and group' if has_groups else ''),
        *warnings,
    ]


def epoch_line(experiment, row, result):
    """Return the line about an epoch."""
    args, metrics = experiment.args, result.metrics
    figures = []
    if metrics:
        figures = [f'R@{k} {metrics[f"recall@{k}"]:.2%}' for k in experiment.recalls]
        figures.append(f'MAP@R {metrics["map@r"]:.2%}')
    if 'map' in metrics:
        figures.append(f'mAP {metrics["map"]:.2%}')
    if result.all_metrics:
        trained, *new = [f'{value:.2%}' for value in result.all_metrics.values()]
        new = f', {new[0]} new' if new else ' (optimistic)'
        figures.append(f'whole gallery R@1 {trained} trained{new}')
    if args.select == 'val':
        figures.append(f'held out R@1 {result.score:.2%}')
    figures.append(f'{row["seconds"]:.0f} s')
    if not result.epoch:
        return f'before training: {", ".join(figures)}'
    return (
        f'epoch {result.epoch}/{args.num_epochs}: loss {row["train_loss"]:.4f}, '
        f'accuracy {row["train_accuracy"]:.2%}, {", ".join(figures)}, '
        f'{row["data_wait"]:.1%} of training waiting for images'
    )


def closing_lines(rows, run):
    """Return the lines after the last epoch: a setback, the figures, the threshold.

    rows: of the CSV; run: the contents of run.json.
    """
    metrics, intervals = run['metrics'], run['intervals']
    source = run['arguments']['threshold_from']
    # the first recall@K; without a test there is none
    first = next((name for name in metrics if name.startswith('recall@')), '')
    titles = {
        first: f'new classes among themselves: {first.title()}',
        'all_recall@1_trained': 'whole gallery, trained classes: Recall@1',
        'all_recall@1_new': 'whole gallery, new classes: Recall@1',
    }
    titles = {name: title for name, title in titles.items() if name in metrics}
    lines = setback_lines(rows, first)
    lines.append(f'kept epoch {run["epoch"]}, {KEPT_EPOCH[run["select"]]}')
    for name, title in titles.items():
        interval = describe_interval(*intervals[name])
        lines.append(f'{title} {metrics[name]:.2%}, {interval}')
    if not first:
        is_unknown = run['select'] == 'last'  # no classes were held out
        unknown = ', and nothing says how new ones are found' if is_unknown else ''
        lines.append(OPTIMISTIC + unknown)
    lines += threshold_lines(run['calibration']) or [NO_THRESHOLD]
    if source:
        lines.append(f'notice: the threshold and its figures are those of {source}')
    return lines


def setback_lines(rows, recall):
    """Return a notice if new classes are found worse than by the initial weights.

    The figure of trained classes says nothing here: before training, too, whitening is
    fitted to the images that it counts. rows: of the CSV; recall: the first recall@K.
    """
    before, after = (row.get(f'test_{recall}', 0) for row in (rows[0], rows[-1]))
    if rows[0]['epoch'] or after >= before:
        return []
    return [
        f'notice: the last epoch, {recall.title()} {after:.2%}, is worse than the '
        f'initial weights, {before:.2%}: train longer, with a lower --lr, or, if '
        'weights were loaded, with more --frozen_stages'
    ]

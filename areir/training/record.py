"""What a run writes and prints: CSV, model, database, provenance, console lines."""

import argparse
import math
import os
import platform
import secrets
import subprocess
import sys
from dataclasses import dataclass, field

import numpy
import pandas
import PIL
import scipy
import torch
import torchvision

from areir.evaluation.intervals import describe_interval, nan_to_none
from areir.matching.thresholds import threshold_lines
from areir.training.run import model_args


def git_commit():
    """Return the commit of this code, with '+changes' if it was edited since.

    Returns None outside a git checkout.
    """
    try:
        commit = git('rev-parse', 'HEAD')
        changes = git('status', '--porcelain', '--untracked-files=no')
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ('+changes' if changes else '')


def git(*command):
    """Run git in the folder of this code and return its output."""
    folder = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        ['git', '-C', folder, *command], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@dataclass
class Experiment:
    """What a run is made of: all that its records need apart from the results.

    split: areir.data.splits.Split; recalls: the K of recall@K; partition: int64
    (E, classes); hardware: hardware.Hardware; world: number of processes; parameters:
    trainable parameters of the whole ensemble; commit: of this code.
    """

    args: argparse.Namespace
    split: object
    recalls: list
    partition: torch.Tensor
    hardware: object
    world: int
    parameters: int
    commit: str | None = field(default_factory=git_commit)


# What is written


def csv_row(experiment, progress, result, lr, seconds):
    """Return the row of an epoch in <run>_results.csv."""
    args, done = experiment.args, progress.done
    batches = done.batches or math.nan  # none before training
    val = {f'val_{name}': value for name, value in result.val_metrics.items()}
    return {
        'epoch': result.epoch,
        'train_loss': done.loss / batches,
        'train_accuracy': done.accuracy / batches,
        **{f'test_{name}': value for name, value in result.metrics.items()},
        **val,
        'lr': lr,
        'seconds': seconds,
        'train_seconds': progress.seconds + done.seconds,
        'data_wait': done.waited / max(done.seconds, 1e-9),
        'protocol': args.protocol,
        'select': args.select,
    }


def common_fields(args, result):
    """Return what model and database both hold; one version ties them together."""
    return {
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


def model_file(common, experiment, result, state_dict):
    """Return the contents of <run>_model.pth."""
    args, split = experiment.args, experiment.split
    return {
        **common,
        'state_dict': state_dict,
        'partition': experiment.partition,
        'classes': split.train.classes,
        'model_args': model_args(args),
        'projection': result.projection.to_state() if result.projection else None,
        'mean': split.info['mean'],
        'std': split.info['std'],
        'image_size': args.image_size,
    }


def database_file(common, experiment, embeddings, run_name):
    """Return the contents of <run>_data_base.pth.

    embeddings: {part: (N, E * M)}. If the queries are not the gallery, the names of
    their entries begin with query_.
    """
    args, split = experiment.args, experiment.split
    data_root = os.path.realpath(args.data_root)
    results_root = os.path.realpath(args.results_root)
    database = {
        **common,
        'model': f'{run_name}_model.pth',
        'classes': split.query.classes,
        'data_root': os.path.relpath(data_root, results_root),
    }
    for name in split.test_parts:
        prefix = 'query_' if name == 'query' else ''
        database[f'{prefix}embeddings'] = embeddings[name]
        database[f'{prefix}labels'] = split.parts[name].labels
        database[f'{prefix}images'] = split.parts[name].images
    return database


def provenance(experiment, result):
    """Return the contents of <run>_run.json."""
    args, split = experiment.args, experiment.split
    hardware, info = experiment.hardware, experiment.split.info
    modules = (torch, torchvision, PIL, numpy, scipy, pandas)
    versions = {module.__name__: module.__version__ for module in modules}
    held_out = split.parts['val'].classes if 'val' in split.parts else []
    return {
        'command': sys.argv,
        'arguments': vars(args),
        'commit': experiment.commit,
        'device': hardware.name,
        'precision': hardware.precision,
        'gpus': hardware.gpus,
        'processes': experiment.world,
        'parameters': experiment.parameters,
        'protocol': args.protocol,
        'select': args.select,
        'versions': {'python': platform.python_version(), **versions},
        'data': {
            'counts': info['counts'],
            'warnings': info['warnings'],
            'layout': info['layout'],
            'split_sha256': split.sha256,
            'held_out': held_out,
            'mean': info['mean'],
            'std': info['std'],
        },
        'epoch': result.epoch,
        'queries_without_positive': result.queries_without_positive,
        'metrics': result.metrics,
        'intervals': {
            name: nan_to_none(pair) for name, pair in result.intervals.items()
        },
        'calibration': result.calibration,
    }


# What is printed

# which epoch is kept, for each --select
KEPT_EPOCH = {
    'last': 'the last epoch',
    'val': 'the best epoch on held-out training classes',
    'test': 'the best epoch on the test classes: flattered by that choice',
}


def opening_lines(experiment, run_name, sampler):
    """Return the lines before the first epoch; sampler: an EpochSampler."""
    args, hardware = experiment.args, experiment.hardware
    info = experiment.split.info
    counts = ', '.join(
        f'{name} {count:,} images of {classes:,} classes'
        for name, (count, classes) in info['counts'].items()
    )
    se = 'se-' if args.with_se == 'yes' else ''
    more = f' and {len(hardware.gpus) - 1} more' if len(hardware.gpus) > 1 else ''
    world = f', {experiment.world} processes' if experiment.world > 1 else ''
    native = '' if hardware.native_bf16 else 'not '
    lines = [
        f'run        {run_name}',
        f'data       {args.data_name} ({args.crop_type}): {counts}',
        *(f'           warning: {warning}' for warning in info['warnings']),
        f'model      {se}{args.model_type}, {args.ensemble_size} heads of '
        f'{args.meta_class_size} meta-classes, {experiment.parameters:,} parameters, '
        f'weights: {args.weights}',
        f'device     {hardware.name}{more}{world}, {hardware.precision} '
        f'(bf16 is {native}native here)',
        f'recipe     {args.recipe}: {recipe_text(args)}',
        f'training   {args.num_epochs} epochs of {len(sampler.batches):,} batches of '
        f'{sampler.batch_size}, lr {args.lr}{held_out(experiment.split)}',
        f'reported   protocol {args.protocol}, {KEPT_EPOCH[args.select]}',
    ]
    if args.protocol != 'strict':
        lines[-1] += '; not comparable with strict figures'
    return lines


def recipe_text(args):
    """Return the flags of a recipe in words, without those that change nothing."""
    words = [f'{args.schedule} schedule', f'{args.shared_stages} shared stages']
    if args.freeze_trunk == 'yes':
        words.append('trunk frozen')
    if args.freeze_bn == 'yes':
        words.append('batch norm frozen')
    if args.crop_area < 1:
        words.append(f'crops of at least {args.crop_area:.0%} of the area')
    if args.label_smoothing:
        words.append(f'label smoothing {args.label_smoothing}')
    mirror = ' and mirror image' if args.mirror == 'yes' else ''
    words.append(f'embedding by {args.embedding}{mirror}')
    if args.dimensions:
        words += [f'{args.dimensions} components', f'whitening {args.whitening}']
    return ', '.join(words)


def held_out(split):
    """Return the note about classes that are held out, or nothing."""
    if 'val' not in split.parts:
        return ''
    return f'; {len(split.parts["val"].classes)} classes held out'


def epoch_line(experiment, row, result):
    """Return the line about an epoch."""
    args, metrics = experiment.args, result.metrics
    recalls = [f'R@{k} {metrics[f"recall@{k}"]:.2%}' for k in experiment.recalls]
    figures = [*recalls, f'MAP@R {metrics["map@r"]:.2%}']
    if result.epoch:
        loss, accuracy = row['train_loss'], row['train_accuracy']
        figures = [f'loss {loss:.4f}', f'accuracy {accuracy:.2%}', *figures]
    if args.select == 'val':
        figures.append(f'held out R@1 {result.score:.2%}')
    figures.append(f'{row["seconds"]:.0f} s')
    if not result.epoch:
        return f'before training: {", ".join(figures)}'
    figures.append(f'{row["data_wait"]:.1%} of training waiting for images')
    return f'epoch {result.epoch}/{args.num_epochs}: {", ".join(figures)}'


def kept_line(result):
    """Return the line about the epoch that is kept."""
    k = result.recalls[0]
    recall = result.metrics[f'recall@{k}']
    interval = describe_interval(*result.intervals[f'recall@{k}'])
    return (
        f'kept epoch {result.epoch}, {KEPT_EPOCH[result.select]}: R@{k} {recall:.2%}, '
        f'{interval}'
    )


def setback_line(rows, k):
    """Return the line that the last epoch is worse than the start, or None.

    rows: of the CSV; k: the first K of recall@K.
    """
    first, last = rows[0], rows[-1]
    name = f'test_recall@{k}'
    if first['epoch'] or last[name] >= first[name]:
        return None
    return (
        f'notice: the last epoch, R@{k} {last[name]:.2%}, is worse than the initial '
        f'weights, {first[name]:.2%}: train longer, with a lower --lr, or, if weights '
        'were loaded, with --freeze_trunk yes'
    )


def closing_lines(rows, k, calibration):
    """Return the lines after the last epoch: a setback, and the threshold of a match.

    rows: of the CSV; k: the first K of recall@K.
    """
    setback = setback_line(rows, k)
    return [*([setback] if setback else []), *threshold_lines(calibration)]

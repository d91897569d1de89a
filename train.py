"""Train the ensemble, test it on unseen classes, write the model and its database.

    python train.py --data_name cub --crop_type cropped --model_type resnet34
    python train.py --data_name sample --weights none --image_size 64 --num_epochs 8

    torchrun --nproc_per_node 2 train.py ...    # divides the work among 2 processes

A run is named {data_name}_{crop_type}_{model_type}_{ensemble_size}_{meta_class_size},
followed by its protocol, selection or recipe if that is not the default, or as
--run_name says. Its files below --results_root begin with that name. A run can be
killed at any moment: the same command with --resume continues from its last checkpoint.
"""

import argparse
import math
import os
import time
from functools import partial

from areir.cli.training import check_flags, get_parser
from areir.scripts import utils

if __name__ == '__main__':
    utils.before_imports(get_parser)  # the imports below take seconds

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from areir import processes
from areir.bars import progress_bar
from areir.cli.recipes import fill_in_defaults
from areir.data.splits import check_name
from areir.errors import UserError, counted
from areir.hardware import (
    available_cores,
    check_device,
    choose_hardware,
    keep_freed_memory,
    local_processes,
    memory_format,
)
from areir.networks.backbones import (
    check_image_size,
    has_depthwise,
    is_transformer,
    own_size,
)
from areir.networks.cutting import STAGES
from areir.networks.layers import folded
from areir.output.loggers import RunLog
from areir.scripts.model import EnsembleLoss, EnsembleModel, assign_meta_classes
from areir.training import record
from areir.training.batches import load_data, make_loaders, training_batches
from areir.training.result import Result, embed_parts, record_epoch
from areir.training.run import (
    Run,
    earlier_calibration,
    model_args,
    read_run_json,
    run_name,
    run_settings,
)
from areir.training.trainer import Trainer, learning_rate
from areir.training.weights import (
    initial_format,
    initial_weights,
    load_ensemble,
    read_base,
)


def get_args(flags=None):
    """Return the flags; those of the recipe are None unless they are given.

    flags: words, {flag: value}, or None for the command line.
    """
    parser = get_parser()
    args = parser.parse_args(flags)
    check_flags(args, parser)
    check_device(args.device)
    args.image_size = args.image_size or own_size(args.model_type)
    check_image_size(args.image_size, args.model_type)
    if args.run_name is not None:
        check_name(args.run_name, '--run_name')
    if args.num_workers is None:
        available = min(8, available_cores())
        args.num_workers = max(1, available // local_processes())
    if not args.select:
        args.select = 'test' if args.protocol == 'published' else 'last'
    return args


def usable_recalls(recalls, available):
    """Return the K that `available` images allow. Raises UserError if none is left."""
    dropped = [k for k in recalls if k > available]
    if dropped:
        names = ','.join(map(str, dropped))
        images = counted(available, 'image')
        print(f'notice: recall@{names} dropped: {images} can be retrieved')
    if len(dropped) == len(recalls):
        raise UserError(f'--recalls: choose at least one from 1 to {available}')
    return [k for k in recalls if k <= available]


# Model


def build_model(args, base, initialise):
    """Return what this process trains: the trunk, and all heads or every P-th.

    base: the model of --extend or None; initialise: whether to load --weights, which
    a checkpoint would replace.
    """
    rank, count = processes.rank_and_count()
    members = range(args.ensemble_size)
    if args.parallel == 'heads':
        members = members[rank::count]
    network, state = initial_weights(args) if initialise else (None, None)
    options = {'seed': args.seed, 'members': members, 'network': network}
    model = EnsembleModel(**model_args(args), **options)
    if state:
        load_ensemble(model, state, f'--weights {args.weights}')
    if base:
        old_heads = base['model_args']['ensemble_size']
        load_ensemble(model, base['state_dict'], f'--extend {args.extend}', old_heads)
    model.trunk[: args.frozen_stages].requires_grad_(False)
    for layer in model.modules():
        if hasattr(layer, 'drop_prob'):
            layer.drop_prob = 0.0  # no stochastic depth
    on_gpu = torch.cuda.is_available() and args.device != 'cpu'
    if on_gpu and args.parallel == 'data' and count > 1:
        convert_sync_batchnorm(model)
    return model


def choose_parallel(args, world, heads, images):
    """Return 'heads' or 'data': what `world` processes divide.

    heads, images: how many are trained, and on how many. Dividing heads keeps the
    numbers of one process whatever the network, and sends least, but each process
    computes the trunk. By default the images are divided if a process then has less
    than two thirds of the work, counted in stages. Raises UserError if some processes
    would have nothing to train.
    """
    batch_size = min(args.batch_size, images)
    own, shared = STAGES - args.shared_stages, args.shared_stages
    of_heads = shared + -(-heads // world) * own
    of_data = (shared + heads * own) / world
    parallel = args.parallel
    if not parallel:
        uneven = world > heads or of_data < of_heads * 2 / 3
        parallel = 'data' if uneven else 'heads'
    if parallel == 'heads' and world > heads:
        raise UserError(
            f'--parallel heads: torchrun started {world} processes, and each needs a '
            f'head of its own to train; there are {heads}'
        )
    if parallel == 'data' and world > batch_size:
        raise UserError(
            f'--batch_size {batch_size}: torchrun started {world} processes, and each '
            'needs an image of every batch'
        )
    return parallel


def make_trainer(model, args, hardware, old_heads, share):
    """Return the Trainer of the heads that are not from --extend.

    share: of each batch that this process trains on.
    """
    criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    trained = sum(member >= old_heads for member in model.members)
    loss = EnsembleLoss(criterion, trained, args.ensemble_size - old_heads)
    freeze_bn = args.freeze_bn == 'yes'
    trainer = Trainer(
        model,
        loss,
        args.lr,
        hardware,
        freeze_bn,
        args.seed,
        args.weight_decay,
        args.classifier_rate,
        criterion_rate=args.classifier_rate,
        share=share,
    )
    if args.protocol == 'published':
        from areir.training.published import RandomWeights  # only this protocol

        trainer.noise = RandomWeights(model, args.seed).generator
    return trainer


# Training


def train_epoch(trainer, batches, rate, run, progress, signals, minutes):
    """Train on the remaining batches (images, meta-labels) of an epoch.

    batches: in a progress bar; rate: returns the learning rate after a number of
    epochs, which may be a fraction. Every `minutes`, and once `signals` is not empty,
    all processes write a checkpoint together. Raises KeyboardInterrupt after a signal,
    and UserError if the loss is not finite.
    """
    seconds_before = progress.seconds
    started = saved_at = waiting_since = time.perf_counter()
    for images, meta_labels in batches:
        progress.waited += time.perf_counter() - waiting_since
        lr = rate(progress.epoch - 1 + (progress.batches + 0.5) / batches.total)
        trainer.begin_step(lr, progress.epoch, progress.batches)
        share = trainer.step(images, meta_labels)
        now = time.perf_counter()
        # sums over all processes: a flag is true if it is so in any of them
        due = bool(minutes) and now - saved_at > 60 * minutes
        flags = torch.tensor([due, bool(signals)]).to(share)
        sums = processes.sum_over_all(torch.cat([share, flags]))
        loss, accuracy, due, stopping = sums.tolist()
        progress.batches += 1
        if not math.isfinite(loss):
            raise UserError(
                f'epoch {progress.epoch}, batch {progress.batches}: the loss is '
                f'{loss}; a smaller --lr may help. Last checkpoint: '
                + next(iter(run.checkpoints()), 'none yet')
            )
        progress.loss += loss
        progress.accuracy += accuracy
        progress.seconds = seconds_before + now - started
        batches.set_postfix(
            loss=f'{progress.loss / progress.batches:.4f}',
            accuracy=f'{progress.accuracy / progress.batches:.2%}',
            refresh=False,
        )
        if stopping:
            folder = run.save_checkpoint(trainer, progress)
            raise KeyboardInterrupt(
                f'saved in {folder}; the same command with --resume continues'
            )
        if due:
            run.try_checkpoint(trainer, progress)
            saved_at = time.perf_counter()
        waiting_since = time.perf_counter()


def test_epoch(epoch, lr, trainer, loaders, experiment, run, progress, signals):
    """Save the weights of an epoch, embed the test images, and record the Result."""
    checkpoint = run.save_checkpoint(trainer, progress)
    started = time.perf_counter()
    args = experiment.args
    net = trainer.model
    if trainer.precision == 'bf16' and args.protocol == 'strict':
        net = folded(net, torch.bfloat16)
    embeddings = embed_parts(net, loaders, experiment.split, args, signals)
    if processes.is_first():
        result = Result(experiment, epoch, *embeddings)
        record_epoch(experiment, run, progress, result, checkpoint, lr, started)


def print_result(run, progress):
    """Print what a finished run has reached, and draw its curves."""
    import pandas as pd

    from areir.output.charts import draw_curves  # imports matplotlib, a second

    reached = read_run_json(run.path('run.json'))
    print(*record.closing_lines(progress.rows, reached), sep='\n')
    draw_curves(pd.DataFrame(progress.rows), run.path('curves.svg'))
    files = '{results.csv,model.pth,data_base.pth,run.json,curves.svg}'
    print(f'wrote {run.path(files)}')


@processes.left_as_found()
def main(args: argparse.Namespace | dict | None = None) -> dict | None:
    """Train one run, and return what it reached and wrote.

        areir.train({'data_name': 'sample', 'weights': 'none', 'recalls': [1, 2]})

    args: {flag: value}, see docs/flags.md and `Parser.to_argv`, or what get_args
    returns; by default the flags of the command line.
    Returns {'run': its name, 'figures': {metric: fraction}, 'intervals': {metric:
    [low, high]}, 'paths': {'model', 'data_base', 'results', 'run', 'curves': path}};
    None in other processes than torchrun's first. An equal call gives equal figures.
    Raises UserError if a flag or the dataset is refused, OSError if a file cannot be
    written, and KeyboardInterrupt, after a checkpoint, if it is interrupted. Reseeds
    torch's generators of GPUs.
    """
    options = {}
    if isinstance(args, dict):
        options['command'] = ['train.py', *get_parser().to_argv(args)]
    if not isinstance(args, argparse.Namespace):
        args = get_args(args)
    keep_freed_memory()
    rank, world = processes.join()

    # data
    split = load_data(args)
    recalls = usable_recalls(args.recalls, split.available) if split.test_parts else []
    images, classes = split.info['counts']['train'][0], len(split.train.classes)
    transformer = is_transformer(args.model_type)
    fill_in_defaults(args, images, classes, args.weights == 'none', transformer)
    partition = assign_meta_classes(
        classes, args.meta_class_size, args.ensemble_size, args.seed
    )

    # run
    base = read_base(args, split, partition)
    old_heads = base['model_args']['ensemble_size'] if base else 0
    args.parallel = choose_parallel(args, world, args.ensemble_size - old_heads, images)
    depthwise = has_depthwise(args.model_type)
    hardware = choose_hardware(args.gpu_ids, args.precision, depthwise, args.device)
    settings = run_settings(args, hardware.precision, split.sha256)
    run = Run(run_name(args, old_heads, transformer), args.results_root, settings)
    own = os.path.realpath(run.path('model.pth'))
    if args.extend and os.path.realpath(args.extend) == own:
        raise UserError(f'--extend {args.extend}: choose a --run_name that keeps it')
    calibration = earlier_calibration(args, images, classes, transformer)
    pixel_format = initial_format(args, split, base)
    processes.check_shared_folder(args.results_root)
    experiment = record.Experiment(
        args,
        split,
        recalls,
        partition,
        pixel_format,
        hardware,
        world,
        calibration,
        **options,
    )
    with run.locked():
        if run.check_start(args.resume, args.overwrite):
            with RunLog(args.log, run, vars(args)) as log:
                train(run, experiment, base, log)
    return None if rank else run.outcome()


def train(run, experiment, base, log):
    """Train a run from its last checkpoint, or from the beginning, to its end.

    base: the contents of the model file of --extend, or None; log: a RunLog.
    """
    args, split, partition = experiment.args, experiment.split, experiment.partition
    hardware, pixel_format = experiment.hardware, experiment.pixel_format

    # images, and all processes' shares of each batch
    device, divides_images = hardware.device, args.parallel == 'data'
    copies = run.path('copies') if args.copies == 'yes' else None
    loaders = make_loaders(split, args, pixel_format, device, copies, divides_images)
    sampler = loaders['train'].batch_sampler

    # model and optimizers
    model = build_model(args, base, not run.checkpoints())
    experiment.parameters = model.count_parameters()[2]
    model.to(device, memory_format=memory_format(device))
    old_heads = base['model_args']['ensemble_size'] if base else 0
    trainer = make_trainer(model, args, hardware, old_heads, sampler.share)
    meta_labels = partition[model.members][:, split.train.labels].T  # (images, heads)
    rate = partial(learning_rate, args.schedule, args.lr, args.num_epochs, args.warmup)

    for line in record.opening_lines(experiment, run.name, sampler):
        print(line)
    progress = run.begin(trainer)
    signals = processes.catch_signals()
    make_batches = training_batches
    if args.frozen_stages == args.shared_stages:
        from areir.training.trunk_features import feature_maker  # few runs need it

        make_batches = feature_maker(
            trainer, loaders['train'].dataset, experiment, run, progress, signals
        )

    # loop; epoch 0 evaluates the initial weights
    tests_start = args.recipe == 'current' and not progress.rows
    for epoch in range(0 if tests_start else progress.epoch, args.num_epochs + 1):
        if epoch:
            progress.begin_epoch(epoch)
            sampler.set_epoch(epoch, progress.batches)
            trainer.begin_epoch(rate(epoch - 0.5))
            bar = progress_bar(
                make_batches(loaders['train'], meta_labels, device),
                f'epoch {epoch}/{args.num_epochs}',
                len(sampler.batches),
                initial=sampler.start,
                unit='img',
                unit_scale=sampler.batch_size,
            )
            train_epoch(
                trainer, bar, rate, run, progress, signals, args.checkpoint_minutes
            )
        if epoch % args.test_every and epoch < args.num_epochs:
            run.save_checkpoint(trainer, progress)
            continue
        lr = rate(epoch - 0.5) if epoch else 0.0
        test_epoch(epoch, lr, trainer, loaders, experiment, run, progress, signals)
        log.send_rows(progress.rows)

    loaders.clear()  # this ends their processes
    first = processes.is_first()
    if first:
        print_result(run, progress)
        log.send_worst_queries(run.path('data_base.pth'), split.folder)
    processes.leave()
    if first:
        run.end(progress)


if __name__ == '__main__':
    utils.run_script(main)

"""Train the ensemble, test it on unseen classes, write the model and its database.

    python train.py --data_name cub --crop_type cropped --model_type resnet34
    python train.py --data_name sample --weights none --image_size 64 --num_epochs 8

    torchrun --nproc_per_node 2 train.py ...     # divides the heads among 2 processes

A run is named {data_name}_{crop_type}_{model_type}_{ensemble_size}_{meta_class_size},
followed by its protocol, selection or recipe if that is not the default. Its files
below --results_root begin with that name. A run can be killed at any moment: the same
command with --resume continues from its last checkpoint.
"""

import math
import time
from functools import partial

import utils
from areir.cli.training import get_parser

if __name__ == '__main__':
    utils.before_imports(get_parser)  # those below take seconds

import pandas as pd
import torch
from torch import nn

from areir import processes
from areir.cli.recipes import check_recipe_flags, fill_in_defaults
from areir.errors import UserError
from areir.hardware import (
    available_cores,
    choose_hardware,
    keep_freed_memory,
    local_processes,
)
from areir.networks.backbones import check_image_size, has_depthwise
from areir.networks.layers import folded
from areir.networks.pretrained import load_weights
from areir.output.charts import draw_curves
from areir.training import record
from areir.training.batches import training_batches
from areir.training.loaders import (
    load_data,
    make_loaders,
    progress_bar,
    usable_recalls,
)
from areir.training.published import RandomWeights
from areir.training.result import Result
from areir.training.run import (
    Run,
    model_args,
    refuse_idle_processes,
    run_name,
    run_settings,
    warn_about_meta_classes,
)
from areir.training.testing import embed_parts, record_epoch
from areir.training.trainer import Trainer, learning_rate
from areir.training.weights import (
    freeze_old_heads,
    initial_weights,
    read_base,
)
from model import EnsembleLoss, EnsembleModel, assign_meta_classes

# Arguments


def get_args(argv=None):
    parser = get_parser()
    args = parser.parse_args(argv)
    check_recipe_flags(args, parser)
    if args.lr is not None and not 0 < args.lr < math.inf:
        parser.error(f'--lr {args.lr}: must be above 0')
    check_image_size(args.image_size, args.model_type)
    if args.num_workers is None:
        available = min(8, available_cores())
        args.num_workers = max(1, available // local_processes())
    if not 0 <= args.seed < 2**63:
        parser.error(f'--seed {args.seed}: must be from 0 to 2 ** 63 - 1')
    if not args.checkpoint_minutes >= 0:
        parser.error(
            f'--checkpoint_minutes {args.checkpoint_minutes}: must be at least 0'
        )
    if args.batch_size == 1 and args.image_size <= 32:
        parser.error(
            '--batch_size 1 needs an --image_size above 32: batch norm would '
            'have a single value to normalise'
        )
    if not 0 < args.false_match_rate < 1:
        parser.error(
            f'--false_match_rate {args.false_match_rate}: must be between 0 and 1'
        )
    if not args.recalls or min(args.recalls) < 1:
        parser.error('--recalls: each must be at least 1')
    if args.protocol == 'published' and args.select not in (None, 'test'):
        parser.error(
            '--protocol published keeps the best epoch by test recall: omit --select'
        )
    if args.protocol == 'published' and args.recipe == 'current':
        parser.error('--protocol published needs --recipe 2019')
    if args.protocol == 'published' and args.freeze_trunk == 'yes':
        parser.error('--protocol published needs --freeze_trunk no')
    if not args.select:
        args.select = 'test' if args.protocol == 'published' else 'last'
    return args


# Model


def build_model(args, base, initialise, stages=None):
    """Return this process's share of the ensemble: the trunk and every P-th head.

    base: the model of --extend or None; initialise: whether to load --weights, which
    a checkpoint would replace; stages: of a network to use instead of --model_type.
    """
    rank, count = processes.rank_and_count()
    members = range(rank, args.ensemble_size, count)
    arguments = model_args(args)
    if stages:
        arguments['model_type'] = stages
    model = EnsembleModel(**arguments, seed=args.seed, members=members)
    if base:
        old_heads = base['model_args']['ensemble_size']
        freeze_old_heads(model, base['state_dict'], old_heads)
    elif initialise:
        weights = initial_weights(args)
        if weights is not None:
            load_weights(model, weights, f'--weights {args.weights}')
    if args.freeze_trunk == 'yes':
        model.trunk.requires_grad_(False)
    return model


def make_trainer(model, args, hardware, old_heads):
    """Return the Trainer of the heads that are not from --extend."""
    criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    trained = sum(member >= old_heads for member in model.members)
    loss = EnsembleLoss(criterion, trained, args.ensemble_size - old_heads)
    freeze_bn = args.freeze_bn == 'yes'
    return Trainer(model, loss, args.lr, hardware, freeze_bn, args.seed)


# Training


def sum_up(share, due, stopping):
    """Return (loss, accuracy, due, stopping) of all processes, in one exchange.

    share: loss and accuracy as `Trainer.step` returns them, to be summed; due,
    stopping: conditions, which come back true if they are true in any process.
    """
    flags = torch.tensor([due, stopping]).to(share)
    return processes.sum_over_all(torch.cat([share, flags])).tolist()


def check_loss(loss, run, progress):
    """Raise UserError if the loss of the next batch is not finite."""
    if not math.isfinite(loss):
        raise UserError(
            f'epoch {progress.epoch}, batch {progress.done.batches + 1}: the loss is '
            f'{loss}; a smaller --lr may help. Last checkpoint: '
            + next(iter(run.checkpoints()), 'none yet')
        )


def train_epoch(trainer, batches, rate, run, progress, signals, minutes):
    """Train on the remaining batches (images, meta-labels) of an epoch.

    batches: wrapped in a `progress_bar`; rate: returns the learning rate after a number
    of epochs, which may be a fraction. Every `minutes`, and once `signals` is not
    empty, all processes write a checkpoint together. Raises KeyboardInterrupt after a
    signal, and UserError if the loss is not finite.
    """
    done = progress.done
    seconds_before = done.seconds
    started = saved_at = waiting_since = time.perf_counter()
    for images, meta_labels in batches:
        done.waited += time.perf_counter() - waiting_since
        lr = rate(progress.epoch - 1 + (done.batches + 0.5) / batches.total)
        trainer.begin_step(lr, progress.epoch, done.batches)
        share = trainer.step(images, meta_labels)
        now = time.perf_counter()
        due = bool(minutes and now - saved_at > 60 * minutes)
        loss, accuracy, due, stopping = sum_up(share, due, bool(signals))
        check_loss(loss, run, progress)
        done.add(loss, accuracy)
        done.seconds = seconds_before + now - started
        batches.set_postfix(
            loss=f'{done.loss / done.batches:.4f}',
            accuracy=f'{done.accuracy / done.batches:.2%}',
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
    embeddings = embed_parts(net, loaders, args, experiment.split.info, signals)
    if processes.is_first():
        result = Result(experiment, epoch, *embeddings)
        record_epoch(experiment, run, progress, result, checkpoint, lr, started)


def print_result(run, progress, k):
    """Print what a finished run has reached, and draw its curves; k: of recall@k."""
    print(progress.kept)
    for line in record.closing_lines(progress.rows, k, run.calibration()):
        print(line)
    draw_curves(pd.DataFrame(progress.rows), run.path('curves.svg'))
    files = '{results.csv,model.pth,data_base.pth,run.json,curves.svg}'
    print(f'wrote {run.path(files)}')


def main(args=None, stages=None, normalisation=None):
    """Train one run.

    stages: of a network to start from instead of --model_type and --weights;
    normalisation: (mean, std) to use instead of the dataset's.
    """
    args = args or get_args()
    keep_freed_memory()
    rank, world = processes.join()

    # data
    split = load_data(args)
    if normalisation:
        split.info['mean'], split.info['std'] = normalisation
    recalls = usable_recalls(args.recalls, split.available)
    classes = len(split.train.classes)
    fill_in_defaults(args, classes, from_scratch=args.weights == 'none' and not stages)
    warn_about_meta_classes(args.meta_class_size, classes)
    partition = assign_meta_classes(
        classes, args.meta_class_size, args.ensemble_size, args.seed
    )

    # run
    base = read_base(args, split, partition)
    old_heads = base['model_args']['ensemble_size'] if base else 0
    refuse_idle_processes(args.ensemble_size - old_heads, world)
    depthwise = has_depthwise(stages or args.model_type)
    hardware = choose_hardware(args.gpu_ids, args.precision, depthwise)
    device = hardware.device
    settings = run_settings(args, hardware.precision, split.sha256)
    run = Run(run_name(args, old_heads), args.results_root, settings)
    if not run.check_start(args.resume, args.num_epochs):
        return
    processes.check_shared_folder(args.results_root)

    # model and optimizers: every process has the trunk and its share of the heads
    model = build_model(args, base, not run.checkpoints(), stages)
    del base  # its weights are as large as the model
    model.to(device, memory_format=torch.channels_last)
    trainer = make_trainer(model, args, hardware, old_heads)
    if args.protocol == 'published':
        trainer.noise = RandomWeights(model, args.seed).generator
    meta_labels = partition[model.members][:, split.train.labels].T  # (images, heads)
    loaders = make_loaders(split, args, device)
    sampler = loaders['train'].batch_sampler
    rate = partial(learning_rate, args.schedule, args.lr, args.num_epochs, args.warmup)

    _, _, parameters = model.count_parameters()
    experiment = record.Experiment(
        args, split, recalls, partition, hardware, world, parameters
    )
    print(*record.opening_lines(experiment, run.name, sampler), sep='\n')
    progress = run.begin(trainer)

    # loop; epoch 0 evaluates the initial weights
    signals = processes.catch_signals()
    make_batches = training_batches
    if args.freeze_trunk == 'yes':
        from areir.training.trunk_features import feature_maker  # few runs need it

        make_batches = feature_maker(
            trainer, loaders['train'], experiment, run, progress, signals
        )
    tests_start = args.recipe == 'current' and not progress.rows
    for epoch in range(0 if tests_start else progress.epoch, args.num_epochs + 1):
        if epoch:
            progress.begin_epoch(epoch)
            sampler.set_epoch(epoch, progress.done.batches)
            trainer.begin_epoch(rate(epoch - 0.5))
            batches = make_batches(loaders['train'], meta_labels, split.info, device)
            batches = progress_bar(batches, sampler, f'epoch {epoch}/{args.num_epochs}')
            train_epoch(
                trainer, batches, rate, run, progress, signals, args.checkpoint_minutes
            )
        if epoch % args.test_every and epoch < args.num_epochs:
            run.save_checkpoint(trainer, progress)
            continue
        lr = rate(epoch - 0.5) if epoch else 0.0
        test_epoch(epoch, lr, trainer, loaders, experiment, run, progress, signals)

    if rank == 0:
        print_result(run, progress, recalls[0])
    processes.leave()
    if rank == 0:
        run.end(progress)


if __name__ == '__main__':
    utils.run_script(main)

"""The flags of train.py."""

import argparse

from areir.cli.recipes import add_recipe_flags, by_recipe
from areir.cli.types import (
    RECALLS,
    image_size,
    integer,
    integers,
    path,
    positive,
)

RANGES = {
    'lr': (1e-12, 100),
    'seed': (0, 2**63 - 1),
    'checkpoint_minutes': (0, 1e6),
    'false_match_rate': (1e-6, 0.999),
    'warmup': (0, 0.9),
    'crop_area': (0.05, 1),
    'label_smoothing': (0, 0.9),
    'dimensions': (0, 65536),
    'whitening': (0, 1),
}


def get_parser():
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description='Train AREIR and measure its recall on unseen classes.',
    )
    add_data_flags(parser.add_argument_group('data').add_argument)
    add_model_flags(parser.add_argument_group('model').add_argument)
    add_training_flags(parser.add_argument_group('training').add_argument)
    add_recipe_flags(parser.add_argument_group('recipe').add_argument)
    add_evaluation_flags(parser.add_argument_group('evaluation').add_argument)
    add = parser.add_argument_group('results').add_argument
    add(
        '--store',
        default='fp32',
        choices=['fp32', 'fp16'],
        help='number format of the embeddings in the database '
        '[default value is %(default)s]',
    )
    add(
        '--results_root',
        default='results',
        type=path,
        help="folder to write to [default value is '%(default)s']",
    )
    return parser


def add_data_flags(add):
    add(
        '--data_name',
        default='car',
        help='dataset: car, cub, sop, isc, sample, or the name of any prepared one '
        "[default value is '%(default)s']",
    )
    add(
        '--crop_type',
        default='uncropped',
        choices=['uncropped', 'cropped'],
        help='crop images to their object, for car, cub and CSVs with boxes '
        '[default value is %(default)s]',
    )
    add(
        '--data_root',
        default='data',
        type=path,
        help="folder of the datasets [default value is '%(default)s']",
    )
    add(
        '--image_size',
        type=image_size,
        default=256,
        help='pixels per side of the square to which images are squashed '
        '[default value is %(default)s]',
    )
    add(
        '--num_workers',
        type=integer(0, 256),
        help='processes that decode images; 0 to decode in the training process '
        '[default value is the number of cores, at most 8, divided among the '
        'processes of torchrun]',
    )


def add_model_flags(add):
    add(
        '--model_type',
        default='resnet18',
        metavar='NAME',
        help='backbone: a ResNet, ResNeXt, ConvNeXt, EfficientNet, MobileNetV3, RegNet '
        'or Swin of torchvision [default value is %(default)s]',
    )
    add(
        '--with_se',
        default='yes',
        choices=['yes', 'no'],
        help='use squeeze-and-excitation blocks [default value is %(default)s]',
    )
    add(
        '--ensemble_size',
        type=integer(1, 1000),
        help=f'number of heads {by_recipe("ensemble_size")}',
    )
    add(
        '--meta_class_size',
        type=positive,
        help='meta-classes per head [default value is 12 for car and cub, 500 for sop, '
        '192 for isc, else as many as training classes (2019: an eighth)]',
    )
    add(
        '--weights',
        default='imagenet',
        type=path,
        help='initial weights: imagenet (downloaded once), imagenet_v2 (if there is a '
        'second version), none (random), or a file: a torchvision state dict or a '
        'model of train.py [default value is %(default)s]',
    )
    add(
        '--extend',
        metavar='MODEL',
        type=path,
        help='add heads to a finished run: keep the trunk and the heads of its model '
        'file and train only the new ones; other flags as in that run',
    )


def add_training_flags(add):
    add(
        '--batch_size',
        type=positive,
        help=f'images per training batch {by_recipe("batch_size")}',
    )
    add(
        '--num_epochs',
        type=positive,
        default=20,
        help='training epochs [default value is %(default)s]',
    )
    add('--lr', type=float, help=f'learning rate of Adam {by_recipe("lr")}')
    add(
        '--seed',
        type=int,
        default=0,
        help='seed of meta-classes, random weights and image order '
        '[default value is %(default)s]',
    )
    add(
        '--precision',
        default='auto',
        choices=['auto', 'fp32', 'bf16'],
        help='floating-point type of training; auto is bf16 where the hardware has it '
        '[default value is %(default)s]',
    )
    add(
        '--gpu_ids',
        type=integers,
        default=[0, 1],
        help='numbers of the GPUs to use, those that exist; without any, the CPU is '
        "used [default value is '0,1']",
    )
    add(
        '--resume',
        action='store_true',
        help='continue from the last checkpoint of this run, if there is one',
    )
    add(
        '--checkpoint_minutes',
        type=float,
        default=15,
        help='minutes between checkpoints within an epoch, 0 for none; one is written '
        'at the end of each epoch anyway [default value is %(default)s]',
    )


def add_evaluation_flags(add):
    add(
        '--protocol',
        default='strict',
        choices=['strict', 'published'],
        help='strict: an embedding depends on its image alone; published: the '
        'protocol of the first published tables, only for comparison with them '
        '[default value is %(default)s]',
    )
    add(
        '--select',
        choices=['last', 'val', 'test'],
        help='epoch to keep: last; val: the best on a fifth of the training classes, '
        'held out; test: the best on the test classes, which flatters the result '
        '[default value is last, test for --protocol published]',
    )
    add(
        '--test_every',
        type=positive,
        help='epochs between tests; the last is always tested '
        '[default value is a fifth of --num_epochs '
        '(2019, or --select val or test: 1)]',
    )
    add(
        '--recalls',
        type=integers,
        default=list(RECALLS),
        help=f"K of recall@K [default value is '{','.join(map(str, RECALLS))}']",
    )
    add(
        '--false_match_rate',
        type=float,
        default=0.01,
        help='share of the queries whose class is not in the gallery that may be '
        'reported as matches; sets the threshold of inference.py, on the test classes '
        'or on those held out by --select val [default value is %(default)s]',
    )


def check_flags(args, parser):
    """End the script with a message if flags are out of range or do not go together."""
    for name, (low, high) in RANGES.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            parser.error(f'--{name} {value}: must be from {low} to {high}')
    if not args.recalls or min(args.recalls) < 1:
        parser.error('--recalls: each must be at least 1')
    if args.batch_size == 1 and args.image_size <= 32:
        parser.error(
            '--batch_size 1 needs an --image_size above 32: batch norm would '
            'have a single value to normalise'
        )
    if args.protocol == 'published':
        if args.select not in (None, 'test'):
            parser.error(
                '--protocol published keeps the best epoch by test recall: '
                'leave out --select'
            )
        if args.recipe == 'current':
            parser.error('--protocol published needs --recipe 2019')
        if args.freeze_trunk == 'yes':
            parser.error('--protocol published needs --freeze_trunk no')

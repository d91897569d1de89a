"""The flags of train.py."""

import os
from importlib.util import find_spec

from areir.cli import add_device_flag, make_parser
from areir.cli.recipes import EMBEDDINGS, RECIPES, by_recipe
from areir.cli.types import (
    RECALLS,
    image_size,
    integers,
    number,
    path,
    positive,
    positives,
    seed,
)
from areir.errors import UserError, missing


def get_parser():
    parser = make_parser('Train AREIR and measure its recall on unseen classes.')
    add_data_flags(parser.add_argument_group('data').add_argument)
    add_model_flags(parser.add_argument_group('model').add_argument)
    add_training_flags(parser.add_argument_group('training').add_argument)
    add_recipe_flags(parser.add_argument_group('recipe').add_argument)
    add_evaluation_flags(parser.add_argument_group('evaluation').add_argument)
    add = parser.add_argument_group('results').add_argument
    flag = add('--store', choices=['fp32', 'fp16'], default='fp32')
    flag.help = 'number format of the embeddings in the database'
    add('--results_root', type=path, default='results', help='folder to write to')
    flag = add('--run_name', metavar='NAME')
    flag.help = (
        'name with which the files of this run begin [default value is '
        '{data_name}_{crop_type}_{model_type}_{ensemble_size}_{meta_class_size}]'
    )
    flag = add('--log', choices=['tensorboard', 'wandb', 'mlflow'])
    flag.help = 'also send figures, flags and pictures of the worst queries there'
    flag = add('--overwrite', action='store_true')
    flag.help = 'replace an interrupted run, or a finished one with other settings'
    # argparse does not know the defaults that depend on --recipe
    for action in parser._actions:
        if action.dest in RECIPES['current']:
            action.help += f' [default value is {by_recipe(action.dest)}]'
    return parser


def add_data_flags(add):
    flag = add('--data_name', default='car')
    flag.help = 'dataset: car, cub, sop, isc, sample, or the name of any prepared one'
    flag = add('--crop_type', choices=['uncropped', 'cropped'], default='uncropped')
    flag.help = 'crop images to their object, for car, cub and CSVs with boxes'
    add('--data_root', type=path, default='data', help='folder of the datasets')
    flag = add('--image_size', type=image_size)
    flag.help = (
        'pixels per side of the square to which images are squashed [default value is '
        "256 for the four of torchvision, else the network's own]"
    )
    flag = add('--num_workers', type=number(int, 0, 256))
    flag.help = (
        'processes that decode images; 0 to decode in the training process [default '
        'value is the number of cores, at most 8, divided among the processes of '
        'torchrun]'
    )
    flag = add('--copies', choices=['yes', 'no'], default='yes')
    flag.help = (
        'keep reduced copies of large images below --results_root until the run is '
        'finished, so that only the first epoch waits for them'
    )


def add_model_flags(add):
    flag = add('--model_type', metavar='NAME', default='resnet18')
    flag.help = (
        "backbone: torchvision's resnet18, resnet34, resnet50 or resnext50_32x4d, or "
        'any network of timm, also with the tag of its weights'
    )
    flag = add('--with_se', choices=['yes', 'no'], default='yes')
    flag.help = 'use squeeze-and-excitation blocks'
    add('--ensemble_size', type=number(int, 1, 1000), help='number of heads')
    flag = add('--meta_class_size', type=positive)
    flag.help = (
        'meta-classes per head [default value is as many as training classes (2019: 12 '
        'for car and cub, 500 for sop, 192 for isc, else an eighth)]'
    )
    flag = add('--weights', type=path, default='pretrained')
    flag.help = (
        'initial weights: pretrained (downloaded once), none (random), or a file: '
        '.safetensors, a state dict, a checkpoint of another program, or a model of '
        'train.py'
    )
    flag = add('--extend', metavar='MODEL', type=path)
    flag.help = (
        'add heads to a finished run: keep the trunk and the heads of its model file '
        'and train only the new ones; other flags as in that run'
    )


def add_training_flags(add):
    add('--batch_size', type=positive, help='images per training batch')
    add('--num_epochs', type=positive, default=20, help='training epochs')
    add('--lr', type=number(float, 1e-12, 100), help='learning rate of AdamW')
    flag = add('--seed', type=seed, default=0)
    flag.help = 'seed of meta-classes, random weights and image order'
    flag = add('--precision', choices=['auto', 'fp32', 'bf16'], default='auto')
    flag.help = 'number format of training; auto is bf16 where the hardware has it'
    add_device_flag(add)
    flag = add('--gpu_ids', type=integers, default=[0, 1])
    flag.help = 'numbers of the GPUs to use if they exist; without any, the CPU is used'
    flag = add('--parallel', choices=['heads', 'data'])
    flag.help = (
        'what the processes of torchrun divide: the heads, or the images of each batch '
        '[default value is heads where that divides the work evenly, else data]'
    )
    flag = add('--resume', action='store_true')
    flag.help = 'continue from the last checkpoint of this run, if there is one'
    flag = add('--checkpoint_minutes', type=number(float, 0, 1e6), default=15)
    flag.help = (
        'minutes between checkpoints within an epoch, 0 for none; one is written at '
        'the end of each epoch anyway'
    )


def add_recipe_flags(add):
    flag = add('--recipe', choices=list(RECIPES))
    flag.help = (
        'defaults of the flags below, and of batch size, learning rate and ensemble '
        'size: 2019 is the recipe of the published tables [default value is 2019 for '
        'car, cub, sop and isc, but not for transformers, else current]'
    )
    flag = add('--shared_stages', type=int, choices=[1, 2, 3])
    flag.help = (
        'how many of the four stages of the backbone are the trunk; more are faster'
    )
    flag = add('--frozen_stages', type=int, choices=[0, 1, 2, 3])
    flag.help = (
        'how many stages of the trunk stay as they were loaded, which saves much of '
        'the time; if all --shared_stages do, their features are computed only once'
    )
    flag = add('--freeze_bn', choices=['yes', 'no'])
    flag.help = 'keep the statistics of batch norm as they were loaded'
    flag = add('--schedule', choices=['step', 'cosine'])
    flag.help = (
        'learning rate: divided by 10 at 50%% and 70%% of the epochs, or falling to 0 '
        'like a cosine'
    )
    flag = add('--warmup', type=number(float, 0, 0.9))
    flag.help = (
        'share of the epochs in which the learning rate of --schedule cosine rises '
        'from 0'
    )
    flag = add('--classifier_rate', type=number(float, 1e-3, 1e4))
    flag.help = (
        'learning rate of the classifiers and of squeeze-and-excitation, which no '
        'pretrained network has, as a multiple of --lr'
    )
    flag = add('--weight_decay', type=number(float, 0, 10))
    flag.help = 'weight decay of AdamW, for matrices and kernels'
    flag = add('--crop_area', type=number(float, 0.05, 1))
    flag.help = (
        'train on random crops of at least this share of the area of an image; '
        '1 for whole images'
    )
    flag = add('--label_smoothing', type=number(float, 0, 0.9))
    flag.help = 'probability that is spread over all meta-classes'
    flag = add('--embedding', choices=EMBEDDINGS)
    flag.help = (
        "what describes an image: the heads' logits; the pooled features from which "
        "they are computed; those of the trunk's last stage and of the heads' stages; "
        'or those of all stages'
    )
    flag = add('--mirror', choices=['yes', 'no'])
    flag.help = 'add the embedding of the mirror image; embedding takes twice the time'
    flag = add('--dimensions', type=number(int, 0, 65536))
    flag.help = (
        'reduce longer embeddings to this many numbers, the principal components of '
        'the training images after --whitening; 0 to keep all [default value is 1024, '
        '0 below 1,000 training images (2019: 0)]'
    )
    flag = add('--whitening', type=number(float, 0, 0.99))
    flag.help = (
        'how far to shrink the directions in which images of a class differ, 0 for not '
        'at all [default value is higher for more training images, see '
        'docs/training.md (2019: 0)]'
    )


def add_evaluation_flags(add):
    flag = add('--protocol', choices=['strict', 'published'], default='strict')
    flag.help = (
        'strict: an embedding depends on its image alone; published: the protocol of '
        'the first published tables, only for comparison with them'
    )
    flag = add('--select', choices=['last', 'val', 'test'])
    flag.help = (
        'epoch to keep: last; val: the best on a fifth of the training classes, held '
        'out; test: the best on the test classes, which flatters the result '
        '[default value is last, test for --protocol published]'
    )
    flag = add('--test_every', type=positive)
    flag.help = (
        'epochs between tests; the last is always tested [default value is a fifth of '
        '--num_epochs (2019, or --select val or test: 1)]'
    )
    add('--recalls', type=positives, default=list(RECALLS), help='K of recall@K')
    flag = add('--whole_gallery', choices=['yes', 'no'])
    flag.help = (
        'also embed the training images, and search every image among all others: '
        'recall@1 of trained and of new classes, and the threshold of a match, in one '
        'gallery of both [default value is yes, no for car, cub, sop, isc and '
        '--protocol published]'
    )
    flag = add('--false_match_rate', type=number(float, 1e-6, 0.999), default=0.01)
    flag.help = (
        'share of the queries whose class is not in the gallery that may be reported '
        'as matches; sets the threshold of inference.py, on the test classes or on '
        'those held out by --select val'
    )
    flag = add('--threshold_from', metavar='RUN', type=path)
    flag.help = (
        'take the threshold of a finished run of the same recipe, such as results/RUN, '
        'or RUN below --results_root; for training on all classes'
    )


def check_flags(args, parser):
    """Refuse flags that cannot be combined, and files that are not there."""
    # a folder of that name, such as wandb makes, is no package
    if args.log and not getattr(find_spec(args.log), 'origin', None):
        raise UserError(f'--log {args.log}: first pip install {args.log}')
    for flag in ('weights', 'extend'):
        path = getattr(args, flag)
        if path not in (None, 'pretrained', 'none') and not os.path.isfile(path):
            raise UserError(f'--{flag} {path}: {missing(path)}')
    if args.protocol == 'published':
        needed = {'select': 'test', 'recipe': '2019', 'frozen_stages': 0}
        for name, value in needed.items():
            if getattr(args, name) not in (None, value):
                parser.error(f'--protocol published needs --{name} {value}')

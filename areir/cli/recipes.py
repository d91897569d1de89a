"""The two recipes of training: the values of the flags that are not given.

2019 is the recipe of the published tables and the default for their datasets. current
is the default for all others; docs/results.md shows what each of its parts is worth.
"""

from areir.errors import UserError

EMBEDDINGS = 'logits', 'features', 'stages'
META_CLASSES = {'car': 12, 'cub': 12, 'sop': 500, 'isc': 192}  # as published

RECIPES = {
    '2019': {
        'ensemble_size': 48,
        'batch_size': 8,
        'lr': 1e-4,
        'shared_stages': 1,
        'freeze_trunk': 'no',
        'freeze_bn': 'no',
        'schedule': 'step',
        'warmup': 0.0,
        'crop_area': 1.0,
        'label_smoothing': 0.0,
        'embedding': 'logits',
        'mirror': 'no',
        'dimensions': 0,
        'whitening': 1.0,
    },
    'current': {
        'ensemble_size': 2,
        'batch_size': 32,
        'lr': 3e-4,
        'shared_stages': 3,
        'freeze_trunk': 'no',
        'freeze_bn': 'yes',
        'schedule': 'cosine',
        'warmup': 0.05,
        'crop_area': 0.4,
        'label_smoothing': 0.1,
        'embedding': 'features',
        'mirror': 'yes',
        'dimensions': 512,
        'whitening': 0.75,
    },
}
# how the current recipe differs if it starts from random weights
FROM_SCRATCH = {
    'batch_size': 64,
    'lr': 1.5e-3,
    'freeze_bn': 'no',
    'embedding': 'stages',
}
# training classes per meta-class, for datasets that are not in META_CLASSES
CLASSES_PER_META_CLASS = {'2019': 8, 'current': 1}
TESTS = 5  # in a run of the current recipe, after that of the initial weights
MOST_CLASSES = 23  # per meta-class in the published runs


# fmt: off


def add_recipe_flags(add):
    """Add the flags of the recipe; add: add_argument of a parser or group."""
    add('--recipe', choices=list(RECIPES),
        help='defaults of the flags below, and of batch size, learning rate and '
             'ensemble size: 2019 is the recipe of the published tables '
             '[default value is 2019 for car, cub, sop and isc, else current]')
    add('--shared_stages', type=int, choices=[1, 2, 3],
        help='how many of the four stages of the backbone are the trunk; more are '
             f'faster {by_recipe("shared_stages")}')
    add('--freeze_trunk', choices=['yes', 'no'],
        help='keep the trunk as it was loaded, and compute its features only once '
             f'{by_recipe("freeze_trunk")}')
    add('--freeze_bn', choices=['yes', 'no'],
        help='keep the statistics of batch norm as they were loaded '
             f'{by_recipe("freeze_bn")}')
    add('--schedule', choices=['step', 'cosine'],
        help='learning rate: divided by 10 at 50%% and 70%% of the epochs, or falling '
             f'to 0 like a cosine {by_recipe("schedule")}')
    add('--warmup', type=float,
        help='share of the epochs in which the learning rate of --schedule cosine '
             f'rises from 0 {by_recipe("warmup")}')
    add('--crop_area', type=float,
        help='train on random crops of at least this share of the area of an image; '
             f'1 for whole images {by_recipe("crop_area")}')
    add('--label_smoothing', type=float,
        help='probability that is spread over all meta-classes '
             f'{by_recipe("label_smoothing")}')
    add('--embedding', choices=EMBEDDINGS,
        help="what describes an image: the heads' logits; pooled features of the "
             "trunk's last stage and of the heads' stages; or those of all stages "
             f'{by_recipe("embedding")}')
    add('--mirror', choices=['yes', 'no'],
        help='add the embedding of the mirror image, which doubles the time of '
             f'embedding {by_recipe("mirror")}')
    add('--dimensions', type=int,
        help='reduce embeddings to this many numbers by principal components of the '
             f'training images; 0 to keep all {by_recipe("dimensions")}')
    add('--whitening', type=float,
        help='divide each component of --dimensions by its standard deviation to this '
             'power, from 0 to 1 '
             f'{by_recipe("whitening")}')


# fmt: on


def by_recipe(flag):
    """Return the end of a help text: the flag's default in each recipe."""
    old, new = (RECIPES[name][flag] for name in ('2019', 'current'))
    if old == new:
        return f'[default value is {old}]'
    scratch = f', {FROM_SCRATCH[flag]} from scratch' if flag in FROM_SCRATCH else ''
    return f'[default value is {new}{scratch} (2019: {old})]'


def default_recipe(args):
    """Return the recipe of a run without --recipe."""
    published = args.protocol == 'published'
    return '2019' if published or args.data_name in META_CLASSES else 'current'


def default_meta_classes(args, classes):
    """Return the number of meta-classes; classes: the number of training classes."""
    if args.data_name in META_CLASSES:
        return META_CLASSES[args.data_name]
    meta_classes = round(classes / CLASSES_PER_META_CLASS[args.recipe])
    return min(classes, max(2, meta_classes))


def default_test_every(args):
    """Return the number of epochs from one test to the next.

    A test with mirror images may take as long as an epoch of training, so the current
    recipe tests about TESTS times if the last epoch is kept.
    """
    if args.recipe == '2019' or args.select != 'last':
        return 1
    return max(1, args.num_epochs // TESTS)


def fill_in_defaults(args, classes, from_scratch):
    """Set the flags that were not given, in `args`.

    classes: number of training classes; from_scratch: whether the weights are random.
    Raises UserError if random weights would be frozen.
    """
    if args.recipe is None:
        args.recipe = default_recipe(args)
    values = dict(RECIPES[args.recipe])
    if args.recipe == 'current' and from_scratch:
        values |= FROM_SCRATCH
    values['test_every'] = default_test_every(args)
    values['meta_class_size'] = default_meta_classes(args, classes)
    for name, value in values.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.meta_class_size < classes / MOST_CLASSES / 2:
        print(
            f'notice: --meta_class_size {args.meta_class_size} is low for {classes:,} '
            f'training classes: {classes // MOST_CLASSES} to {classes:,} are usual'
        )
    if from_scratch and 'yes' in (args.freeze_trunk, args.freeze_bn):
        raise UserError(
            '--freeze_trunk and --freeze_bn keep what was loaded, and --weights none '
            'loads nothing: leave them out or give weights'
        )

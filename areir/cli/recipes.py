"""The two recipes of training: the values of the flags that are not given.

2019 is the recipe of the published tables and the default for their datasets. current
is the default for all others; docs/results.md shows what each of its parts is worth.
"""

from areir.errors import UserError

EMBEDDINGS = 'logits', 'pooled', 'features', 'stages'
META_CLASSES = {'car': 12, 'cub': 12, 'sop': 500, 'isc': 192}  # as published

RECIPES = {
    '2019': {
        'ensemble_size': 48,
        'batch_size': 8,
        'lr': 1e-4,
        'classifier_rate': 1.0,
        'weight_decay': 0.0,
        'shared_stages': 1,
        'frozen_stages': 0,
        'freeze_bn': 'no',
        'schedule': 'step',
        'warmup': 0.0,
        'crop_area': 1.0,
        'label_smoothing': 0.0,
        'embedding': 'logits',
        'mirror': 'no',
        'dimensions': 0,
        'whitening': 0.0,
    },
    'current': {
        'ensemble_size': 2,
        'batch_size': 32,
        'lr': 3e-4,
        'classifier_rate': 1.0,
        'weight_decay': 0.0,
        'shared_stages': 3,
        'frozen_stages': 2,
        'freeze_bn': 'yes',
        'schedule': 'cosine',
        'warmup': 0.05,
        'crop_area': 0.4,
        'label_smoothing': 0.1,
        'embedding': 'features',
        'mirror': 'yes',
    },
}
# how the current recipe differs if it starts from random weights
FROM_SCRATCH = {
    'ensemble_size': 1,
    'batch_size': 64,
    'lr': 1.5e-3,
    'frozen_stages': 0,
    'freeze_bn': 'no',
    'embedding': 'stages',
}
# how it differs for a transformer; docs/training.md says where each value comes from
TRANSFORMER = {
    'lr': 2e-5,
    'classifier_rate': 10.0,
    'weight_decay': 0.05,
    'embedding': 'pooled',
}
# and for one that starts from random weights
TRANSFORMER_FROM_SCRATCH = {'lr': 5e-4, 'classifier_rate': 1.0, 'warmup': 0.1}
# training classes per meta-class, for datasets that are not in META_CLASSES
CLASSES_PER_META_CLASS = {'2019': 8, 'current': 1}
DIMENSIONS = 1024  # of the current recipe
FEW_IMAGES = 1000  # training images; embeddings of fewer keep all their numbers
WHITENED = 400  # degrees of freedom within classes at which --whitening is 0.5
TESTS = 5  # in a run of the current recipe, after that of the initial weights
MOST_CLASSES = 23  # per meta-class in the published runs


def by_recipe(flag):
    """Return the flag's default in each recipe, for its help text."""
    old, new = RECIPES['2019'][flag], RECIPES['current'][flag]
    if old == new and flag not in TRANSFORMER:
        return new
    kinds = {
        'from scratch': FROM_SCRATCH,
        'for transformers': TRANSFORMER,
        'for transformers from scratch': TRANSFORMER_FROM_SCRATCH,
    }
    others = [f'{kinds[kind][flag]} {kind}' for kind in kinds if flag in kinds[kind]]
    return ', '.join([str(new), *others]) + f' (2019: {old})'


def default_recipe(args, transformer=False):
    """Return the recipe of a run without --recipe.

    The published tables have no transformer, so it takes the current recipe.
    """
    of_tables = args.data_name in META_CLASSES and not transformer
    return '2019' if args.protocol == 'published' or of_tables else 'current'


def default_meta_classes(args, classes):
    """Return the number of meta-classes; classes: the number of training classes."""
    if args.recipe == '2019' and args.data_name in META_CLASSES:
        return META_CLASSES[args.data_name]
    meta_classes = round(classes / CLASSES_PER_META_CLASS[args.recipe])
    return min(classes, max(2, meta_classes))


def default_projection(images, classes):
    """Return the defaults of --dimensions and --whitening in the current recipe.

    The more training images, the better the covariance within classes is known, and
    the further embeddings are whitened. The components of few images do not span what
    tells new classes apart.
    """
    freedom = max(0, images - classes)
    whitening = round(freedom / (freedom + WHITENED), 2)
    return DIMENSIONS if images >= FEW_IMAGES else 0, whitening


def current_recipe(from_scratch, transformer):
    """Return {flag: value} of the current recipe, for any dataset."""
    values = dict(RECIPES['current'])
    values |= FROM_SCRATCH if from_scratch else {}
    values |= TRANSFORMER if transformer else {}
    values |= TRANSFORMER_FROM_SCRATCH if transformer and from_scratch else {}
    return values


def default_values(args, images, classes, from_scratch, transformer=False):
    """Return {flag: its default} of the flags that depend on recipe or dataset.

    images, classes: how many there are to train; from_scratch: whether the weights are
    random; transformer: whether the network is one.
    """
    values = dict(RECIPES[args.recipe])
    if args.recipe == 'current':
        projection = default_projection(images, classes)
        values |= dict(zip(('dimensions', 'whitening'), projection))
        values |= current_recipe(from_scratch, transformer)
        if args.shared_stages:
            most = args.shared_stages - 1  # the rest of the trunk is trained
            values['frozen_stages'] = min(values['frozen_stages'], most)
    values['test_every'] = 1
    if args.recipe == 'current' and args.select == 'last':
        # a test with mirror images may take as long as an epoch of training
        values['test_every'] = max(1, args.num_epochs // TESTS)
    values['meta_class_size'] = default_meta_classes(args, classes)
    values['whole_gallery'] = 'no' if default_recipe(args) == '2019' else 'yes'
    return values


def fill_in_defaults(args, images, classes, from_scratch, transformer=False):
    """Set the flags that were not given, in `args`, to `default_values`.

    Raises UserError if random weights would be frozen.
    """
    if args.recipe is None:
        args.recipe = default_recipe(args, transformer)
    values = default_values(args, images, classes, from_scratch, transformer)
    for name, value in values.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.meta_class_size < classes / MOST_CLASSES / 2:
        print(
            f'notice: --meta_class_size {args.meta_class_size} is low for {classes:,} '
            f'training classes: {classes // MOST_CLASSES} to {classes:,} are usual'
        )
    if args.frozen_stages > args.shared_stages:
        raise UserError(
            f'--frozen_stages {args.frozen_stages}: at most --shared_stages, '
            f'{args.shared_stages}'
        )
    if from_scratch and (args.frozen_stages or args.freeze_bn == 'yes'):
        raise UserError(
            '--frozen_stages and --freeze_bn keep what was loaded, and --weights none '
            'loads nothing: leave them out or give weights'
        )

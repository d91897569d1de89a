"""Every kind of file that the program reads, and a command that reads it."""

from dataclasses import dataclass

from campaign.world import (
    FREEZE,
    LAYOUTS,
    MODEL,
    PLAIN,
    RUN,
)

RUN_FILES = ('*_results.csv', '*_model.pth', '*_data_base.pth', '*_run.json')
PREPARED = ('*_data_dicts.pth', 'cropped/**/*.jpg', 'cropped/*.jpg')
INDEX = (
    '*_index/vectors_*.f32',  # their codes only make a search faster
    '*_index/shortened_*.f32',
    '*/retrieved.csv',
)

# damage that leaves a valid file which says something else
SAVED_ANEW = ('odd_pth',)
TEXT = (
    *('cut_anywhere', 'cut_end', 'flip_bit', 'flip_bits', 'swap_blocks', 'drop_line'),
    *('double_line', 'swap_lines', 'odd_field', 'other_file'),
)
NUMBERS = ('flip_bit', 'flip_bits', 'flip_in_array', 'zero_block', 'swap_blocks')
NUMBERS += ('random_block', 'grow')
MATLAB = (*NUMBERS, 'other_file')


@dataclass
class Target:
    """Files of one kind and a command that reads them.

    areas: of the world; files: patterns of the paths that are damaged; outputs:
    patterns of the files that the command's result consists of; printed: whether its
    stdout is part of the result; unknowable: names of damages, see the docstring of
    the package; names: what a message may say instead of the name of the file; says:
    patterns of outputs that tell of damage as the console does.
    """

    kind: str
    areas: list
    files: list
    words: list
    outputs: list = ()
    printed: bool = False
    unknowable: tuple = ()
    names: tuple = ()
    says: tuple = ()
    before: object = None
    weight: int = 1  # how many cases it gets, compared with others
    needs: str | None = None  # an optional package
    is_sent: bool = False  # only the content of the file reaches the program


def below(folder, patterns):
    return [f'{folder}/{pattern}' for pattern in patterns]


def annotations(layout):
    """Return the Target of the annotation files of a dataset in one layout."""
    name = layout.split('_')[0]
    root = f'layouts/{layout}'
    words = ['data_utils.py', '--data_root', root, '--data_name', name]
    patterns = ['**/*.txt', '**/*.csv', '**/*.mat']
    return Target(
        kind='annotations ' + layout,
        areas=[root],
        files=below(root, patterns),
        words=[*words, '--num_workers', 1],
        outputs=below(f'{root}/{name}', PREPARED),
        unknowable=MATLAB if layout in ('car_folder', 'car_devkit') else TEXT,
    )


def preparation():
    prepare = ['data_utils.py', '--num_workers', 1]
    small = [*prepare, '--data_name', 'small', '--image_size', 32]
    car = [*prepare, '--data_root', 'crops', '--data_name', 'car']
    table = ['--csv', 'table/shoes.csv', '--data_name', 'shoes']
    return [
        *map(annotations, LAYOUTS),
        Target(
            'csv of a dataset',
            ['table'],
            ['table/shoes.csv'],
            [*prepare, *table, '--image_size', 32, '--data_root', 'data'],
            below('data/shoes', PREPARED),
            unknowable=TEXT,
        ),
        Target(
            'split, prepared again',
            ['data'],
            ['data/small/*.pth'],
            small,
            below('data/small', PREPARED),
            unknowable=SAVED_ANEW,
        ),
        Target(
            'split of crops, prepared again',
            ['crops'],
            ['crops/car/*.pth', 'crops/car/cropped/.fingerprint'],
            car,
            below('crops/car', PREPARED),
            unknowable=SAVED_ANEW,
        ),
        Target(
            'image of a dataset',
            ['crops'],
            ['crops/car/car_ims/*.jpg'],
            car,
            below('crops/car', PREPARED),
            unknowable=(*NUMBERS, 'other_file', 'cut_end'),
        ),
    ]


def training():
    short = [*PLAIN, '--num_epochs', 1]
    new = below('results', RUN_FILES)
    other = [*short, '--results_root', 'out']
    weights = [*FREEZE, '--freeze_trunk', 'no', '--num_epochs', 1]
    extend = [*other, '--ensemble_size', 3, '--extend', MODEL]
    resume = [*PLAIN, '--results_root', 'resume', '--resume']
    frozen = [*FREEZE, '--results_root', 'frozen', '--resume']
    again = [*PLAIN, '--resume']
    return [
        Target(
            'split, trained on',
            ['data'],
            ['data/small/*.pth'],
            short,
            new,
            unknowable=SAVED_ANEW,
        ),
        Target(
            'image, trained on',
            ['data'],
            ['data/small/*/*/*.png'],
            short,
            new,
            unknowable=('other_file',),
        ),
        Target(
            'weights',
            ['data', 'files'],
            ['files/slim.pth'],
            weights,
            new,
            unknowable=SAVED_ANEW,
            names=('--weights',),
        ),
        Target(
            'model, extended',
            ['data', 'results'],
            [MODEL],
            extend,
            below('out', RUN_FILES),
            unknowable=SAVED_ANEW,
        ),
        Target(
            'checkpoint',
            ['data', 'resume'],
            ['resume/*_checkpoint/*/*.pth'],
            resume,
            below('resume', RUN_FILES),
            names=('_checkpoint',),
            weight=3,
            unknowable=SAVED_ANEW,
        ),
        Target(
            'run files, unfinished',
            ['data', 'resume'],
            ['resume/*.json', 'resume/*.csv', 'resume/*_model.pth', 'resume/*.lock'],
            resume,
            below('resume', RUN_FILES),
        ),
        Target(
            'trunk features',
            ['data', 'files', 'frozen'],
            ['frozen/*_trunk_features/*'],
            frozen,
            below('frozen', RUN_FILES),
        ),
        Target(
            'run files, finished',
            ['data', 'results'],
            [f'results/{RUN}_run.json', f'results/{RUN}_results.csv'],
            again,
            below('results', RUN_FILES),
            weight=3,
        ),
    ]

"""Every kind of file that the program reads, and a command that reads it."""

from dataclasses import dataclass, field

from campaign import hooks
from campaign.world import (
    DATABASE,
    FREEZE,
    FROZEN,
    LAYOUTS,
    MODEL,
    NETWORK,
    PLAIN,
    QUERY,
    RUN,
    TRAINED,
    gallery,
    search,
)

RUN_FILES = ('*_results.csv', '*_model.pth', '*_data_base.pth', '*_run.json')
PREPARED = ('*_data_dicts.pth', 'cropped/**/*.jpg', 'cropped/*.jpg')
INDEX = ('*_index/vectors_*', '*_index/shortened_*', '*/retrieved.csv')

# damage that leaves a valid file which says something else
SAVED_ANEW = ('odd_pth',)
TEXT = (
    *('cut_anywhere', 'cut_end', 'flip_bit', 'flip_bits', 'swap_blocks', 'drop_line'),
    *('double_line', 'swap_lines', 'odd_field', 'other_file', 'latin_1'),
)
NUMBERS = ('flip_bit', 'flip_bits', 'flip_in_array', 'zero_block', 'swap_blocks')
NUMBERS += ('random_block', 'grow')


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
    skipped: tuple = field(default=())  # names of damages


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
        unknowable=TEXT + NUMBERS if layout != 'sop' else TEXT,
    )


def preparation():
    prepare = ['data_utils.py', '--num_workers', 1]
    small = [*prepare, '--data_name', 'small', '--image_size', 32]
    car = [*prepare, '--data_root', 'crops', '--data_name', 'car']
    table = ['--csv', 'table/shoes.csv', '--data_name', 'shoes']
    return [
        *map(annotations, LAYOUTS),
        Target('csv of a dataset', ['table'], ['table/shoes.csv'],
            [*prepare, *table, '--image_size', 32, '--data_root', 'data'],
            below('data/shoes', PREPARED), unknowable=TEXT),
        Target('split, prepared again', ['data'], ['data/small/*.pth'], small,
            below('data/small', PREPARED), unknowable=SAVED_ANEW),
        Target('split of crops, prepared again', ['crops'],
            ['crops/car/*.pth', 'crops/car/cropped/.fingerprint'], car,
            below('crops/car', PREPARED), unknowable=SAVED_ANEW),
        Target('image of a dataset', ['crops'], ['crops/car/car_ims/*.jpg'], car,
            below('crops/car', PREPARED), unknowable=(*NUMBERS, 'other_file', 'cut_end')),
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
        Target('split, trained on', ['data'], ['data/small/*.pth'], short, new,
            unknowable=SAVED_ANEW),
        Target('image, trained on', ['data'], ['data/small/*/*/*.png'], short, new,
            unknowable=('other_file',)),
        Target('weights', ['data', 'files'], ['files/slim.pth'], weights, new,
            unknowable=SAVED_ANEW, names=('--weights',)),
        Target('model, extended', ['data', 'results'], [MODEL], extend,
            below('out', RUN_FILES), unknowable=SAVED_ANEW),
        Target('checkpoint', ['data', 'resume'], ['resume/*_checkpoint/*/*.pth'],
            resume, below('resume', RUN_FILES), names=('_checkpoint',), weight=3,
            unknowable=SAVED_ANEW),
        Target('run files, unfinished', ['data', 'resume'],
            ['resume/*.json', 'resume/*.csv', 'resume/*_model.pth', 'resume/*.lock'],
            resume, below('resume', RUN_FILES)),
        Target('trunk features', ['data', 'files', 'frozen'],
            ['frozen/*_trunk_features/*'], frozen, below('frozen', RUN_FILES)),
        Target('run files, finished', ['data', 'results'],
            [f'results/{RUN}_run.json', f'results/{RUN}_results.csv'], again,
            below('results', RUN_FILES), weight=3),
    ]


def searching():
    base = ['inference.py', '--data_base', DATABASE, '--results_root', 'out']
    stored = 'data/small/test/figure_6/figure_6_01.png'
    known = [*base, '--query_img_name', stored]
    unknown = [*base, '--query_img_name', QUERY]
    report = ['inference.py', '--data_base', DATABASE, '--report']
    areas = ['data', 'photos', 'results']
    found = ['out/*/retrieved.csv']
    return [
        Target('database', areas, [DATABASE], known, found, names=('--data_base',),
            unknowable=SAVED_ANEW),
        Target('model of a database', areas, [MODEL], unknown, found,
            unknowable=SAVED_ANEW),
        Target('query', areas, [QUERY, 'photos/photo.bmp'],
            [*base, '--query_img_name', '{file}'], found,
            unknowable=(*NUMBERS, 'other_file', 'cut_end')),
        Target('image that is found', areas, ['data/small/test/*/*.png'], known,
            ['out/*/*.csv'], unknowable=('other_file',)),
        Target('files of a report', areas,
            [DATABASE, f'results/{RUN}_run.json', f'results/{RUN}_results.csv'],
            report, ['results/*.html'], says=('results/*.html',), unknowable=SAVED_ANEW),
        Target('folder of answers', ['data', 'photos', 'answers', 'results'],
            ['answers/*/retrieved.csv', 'answers/*/contact_sheet.png'],
            ['inference.py', '--data_base', DATABASE, '--results_root', 'answers',
             '--query_img_name', stored], ['answers/figure*/*']),
        Target('file of an exported network', ['results', 'answers'], [],
            ['inference.py', '--model', MODEL, '--export_model', 'out/it.pt2'],
            ['out/it.pt2'], weight=0),
    ]


def indexes():
    kept = hooks.small_steps
    areas = ['photos', 'results', 'index']
    short = ['photos', 'files', 'short']
    return [
        Target('index', areas, ['index/*_index/index.pth', 'index/*_index/vectors*'],
            search('index', *TRAINED), below('index', INDEX), before=kept, weight=2,
            names=('_index',), unknowable=SAVED_ANEW),
        Target('index, calibrated again', areas, ['index/*_index/index.pth'],
            search('index', *TRAINED, '--calibrate'), below('index', INDEX),
            printed=True, before=kept, names=('_index',), unknowable=SAVED_ANEW),
        Target('journal', ['photos', 'results', 'journal'],
            ['journal/*_index/journal*'], search('journal', *TRAINED),
            below('journal', INDEX), before=kept, weight=2, names=('_index',)),
        Target('shortened index', short,
            ['short/*_index/index.pth', 'short/*_index/*.npy'],
            search('short', *NETWORK), below('short', INDEX), before=kept,
            names=('_index',), unknowable=SAVED_ANEW),
        Target('weights of a network', short, ['files/resnet18-slim.pth'],
            search('out', *NETWORK), below('out', INDEX), before=kept,
            unknowable=SAVED_ANEW),
        Target('model of a folder', areas, [MODEL], search('out', *TRAINED),
            below('out', INDEX), before=kept, unknowable=SAVED_ANEW),
        Target('image of a folder', areas, ['photos/*/*.png', 'photos/*.bmp'],
            search('out', *TRAINED), below('out', INDEX), before=kept,
            unknowable=(*NUMBERS, 'other_file', 'cut_end')),
        Target('faiss index', ['photos', 'results', 'faiss'],
            ['faiss/*_index/*.faiss', 'faiss/*_index/*.faiss.json'],
            search('faiss', *TRAINED, '--index', 'faiss'), below('faiss', INDEX),
            before=kept, names=('_index',)),
        Target('picture sent to the page', ['photos', 'results', 'index'],
            [QUERY, 'photos/*/*.jpg', 'photos/photo.bmp'],
            ['page', '{file}', *gallery('index', *TRAINED)], printed=True, before=kept, names=('picture', 'Picture'),
            unknowable=(*NUMBERS, 'other_file', 'cut_end')),
    ]


def evaluation():
    words = ['evaluate.py', '--json', '--recalls', '1,2']
    table = ['--labels', 'files/it.csv']
    return [
        Target('embeddings .pt', ['files'], ['files/it.pt'], [*words, 'files/it.pt'],
            printed=True, unknowable=SAVED_ANEW),
        Target('embeddings .npz', ['files'], ['files/it.npz'],
            [*words, 'files/it.npz'], printed=True),
        Target('embeddings .npy', ['files'], ['files/it.npy'],
            [*words, 'files/it.npy', *table], printed=True, unknowable=NUMBERS),
        Target('labels', ['files'], ['files/it.csv'],
            [*words, 'files/it.npy', *table], printed=True, unknowable=TEXT),
        Target('embeddings compared', ['files'], ['files/it.pt'],
            [*words, 'files/it.npz', '--compare', 'files/it.pt'], printed=True,
            unknowable=SAVED_ANEW),
    ]


def all_targets():
    return [
        *preparation(), *training(), *searching(), *indexes(), *evaluation()
    ]

"""Every kind of file that the program reads, and a command that reads it."""

from dataclasses import dataclass

from campaign.world import (
    CAR,
    DATABASE,
    FREEZE,
    MODEL,
    PLAIN,
    PREPARE,
    QUERY,
    RUN,
    STORED,
    search,
)

RUN_FILES = ('*_results.csv', '*_model.pth', '*_data_base.pth', '*_run.json')
PREPARED = ('*_data_dicts.pth', 'cropped/**/*.jpg')
ANSWERS = ['*/*/retrieved.csv']
NETWORK = 'files/resnet18-slim.pth'

# damage that leaves a valid file which says something else
TEXT = ('cut', 'other')  # a list that ends early, or another one
NUMBERS = ('flip',)  # without a checksum any number is as good as another
PIXELS = ('cut', 'flip', 'other')
UNKNOWABLE = {
    'annotations': NUMBERS,
    'labels': TEXT,
    'embeddings .npy': NUMBERS,
    'image of a folder': PIXELS,
    'query': PIXELS,
    'image, trained on': ('other',),
    'finished run': TEXT,
}
# what a message may say instead of the name of the file
NAMES = {
    'weights': '--weights',
    'checkpoint': '_checkpoint',
    'database': '--data_base',
    'index': '_index',
    'faiss index': '_index',
    'begun index': '_index',
}


@dataclass
class Target:
    """Files of one kind and a command that reads them.

    areas: of the world; files: patterns of the paths that are damaged; outputs:
    patterns of the files that the command's result consists of, if it is not what it
    prints.
    """

    kind: str
    areas: list
    files: list
    words: list
    outputs: list = ()


def below(folder, patterns):
    return [f'{folder}/{pattern}' for pattern in patterns]


def preparation():
    small = [*PREPARE, '--data_name', 'small', '--image_size', 32]
    splits, crops = below('data/small', PREPARED), below('crops/car', PREPARED)
    return [
        Target('annotations', ['crops'], ['crops/car/**/*.mat'], CAR, crops),
        Target('split, prepared', ['data'], ['data/small/*.pth'], small, splits),
        Target('split of crops', ['crops'], ['crops/car/*.pth'], CAR, crops),
    ]


def training():
    short = [*PLAIN, '--num_epochs', 1]
    extend = [*short, '--results_root', 'out', '--ensemble_size', 3, '--extend', MODEL]
    weights = [*FREEZE, '--frozen_stages', 0, '--num_epochs', 1]
    again = [*PLAIN, '--resume']
    resume = [*again, '--results_root', 'resume']
    frozen = [*FREEZE, '--results_root', 'frozen', '--resume']
    new, resumed = below('results', RUN_FILES), below('resume', RUN_FILES)
    data, files, images = ['data'], ['data', 'files'], ['data/small/*/*/*.png']
    checkpoint = ['resume/*_checkpoint/*/*.pth']
    features, thawed = ['frozen/*_trunk_features/*'], below('frozen', RUN_FILES)
    finished = [f'results/{RUN}_run.json', f'results/{RUN}_results.csv']
    return [
        Target('split, trained on', data, ['data/small/*.pth'], short, new),
        Target('image, trained on', data, images, short, new),
        Target('weights', files, ['files/slim.pth'], weights, new),
        Target('model', [*data, 'results'], [MODEL], extend, below('out', RUN_FILES)),
        Target('checkpoint', [*data, 'resume'], checkpoint, resume, resumed),
        Target('unfinished run', [*data, 'resume'], resumed, resume, resumed),
        Target('trunk features', [*files, 'frozen'], features, frozen, thawed),
        Target('finished run', [*data, 'results'], finished, again, new),
    ]


def searching():
    base = ['inference.py', '--data_base', DATABASE, '--results_root', 'out']
    known = [*base, '--query_img_name', STORED]
    unknown = [*base, '--query_img_name', QUERY]
    data, folder = ['data', 'photos', 'results'], ['photos', 'results']
    images = ['photos/*/*.jpg', 'photos/*/*.png']
    network = ['photos', 'files'], [NETWORK], search('out', model=NETWORK)
    index = below('index/*_index', ['*.sqlite', '*.f32', '*.codes'])
    begun = below('begun/*_index', ['*.sqlite', '*.f32'])
    graph, faiss = ['index/*_index/*.faiss*'], search('index', '--index', 'faiss')
    return [
        Target('database', data, [DATABASE], known, ANSWERS),
        Target('model of a database', data, [MODEL], unknown, ANSWERS),
        Target('query', data, [QUERY], unknown, ANSWERS),
        Target('model of a folder', folder, [MODEL], search('out'), ANSWERS),
        Target('weights of a network', *network, ANSWERS),
        Target('image of a folder', folder, images, search('out'), ANSWERS),
        Target('index', [*folder, 'index'], index, search('index'), ANSWERS),
        Target('faiss index', [*folder, 'index'], graph, faiss, ANSWERS),
        Target('begun index', [*folder, 'begun'], begun, search('begun'), ANSWERS),
    ]


def evaluation():
    words, files = ['evaluate.py', '--json', '--recalls', '1,2'], ['files']
    table = [*words, 'files/it.npy', '--labels', 'files/it.csv']
    return [
        Target('embeddings .pt', files, ['files/it.pt'], [*words, 'files/it.pt']),
        Target('embeddings .npz', files, ['files/it.npz'], [*words, 'files/it.npz']),
        Target('embeddings .npy', files, ['files/it.npy'], table),
        Target('labels', files, ['files/it.csv'], table),
    ]


def all_targets():
    return [*preparation(), *training(), *searching(), *evaluation()]

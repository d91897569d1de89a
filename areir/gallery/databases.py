"""Find the models and databases below --results_root, and load databases."""

import os

from areir.cli.searching import DEFAULT_DATABASE, DEFAULT_NETWORK
from areir.errors import UserError, did_you_mean, missing
from areir.files import load_own, load_tensors, relative_path
from areir.networks.backbones import is_network

MODEL_ENDING, DATABASE_ENDING = '_model.pth', '_data_base.pth'
KEYS = (  # of a database; query_embeddings, query_labels and query_images are optional
    *('embeddings', 'labels', 'images', 'classes', 'data_name', 'data_root'),
    *('model', 'version', 'epoch', 'ensemble_size', 'calibration'),
)


def named_files(results_root, ending):
    """Return the names of the files with this ending, the newest last."""
    names = os.listdir(results_root) if os.path.lexists(results_root) else []
    names = [name for name in names if name.endswith(ending)]
    return sorted(names, key=lambda name: os.path.getmtime(f'{results_root}/{name}'))


def find_file(name, results_root):
    """Return the path of a file, given by its path or name; None if there is none."""
    for path in (name, os.path.join(results_root, name)):
        if os.path.isfile(path):
            return path
    return None


def load_database(name, results_root):
    """Return (database, its path); name: as of `find_database`.

    Raises UserError if there is none, or if it cannot be used.
    """
    path = find_database(name, results_root)
    return load_own(path, KEYS, 'give a database of train.py, or train again'), path


def find_database(name, results_root):
    """Return the path of a database; name: a file, or its name below results_root.

    Raises UserError if there is none.
    """
    if path := find_file(name, results_root):
        return path
    names = sorted(named_files(results_root, DATABASE_ENDING))
    if name == DEFAULT_DATABASE and not names:
        raise UserError(
            f'nothing is trained yet in {results_root}: run `make demo`, or '
            'python data_utils.py and python train.py, or search any folder with '
            'python inference.py --gallery DIR; see README.md'
        )
    raise UserError(
        f'--data_base {name}: no such database; in {results_root}: '
        f'{", ".join(names) or "none"}{did_you_mean(name, names)}'
    )


def find_model(name, results_root):
    """Return (model, note) for --model; the note explains the choice.

    The model is a path or the name of a network. Without --model it is the newest below
    results_root that was not trained on the sample, or a pretrained network if there is
    none. Raises UserError if there is no such model.
    """
    names = named_files(results_root, MODEL_ENDING)
    if name is None:
        return choose_model(names, results_root)
    name = os.fspath(name)
    if path := find_file(name, results_root):
        return path, ''
    if is_network(name):
        return name, ', pretrained'
    raise UserError(
        f'--model {name}: no network that train.py takes, no file in {results_root}, '
        f'which has {", ".join(sorted(names)) or "none"}, and {missing(name)}'
    )


def choose_model(names, results_root):
    """Return (model, note) without --model; names: of model files, the newest last."""
    for passed_over, name in enumerate(reversed(names)):
        path = os.path.join(results_root, name)
        if not is_of_sample(path):
            others = ' except for those of the sample' if passed_over else ''
            note = f', the newest of {len(names)}{others}: choose with --model'
            return path, note if len(names) > 1 else ''
    if not names:
        return DEFAULT_NETWORK, (
            f', pretrained: nothing is trained in {results_root}. Training on labelled '
            'folders improves the search; see README.md'
        )
    return DEFAULT_NETWORK, (
        f', pretrained: {names[-1]} knows only the drawn figures of the sample; to '
        f'search with it, add --model {names[-1]}'
    )


def is_of_sample(path):
    """Whether a model was trained on the sample. Its weights are not read.

    A damaged model is not: opening it says what is wrong.
    """
    try:
        saved = load_tensors(path, mmap=True, check=False)
        return saved.get('data_name') == 'sample'
    except (UserError, AttributeError):  # the second: not a dict
        return False


def image_folder(database, path, data_root):
    """Return the folder that the image paths of a database are relative to.

    It is below data_root, or, if that is None, where it was at training. Raises
    UserError if the images are not there.
    """
    beside = os.path.dirname(os.path.realpath(path))
    beside = os.path.join(beside, database['data_root'])
    roots = [data_root] if data_root else [beside, 'data']
    folders = [os.path.join(root, database['data_name']) for root in roots]
    folders = [os.path.normpath(folder) for folder in folders]
    for folder in folders:
        if os.path.isfile(os.path.join(folder, database['images'][0])):
            return min(folder, relative_path(folder), key=len)
    raise UserError(
        f'images of the database are not in {" or ".join(folders)}: say where with '
        '--data_root'
    )

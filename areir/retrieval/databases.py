"""Find the models and databases below --results_root; load and check databases."""

import os

import torch

from areir.backbones import model_types
from areir.errors import UserError
from areir.files import load_tensors
from areir.retrieval import thresholds

MODEL_ENDING, DATABASE_ENDING = '_model.pth', '_data_base.pth'
DEFAULT_NETWORK = 'resnet18'  # embeds with its ImageNet weights if nothing is trained
DEFAULT_DATABASE = 'car_uncropped_resnet18_48_12_data_base.pth'
NEEDED = {
    *('embeddings', 'labels', 'images', 'classes'),
    *('data_name', 'data_root', 'model', 'version'),
}


def named_files(results_root, ending):
    """Return the names of the files in results_root with this ending, the newest last.

    Raises UserError if results_root is a file.
    """
    if os.path.isfile(results_root):
        raise UserError(f'--results_root {results_root}: not a folder')
    if not os.path.isdir(results_root):
        return []
    names = [name for name in os.listdir(results_root) if name.endswith(ending)]
    paths = {name: os.path.join(results_root, name) for name in names}
    return sorted(names, key=lambda name: os.path.getmtime(paths[name]))


def find_database(name, results_root):
    """Return the path of a database; name: a file, or its name below results_root.

    Raises UserError if there is none. The message lists the databases that exist, or
    says what to do if nothing is trained yet.
    """
    if name and os.path.isfile(name):
        return name
    path = os.path.join(results_root, name or '')
    if os.path.isfile(path):
        return path
    names = sorted(named_files(results_root, DATABASE_ENDING))
    if name == DEFAULT_DATABASE and not names:
        raise UserError(
            f'nothing is trained yet in {results_root}: run `make demo`, or '
            'python data_utils.py and python train.py, or search any folder with '
            'python inference.py --gallery DIR; see README.md'
        )
    raise UserError(
        f'--data_base {name}: no such database; '
        f'in {results_root}: {", ".join(names) or "none"}'
    )


def find_model(name, results_root):
    """Return (model, note) for --model; the note explains the choice.

    The model is a path or the name of a network. Without --model it is the newest below
    results_root, or a pretrained network if nothing is trained there.
    Raises UserError if there is no such model.
    """
    names = named_files(results_root, MODEL_ENDING)
    if name is None and not names:
        return DEFAULT_NETWORK, (
            f', pretrained on ImageNet: nothing is trained in {results_root}. Training '
            'on labelled folders improves the search; see README.md'
        )
    if name is None:
        note = f', the newest of {len(names)}: choose with --model'
        path = os.path.join(results_root, names[-1])
        return path, note if len(names) > 1 else ''
    for path in (name, os.path.join(results_root, name)):
        if os.path.isfile(path):
            return path, ''
    if name in model_types():
        return name, ', pretrained on ImageNet'
    raise UserError(
        f'--model {name}: no such file, and no network that train.py takes; '
        f'in {results_root}: {", ".join(sorted(names)) or "none"}'
    )


def load_database(name, results_root):
    """Return (database, its path).

    Raises UserError if there is no such database, or if it is damaged.
    """
    path = find_database(name, results_root)
    database = load_tensors(path)
    if not isinstance(database, dict) or not database.keys() >= NEEDED:
        raise UserError(f'--data_base {name}: not a database written by train.py')
    try:
        check_database(database)
    except Exception as error:  # a damaged value fails in many ways
        raise UserError(f'--data_base {name}: damaged ({error})') from error
    return database, path


def check_database(database):
    """Raise an error unless the parts of a database fit together."""
    thresholds.check(database.get('calibration'))
    check_images(database, '')
    if 'query_embeddings' in database:
        check_images(database, 'query_')
    # raises an error unless all three are strings
    os.path.join(database['data_root'], database['data_name'], database['model'])


def check_images(database, prefix):
    """Raise UserError unless embeddings, labels and images fit together.

    prefix: of their keys, '' or 'query_'.
    """
    embeddings = database[f'{prefix}embeddings']
    labels, images = database[f'{prefix}labels'], database[f'{prefix}images']
    heads = int(database.get('ensemble_size', 1))
    if embeddings.dim() != 2 or embeddings.shape[1] % heads:
        raise UserError(f'{prefix}embeddings are not those of {heads} heads')
    if not len(embeddings) == len(images) > 0:
        raise UserError(f'{len(images)} {prefix}images do not fit {prefix}embeddings')
    if labels.shape != (len(images),) or labels.dtype != torch.int64:
        raise UserError(f'{prefix}labels are not one integer per image')
    if labels.min() < 0 or labels.max() >= len(database['classes']):
        raise UserError(f'{prefix}labels are not positions in classes')
    if not all(isinstance(image, str) for image in images):
        raise UserError(f'{prefix}images are not paths')


def image_folder(database, path, data_root):
    """Return the folder that the image paths of a database are relative to.

    It is below data_root, or, if that is None, where it was at training. Raises
    UserError if the images are not there.
    """
    beside = os.path.join(
        os.path.dirname(os.path.realpath(path)), database['data_root']
    )
    roots = [data_root] if data_root else [beside, 'data']
    folders = [
        os.path.normpath(os.path.join(root, database['data_name'])) for root in roots
    ]
    for folder in folders:
        if os.path.isfile(os.path.join(folder, database['images'][0])):
            return min(folder, os.path.relpath(folder), key=len)
    places = ' or '.join(folders)
    raise UserError(
        f'images of the database are not in {places}: say where with --data_root'
    )

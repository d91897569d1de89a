"""The files below --results_root: find models and databases, load and check them."""

import os

import torch

from areir.errors import UserError
from areir.files import load_tensors
from areir.retrieval import calibration

DEFAULT_DATABASE = 'car_uncropped_resnet18_48_12_data_base.pth'
NEEDED = {
    *('embeddings', 'labels', 'images', 'classes'),
    *('data_name', 'data_root', 'model', 'version'),
}


def named_files(results_root, ending):
    """Return the names below results_root with this ending, the newest last."""
    if not os.path.isdir(results_root):
        return []
    names = [name for name in os.listdir(results_root) if name.endswith(ending)]
    paths = {name: os.path.join(results_root, name) for name in names}
    return sorted(names, key=lambda name: os.path.getmtime(paths[name]))


def find_file(name, flag, results_root, ending):
    """Return the path of a file, or of a name below results_root.

    Raises UserError if there is none. The message lists the files with this ending, or
    says what to do if nothing is trained yet.
    """
    if name and os.path.isfile(name):
        return name
    path = os.path.join(results_root, name or '')
    if os.path.isfile(path):
        return path
    names = sorted(named_files(results_root, ending))
    if name is None or (name == DEFAULT_DATABASE and not names):
        raise UserError(
            f'nothing is trained yet in {results_root}: run `make demo`, or '
            'python data_utils.py and python train.py, see README.md'
        )
    kind = 'database' if flag == '--data_base' else 'model'
    raise UserError(
        f'{flag} {name}: no such {kind}; '
        f'in {results_root}: {", ".join(names) or "none"}'
    )


def find_model(name, results_root):
    """Return (path, number of models) of the model `name`, by default the newest.

    Raises UserError if there is none.
    """
    ending = '_model.pth'
    names = named_files(results_root, ending)
    if name is None and names:
        name = names[-1]
    return find_file(name, '--model', results_root, ending), len(names)


def load_database(name, results_root):
    """Return (database, its path).

    Raises UserError if there is none, listing those that exist, or if it is damaged.
    """
    path = find_file(name, '--data_base', results_root, '_data_base.pth')
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
    calibration.check(database.get('calibration'))
    check_images(database, '')
    if 'query_embeddings' in database:
        check_images(database, 'query_')
    # raises an error unless all three are strings
    os.path.join(database['data_root'], database['data_name'], database['model'])


def check_images(database, prefix):
    """Check embeddings, labels and images whose keys start with prefix."""
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

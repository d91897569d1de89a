"""Find the models and databases below --results_root; load and check databases."""

import os

from areir.cli.searching import DEFAULT_DATABASE, DEFAULT_NETWORK
from areir.errors import UserError
from areir.files import load_tensors
from areir.matching import thresholds
from areir.networks.backbones import model_types
from areir.schemas import (
    find_problem,
    is_count,
    is_integers,
    is_labels,
    is_matrix,
    is_natural,
    is_text,
    is_texts,
)

MODEL_ENDING, DATABASE_ENDING = '_model.pth', '_data_base.pth'

# the schema of a database
IMAGES = {'embeddings': is_matrix, 'labels': is_integers, 'images': is_texts}
DATABASE = {
    **IMAGES,
    'classes': is_labels,
    **dict.fromkeys(('data_name', 'data_root', 'model', 'version'), is_text),
}
QUERIES = {f'query_{name}': check for name, check in IMAGES.items()}
OPTIONAL = {
    'ensemble_size': is_count,
    'epoch': is_natural,
    'calibration': thresholds.is_calibration,
    **dict.fromkeys(('crop_type', 'protocol', 'select'), is_text),
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
    if not isinstance(database, dict) or not database.keys() >= DATABASE.keys():
        raise UserError(f'--data_base {name}: not a database written by train.py')
    problem = database_problem(database)
    if problem:
        raise UserError(f'--data_base {name}: damaged ({problem})')
    return database, path


def database_problem(database):
    """Return what is wrong with the contents of a database, or None."""
    queries = any(entry in database for entry in QUERIES)
    needed = DATABASE | QUERIES if queries else DATABASE
    problem = find_problem(database, needed, OPTIONAL)
    if not problem:
        problem = images_problem(database, '')
    if queries and not problem:
        problem = images_problem(database, 'query_')
        if database['query_embeddings'].shape[1] != database['embeddings'].shape[1]:
            problem = 'queries and gallery have embeddings of different lengths'
    return problem


def images_problem(database, prefix):
    """Return why embeddings, labels and images do not fit together, or None.

    prefix: of their keys, '' or 'query_'.
    """
    embeddings, labels, images = (database[f'{prefix}{name}'] for name in IMAGES)
    heads = database.get('ensemble_size', 1)
    if not embeddings.shape[1] or embeddings.shape[1] % heads:
        return f'{prefix}embeddings are not those of {heads} heads'
    if not len(embeddings) == len(images) > 0:
        return f'{len(images)} {prefix}images do not fit {prefix}embeddings'
    if labels.shape != (len(images),):
        return f'{prefix}labels are not one integer per image'
    if labels.min() < 0 or labels.max() >= len(database['classes']):
        return f'{prefix}labels are not positions in classes'
    return None


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

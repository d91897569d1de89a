"""Show the images of a database, or of any folder, that are nearest to a query.

    python inference.py --query_img_name data/car/uncropped/008055.jpg --retrieval_num 10
    python inference.py --gallery ~/photos --query_img_name my_photo.jpg     # a file, or a folder of them
    python inference.py --gallery ~/photos --query_img_name ~/photos         # every image against the rest

The images of a database were embedded by training; those of --gallery are embedded by --model and kept in an index
below --results_root, which is brought up to date by every call. Into results/<query>/ go the query, the retrieved
images, a contact sheet and a table. torchrun divides a gallery among processes.
"""
import argparse
import contextlib
import os
import sys
import time

import numpy as np
import torch

import approximate
import calibration
import data_utils
import gallery
import utils
from answers import TOGETHER, Collection, Query, answer_many, answer_one, compare_all, export
from model import EnsembleModel, folded
from report import write_report
from retrieval import search

QUERY, DATA_BASE, NUMBER = 'data/car/uncropped/008055.jpg', 'car_uncropped_resnet18_48_12_data_base.pth', 8


def get_args():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS,
                                     description='Retrieve the images that are nearest to a query.')
    add = parser.add_argument_group('query').add_argument
    add('--query_img_name', help='query image name: an image of what is searched, any image file, a folder of them, or '
                                 f"the folder of --gallery: each of its images against the rest [default value is "
                                 f"'{QUERY}']")
    add('--retrieval_num', type=utils.positive, help=f'retrieval number [default value is {NUMBER}]')
    add = parser.add_argument_group('what is searched').add_argument
    add('--data_base', default=DATA_BASE,
        help="queried database, a file or a name below --results_root [default value is '%(default)s']")
    add('--gallery', metavar='DIR', help='a folder of images to search instead, however nested')
    add('--model', metavar='FILE', help='model that embeds the images of --gallery, a file or a name below '
                                        '--results_root [default is the newest there]')
    add('--index', default='exact', choices=['exact', 'faiss'],
        help='exact reads every vector of --gallery for an answer; faiss, if installed, builds an approximate index, '
             'and prints its recall [default value is %(default)s]')
    add('--data_root', help='folder of the datasets, if they have moved since training')
    add = parser.add_argument_group('what is written').add_argument
    add('--heat_maps', action='store_true', help='draw which regions make a query and its answers similar')
    add('--export', metavar='DIR', help='write the vectors (.npy), paths and classes (CSV) of what is searched to DIR')
    add('--report', action='store_true', help='write a page that shows the run of --data_base')
    add('--results_root', default='results', help="folder of what is written [default value is '%(default)s']")
    args = parser.parse_args()
    if args.index == 'faiss' and not args.gallery:
        parser.error('--index faiss: works for --gallery only')
    if args.query_img_name == '':
        parser.error('--query_img_name: empty')
    if args.report and args.gallery:
        parser.error('--report: shows the run of --data_base, leave --gallery out')
    return args


# What is searched


def load_model(path):
    """The model of a file, and the rest of what is in it. Raises ValueError if it is not one of train.py."""
    saved = utils.load(path)
    try:
        state, arguments = saved['state_dict'], saved['model_args']
        if len({name.split('.')[1] for name in state if name.startswith('heads.')}) != arguments['ensemble_size']:
            raise ValueError('the heads do not fit')
        with torch.device('meta'):  # nothing is drawn that the weights replace
            model = EnsembleModel(**arguments)
        model.load_state_dict(state, assign=True)
        if not 1 <= int(saved['image_size']) <= 8192 or not str(saved['version']):
            raise ValueError('image size')
        data_utils.normalise(torch.zeros(1, 3, 1, 1), saved['mean'], saved['std'])
        calibration.check(saved.get('calibration'))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, LookupError, ArithmeticError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f'{path}: not a model of train.py, or damaged ({reason})') from error
    return model.requires_grad_(False).eval(), saved


def embedder(model, saved):
    """The function from uint8 pixels (N, 3, H, W) to vectors (N, E * M), on the GPU where there is one."""
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()) \
        if torch.cuda.is_available() else torch.device('cpu')
    net = folded(model, torch.bfloat16 if utils.has_native_bf16(device) else torch.float32).to(device)
    return lambda pixels: net.embed(data_utils.normalise(pixels.to(device), saved['mean'], saved['std']))


def embed_shared(paths, saved, embed):
    """(vectors (Q, D), {place: why it cannot be read}) of image files; each process of torchrun embeds a part."""
    rank, processes = utils.own_place()
    own = range(rank, len(paths), processes)
    vectors = torch.zeros(len(paths), saved['model_args']['ensemble_size'] * saved['model_args']['meta_class_size'])
    problems = {}
    for places, found, bad in gallery.embed_files('', [paths[place] for place in own], saved['image_size'], embed,
                                                  'queries'):
        if places:
            vectors[[own[place] for place in places]] = torch.from_numpy(found)
        problems |= {own[place]: why for place, why in bad.items()}
    return utils.add_up(vectors), {place: why for part in utils.gather_values(problems) for place, why in part.items()}


def named_files(results_root, ending):
    """The files below results_root with this ending, the newest last."""
    found = [name for name in os.listdir(results_root) if name.endswith(ending)] if os.path.isdir(results_root) else []
    return sorted(found, key=lambda name: os.path.getmtime(os.path.join(results_root, name)))


def find_file(name, flag, results_root, ending):
    """The path of a file, or of a name below results_root. Raises ValueError if there is none, saying what there is,
    or what to do where there is nothing."""
    path = name if name and os.path.isfile(name) else os.path.join(results_root, name or '')
    if os.path.isfile(path):
        return path
    found = ', '.join(sorted(named_files(results_root, ending))) or 'none'
    if name is None or (name == DATA_BASE and found == 'none'):
        raise ValueError(f'nothing is trained yet in {results_root}: run `make demo`, or python data_utils.py and '
                         'python train.py, as README.md tells')
    kind = 'database' if flag == '--data_base' else 'model'
    raise ValueError(f'{flag} {name}: no such {kind}; in {results_root}: {found}')


def load_database(name, results_root):
    """(database, its path). Raises ValueError if there is none, listing those there are."""
    path = find_file(name, '--data_base', results_root, '_data_base.pth')
    database = utils.load(path)
    needed = {'embeddings', 'labels', 'images', 'classes', 'data_name', 'data_root', 'model', 'version'}
    if not isinstance(database, dict) or not needed <= database.keys():
        raise ValueError(f'--data_base {name}: not a database written by train.py')
    try:
        calibration.check(database.get('calibration'))
        for part in ('', 'query_') if 'query_embeddings' in database else ('',):
            embeddings, labels, images = (database[part + what] for what in ('embeddings', 'labels', 'images'))
            if not (embeddings.dim() == 2 and embeddings.shape[1] % int(database.get('ensemble_size', 1)) == 0
                    and len(embeddings) == len(images) > 0 and labels.shape == (len(images),)
                    and labels.dtype == torch.int64 and labels.min() >= 0 and labels.max() < len(database['classes'])
                    and all(isinstance(image, str) for image in images)):
                raise ValueError('its parts do not fit')
        os.path.join(database['data_root'], database['data_name'], database['model'])
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f'--data_base {name}: damaged ({error})') from error
    return database, path


def image_folder(database, path, data_root):
    """The folder that the database's image paths start from: --data_root, else where it was at training."""
    beside = os.path.join(os.path.dirname(os.path.realpath(path)), database['data_root'])
    roots = [data_root] if data_root else [beside, 'data']
    folders = [os.path.normpath(os.path.join(root, database['data_name'])) for root in roots]
    for folder in folders:
        if os.path.isfile(os.path.join(folder, database['images'][0])):
            return min(folder, os.path.relpath(folder), key=len)
    raise ValueError(f'images of the database are not in {" or ".join(folders)}: say where with --data_root')


def open_database(args, clock):
    """The images of --data_base. Its model is loaded only for other images, from beside it."""
    with clock('database'):
        database, path = load_database(args.data_base, args.results_root)
    folder = image_folder(database, path, args.data_root)
    vectors, classes = database['embeddings'], database['classes']

    def load():
        model_path = os.path.join(os.path.dirname(path), database['model'])
        if not os.path.isfile(model_path):
            raise ValueError(f'{model_path}: no such file; the model is needed for an image that is not in the '
                             'database')
        saved = utils.load(model_path)
        if not isinstance(saved, dict) or saved.get('version') != database['version']:
            raise ValueError(f'{model_path} does not fit {path}: they were not written by the same epoch of one run')
        return load_model(model_path)

    def embed(paths):
        with clock('model'):
            model, saved = load()
        with clock('embedding'):
            found, problems = embed_shared(paths, saved, embedder(model, saved))
        if found.shape[1] != vectors.shape[1]:
            raise ValueError(f'{database["model"]} does not fit {path}: embeddings of {found.shape[1]} and '
                             f'{vectors.shape[1]} numbers')
        return found, problems

    measured = database.get('calibration')
    collection = Collection(
        'the database', folder, database['images'], [classes[label] for label in database['labels'].tolist()], vectors,
        lambda query, k, exclude: search(query, vectors, k, exclude), embed,
        calibration.threshold_for(measured, len(vectors)) if measured else None,
        asked=(database.get('query_images', ()), [classes[label] for label in database.get('query_labels', ())],
               database.get('query_embeddings', ())))
    return collection, load, measured


def open_gallery(args, clock):
    """The images of the folder --gallery, its index brought up to date."""
    if args.index == 'faiss':
        approximate.load_faiss()
    names = named_files(args.results_root, '_model.pth')
    path = find_file(args.model or (names[-1] if names else None), '--model', args.results_root, '_model.pth')
    with clock('model'):
        model, saved = load_model(path)
        embed = embedder(model, saved)
    print(f'model {path}' + ('' if args.model or len(names) == 1 else f', the newest of {len(names)}: --model chooses'))
    folder = gallery.index_folder(args.gallery, path, args.results_root)
    settings = {'model': str(saved['version']), 'image_size': int(saved['image_size']),
                'preprocessing': repr((1, saved['mean'], saved['std']))}
    with clock('index'):
        index = gallery.keep_up(args.gallery, folder, settings, int(saved['image_size']), embed)
    for problem, why in sorted(index.problems.items()):
        print(f'notice: {os.path.join(args.gallery, problem)} is left out: {why}')
    print(f'index {folder}: {len(index.paths):,} images, {index.embedded:,} embedded now, {index.removed:,} gone, '
          f'{len(index.problems):,} left out')
    vectors = gallery.mapped(index.vectors)
    find = lambda query, k, exclude: gallery.search(index.vectors, query, k, exclude)  # noqa: E731
    if args.index == 'faiss':
        with clock('approximate index'):
            cells, measured = approximate.opened(folder, index.vectors) if utils.is_first() else (None, None)
            utils.anywhere(False)
        if measured:
            print(f'approximate index: {measured["looked_into"]} of {measured["cells"]} cells are looked into; of the '
                  f'exact {measured["nearest"]} nearest of {measured["queries"]} images it finds '
                  f'{measured["recall"]:.2%}')
        find = lambda query, k, exclude: utils.from_first(  # noqa: E731
            approximate.nearest(cells, index.vectors, query, k, exclude) if utils.is_first() else None)

    def embed_files(paths):
        with clock('embedding'):
            return embed_shared(paths, saved, embed)

    measured = saved.get('calibration')
    collection = Collection(
        args.gallery, args.gallery, index.paths, gallery.class_names(index.paths), vectors, find, embed_files,
        calibration.threshold_for(measured, len(index.paths)) if measured else None, index.sizes)
    return collection, lambda: (model, saved), measured


# Queries


def find_images(queries, images, folder, sizes=()):
    """The position of each query among images below folder, or -1: by file, whatever names and links lead to it;
    of a query that is no file, by the collection's own name for it."""
    found = [-1] * len(queries)
    wanted, lengths = {}, set()
    for place, query in enumerate(queries):
        if os.path.isfile(query):
            seen = os.stat(query)
            wanted.setdefault((seen.st_dev, seen.st_ino), []).append(place)
            lengths.add(seen.st_size)
            continue
        named = '/' + os.path.normpath(query).replace(os.sep, '/')
        for index, image in enumerate(images):
            if named == f'/{image}' or named.endswith(f'/{os.path.basename(folder)}/{image}'):
                found[place] = index
                break
    for index, image in enumerate(images) if wanted else ():
        if not sizes or sizes[index] in lengths:
            with contextlib.suppress(OSError):
                seen = os.stat(os.path.join(folder, image))
                for place in wanted.pop((seen.st_dev, seen.st_ino), ()):
                    found[place] = index
    return found


def find_queries(name, collection):
    """The queries that --query_img_name means: a file, or a folder's images. Raises ValueError if there is none."""
    if os.path.isdir(name):
        problems = {}
        paths = [os.path.join(name, path) for path in gallery.list_pictures(name, problems)
                 if gallery.is_image(os.path.join(name, path))]
        problems |= {path: 'no such file' for path in paths if not os.path.isfile(path)}  # a broken link
        for path, why in problems.items():
            print(f'notice: {path} is left out: {why}')
        paths = [path for path in paths if path not in problems]
        if not paths:
            raise ValueError(f'--query_img_name {name}: no images in it')
    else:
        paths = [name]
    own = find_images(paths, collection.images, collection.folder, collection.sizes)
    asked = find_images(paths, collection.asked[0], collection.folder)
    for path, place, other in zip(paths, own, asked):
        if place < 0 and other < 0 and not os.path.isfile(path):
            raise ValueError(f'--query_img_name {path}: no such file, and no image of {collection.name}')
    return [Query(collection.images[place] if place >= 0 else collection.asked[0][other] if other >= 0 else path,
                  place, other if place < 0 else -1) for path, place, other in zip(paths, own, asked)]


def query_vectors(queries, collection):
    """(vectors (Q, D) of the queries that can be read, these queries). The others are said; raises ValueError if none
    is left."""
    vectors = torch.empty(len(queries), collection.vectors.shape[1])
    files = [place for place, query in enumerate(queries) if query.own < 0 and query.asked < 0]
    problems = {}
    if files:
        found, bad = collection.embed([queries[place].path for place in files])
        vectors[files] = found
        problems = {files[place]: why for place, why in bad.items()}
    for place, query in enumerate(queries):
        if query.own >= 0:
            vectors[place] = torch.as_tensor(np.asarray(collection.vectors[query.own]))
        elif query.asked >= 0:
            vectors[place] = collection.asked[2][query.asked]
    kept = [place for place in range(len(queries)) if place not in problems]
    if not kept:
        raise ValueError(f'{queries[0].path}: {problems[0]}')
    for place, why in problems.items():
        print(f'notice: {queries[place].path} is left out: {why}')
    return vectors[kept], [queries[place] for place in kept]


def report_run(args):
    """Write the page of the run of --data_base, with the names of its images if they are not found."""
    database, path = load_database(args.data_base, args.results_root)
    utils.check_folder(args.results_root)
    try:
        folder = image_folder(database, path, args.data_root)
    except ValueError as error:
        print(f'notice: {error}; the page names them')
        folder = os.path.join(args.data_root or 'data', database['data_name'])
    if utils.is_first():
        print(f'wrote {write_report(args.results_root, path, database, folder)}')


class Clock(dict):
    """Seconds spent on each of the named parts."""

    @contextlib.contextmanager
    def __call__(self, name):
        started = time.perf_counter()
        try:
            yield
        finally:
            self[name] = self.get(name, 0) + time.perf_counter() - started

    def __str__(self):
        return ', '.join(f'{name} {seconds:.3g} s' for name, seconds in self.items())


def main():
    args = get_args()
    for stream in (sys.stdout, sys.stderr):  # file names may be of any bytes
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    utils.join_processes(data_utils.available_cores())
    clock = Clock()
    if args.report:
        report_run(args)
        if not args.query_img_name and not args.export:
            utils.leave_processes()
            return
    collection, load, measured = (open_gallery if args.gallery else open_database)(args, clock)
    utils.check_folder(args.results_root)
    if args.export and utils.is_first():
        export(collection, args.export)
    last = ''
    name = args.query_img_name or (QUERY if not args.gallery and not args.export else None)
    if args.heat_maps and os.path.isdir(name or ''):
        print('notice: --heat_maps: they are drawn for a single query')
    if name and args.gallery and os.path.isdir(name) and os.path.samefile(name, args.gallery):
        available = len(collection.images) - 1
        if not available:
            raise ValueError(f'{args.gallery}: a single image, there is nothing to compare it with')
        last = compare_all(collection, min(args.retrieval_num or NUMBER, available), args, clock)
    elif name:
        queries = find_queries(name, collection)
        available = len(collection.images) - any(query.own >= 0 for query in queries)
        if (args.retrieval_num or 1) > available:
            raise ValueError(f'--retrieval_num {args.retrieval_num or NUMBER}: {collection.name} has {available} '
                             'images to retrieve')
        vectors, queries = query_vectors(queries, collection)
        with clock('search'):
            exclude = torch.tensor([query.own for query in queries])
            found = [collection.search(part, min(args.retrieval_num or NUMBER, available), own)
                     for part, own in zip(vectors.split(TOGETHER), exclude.split(TOGETHER))]
        scores, indices = (torch.cat(part).tolist() for part in zip(*found))
        if utils.is_first():
            if os.path.isdir(name):
                last = answer_many(queries, scores, indices, collection, args, clock)
            else:
                last = answer_one(queries[0], scores[0], indices[0], collection, measured, load, args, clock)
    print(f'times: {clock}')
    print(last or 'ask it with --query_img_name FILE, a folder of images, or the gallery itself')
    utils.leave_processes()


if __name__ == '__main__':
    utils.run(main)

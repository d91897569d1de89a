"""Show the images of a database, or of any folder, that are nearest to a query.

    python inference.py --query_img_name data/car/uncropped/008055.jpg
    python inference.py --gallery ~/photos --query_img_name my_photo.jpg
    python inference.py --gallery ~/photos --query_img_name ~/new_photos  # each of them
    python inference.py --gallery ~/photos --query_img_name ~/photos      # duplicates
    python inference.py --gallery ~/photos --serve                # a page, an API
    python inference.py --data_base NAME --report                         # a run's page
    python inference.py --model NAME --export_model network.onnx    # for other programs

The database of --data_base holds embeddings that training has computed. The images of
--gallery are embedded by --model; an index below --results_root keeps their embeddings,
and every call brings it up to date. The query, the retrieved images, a contact sheet
and a table are written to results/<query>/.
With torchrun, the processes divide the embedding and the search of a folder.
"""

import contextlib
import os
import time

from areir.cli.searching import (
    DEFAULT_DATABASE,
    DEFAULT_NUMBER,
    DEFAULT_QUERY,
    get_parser,
)
from areir.scripts import utils

if __name__ == '__main__':
    # threads of OpenMP that wait leave their core to the decoding of images
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    utils.before_imports(get_parser)  # the imports below take seconds

from areir import hardware, processes
from areir.errors import UserError, counted
from areir.files import make_writable
from areir.gallery import databases
from areir.gallery.collection import DatabaseCollection
from areir.gallery.folders import check_gallery
from areir.gallery.queries import embed_queries, find_queries, query_paths
from areir.matching.thresholds import threshold_lines
from areir.output.answers import find_answers, write_answer, write_answers
from areir.retrieval import Gallery
from areir.scripts.model import TrainedModel, load_model

# functions import what only some calls need


def get_args():
    parser = get_parser()
    args = parser.parse_args()
    if args.index == 'faiss' and not args.gallery:
        parser.error('--index faiss: works for --gallery only')
    if args.calibrate and not args.gallery:
        parser.error('--calibrate: works for --gallery only; training calibrates')
    if args.false_match_rate is None:
        args.false_match_rate = 0.01
    elif not args.calibrate:
        parser.error('--false_match_rate: works with --calibrate only')
    hardware.check_device(args.device)
    if args.report and args.gallery:
        parser.error('--report: shows the run of --data_base; leave --gallery out')
    if args.format and not args.export:
        parser.error(f'--format {args.format}: works with --export only')
    if args.format == 'parquet':
        from areir.output.exports import load_pyarrow

        load_pyarrow()
    if args.index == 'faiss':
        from areir.gallery.approximate import load_faiss

        load_faiss()
    if args.serve is not None or args.token:
        from areir.output.page import server

        server.check(args)
    if not any((args.query_img_name, args.gallery, args.export, args.export_model)):
        args.query_img_name = None if args.report else DEFAULT_QUERY
    check_paths(args)
    return args


def check_paths(args):
    """Raise UserError if a file or folder is missing, before anything is loaded."""
    if args.gallery:
        check_gallery(args.gallery)
    if args.gallery and args.data_base != DEFAULT_DATABASE:
        raise UserError('--data_base: leave it out to search --gallery')
    searches_database = not args.gallery and (args.query_img_name or args.export)
    if searches_database or args.report:
        databases.find_database(args.data_base, args.results_root)
    if args.model and (args.gallery or args.export_model):
        databases.find_model(args.model, args.results_root)
    if args.export_model:
        from areir.output.exports import check_network

        check_network(args.export_model)
    if args.export:
        make_writable(args.export, '--export')


class Clock(dict):
    """Seconds spent on each named stage: `with clock('search'): ...`."""

    @contextlib.contextmanager
    def __call__(self, stage):
        start = time.perf_counter()
        try:
            yield
        finally:
            self[stage] = self.get(stage, 0) + time.perf_counter() - start

    def __str__(self):
        return ', '.join(f'{stage} {seconds:.3g} s' for stage, seconds in self.items())


# What is searched


def open_database(args, clock):
    """Return the collection of --data_base."""
    with clock('database'):
        database, path = databases.load_database(args.data_base, args.results_root)
    folder = databases.image_folder(database, path, args.data_root)
    device = hardware.local_device(args.device)
    return DatabaseCollection(database, path, folder, TrainedModel, device)


def find_model(args, clock):
    """Return the TrainedModel or PretrainedModel of --model, by default the newest."""
    name, note = databases.find_model(args.model, args.results_root)
    with clock('model'):
        trained = load_model(name)
    if not args.quiet:
        print(f'model {name}{note}')
    return trained


# The answers


def find_paths(args, folder):
    """Return the paths of the queries; none if the folder is compared with itself.

    folder: what is searched.
    """
    name = args.query_img_name
    if args.gallery and name and os.path.isdir(name) and os.path.samefile(name, folder):
        return []
    return query_paths(name, folder) if name else []


def answer_query(paths, collection, args, clock):
    """Answer --query_img_name, these paths; return the last line to print."""
    name = args.query_img_name
    if not name:
        return 'to search it, add --query_img_name: an image, or a folder of images'
    is_folder = os.path.isdir(name)
    if is_folder and args.heat_maps:
        print('notice: --heat_maps: heat maps are drawn for a single query only')
    if not paths:
        return compare_folder(collection, args, clock)

    answers = search_paths(paths, collection, args, clock)
    if not processes.is_first():
        return ''
    with clock('drawing'):
        if is_folder:
            path = write_answers(answers, collection, name, args.results_root)
        else:
            (answer,) = answers
            path = write_answer(answer, collection, args.results_root, args.heat_maps)
    return f'wrote {path}'


def search_paths(paths, collection, args, clock):
    """Return the Answers to the queries of these paths."""
    queries = find_queries(paths, collection)
    if any(query.embedding is None for query in queries):
        with clock('model'):
            _ = collection.trained  # a database's model is loaded here
        with clock('embedding'):
            queries = embed_queries(queries, collection)
    with clock('search'):
        number = args.retrieval_num or DEFAULT_NUMBER
        return find_answers(queries, collection, number, args.retrieval_num or 1)


def compare_folder(collection, args, clock):
    """Compare the folder of --gallery with itself; return the last line to print."""
    from areir.matching import duplicates
    from areir.output import duplicates as overview

    with clock('comparing'):
        nearest = args.retrieval_num or duplicates.NEAREST
        found = duplicates.find_duplicates(collection, args.strictness, nearest)
    if not processes.is_first():
        return ''
    if not collection.calibration:
        print('notice: the model has no threshold, so only duplicates are reported')
    with clock('drawing'):
        path = overview.write_duplicates(*found, collection, args.results_root)
    return f'wrote {path}'


# What else is written


def report_run(args):
    """Write the page of the run of --data_base.

    If the images are not found, the page shows their names instead.
    """
    from areir.output.report import write_report

    database, path = databases.load_database(args.data_base, args.results_root)
    processes.check_shared_folder(args.results_root)
    try:
        folder = databases.image_folder(database, path, args.data_root)
    except UserError as error:
        print(f'notice: {error}; the page shows their names instead')
        folder = os.path.join(args.data_root or 'data', database['data_name'])
    if processes.is_first():
        print(f'wrote {write_report(args.results_root, path, database, folder)}')


def export_model(trained, args):
    """Write the network of a model to --export_model."""
    from areir.output.exports import export_network

    if processes.is_first():
        export_network(trained, args.export_model)


def main():
    args = get_args()
    processes.join()
    clock = Clock()
    if args.report:
        report_run(args)
    if args.export_model and not args.gallery:
        export_model(find_model(args, clock), args)
    searches = args.query_img_name or args.gallery or args.export
    if (args.report or args.export_model) and not searches:
        processes.leave()
        return

    processes.check_shared_folder(args.results_root)
    if args.gallery:
        paths = find_paths(args, args.gallery)  # a wrong one is refused at once
        trained = find_model(args, clock)
        with clock('index'):
            gallery = Gallery(
                args.gallery, trained, args.results_root, args.device, args.index
            )
        collection, index = gallery.collection, gallery.collection.index
        print(
            f'index {index.folder}: {counted(len(collection), "image")}, '
            f'{index.embedded:,} embedded now, {index.removed:,} gone, '
            f'{len(index.problems):,} left out'
        )
    else:
        collection = open_database(args, clock)
        paths = find_paths(args, collection.folder)

    if args.calibrate:
        with clock('calibration'):
            gallery.calibrate(args.false_match_rate)
        collection = gallery.collection
        print(*threshold_lines(collection.calibration), sep='\n')
    if args.export and processes.is_first():
        from areir.output.exports import EXPORTS

        written = EXPORTS[args.format or 'npy'](collection, args.export)
        shape = ' x '.join(f'{length:,}' for length in collection.embeddings.shape)
        print(f'wrote {" and ".join(written)} ({shape} float32)')
    # for a folder, only the index knows whether vectors are shortened
    if args.export_model and args.gallery:
        export_model(collection.trained, args)

    if args.serve is not None:
        from areir.output.page import server

        number = args.retrieval_num or DEFAULT_NUMBER
        options = number, args.heat_maps, args.token
        server.serve(gallery, args.host, args.serve, *options)
        return
    last = answer_query(paths, collection, args, clock)
    if not args.quiet:
        print(f'times: {clock}')
    print(last)
    processes.leave()


if __name__ == '__main__':
    utils.run_script(main)

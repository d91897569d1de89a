"""The doors for your own programs: a Gallery, exact search and exact evaluation."""

import copy
import os
import warnings
from collections.abc import Iterable
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import areir
from areir import hardware, processes
from areir.cli.searching import get_parser
from areir.data.images import PREPROCESSING, Pictures, to_pictures
from areir.errors import UserError
from areir.evaluation import ranking
from areir.evaluation.embeddings_file import must_be, number_entries, to_vectors
from areir.evaluation.metrics import check_ks, check_labels, rank_positives, summary
from areir.evaluation.scores import TILE, check_embeddings
from areir.gallery import databases
from areir.gallery.approximate import open_search
from areir.gallery.collection import FolderCollection
from areir.gallery.folders import check_gallery
from areir.gallery.index import index_path, store_calibration, update_index
from areir.gallery.queries import (
    embed_queries,
    find_queries,
    query_file,
    report_problems,
)
from areir.matching.calibration import calibrate_folder
from areir.networks.projection import Projection
from areir.output.answers import find_answers, join_tables


class Changes(NamedTuple):
    """What an update of a Gallery has found."""

    images: int  # that are searched now
    new: int  # since the update before
    changed: int
    gone: int
    problems: dict  # {path: why the file cannot be read}


class Gallery:
    """A folder of images that is searched, as inference.py does.

        gallery = Gallery('photos', 'resnet50')
        table = gallery.search(['one.jpg', Image.open('other.png')], k=3)

    An index below results_root keeps the embeddings of the images. It is brought up to
    date here and by `update`; `collection` is what was found then. Paths are relative
    to the folder.

    model: a TrainedModel, or what --model takes: a file, a name below results_root, or
    a network, with its pretrained weights; by default the newest model that was not
    trained on the sample, or a pretrained network if there is none. device: auto, cpu,
    cuda or mps. index: exact, or faiss, which searches approximately.
    Raises UserError if the folder has no image that can be read, if there is no such
    model, or if faiss is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        model: Any = None,
        results_root: str | os.PathLike = 'results',
        device: str = 'auto',
        index: str = 'exact',
    ):
        self.folder, self.results_root = os.fspath(folder), os.fspath(results_root)
        check_gallery(self.folder)
        get_parser().parse_args({'device': device, 'index': index})
        hardware.check_device(device)
        self.device, self.index = hardware.local_device(device), index
        if model is None or isinstance(model, (str, os.PathLike)):
            name, _ = databases.find_model(model, self.results_root)
            model = areir.load_model(name)  # the package imports no script
        self.model = model
        self.collection = self.read()

    def update(self) -> Changes:
        """Bring the index up to date and return what has changed.

        Only images that are new or changed, by size or time, are embedded. Meanwhile
        other threads may search: they find what was there before.
        Raises UserError, and nothing changes, if no image can be read any more.
        """
        earlier = {*self.collection.images}
        self.collection = self.read()
        images, index = {*self.collection.images}, self.collection.index
        new, gone = len(images - earlier), len(earlier - images)
        changed = max(0, index.embedded - new)
        return Changes(len(images), new, changed, gone, index.problems)

    def search(self, pictures: Pictures, k: int = 8) -> pd.DataFrame:
        """Return the k nearest images to each picture, the nearest first.

        pictures: as of `TrainedModel.embed`; a path may also be one in the folder. A
        file of the folder does not retrieve itself. One that cannot be read is left
        out, with a notice.
        Columns: query, the path as given, or the number of a picture that is no file;
        rank; path; class, of class folders, or None; score, from -1 to 1. If there is a
        threshold: match, whether the score reaches it. And with classes, too:
        predicted_class, or 'no match', and confidence, from 0 to 1.
        Raises UserError if there is no such file, or if no picture can be read.
        """
        collection, given = self.collection, to_pictures(pictures)
        if not given:
            raise UserError('search: no pictures')
        k = get_parser().parse_args({'retrieval_num': k}).retrieval_num
        files = [
            query_file(each, self.folder) if isinstance(each, str) else each
            for each in given
        ]
        queries = find_queries(files, collection)
        for number, (query, each) in enumerate(zip(queries, given)):
            query.name = each if isinstance(each, str) else number
        answers = find_answers(embed_queries(queries, collection), collection, k)
        return join_tables(answers, [answer.query.name for answer in answers])

    def calibrate(self, false_match_rate: float = 0.01) -> dict:
        """Set the threshold of a match by the class folders; return the calibration.

        false_match_rate: share of the queries without a true match that are to pass.
        The index stores the calibration. Its sizes and thresholds are the threshold of
        a gallery of each size.
        Raises UserError unless two classes have not trained the model.
        """
        args = get_parser().parse_args({'false_match_rate': false_match_rate})
        collection = copy.copy(self.collection)
        collection.calibration = calibrate_folder(collection, args.false_match_rate)
        if processes.is_first():
            store_calibration(collection.index, collection.calibration)
        self.collection = collection
        return collection.calibration

    def duplicates(self, strictness: str | float = 'normal') -> pd.DataFrame:
        """Return what the folder holds more than once: a row for each file of a group.

        strictness: strict, normal or loose, or the agreement of near-duplicates, from 0
        to 1.
        Columns: group; kind: identical, near-duplicate, recoloured or mirrored; action:
        keep, remove or look; score, the agreement; path; class; width and height in
        pixels; bytes. Raises UserError if the folder has a single image.
        """
        from areir.matching.duplicates import find_duplicates
        from areir.output.duplicates import duplicates_table

        least = get_parser().parse_args({'strictness': strictness}).strictness
        groups, _ = find_duplicates(self.collection, least)
        return duplicates_table(groups, self.collection)

    def export(self, folder: str | os.PathLike, format: str = 'npy') -> list[str]:
        """Write vectors, paths and classes to a folder; return the paths written.

        format: npy, for vectors.npy (N, D) float32 and images.csv, row for row; or
        parquet, for images.parquet.
        Raises UserError for another format, or if pyarrow is not installed.
        """
        from areir.output.exports import EXPORTS

        format = get_parser().parse_args({'format': format}).format
        return EXPORTS[format](self.collection, os.fspath(folder))

    def read(self):
        """Bring the index up to date and return the FolderCollection."""
        model, folder = self.model, self.folder
        settings = {
            'model': str(model.version),
            'preprocessing': repr((PREPROCESSING, model.pixel_format)),
        }
        index = update_index(
            folder,
            index_path(folder, model.path, self.results_root),
            settings,
            model.pixel_format,
            model.embedder(self.device),
            shortened=model.is_pretrained,
        )
        report_problems(dict(sorted(index.problems.items())), folder)
        if index.components:
            model = model.shortened(Projection(**index.components))
        collection = FolderCollection(folder, index, model, self.device)
        if self.index == 'faiss':
            collection.search = open_search(index)
        if collection.choices:
            print(
                f'notice: {folder}: the class of an image is its first folder, if '
                f'it has one; data_utils.py would ask: {collection.choices}'
            )
        return collection


def evaluate(
    embeddings: Any,
    labels: Any,
    /,
    ks: int | Iterable[int] = (1, 10),
    gallery: Any = None,
    gallery_labels: Any = None,
    *,
    query: Any = None,
    groups: Any = None,
    gallery_groups: Any = None,
    files: Any = None,
    gallery_files: Any = None,
    tile: int = TILE,
) -> dict[str, float]:
    """Return Recall@K, MAP@R and R-precision, means over all queries, as fractions.

    embeddings (N, D), labels (N,): each image queries all others, or with query, a mask
    (N,) or indices, the images that it names query the rest. Or give a gallery (Ng, D)
    and gallery_labels (Ng,). A query ignores images of its class and group, such as
    those of its camera, and of its file: its copies. tile: images per side of a tile of
    scores; it does not change the result.

    All may be arrays of numpy, tensors, lists or columns of pandas: embeddings of
    floats, the others of whole numbers or texts. None, NaN, '' and -1 are no group or
    file; images with such a label are searched, but never right, and do not query.
    Scores are dot products, so normalise embeddings to compare them by cosine. They are
    computed where the gallery lies, such as on a GPU.

    R is the number of positives, the images of the query's class.

        recall@k     1 if a positive is among the k nearest images, else 0
                     (arXiv 1511.06452)
        map@r        1/R * sum over i <= R of the precision at i, where the i-th
                     nearest image is a positive (arXiv 2003.08505)
        r_precision  share of positives among the R nearest images (arXiv 2003.08505)
        map          only with groups: 1/R * sum over all positives of the precision at
                     their rank, as Market-1501 (ICCV 2015) and VeRi (ECCV 2016) report
        mean_rank    rank of the nearest positive, mean over the queries that have one;
                     NaN if none has
        queries_without_positive   R = 0; they count as 0 in the shares

    Raises UserError, a ValueError, for embeddings that are not finite, shapes that do
    not fit and a k beyond the images that can be retrieved. Here image 0 sees ant, bee,
    ant, nearest first, and images 1 and 3 see bee, ant, ant:

    >>> embeddings = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]]
    >>> labels = ['ant', 'ant', 'bee', 'ant']
    >>> evaluate(embeddings, labels, ks=[1, 2])  # doctest: +NORMALIZE_WHITESPACE
    {'recall@1': 0.25, 'recall@2': 0.75, 'map@r': 0.25, 'r_precision': 0.375,
     'mean_rank': 1.6666666666666667, 'queries_without_positive': 1}
    >>> evaluate(embeddings, labels, ks=1, query=[0, 3])['recall@1']
    0.5
    """
    ks = [ks] if isinstance(ks, Integral) else list(ks)
    images = given = to_tensor('embeddings', embeddings)
    check_embeddings('embeddings', given)
    if query is not None:
        if gallery is not None:
            raise UserError('query says which of the embeddings query: give no gallery')
        asks = query_mask(query, len(given)).to(given.device)
        images, gallery = given[asks], given[~asks]
    elif gallery is not None:
        gallery = to_tensor('gallery', gallery)
        images = given.to(gallery.device)
    sides = {'labels': (labels, gallery_labels), 'groups': (groups, gallery_groups)}
    sides['files'] = files, gallery_files
    marks = {}
    for kind, pair in sides.items():
        own, others = number_entries('arguments', pair, kind, [])
        if own is not None:
            own = check_labels(kind, own, given)
            if query is not None:
                own, others = own[asks], own[~asks]
        marks |= {kind: own, f'gallery_{kind}': others}
    labels = marks.pop('labels'), marks.pop('gallery_labels')
    ranks = rank_positives(images, labels[0], gallery, labels[1], tile, **marks)
    check_ks(ks, len(images) - 1 if gallery is None else len(gallery))
    return summary(ranks, ks)


def search(
    query: Any,
    gallery: Any,
    k: int,
    exclude: Any = None,
    tile: int = TILE,
) -> tuple[Any, Any]:
    """Return the k best gallery images of every query.

    query (Nq, D), gallery (Ng, D), tile and scores: as in `evaluate`; exclude (Nq,): a
    gallery index that a query must not retrieve, such as its own, or -1.

    Returns (scores, indices), float32 and int64, both (Nq, k), ordered by score, then
    by gallery index: tensors if query or gallery is one, else arrays of numpy. Raises
    UserError, a ValueError, for embeddings that are not finite, shapes and indices that
    do not fit, and a k below 1 or beyond the images that can be retrieved.

    >>> gallery = [[0.0, 2.0], [3.0, 1.0], [0.5, 0.5]]
    >>> scores, indices = search([[1.0, 0.0]], gallery, k=2)
    >>> scores.tolist(), indices.tolist()
    ([[3.0, 0.5]], [[1, 2]])
    """
    as_tensors = any(isinstance(each, torch.Tensor) for each in (query, gallery))
    query, gallery = to_tensor('query', query), to_tensor('gallery', gallery)
    if exclude is not None:
        with must_be('arguments', 'exclude', 'whole numbers'):
            exclude = torch.as_tensor(exclude)
    found = ranking.search(query.to(gallery.device), gallery, k, exclude, tile)
    return found if as_tensors else tuple(each.numpy() for each in found)


def to_tensor(name, vectors):
    """Return embeddings of any kind as a tensor; name: what messages call them."""
    if not isinstance(vectors, (torch.Tensor, list, tuple)):
        vectors = np.ascontiguousarray(vectors)
    with warnings.catch_warnings(action='ignore'):  # of arrays that are read-only
        vectors = to_vectors('arguments', name, {name: vectors})
    return vectors.cpu() if vectors.device.type == 'mps' else vectors  # no float64


def query_mask(query, count):
    """Return a mask or indices of the images that query as a mask (count,)."""
    query = np.asarray(query.cpu() if isinstance(query, torch.Tensor) else query)
    asks = np.zeros(count, dtype=bool)
    try:
        asks[query] = True
    except IndexError as error:
        raise UserError(f'query must be a mask or indices ({error})') from error
    if query.dtype != bool and asks.sum() < query.size:
        raise UserError('query names an image twice; a mask has the type bool')
    if asks.all() or not asks.any():
        raise UserError('query: choose some of the images, and leave some to search')
    return torch.from_numpy(asks)

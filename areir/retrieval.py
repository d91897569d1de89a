"""The doors for your own programs: a Gallery, exact search and exact evaluation."""

import copy
import os
from typing import NamedTuple

import areir
from areir import hardware, processes
from areir.bars import say
from areir.data.images import PREPROCESSING
from areir.errors import counted
from areir.evaluation.metrics import evaluate
from areir.evaluation.ranking import search
from areir.gallery import databases
from areir.gallery.collection import FolderCollection
from areir.gallery.folders import check_gallery
from areir.gallery.index import index_path, store_calibration, update_index
from areir.gallery.queries import report_problems
from areir.matching.calibration import calibrate_folder
from areir.networks.projection import Projection

__all__ = ['Gallery', 'evaluate', 'search']


class Changes(NamedTuple):
    """What an update of a Gallery has found."""

    images: int  # that are searched now
    new: int  # since the update before
    changed: int
    gone: int
    problems: dict  # {path: why the file cannot be read}


class Gallery:
    """A folder of images that is searched.

    An index below results_root keeps the embeddings of the images. It is brought up to
    date here and by `update`; `collection` is what was found then.

    model: a TrainedModel, or what --model of inference.py takes: a file, a name below
    results_root or of a network, by default the newest model. device: auto, cpu, cuda
    or mps. index: exact, or faiss, which searches approximately.
    Raises UserError if the folder has no image that can be read or if there is no such
    model.
    """

    def __init__(
        self, folder, model=None, results_root='results', device='auto', index='exact'
    ):
        self.folder, self.results_root = os.fspath(folder), os.fspath(results_root)
        check_gallery(self.folder)
        if model is None or isinstance(model, (str, os.PathLike)):
            name, _ = databases.find_model(model and os.fspath(model), results_root)
            model = areir.load_model(name)  # the package imports no script
        self.model, self.index = model, index
        hardware.check_device(device)
        self.device = hardware.local_device(device)
        self.embedder = model.embedder(self.device)
        self.collection = self.read()

    def update(self):
        """Bring the index up to date and return the Changes.

        Only images that are new or changed, by size or time, are embedded. Searches of
        other threads go on in the earlier collection.
        """
        earlier, self.collection = self.collection, self.read()
        index, images = self.collection.index, self.collection.images
        new = len(set(images).difference(earlier.images))
        gone = len(set(earlier.images).difference(images))
        changed = max(0, index.embedded - new)
        return Changes(len(images), new, changed, gone, index.problems)

    def calibrate(self, false_match_rate=0.01):
        """Set the threshold of a match by the class folders; return the calibration."""
        calibration = calibrate_folder(self.collection, false_match_rate)
        if processes.is_first():
            store_calibration(self.collection.index, calibration)
        collection = copy.copy(self.collection)
        collection.calibration = calibration
        self.collection = collection
        return calibration

    def read(self):
        """Bring the index up to date and return the FolderCollection."""
        path = index_path(self.folder, self.model.path, self.results_root)
        settings = {
            'model': str(self.model.version),
            'preprocessing': repr((PREPROCESSING, self.model.pixel_format)),
        }
        index = update_index(
            self.folder,
            path,
            settings,
            self.model.pixel_format,
            self.embedder,
            shortened=self.model.is_pretrained,
        )
        problems = sorted(index.problems.items())
        report_problems(
            {os.path.join(self.folder, image): why for image, why in problems}
        )
        say(
            f'index {path}: {counted(len(index.paths), "image")}, {index.embedded:,} '
            f'embedded now, {index.removed:,} gone, {len(problems):,} left out'
        )
        trained, embedder, search = self.model, self.embedder, None
        if index.components:
            trained = trained.shortened(Projection(**index.components))
            embedder = trained.embedder(self.device)
        if self.index == 'faiss':
            from areir.gallery.approximate import open_search

            search = open_search(index)
        collection = FolderCollection(self.folder, index, trained, embedder, search)
        if collection.choices:
            print(
                f'notice: {self.folder}: the class of an image is its first folder, if '
                f'it has one; data_utils.py would ask: {collection.choices}'
            )
        return collection

"""What is searched: the images of a database of train.py, or of a folder."""

import os
from typing import NamedTuple

import numpy as np
import torch

from areir.errors import UserError
from areir.evaluation.ranking import search
from areir.gallery.folders import class_names
from areir.gallery.index import store_calibration
from areir.gallery.queries import Query, embed_shared, find_images
from areir.matching.calibration import calibrate
from areir.matching.thresholds import threshold_for
from areir.processes import from_first, is_first


class Threshold(NamedTuple):
    """The lowest score at which two images match."""

    score: float
    calibrated: bool  # whether it was calibrated for collections of this size


class Collection:
    """Images that are searched, in a fixed order.

    name: what messages call the collection; folder: what the image paths are relative
    to; images: the paths; classes: the name of each image's class, or None; embeddings
    (N, D): a tensor or a memory-mapped array; calibration: what `calibrate` returns, or
    None. A subclass adds `search`, `load_model` and `embed`.
    """

    sizes = None  # bytes of the image files, if they are known
    how_to_calibrate = 'the model has none; train again to give it one'

    def __init__(self, name, folder, images, classes, embeddings, calibration):
        self.name = name
        self.folder = folder
        self.images = images
        self.classes = classes
        self.embeddings = embeddings
        self.calibration = calibration

    def __len__(self):
        return len(self.images)

    @property
    def threshold(self):
        """The Threshold for this many images, or None without a calibration."""
        if not self.calibration:
            return None
        return Threshold(*threshold_for(self.calibration, len(self)))

    def search(self, queries, k, exclude):
        """Return (scores, indices) as `ranking.search` does."""
        raise NotImplementedError

    def load_model(self):
        """Return the TrainedModel that embeds images from outside the collection."""
        raise NotImplementedError

    def embed(self, paths):
        """Return (embeddings (N, D), {index: problem}) of image files."""
        raise NotImplementedError

    def path_of(self, index):
        """Return the path of an image's file."""
        return os.path.join(self.folder, self.images[index])

    def class_of(self, index):
        """Return the name of an image's class, or None."""
        return self.classes[index]

    def embedding_rows(self, start, stop):
        """Return the embeddings of images start ... stop - 1, float32."""
        return torch.as_tensor(np.asarray(self.embeddings[start:stop])).float()

    def names(self):
        """Return the names of all images whose embedding is stored."""
        return self.images

    def locate(self, paths):
        """Return a Query for each path.

        A Query from the collection carries its stored embedding. Raises UserError if a
        path is neither a file nor an image of the collection.
        """
        positions = find_images(paths, self.images, self.folder, self.sizes)
        return [self.query_at(*pair) for pair in zip(paths, positions)]

    def query_at(self, path, index):
        """Return the Query of a path; index: its place in the collection, or -1."""
        if index >= 0:
            return Query(
                file=self.path_of(index),
                name=self.images[index],
                label=self.class_of(index),
                index=index,
                stored=True,
                embedding=self.embedding_rows(index, index + 1)[0],
            )
        if not os.path.isfile(path):
            raise UserError(
                f'--query_img_name {path}: no such file, and no image of {self.name}'
            )
        return Query(file=path, name=path)


class DatabaseCollection(Collection):
    """The images of a database of train.py.

    database: the contents of the file; path: the file; folder: see `image_folder`;
    open_model: returns the TrainedModel of a path, and is called only if an image from
    outside the database must be embedded; device: where to embed it.
    """

    def __init__(self, database, path, folder, open_model, device):
        classes = database['classes']
        labels = database['labels'].tolist()
        super().__init__(
            'the database',
            folder,
            database['images'],
            [classes[label] for label in labels],
            database['embeddings'],
            database.get('calibration'),
        )
        self.database, self.path = database, path
        self.open_model, self.device = open_model, device
        self.trained = None
        # In-shop Clothes has queries that are not part of the gallery
        self.stored_queries = database.get('query_images', [])

    def search(self, queries, k, exclude):
        return search(queries, self.embeddings, k, exclude)

    def names(self):
        return [*self.images, *self.stored_queries]

    def locate(self, paths):
        positions = find_images(paths, self.images, self.folder)
        stored = find_images(paths, self.stored_queries, self.folder)
        queries = []
        for path, index, number in zip(paths, positions, stored):
            if index < 0 and number >= 0:
                queries.append(self.stored_query(number))
            else:
                queries.append(self.query_at(path, index))
        return queries

    def stored_query(self, number):
        """Return the Query whose embedding the database keeps at `number`."""
        name = self.stored_queries[number]
        label = self.database['query_labels'][number]
        return Query(
            file=os.path.join(self.folder, name),
            name=name,
            label=self.database['classes'][label],
            stored=True,
            embedding=self.database['query_embeddings'][number].float(),
        )

    def load_model(self):
        """Return the TrainedModel beside the database.

        Raises UserError if it is missing or belongs to another run or epoch.
        """
        if self.trained:
            return self.trained
        folder = os.path.dirname(self.path)
        path = os.path.join(folder, self.database['model'])
        if not os.path.isfile(path):
            raise UserError(
                f'{path}: no such file; the model is needed for an image that is not '
                'in the database'
            )
        trained = self.open_model(path)
        if trained.version != self.database['version']:
            raise UserError(
                f'{path} does not fit {self.path}: they were not written by the same '
                'epoch of one run'
            )
        dimensions = self.embeddings.shape[1]
        if trained.dimensions != dimensions:
            raise UserError(
                f'{path} does not fit {self.path}: embeddings of '
                f'{trained.dimensions} and {dimensions} numbers'
            )
        self.trained = trained
        return trained

    def embed(self, paths):
        trained = self.load_model()
        embedder = trained.embedder(self.device)
        return embed_shared(paths, embedder, trained.dimensions)


class FolderCollection(Collection):
    """The images of a folder, searched from the vectors of its index on disk.

    index: areir.gallery.index.Index; trained: the TrainedModel; embedder: its
    Embedder. With torchrun each process searches its share. If the index has a
    threshold of its own, it replaces the model's.
    """

    how_to_calibrate = 'add --calibrate once if the images lie in class folders'
    reopen = None  # brings the index up to date and returns a new collection

    def __init__(self, folder, index, trained, embedder):
        super().__init__(
            folder,
            folder,
            index.paths,
            class_names(index.paths),
            index.vectors.rows(),
            index.calibration or trained.calibration,
        )
        self.index = index
        self.sizes = index.sizes
        self.trained, self.embedder = trained, embedder

    def search(self, queries, k, exclude):
        return self.index.vectors.search(queries, k, exclude)

    def calibrate(self, false_match_rate):
        """Set the threshold from the class folders, and store it in the index.

        Images outside class folders are left out. Raises UserError if there are fewer
        than two classes.
        """
        known = [row for row, name in enumerate(self.classes) if name is not None]
        names = [self.classes[row] for row in known]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        calibration = None
        if len(numbers) > 1:
            calibration = calibrate(
                torch.from_numpy(np.asarray(self.embeddings[known])),
                torch.tensor([numbers[name] for name in names]),
                false_match_rate=false_match_rate,
            )
        if not calibration:
            raise UserError(
                f'--calibrate: put the images of {self.folder} into a folder for each '
                'class, at least two'
            )
        if is_first():
            store_calibration(self.index, calibration)
        self.calibration = calibration

    def load_model(self):
        return self.trained

    def embed(self, paths):
        return embed_shared(paths, self.embedder, self.trained.dimensions)


class ApproximateCollection(FolderCollection):
    """A folder that rank 0 searches by faiss; other ranks receive what it finds.

    approximate: the approximate index; None in the other ranks.
    """

    def __init__(self, folder, index, trained, embedder, approximate):
        super().__init__(folder, index, trained, embedder)
        self.approximate = approximate

    def search(self, queries, k, exclude):
        answer = None
        if self.approximate:
            answer = self.approximate.search(queries, k, exclude)
        return from_first(answer)

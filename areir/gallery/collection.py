"""What is searched: the images of a database of train.py, or of a folder."""

import os
from dataclasses import dataclass
from functools import cached_property

import torch

from areir.data.own_images import recognise
from areir.errors import UserError
from areir.evaluation.metrics import DISTRACTOR
from areir.evaluation.ranking import search
from areir.gallery.folders import class_names


@dataclass(eq=False)
class Collection:
    """Images that are searched, in a fixed order.

    names: the paths of all images whose embeddings are stored; the first are those that
    are searched.

    A subclass adds `search(queries, k, exclude)`, which returns (scores, indices) as
    `ranking.search` does, `trained`, the TrainedModel that embeds other images, and
    `device`, where it does.
    """

    name: str  # what messages call the collection
    folder: str  # that the image paths are relative to
    images: list  # the paths
    classes: list  # the name of each image's class, or None
    embeddings: object  # (N, D), a tensor or a memory-mapped array
    calibration: dict | None  # what `calibration.calibrate` returns

    sizes = None  # bytes of the image files, if they are known
    how_to_calibrate = (
        'the model has none; train again with --threshold_from RUN, or hold classes out'
    )

    def __post_init__(self):
        self.names = self.images

    def __len__(self):
        return len(self.images)

    @property
    def embedder(self):
        """The Embedder of `trained`."""
        return self.trained.embedder(self.device)

    def path_of(self, index):
        """Return the path of an image's file."""
        return os.path.join(self.folder, self.images[index])

    def stored(self, position):
        """Return (class or None, float32 embedding (D,)) of names[position]."""
        embedding = torch.as_tensor(self.embeddings[position])
        return self.classes[position], embedding.float()


class DatabaseCollection(Collection):
    """The images of a database of train.py.

    database: the contents of the file; folder: see `image_folder`; open_model: returns
    the TrainedModel of a path; it and device embed images from outside the database.
    """

    def __init__(self, database, path, folder, open_model, device):
        classes = database['classes']
        super().__init__(
            'the database',
            folder,
            database['images'],
            [name_of(label, classes) for label in database['labels'].tolist()],
            database['embeddings'],
            database['calibration'],
        )
        self.database, self.path = database, path
        self.open_model, self.device = open_model, device
        # In-shop Clothes has queries that are not part of the gallery
        self.names = [*self.images, *database.get('query_images', [])]

    def search(self, queries, k, exclude):
        return search(queries, self.embeddings, k, exclude)

    def stored(self, position):
        number = position - len(self)
        if number < 0:
            return super().stored(position)
        label = int(self.database['query_labels'][number])
        embedding = self.database['query_embeddings'][number].float()
        return name_of(label, self.database['classes']), embedding

    @cached_property
    def trained(self):
        """Raises UserError if it is missing or belongs to another run or epoch."""
        path = os.path.join(os.path.dirname(self.path), self.database['model'])
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
        return trained


def name_of(label, classes):
    """Return the name of a class, None of distractors."""
    return None if label == DISTRACTOR else classes[label]


class FolderCollection(Collection):
    """The images of a folder, searched from the vectors of its index on disk.

    index: areir.gallery.index.Index; trained, device: see Collection. With torchrun,
    each process searches its share. If the index has a threshold of its own, it
    replaces the model's. choices: see `own_images.Layout`.
    """

    how_to_calibrate = 'add --calibrate once if the images lie in class folders'

    def __init__(self, folder, index, trained, device):
        layout = recognise(index.paths)
        self.choices = layout.choices
        super().__init__(
            folder,
            folder,
            index.paths,
            class_names(layout),
            index.vectors.array,
            index.calibration or trained.calibration,
        )
        self.index, self.sizes = index, index.sizes
        self.trained, self.device = trained, device
        self.search = index.vectors.search

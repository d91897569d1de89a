"""The images on the page of a run, in rows: a query, its nearest images, captions."""

import base64
import io
import math
import os
from dataclasses import dataclass

from PIL import Image
from tqdm import tqdm

from areir.data.images import load_image
from areir.errors import UserError

THUMBNAIL = 96  # pixels


@dataclass
class Tile:
    """A thumbnail with its caption."""

    kind: str  # query, right or wrong
    path: str
    class_name: str
    picture: str | None  # a data URI, None for an image that cannot be read
    score: float | None = None  # None for a query
    rank: int | None = None  # only where it is not the place in the row

    @property
    def title(self):
        """The name of the file."""
        return os.path.basename(self.path)


@dataclass
class QueryRow:
    """A query with its nearest images."""

    query: Tile
    answers: list  # of Tile
    later: Tile | None  # the first right image, if it is not among the answers
    rank: int  # of the first right image
    margin: float  # best right score minus best wrong score, inf without a wrong one

    @property
    def no_wrong_image(self):
        """Whether every image is of the query's class."""
        return self.margin == math.inf


@dataclass
class ClassRow:
    """A class of low recall with an example: a query and its wrong nearest image."""

    name: str
    queries: int
    recall: float
    confusions: list  # of (class name, number of queries)
    query: Tile
    answer: Tile


class TileMaker:
    """Makes the rows of Tiles that show Results; reads the images on creation."""

    def __init__(self, results, classes, folder, progress):
        """classes: names by label; folder: where the paths of images start."""
        self.results, self.images = results, results.images
        self.classes, self.folder = classes, folder
        examples = [row.example for row in results.classes]
        queries = [*examples, *results.worst, *results.best]
        nearest_right = results.statistics.best.nearest_right
        paths = {self.images.query_images[query] for query in queries}
        for query in queries:
            answers = [*results.nearest[query].tolist(), int(nearest_right[query])]
            paths |= {self.images.images[index] for index in answers}
        full_paths = [self.full_path(path) for path in sorted(paths)]
        self.pictures = thumbnails(full_paths, progress)

    def full_path(self, path):
        return os.path.join(self.folder, path)

    def query(self, query):
        """Return the Tile of a query."""
        path = self.images.query_images[query]
        class_name = self.classes[int(self.images.query_labels[query])]
        return Tile('query', path, class_name, self.pictures[self.full_path(path)])

    def answer(self, query, index, score, rank=None):
        """Return the Tile of image `index` of the gallery as an answer to a query."""
        path, label = self.images.images[index], int(self.images.labels[index])
        is_right = label == int(self.images.query_labels[query])
        return Tile(
            'right' if is_right else 'wrong',
            path,
            self.classes[label],
            self.pictures[self.full_path(path)],
            float(score),
            rank,
        )

    def nearest(self, query):
        """Return the Tiles of a query's nearest images."""
        indices = self.results.nearest[query].tolist()
        scores = self.results.scores[query].tolist()
        return [
            self.answer(query, index, score) for index, score in zip(indices, scores)
        ]

    def query_row(self, query):
        """Return the QueryRow of a query that has a right image."""
        statistics = self.results.statistics
        answers, rank = self.nearest(query), int(self.results.ranks['rank'][query])
        later = None
        if rank > len(answers):
            index = int(statistics.best.nearest_right[query])
            score = statistics.best.best_right[query]
            later = self.answer(query, index, score, rank)
        margin = float(statistics.margin[query])
        return QueryRow(self.query(query), answers, later, rank, margin)

    def class_rows(self):
        """Return a ClassRow for each class of the results."""
        rows = []
        for row in self.results.classes:
            confusions = [
                (self.classes[label], count) for label, count in row.confusions
            ]
            rows.append(
                ClassRow(
                    self.classes[row.label],
                    row.queries,
                    row.recall,
                    confusions,
                    self.query(row.example),
                    self.nearest(row.example)[0],
                )
            )
        return rows


def thumbnails(paths, progress=False):
    """Return {path: data URI of a small JPEG}, None for an image that is unreadable."""
    drawn = {}
    for path in tqdm(paths, desc='thumbnails', disable=not progress, leave=False):
        try:
            image = load_image(path)
        except UserError:
            drawn[path] = None
            continue
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, 'JPEG', quality=80)
        encoded = base64.b64encode(buffer.getvalue()).decode()
        drawn[path] = f'data:image/jpeg;base64,{encoded}'
    return drawn

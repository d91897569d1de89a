"""The table of an index: its images, the sizes and times of their files, settings."""

import hashlib
import os
from dataclasses import asdict, dataclass, field

from areir.errors import UserError
from areir.files import cut_name, load_tensors, write_tensors
from areir.retrieval import thresholds
from areir.retrieval.codes_file import CodesFile, codes_path
from areir.retrieval.projection import Projection
from areir.retrieval.vectors_file import VectorsFile


@dataclass
class IndexTable:
    """The contents of index.pth, in the order of the paths."""

    settings: dict  # what the vectors depend on
    gallery: str  # the folder of the images
    paths: list  # relative to it, sorted
    seen: list  # [size, mtime_ns] of each
    problems: dict  # {path: (seen, why it cannot be read)}
    vectors: str  # the name of the .npy file
    dimensions: int
    components: dict | None = None  # of the Projection that shortens the vectors
    fitted: int = 0  # how many images the components were fitted to
    calibration: dict | None = None  # stored by --calibrate
    checksums: dict = field(default_factory=dict)  # {.npy file: CRC-32 of its blocks}

    @property
    def searched(self):
        """The name of the file that is searched: the shortened vectors, if any."""
        if not self.components:
            return self.vectors
        return self.vectors.replace('vectors_', 'shortened_')

    def check(self, index_folder):
        """Raise UserError unless the table and its vectors fit together."""
        vectors = VectorsFile(os.path.join(index_folder, self.vectors))
        seen = self.seen + [seen for seen, _ in self.problems.values()]
        paths = [*self.paths, *self.problems]
        if not (
            (len(vectors), vectors.dimensions) == (len(self.paths), self.dimensions)
            and len(self.seen) == len(self.paths)
            and isinstance(self.settings, dict)
            and isinstance(self.checksums, dict)
            and all(len(pair) == 2 for pair in seen)
            and all(isinstance(path, str) for path in paths)
        ):
            raise UserError('its parts do not fit')
        thresholds.check(self.calibration)
        if self.components:
            self.check_components(index_folder)

    def check_components(self, index_folder):
        """Raise an error unless the components and the shortened vectors fit."""
        projection = Projection(**self.components)
        projection.check(self.dimensions)
        shortened = VectorsFile(os.path.join(index_folder, self.searched))
        dimensions = projection.matrix.shape[1]
        if (len(shortened), shortened.dimensions) != (len(self.paths), dimensions):
            raise UserError('its shortened vectors do not fit')

    def forget_damaged(self, index_folder):
        """Forget what was seen of the images whose vectors are damaged.

        They are then embedded again. Returns how many there are.
        """
        damaged = self.find_damaged(index_folder, self.vectors)
        for row in damaged:
            self.seen[row] = []  # no image has this
        return len(damaged)

    def find_damaged(self, index_folder, name):
        """Return the rows of a .npy file of the index that are damaged.

        The files of earlier versions have no checksums.
        """
        vectors = VectorsFile(os.path.join(index_folder, name))
        return vectors.find_damaged(self.checksums.get(name))

    def are_codes_damaged(self, index_folder):
        """Whether the codes are missing, as in earlier versions, or damaged."""
        name = codes_path(self.searched)
        if name not in self.checksums:
            return True
        try:
            vectors = VectorsFile(os.path.join(index_folder, self.searched))
            return bool(CodesFile(vectors).find_damaged(self.checksums[name]))
        except (OSError, UserError):
            return True

    def write(self, index_folder):
        """Write the table to index.pth."""
        write_tensors({os.path.join(index_folder, 'index.pth'): asdict(self)})

    def lists_the_same(self, other):
        """Whether another table, or None, has the same images and problems."""
        if not other:
            return False
        listed = other.paths, other.seen, other.problems
        return (self.paths, self.seen, self.problems) == listed

    def stale_because(self, settings):
        """Return why the table cannot be used with these settings, or ''."""
        changes = [
            f'{name} was {self.settings.get(name)} and is {value}'
            for name, value in settings.items()
            if self.settings.get(name) != value
        ]
        return ', '.join(changes)


def read_table(index_folder):
    """Return the IndexTable of an index, or None if there is none.

    A damaged table counts as none, and a notice says so.
    """
    path = os.path.join(index_folder, 'index.pth')
    if not os.path.isfile(path):
        return None
    try:
        saved = load_tensors(path)
        table = IndexTable(
            settings=saved['settings'],
            gallery=saved.get('gallery', ''),
            paths=saved['paths'],
            seen=saved['seen'],
            problems=saved['problems'],
            vectors=os.path.basename(saved['vectors']),
            dimensions=saved['dimensions'],
            components=saved.get('components'),
            fitted=int(saved.get('fitted', 0)),
            calibration=saved.get('calibration'),
            checksums=saved.get('checksums', {}),
        )
        table.check(index_folder)
        return table
    except Exception as error:  # a damaged value fails in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        print(f'notice: {path} is damaged ({reason}): the index is built again')
        return None


def index_path(folder, model_path, results_root):
    """Return the path of the index of a folder embedded by a model."""
    real = os.path.realpath(folder)
    name = cut_name(os.path.basename(real), 60) or 'root'
    place = hashlib.sha256(os.fsencode(real)).hexdigest()[:8]
    model = os.path.basename(model_path).removesuffix('.pth').removesuffix('_model')
    return os.path.join(results_root, f'{name}_{place}_{cut_name(model, 100)}_index')

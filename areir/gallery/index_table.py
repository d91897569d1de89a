"""The table of an index: its images, the sizes and times of their files, settings."""

import hashlib
import os
from dataclasses import asdict, dataclass, field

from areir.errors import UserError
from areir.files import cut_name, load_tensors, write_tensors
from areir.gallery.codes_file import CodesFile, codes_path
from areir.gallery.vectors_file import VectorsFile
from areir.matching import thresholds
from areir.networks.projection import Projection, is_state
from areir.schemas import (
    find_problem,
    is_count,
    is_list,
    is_natural,
    is_text,
    is_texts,
)


def is_settings(value):
    """Whether a value is a dict of texts and numbers."""
    if not isinstance(value, dict):
        return False
    return all(isinstance(setting, (str, int, float)) for setting in value.values())


def is_seen(value):
    """Whether a value is [size, mtime_ns] of a file."""
    return is_list(value, lambda number: type(number) is int) and len(value) == 2


def is_problem(value):
    """Whether a value is ([size, mtime_ns] of a file, why it cannot be read)."""
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    return pair and is_seen(value[0]) and is_text(value[1])


def is_paths(value):
    """Whether a value is a sorted list of different paths."""
    return is_texts(value) and value == sorted(set(value))


def is_checksums(value):
    """Whether a value is a dict of lists of checksums."""
    return isinstance(value, dict) and all(
        is_text(name) and is_list(sums, is_natural) for name, sums in value.items()
    )


# the schema of index.pth
TABLE = {
    'settings': is_settings,
    'paths': is_paths,
    'seen': lambda value: is_list(value, is_seen),
    'problems': lambda value: (
        isinstance(value, dict)
        and is_texts(list(value))
        and all(map(is_problem, value.values()))
    ),
    'vectors': is_text,
    'dimensions': is_count,
}
OPTIONAL = {  # fields that older files lack
    'gallery': is_text,
    'components': is_state,
    'fitted': is_natural,
    'calibration': thresholds.is_calibration,
    'checksums': is_checksums,
}


@dataclass
class IndexTable:
    """The contents of index.pth, in the order of the paths."""

    settings: dict  # that the vectors depend on
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
        """Raise UserError unless the table and its vectors have the same images."""
        vectors = VectorsFile(os.path.join(index_folder, self.vectors))
        shape = len(vectors), vectors.dimensions
        if shape != (len(self.paths), self.dimensions):
            raise UserError('its vectors are not those of its images')
        if len(self.seen) != len(self.paths):
            raise UserError('its lists have different lengths')
        if self.components:
            self.check_components(index_folder)

    def check_components(self, index_folder):
        """Raise an error unless the components and the shortened vectors fit."""
        projection = Projection(**self.components)
        projection.check(self.dimensions)
        shortened = VectorsFile(os.path.join(index_folder, self.searched))
        dimensions = projection.matrix.shape[1]
        if (len(shortened), shortened.dimensions) != (len(self.paths), dimensions):
            raise UserError('its shortened vectors are not those of its images')

    def forget_damaged(self, index_folder):
        """Mark images whose vectors are damaged as unseen, to embed them again.

        Returns the number of these images.
        """
        damaged = self.find_damaged(index_folder, self.vectors)
        for row in damaged:
            self.seen[row] = []  # equals the size and time of no image
        return len(damaged)

    def find_damaged(self, index_folder, name):
        """Return the damaged rows of a .npy file of the index.

        Files of earlier versions have no checksums, so only their norms are checked.
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

    If the table is damaged, print a notice and return None.
    """
    path = os.path.join(index_folder, 'index.pth')
    if not os.path.isfile(path):
        return None
    try:
        saved = load_tensors(path)
        problem = find_problem(saved, TABLE, OPTIONAL)
        if problem:
            raise UserError(problem)
        known = {name: saved[name] for name in (*TABLE, *OPTIONAL) if name in saved}
        table = IndexTable(**{'gallery': '', **known})
        table.vectors = os.path.basename(table.vectors)
        table.check(index_folder)
        return table
    except Exception as error:  # the header of a damaged .npy file fails in many ways
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

"""The journal of an index: what a killed build continues from.

    journal_<token>.f32     the vectors, float32, in the order in which they came
    journal_<token>.jsonl   first the settings, then a line for each image:
                            [path, [size, mtime_ns], dimensions, row, checksum] or
                            [path, [size, mtime_ns], "why it cannot be read"]

A line is written after its vector, which is the row of that number. The checksum is the
CRC-32 of its bytes. Each process of torchrun writes its own journal.

Journals of earlier versions have neither row nor checksum: the vectors are in the order
of the lines. A lost line would shift them, so such a journal is used only if it has as
many lines as vectors, and if those are unit vectors.
"""

import json
import os
import secrets
import zlib
from dataclasses import dataclass, field

import numpy as np

from areir.data.loading import GONE, embed_files
from areir.evaluation.scores import check_embeddings
from areir.files import WriteError, refuse_special
from areir.gallery.vectors_file import are_unit_vectors


@dataclass
class Journal:
    """What the journals of an index hold for some settings."""

    vectors: dict = field(default_factory=dict)  # {path: JournalVector}
    problems: dict = field(default_factory=dict)  # {path: (seen, why unreadable)}
    damaged: list = field(default_factory=list)  # names of files that are not whole


@dataclass
class JournalVector:
    """Where the vector of an image is, and what was seen of the image."""

    seen: list  # size and mtime_ns
    file: str
    row: int
    dimensions: int


def write_journal(index_folder, settings, folder, images, image_size, embed):
    """Embed images of a folder into a new journal.

    images: {path: [size, mtime_ns]}; embed: see `embed_files`. Images that are gone
    are left out. Raises UserError if a vector is not finite, WriteError if the disk is
    full; what was embedded until then is kept.
    """
    name = os.path.join(index_folder, f'journal_{secrets.token_hex(8)}')
    paths = list(images)
    files = [os.path.join(folder, path) for path in paths]
    try:
        with (
            open(f'{name}.f32', 'wb') as vectors_file,
            open(f'{name}.jsonl', 'w') as lines,
        ):
            lines.write(json.dumps(settings) + '\n')
            row = 0
            for indices, vectors, problems in embed_files(
                files, image_size, embed, 'indexing'
            ):
                if indices:
                    check_embeddings('vectors', vectors)
                vectors = vectors.numpy()
                vectors_file.write(vectors.tobytes())
                vectors_file.flush()
                results = describe_vectors(indices, vectors, row)
                results |= {index: [problem] for index, problem in problems.items()}
                row += len(vectors)
                for index, result in results.items():
                    if result != [GONE]:
                        line = [paths[index], images[paths[index]], *result]
                        lines.write(json.dumps(line) + '\n')
                lines.flush()
    except OSError as error:
        raise WriteError(f'{name}.f32', error) from error


def describe_vectors(indices, vectors, row):
    """Return {index: [dimensions, row, checksum]} of vectors (n, D) from `row` on."""
    return {
        index: [len(vector), row + place, zlib.crc32(vector.tobytes())]
        for place, (index, vector) in enumerate(zip(indices, vectors))
    }


def read_journals(index_folder, settings, dimensions=None):
    """Return the Journal of all journals in a folder that have these settings.

    Lines and vectors that a kill cut short are left out, and so is what follows a
    damaged line. dimensions: of every vector, if they are known.
    """
    journal = Journal()
    for name in sorted(os.listdir(index_folder)):
        if name.startswith('journal_') and name.endswith('.jsonl'):
            path = os.path.join(index_folder, name)
            reader = JournalReader(path, dimensions)
            try:
                reader.read(settings)
            except (ValueError, TypeError, OSError, RecursionError):
                journal.damaged.append(name)
            journal.vectors |= reader.vectors
            journal.problems |= reader.problems
            if reader.vectors:
                dimensions = reader.dimensions
    return journal


class JournalReader:
    """Reads one journal, up to the first damaged line.

    dimensions: of every vector; None takes those of the first one.
    """

    def __init__(self, path, dimensions=None):
        self.path = path
        self.vectors_path = path.removesuffix('jsonl') + 'f32'
        self.dimensions = dimensions
        self.vectors, self.problems = {}, {}
        self.unnumbered = {}  # vectors of an earlier version

    def read(self, settings):
        """Fill vectors and problems, unless the journal has other settings.

        Raises ValueError, TypeError, RecursionError or OSError if it is damaged.
        """
        refuse_special(self.path)
        refuse_special(self.vectors_path)
        with open(self.path) as lines, open(self.vectors_path, 'rb') as vectors_file:
            for number, line in enumerate(lines):
                if not line.endswith('\n'):  # a kill cut it short
                    break
                values = json.loads(line)
                if number:
                    self.read_line(values, vectors_file)
                elif values != settings:
                    return
            if self.unnumbered:
                self.take_unnumbered(vectors_file)

    def read_line(self, values, vectors_file):
        """Take what the values of a line say."""
        image, seen, result, *numbers = values
        if not isinstance(image, str) or not isinstance(seen, list):
            raise TypeError('no path, or no size and time')
        if isinstance(result, str):
            self.problems[image] = seen, result
            return
        self.check_dimensions(result)
        if not numbers:
            row = len(self.unnumbered)
            vector = JournalVector(seen, self.vectors_path, row, result)
            self.unnumbered[image] = vector
            return
        row, checksum = numbers
        if type(row) is not int or row < 0:
            raise ValueError('no row')
        length = os.fstat(vectors_file.fileno()).st_size
        if (row + 1) * result * 4 > length:  # a kill cut it short
            return
        vectors_file.seek(row * result * 4)
        content = vectors_file.read(result * 4)
        if zlib.crc32(content) != checksum:
            raise ValueError('a vector is damaged')
        self.vectors[image] = JournalVector(seen, self.vectors_path, row, result)

    def check_dimensions(self, dimensions):
        """Raise ValueError unless they are a number, and that of the other vectors."""
        if type(dimensions) is not int or dimensions < 1:
            raise ValueError('no dimensions')
        if self.dimensions is None:
            self.dimensions = dimensions
        if dimensions != self.dimensions:
            raise ValueError('vectors of several dimensions')

    def take_unnumbered(self, vectors_file):
        """Take the vectors of an earlier version if lines and vectors fit together."""
        vectors_file.seek(0)
        rows = np.frombuffer(vectors_file.read(), np.float32)
        rows = rows.reshape(len(self.unnumbered), self.dimensions)
        if not are_unit_vectors(rows).all():
            raise ValueError('a vector is damaged')
        self.vectors |= self.unnumbered

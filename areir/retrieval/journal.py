"""The journal of an index: what a killed build continues from.

    journal_<token>.f32     the vectors, float32, in the order in which they came
    journal_<token>.jsonl   first the settings, then a line for each image:
                            [path, [size, mtime_ns], dimensions] or
                            [path, [size, mtime_ns], "why it cannot be read"]

A line is written after its vector. Each process of torchrun writes its own journal.
"""

import contextlib
import json
import os
import secrets
from dataclasses import dataclass, field

from areir.data.loading import embed_files
from areir.files import WriteError
from areir.retrieval.scores import check_embeddings


@dataclass
class Journal:
    """What the journals of an index hold for some settings."""

    vectors: dict = field(default_factory=dict)  # {path: JournalVector}
    problems: dict = field(default_factory=dict)  # {path: (seen, why unreadable)}


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
            for indices, vectors, problems in embed_files(
                files, image_size, embed, 'indexing'
            ):
                if indices:
                    check_embeddings('vectors', vectors)
                vectors_file.write(vectors.numpy().tobytes())
                vectors_file.flush()
                results = dict.fromkeys(indices, vectors.shape[1]) | problems
                for index, result in results.items():
                    if result != 'gone':
                        line = [paths[index], images[paths[index]], result]
                        lines.write(json.dumps(line) + '\n')
                lines.flush()
    except OSError as error:
        raise WriteError(f'{name}.f32', error) from error


def read_journals(index_folder, settings):
    """Return the Journal of all journals in a folder that have these settings.

    Lines and vectors that a kill cut short are left out.
    """
    journal = Journal()
    for name in sorted(os.listdir(index_folder)):
        if name.startswith('journal_') and name.endswith('.jsonl'):
            path = os.path.join(index_folder, name)
            with contextlib.suppress(ValueError, TypeError, OSError):
                read_journal(path, settings, journal)
    return journal


def read_journal(path, settings, journal):
    """Add a file to a Journal, up to the first damaged line."""
    vectors_path = path.removesuffix('jsonl') + 'f32'
    length = os.path.getsize(vectors_path)
    row = 0
    with open(path) as file:
        if json.loads(file.readline()) != settings:
            return
        for line in file:
            image, seen, result = json.loads(line)
            if not isinstance(image, str):
                return
            if isinstance(result, str):
                journal.problems[image] = seen, result
                continue
            if not isinstance(result, int) or result < 1:
                return
            if (row + 1) * result * 4 <= length:
                vector = JournalVector(seen, vectors_path, row, result)
                journal.vectors[image] = vector
            row += 1

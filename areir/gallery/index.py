"""The index of a folder of images: built once, updated, searched from disk.

    results/<folder>_<hash>_<model>_index/
        index.sqlite            a row for each image; see below
        vectors_<token>.f32     (images, dimensions) float32, in the order of the paths
        vectors_<token>.codes   the same in 8 bits; see vectors.py
        shortened_<token>.*     both for shortened vectors; if there, these are searched
        vectors_<token>.faiss   see approximate.py

An update appends the vectors of new images to the file and then adds their rows to the
database, batch by batch, so the next update continues a killed one. At the end it
writes the vectors of all images that still exist to a new file, and one transaction
names that file. If nothing has changed, nothing is written.

If a row or a vector is damaged, only its image is embedded again. If any other file is
damaged, all files are written again. SQLite does not notice a flipped bit in a value,
so each row stores a CRC-32 of its values and its vector, and the State another.
"""

import contextlib
import hashlib
import io
import math
import os
import secrets
import sqlite3
import time
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from areir import processes
from areir.bars import say
from areir.data.images import is_outdated
from areir.data.loading import GONE, embed_files
from areir.errors import UserError, counted, printable
from areir.evaluation.scores import check_embeddings
from areir.files import WriteError, cut_name
from areir.gallery.folders import scan
from areir.gallery.vectors import (
    VectorsFile,
    append_vectors,
    codes_path,
    file_crc,
    write_blocks,
    write_codes,
)
from areir.networks.projection import Projection, fit_projection

# The vectors of a pretrained network are shortened by the principal components of the
# folder. docs/search.md has the measurements.
DIMENSIONS, WHITENING = 256, 0.5
LEAST_IMAGES = 300  # in a folder whose vectors are shortened
MOST_IMAGES = 16384  # that the components are fitted to
FORMAT = 1  # of the database and the files beside it
TABLES = """
    BEGIN;
    CREATE TABLE IF NOT EXISTS images (
        path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, problem BLOB,
        place INTEGER, checksum INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS state (content BLOB, checksum INTEGER);
    COMMIT;
"""
ADD_ROW = 'INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)'


class Row(NamedTuple):
    """The row of an image in the database."""

    path: bytes  # any bytes but 0
    size: int
    mtime_ns: int
    problem: bytes | None  # why it cannot be read
    place: int | None  # of its vector in the file
    checksum: int  # of the first four values and the vector


@dataclass
class State:
    """What the database holds besides the rows of the images."""

    settings: dict  # that the vectors depend on
    token: str  # in the names of the files
    dimensions: int = 0  # of the vectors before they are shortened; 0 without any
    count: int = 0  # vectors sorted by path; those appended since follow them
    checksums: dict = field(default_factory=dict)  # {derived file: CRC-32}
    fitted: int = 0  # the number of images when the components were fitted
    components: dict | None = None  # of the Projection that shortens the vectors
    calibration: dict | None = None  # stored by --calibrate
    approximate: dict | None = None  # recall and checksum of the faiss index

    def searched(self):
        """Return (name, dimensions) of the file that is searched."""
        if not self.components:
            return f'vectors_{self.token}.f32', self.dimensions
        return f'shortened_{self.token}.f32', self.components['matrix'].shape[1]


@dataclass
class Index:
    """The images of a folder and their vectors, in the order of the paths."""

    folder: str  # of the index
    paths: list  # relative to the folder of the images, sorted
    sizes: list  # bytes
    problems: dict  # {path: why it cannot be read}
    embedded: int  # images embedded by this update
    removed: int  # images deleted since the last update
    components: dict | None  # of the Projection that shortened the vectors
    calibration: dict | None  # stored by --calibrate
    vectors: VectorsFile  # to search: the shortened ones, if any


def index_path(folder, model_path, results_root):
    """Return the path of the index of a folder for a model."""
    real = os.path.realpath(folder)
    name = cut_name(os.path.basename(real), 60) or 'root'
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:8]
    model = os.path.basename(model_path).removesuffix('.pth').removesuffix('_model')
    return os.path.join(results_root, f'{name}_{digest}_{cut_name(model, 100)}_index')


def update_index(folder, index_folder, settings, pixel_format, embed, shortened=False):
    """Bring the index of a folder up to date and return it as an Index.

    Only images that are new or changed, by size or time, are embedded. All processes of
    torchrun call this together: each embeds its share, and rank 0 writes.

    settings: the plain values that vectors depend on; if they have changed, a notice
    says so and all images are embedded. embed: see `embed_files`. shortened: whether to
    shorten vectors by the principal components of the folder. They are fitted once the
    folder has LEAST_IMAGES, and again when the number of its images has doubled.

    Raises UserError if the folder is missing or has no readable image, or if vectors
    are not finite, and OSError if the folder vanishes or the index cannot be written.
    What was embedded until then is kept.
    """
    if not os.path.isdir(folder):
        raise UserError(f'--gallery {folder}: no such folder')
    with contextlib.ExitStack() as stack:
        update = todo = index = None  # rank 0 sets them
        if processes.is_first():
            database = stack.enter_context(locked(index_folder))
            update = Update(folder, index_folder, database)
            todo = update.plan(settings)
        todo = processes.from_first(todo)
        files = [os.path.join(folder, path) for path in todo]
        for indices, vectors, problems in embed_shares(
            files, pixel_format, embed, 'indexing'
        ):
            if update:
                paths = [todo[index] for index in indices]
                problems = {todo[index]: why for index, why in problems.items()}
                update.add(paths, vectors, problems)
        if update:
            index = update.finish(shortened)
        index = processes.from_first(index)
        processes.wait_for_all()  # hold the lock until all have opened the vectors
        return index


def embed_shares(pictures, pixel_format, embed, description):
    """Embed pictures: each process embeds a share, and all yield the batches of all.

    A batch is as of `embed_files`, but its vectors are an array.
    """
    rank, count = processes.rank_and_count()
    own = range(rank, len(pictures), count)
    share = [pictures[index] for index in own]
    batches = embed_files(share, pixel_format, embed, description)
    while True:
        batch = next(batches, None)  # None: this share is done
        if batch:
            indices, vectors, problems = batch
            if indices:
                check_embeddings('vectors', vectors)
            problems = {own[index]: problem for index, problem in problems.items()}
            batch = [own[index] for index in indices], vectors.numpy(), problems
        results = processes.gather_objects(batch)
        if not any(results):
            return
        yield from filter(None, results)


class Update:
    """What rank 0 does in `update_index`: `plan`, `add` for each batch, `finish`."""

    def __init__(self, folder, index_folder, database):
        self.folder, self.index_folder = folder, index_folder
        self.database = database
        self.embedded = self.removed = 0

    def path_of(self, name):
        return os.path.join(self.index_folder, name)

    @property
    def vectors_path(self):
        return self.path_of(f'vectors_{self.state.token}.f32')

    def plan(self, settings):
        """Compare the folder with its index; return the paths of images to embed.

        Rows that are damaged or do not fit the folder are removed from the database.
        """
        self.images, self.problems, others = scan(self.folder)
        if not self.images:
            raise UserError(f'--gallery {self.folder}: no images in it')
        if others:
            say(
                f'notice: left out {counted(len(others), "file")} of {self.folder} '
                f'without an image, such as {printable(min(others))}'
            )
        rows = list(map(Row._make, self.database.execute('SELECT * FROM images')))
        self.state = read_state(self.database) or State({}, '')
        before = self.state.settings
        changes = [name for name in settings if settings[name] != before.get(name)]
        if changes:
            if rows:
                say(
                    f'notice: {self.index_folder} is damaged or of another '
                    f'{", ".join(changes)}: all images are embedded again'
                )
            self.state = State(settings, secrets.token_hex(8))
        self.rows = [] if changes else self.check_rows(rows)
        # a new State has no rows yet
        if not self.rows or len(self.rows) < len(rows):
            replace(self.database, self.state, self.rows)
        known = {os.fsdecode(row.path) for row in self.rows}
        return [path for path in self.images if path not in known]

    def check_rows(self, rows):
        """Return the undamaged Rows of images that have not changed."""
        kept, damaged = [], 0
        vectors, vector_bytes = b'', 4 * self.state.dimensions
        if os.path.isfile(self.vectors_path) and os.path.getsize(self.vectors_path):
            vectors = memoryview(np.memmap(self.vectors_path, np.uint8, 'r'))
        for row in rows:
            vector = b''
            if isinstance(row.place, int):  # a damaged one may be anything
                start = vector_bytes * row.place
                vector = vectors[start : start + vector_bytes]
            if row.checksum != checksum_of(row[:4], vector):
                damaged += 1
                continue
            path = os.fsdecode(row.path)
            # a package installed since then may be able to read the image
            outdated = row.problem and is_outdated(os.fsdecode(row.problem))
            if self.images.get(path) == [row.size, row.mtime_ns] and not outdated:
                kept.append(row)
            elif path not in self.images and vector:
                self.removed += 1
        if damaged:
            say(
                f'notice: {self.index_folder} is damaged: '
                f'{counted(damaged, "image")} will be embedded again'
            )
        return kept

    def add(self, paths, vectors, problems):
        """Store vectors (n, D) of images, and why others cannot be read."""
        found = [
            (path, os.fsencode(problem), None, b'')
            for path, problem in problems.items()
            if problem != GONE
        ]
        if paths:
            first = append_vectors(self.vectors_path, vectors)
            for place, (path, vector) in enumerate(zip(paths, vectors), first):
                found.append((path, None, place, vector))
        rows = []
        for path, problem, place, vector in found:
            values = os.fsencode(path), *self.images[path], problem
            rows.append(Row(*values, place, checksum_of(values, vector)))
        with self.database:
            self.database.executemany(ADD_ROW, rows)
            if paths and not self.state.dimensions:
                self.state.dimensions = vectors.shape[1]
                write_state(self.database, self.state)
        self.rows += rows
        self.embedded += len(paths)

    def finish(self, shortened):
        """Rewrite the files if the index has changed, and return the Index."""
        if not os.path.isdir(self.folder):
            raise OSError(
                f'{self.folder} vanished while it was read; what was embedded is kept, '
                'and the same command continues'
            )
        state = self.state
        readable = sorted(row for row in self.rows if not row.problem)
        paths = [os.fsdecode(row.path) for row in readable]
        unreadable = [row for row in self.rows if row.problem]
        for row in unreadable:
            self.problems[os.fsdecode(row.path)] = os.fsdecode(row.problem)
        for path in self.images.keys() - self.problems.keys() - set(paths):
            self.problems[path] = 'gone while it was read'
        if not readable:
            raise UserError(
                f'--gallery {self.folder}: none of its '
                f'{counted(len(self.images), "image")} can be read, such as '
                f'{printable(min(self.images))}'
            )
        places = [row.place for row in readable]
        if places != list(range(state.count)) or self.is_damaged():
            self.write_files(places, shortened)
            readable = [row._replace(place=place) for place, row in enumerate(readable)]
            replace(self.database, state, readable + unreadable)
        self.remove_old_files()
        name, dimensions = state.searched()
        return Index(
            folder=self.index_folder,
            paths=paths,
            sizes=[row.size for row in readable],
            problems=self.problems,
            embedded=self.embedded,
            removed=self.removed,
            components=state.components,
            calibration=state.calibration,
            vectors=VectorsFile(self.path_of(name), dimensions),
        )

    def is_damaged(self):
        """Return whether a file has a wrong size or checksum; print which."""
        state, damaged = self.state, None
        if os.path.getsize(self.vectors_path) != 4 * state.dimensions * state.count:
            damaged = self.vectors_path
        for name, checksum in state.checksums.items():
            if file_crc(self.path_of(name)) != checksum:
                damaged = self.path_of(name)
        if damaged:
            say(f'notice: {damaged} is damaged: it is written again')
        return bool(damaged)

    def write_files(self, places, shortened):
        """Write new files of the vectors at `places` and of what derives from them."""
        state = self.state
        earlier = VectorsFile(self.vectors_path, state.dimensions)
        state.token, state.count = secrets.token_hex(8), len(places)
        write_blocks(self.vectors_path, earlier.blocks(places))
        vectors = VectorsFile(self.vectors_path, state.dimensions)
        if shortened and state.count >= max(LEAST_IMAGES, 2 * state.fitted):
            fit_components(state, vectors)
        state.checksums = {}
        name, dimensions = state.searched()
        if state.components:
            project = Projection(**state.components)
            blocks = (project(torch.from_numpy(rows)) for rows in vectors.blocks())
            path = self.path_of(name)
            state.checksums[name] = write_blocks(path, blocks)
            vectors = VectorsFile(path, dimensions)
        state.checksums[codes_path(name)] = write_codes(vectors)

    def remove_old_files(self):
        """Remove leftovers, and the files of earlier indexes."""
        for name in os.listdir(self.index_folder):
            ours = name.startswith(('vectors_', 'shortened_'))
            if name.endswith('.part') or (ours and self.state.token not in name):
                # on Windows, a file that another process reads cannot be removed
                with contextlib.suppress(OSError):
                    os.remove(self.path_of(name))


def fit_components(state, vectors):
    """Fit the components of a State to its vectors, and drop its threshold."""
    count = len(vectors)
    step = math.ceil(count / MOST_IMAGES)
    projection = fit_projection(vectors.mapped[::step], DIMENSIONS, WHITENING)
    if state.fitted:
        say(f'notice: principal components are fitted again, to {count:,} images')
    if state.calibration:
        say('notice: the threshold no longer holds: run --calibrate again')
    state.components, state.fitted = dict(projection.named_buffers()), count
    state.calibration = None


def store_calibration(index, calibration):
    """Store the result of `calibrate` in an Index and on disk.

    Raises UserError if another process has changed the index meanwhile.
    """
    with locked(index.folder) as database:
        state = read_state(database)
        if not state or state.token not in index.vectors.path:
            raise UserError(f'{index.folder} has changed: run --calibrate again')
        state.calibration = calibration
        with database:
            write_state(database, state)
    index.calibration = calibration


# The database


@contextlib.contextmanager
def locked(index_folder):
    """Yield the database of an index; no other process can use it meanwhile.

    If another process is using it, say so and wait. If it is damaged, say so and
    replace it with an empty one. Raises WriteError if it cannot be opened or written.
    """
    path = os.path.join(index_folder, 'index.sqlite')
    os.makedirs(index_folder, exist_ok=True)
    try:
        try:
            database = open_database(path)
        except (sqlite3.Error, UnicodeDecodeError):
            if not os.path.isfile(path) or not os.path.getsize(path):
                raise  # it cannot be created
            say(f'notice: {path} is damaged or of another version: it is built again')
            os.remove(path)
            database = open_database(path)
        with contextlib.closing(database):
            yield database
    except sqlite3.Error as error:
        raise WriteError(path, error) from error


def open_database(path):
    """Open a database, create its tables if they are missing, and lock it."""
    # SQLite's default journal mode, DELETE, works on network shares too
    database = sqlite3.connect(path, timeout=0)
    database.text_factory = bytes  # a damaged text may not be UTF-8
    try:
        lock(database, os.path.dirname(path))
        ((version,),) = database.execute('PRAGMA user_version')
        checks = database.execute('PRAGMA quick_check').fetchall()
        if version not in (0, FORMAT) or checks != [(b'ok',)]:
            raise sqlite3.DatabaseError('damaged, or of another version')
        database.executescript(TABLES)
        database.execute('SELECT * FROM images, state LIMIT 0')  # decodes their names
        if not version:
            database.execute(f'PRAGMA user_version = {FORMAT}')
    except (sqlite3.Error, UnicodeDecodeError):
        database.close()
        raise
    return database


def lock(database, folder):
    """Lock a database until it is closed; wait while another process holds it."""
    is_told = False
    while not database.in_transaction:
        try:
            database.execute('BEGIN EXCLUSIVE')
        except sqlite3.OperationalError as error:
            if 'locked' not in str(error):
                raise
            if not is_told:
                print(f'another process is updating {folder}: waiting', flush=True)
            is_told = True
            time.sleep(0.1)  # SQLite's own waiting would not end with Ctrl-C
    database.execute('PRAGMA locking_mode = EXCLUSIVE')  # beyond this transaction
    database.commit()


def checksum_of(values, vector=b''):
    """Return the CRC-32 of values of the database, and of the bytes of a vector."""
    return zlib.crc32(vector, zlib.crc32(repr(values).encode()))


def replace(database, state, rows):
    """Replace the State and all Rows in one transaction."""
    with database:
        database.execute('DELETE FROM images')
        database.executemany(ADD_ROW, rows)
        write_state(database, state)


def write_state(database, state):
    """Replace the State; the caller commits."""
    buffer = io.BytesIO()
    torch.save(vars(state), buffer)
    values = (buffer.getvalue(),)
    database.execute('DELETE FROM state')
    database.execute('INSERT INTO state VALUES (?, ?)', [*values, checksum_of(values)])


def read_state(database):
    """Return the State, or None if there is none or it is damaged."""
    for *values, checksum in database.execute('SELECT * FROM state').fetchall():
        if checksum == checksum_of(tuple(values)):
            content = io.BytesIO(values[0])
            return State(**torch.load(content, weights_only=True))  # noqa: TID251
    return None

"""The database of an index: a row for each image, and the State of the index.

SQLite keeps its transactions whole, but does not notice a flipped bit in a value. So a
row has the CRC-32 of its values and of its vector, and the State one of its own.
"""

import contextlib
import io
import os
import sqlite3
import time
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from areir.files import WriteError, refuse_special

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


class Row(NamedTuple):
    """The row of an image in the database."""

    path: bytes  # any bytes but 0
    size: int
    mtime_ns: int
    problem: bytes | None  # why it cannot be read
    place: int | None  # the row of its vector
    checksum: int  # of what comes before, with the vector in the place of its row


@dataclass
class State:
    """What the database has besides the images."""

    settings: dict  # that the vectors depend on
    token: str  # in the names of the files
    dimensions: int = 0  # of the vectors before they are shortened; 0 without any
    count: int = 0  # vectors in the order of the paths; behind them are new ones
    checksums: dict = field(default_factory=dict)  # {derived file: CRC-32}
    fitted: int = 0  # how many images the components were fitted to
    components: dict | None = None  # of the Projection that shortens the vectors
    calibration: dict | None = None  # stored by --calibrate
    approximate: dict | None = None  # what was measured of the faiss index

    def searched(self):
        """Return (name, dimensions) of the file that is searched."""
        if not self.components:
            return f'vectors_{self.token}.f32', self.dimensions
        return f'shortened_{self.token}.f32', self.components['matrix'].shape[1]


@contextlib.contextmanager
def locked(index_folder):
    """Yield the database of an index; no other process can use it meanwhile.

    If another process does, print so and wait. If the database is damaged, print so and
    replace it by an empty one. Raises WriteError if it cannot be opened or written.
    """
    path = os.path.join(index_folder, 'index.sqlite')
    os.makedirs(index_folder, exist_ok=True)
    refuse_special(path)
    try:
        try:
            database = open_database(path)
        except sqlite3.Error:
            if not os.path.isfile(path) or not os.path.getsize(path):
                raise  # it cannot be created
            print(f'notice: {path} is damaged: the index is built again')
            os.remove(path)
            database = open_database(path)
        with contextlib.closing(database):
            yield database
    except sqlite3.Error as error:
        raise WriteError(path, error) from error


def open_database(path):
    """Open a database, create its tables if they are missing, and lock it.

    Raises sqlite3.Error if it is damaged, of another version, or cannot be written.
    """
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
        if not version:
            database.execute(f'PRAGMA user_version = {FORMAT}')
    except sqlite3.Error:
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


def make_row(path, seen, problem=None, place=None, vector=b''):
    """Return the Row of an image; seen: its (size, mtime_ns)."""
    values = os.fsencode(path), *seen, problem and os.fsencode(problem)
    return Row(*values, place, checksum_of(values, vector))


def checksum_of(values, vector=b''):
    """Return the CRC-32 of values of the database, and of the bytes of a vector."""
    return zlib.crc32(vector, zlib.crc32(repr(values).encode()))


def add_rows(database, rows):
    database.executemany('INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)', rows)


def replace(database, state, rows):
    """Replace the State and all Rows in one transaction."""
    with database:
        database.execute('DELETE FROM images')
        add_rows(database, rows)
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

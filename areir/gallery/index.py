"""The index of a folder of images: built once, updated, searched from disk.

    results/<folder>_<hash>_<model>_index/
        index.pth               settings, paths, size and time of every file, and the
                                name of the file of vectors
        vectors_<token>.npy     (images, dimensions) float32, in the order of the paths
        shortened_<token>.npy   the same vectors, shortened; see shortening.py
        ..._<token>_codes.npy   the searched ones in 8 bits; see codes_file.py
        journal_<token>.*       while images are embedded; see journal.py
        lock                    held by the process that changes the index

Vectors are appended to a journal as they come. When all are there, old and new ones are
copied into a new file of vectors, and index.pth, which names it, is replaced. So the
index on disk is never partial and always equals one built from scratch.
"""

import contextlib
import os
import secrets
from dataclasses import dataclass

from areir import files, processes
from areir.data.images import is_outdated
from areir.errors import UserError, printable
from areir.files import remove, remove_leftovers
from areir.gallery.codes_file import codes_path, write_codes
from areir.gallery.folders import scan
from areir.gallery.index_table import IndexTable, read_table
from areir.gallery.journal import read_journals, write_journal
from areir.gallery.shortening import shorten_vectors
from areir.gallery.vectors_file import VectorsFile, write_vectors

FILES = 'journal_', 'vectors_', 'shortened_'  # what their names begin with


@dataclass
class Index:
    """The images of a folder and their vectors, in the order of the paths."""

    folder: str  # of the index
    paths: list  # relative to the folder of the images, sorted
    sizes: list  # bytes
    vectors_path: str  # of the vectors to search: the shortened ones, if any
    problems: dict  # {path: why it cannot be read}
    embedded: int  # images embedded by this update
    removed: int  # images that are gone since the last update
    components: dict | None  # of the Projection that shortened the vectors
    calibration: dict | None  # stored by --calibrate
    vectors: VectorsFile | None = None  # the open file


@dataclass
class Plan:
    """What an update has to do."""

    images: dict  # {path: [size, mtime_ns]} of the images that are there
    problems: dict  # {path: why a folder or link cannot be read}
    table: IndexTable  # of the earlier index, or None
    todo: list  # paths of the images to embed
    rewrite: bool  # whether the vectors of the table must be written again


def update_index(folder, index_folder, settings, image_size, embed, shortened=False):
    """Bring the index of a folder up to date and return it as an Index.

    Only images that are new or changed, by size or time, are embedded. All processes of
    torchrun call this together, and each embeds its share.

    settings: the plain values that vectors depend on; if they have changed, a notice
    says so and all images are embedded. embed: see `embed_files`. shortened: whether to
    shorten vectors by the principal components of the folder, see shortening.py.

    Raises UserError if the folder is missing or has no readable image, and OSError if
    it vanishes or the index cannot be written. The journal keeps what was embedded.
    """
    if not os.path.isdir(folder):
        raise UserError(f'--gallery {folder}: no such folder')
    first = processes.is_first()
    if first:
        os.makedirs(index_folder, exist_ok=True)
    with locked(index_folder) if first else contextlib.nullcontext():
        plan = make_plan(folder, index_folder, settings) if first else None
        plan = processes.from_first(plan)
        if plan.todo:
            rank, count = processes.rank_and_count()
            share = {path: plan.images[path] for path in plan.todo[rank::count]}
            write_journal(index_folder, settings, folder, share, image_size, embed)
        processes.wait_for_all()  # all journals are complete
        index = (
            finish(folder, index_folder, settings, plan, shortened) if first else None
        )
        index = processes.from_first(index)
        index.vectors = VectorsFile(index.vectors_path)
        processes.wait_for_all()  # all have opened the vectors
        return index


def locked(index_folder):
    """Hold the lock of an index; wait while another process changes the index."""
    return files.locked(os.path.join(index_folder, 'lock'), f'updating {index_folder}')


# The plan


def make_plan(folder, index_folder, settings):
    """Compare a folder with its index and journals; return the Plan."""
    images, problems, others = scan(folder)
    if not images:
        if os.listdir(index_folder) == ['lock']:
            remove(index_folder)
        raise UserError(f'--gallery {folder}: no images in it')
    if others:
        print(
            f'notice: {len(others):,} files of {folder} are not images and are '
            f'skipped, such as {printable(min(others))}'
        )
    table = read_table(index_folder)
    if table and (why := table.stale_because(settings)):
        print(
            f'notice: the index of {folder} is stale, so all images are embedded '
            f'again: {why}'
        )
        table = None
    rewrite = bool(table) and not check_vectors(index_folder, table)
    journal = read_journals(index_folder, settings, dimensions_of(table))
    for name in journal.damaged:
        print(
            f'notice: {os.path.join(index_folder, name)} is damaged: images that '
            'cannot be taken from it are embedded again'
        )
    known = files_seen(table, journal)
    todo = [path for path, seen in images.items() if known.get(path) != seen]
    if journal.vectors and todo:
        count = len(journal.vectors)
        print(f'notice: continuing from {count:,} images of an interrupted build')
    return Plan(images, problems, table, todo, rewrite)


def check_vectors(index_folder, table):
    """Whether the vectors of a table are whole and have checksums.

    Damage is told by a notice, and images whose vectors are damaged are marked to be
    embedded again. Earlier versions wrote no checksums.
    """
    damaged = table.forget_damaged(index_folder)
    if damaged:
        print(
            f'notice: {index_folder} is damaged: {damaged:,} vectors are computed again'
        )
        return False
    if table.components and table.find_damaged(index_folder, table.searched):
        print(
            f'notice: {index_folder} is damaged: its shortened vectors are computed '
            'again'
        )
        return False
    return {table.vectors, table.searched} <= table.checksums.keys()


def files_seen(table, journal):
    """Return {path: [size, mtime_ns]} of every image that need not be read again."""
    seen = {}
    if table:
        seen |= dict(zip(table.paths, table.seen))
        seen |= still_unreadable(table.problems)
    seen |= {path: vector.seen for path, vector in journal.vectors.items()}
    return seen | still_unreadable(journal.problems)


def still_unreadable(problems):
    """Return {path: seen} of {path: (seen, reason)}.

    Files that a package installed since then can read are left out.
    """
    return {
        path: seen
        for path, (seen, reason) in problems.items()
        if not is_outdated(reason)
    }


# The end of an update


def finish(folder, index_folder, settings, plan, shortened):
    """Merge the earlier index and the journals; write the index if it has changed.

    Returns the Index, whose vectors are not open yet.
    """
    if not os.path.isdir(folder):
        raise OSError(
            f'{folder} vanished while it was read; what was embedded is kept, and the '
            'same command continues'
        )
    journal = read_journals(index_folder, settings, dimensions_of(plan.table))
    sources = find_sources(index_folder, plan, journal)
    unreadable = find_unreadable(plan, journal, sources)
    if not sources:
        example = next(iter([*unreadable, *plan.images]))
        raise UserError(
            f'--gallery {folder}: none of its {len(plan.images):,} images can be read, '
            f'such as {example}'
        )
    paths = sorted(sources)
    table = IndexTable(
        settings=settings,
        gallery=os.path.realpath(folder),
        paths=paths,
        seen=[plan.images[path] for path in paths],
        problems=unreadable,
        vectors=f'vectors_{secrets.token_hex(8)}.npy',
        dimensions=find_dimensions(plan, journal),
        calibration=plan.table.calibration if plan.table else None,
    )
    if table.lists_the_same(plan.table) and not plan.rewrite:
        table = plan.table
        if table.are_codes_damaged(index_folder):
            write_codes_and_table(index_folder, table)
    else:
        write_index(index_folder, table, sources, plan.table, shortened)
    remove_old_files(index_folder, table.vectors)
    return Index(
        folder=index_folder,
        paths=table.paths,
        sizes=[size for size, _ in table.seen],
        vectors_path=os.path.join(index_folder, table.searched),
        problems=all_problems(plan, sources, unreadable),
        embedded=sum(path in journal.vectors for path in plan.todo),
        removed=count_removed(plan),
        components=table.components,
        calibration=table.calibration,
    )


def write_index(index_folder, table, sources, earlier, shortened):
    """Write the vectors of a new IndexTable, copied from `sources`, and the table.

    earlier: the IndexTable before it, or None; shortened: see `update_index`.
    """
    vectors_path = os.path.join(index_folder, table.vectors)
    rows = [sources[path] for path in table.paths]
    checksums = write_vectors(vectors_path, rows, table.dimensions)
    table.checksums[table.vectors] = checksums
    if shortened:
        shorten_vectors(index_folder, table, earlier)
    write_codes_and_table(index_folder, table)


def write_codes_and_table(index_folder, table):
    """Write the codes of the vectors that are searched, and the IndexTable."""
    searched = os.path.join(index_folder, table.searched)
    table.checksums[codes_path(table.searched)] = write_codes(VectorsFile(searched))
    table.write(index_folder)


def find_sources(index_folder, plan, journal):
    """Return {path: (file, row)} of the vectors of all images that are up to date."""
    sources = {}
    if plan.table:
        file = os.path.join(index_folder, plan.table.vectors)
        for row, path in enumerate(plan.table.paths):
            if plan.images.get(path) == plan.table.seen[row]:
                sources[path] = file, row
    for path, vector in journal.vectors.items():
        if plan.images.get(path) == vector.seen:
            sources[path] = vector.file, vector.row
    return sources


def find_unreadable(plan, journal, sources):
    """Return {path: (seen, reason)} of the images that cannot be read."""
    problems = (
        plan.table.problems | journal.problems if plan.table else journal.problems
    )
    return {
        path: (seen, reason)
        for path, (seen, reason) in problems.items()
        if plan.images.get(path) == seen and path not in sources
    }


def dimensions_of(table):
    """Return how many numbers a vector of an IndexTable has; None without a table."""
    return table.dimensions if table else None


def find_dimensions(plan, journal):
    """Return how many numbers a vector has."""
    if plan.table:
        return plan.table.dimensions
    return next(iter(journal.vectors.values())).dimensions


def all_problems(plan, sources, unreadable):
    """Return {path: reason} of everything that is not in the index."""
    problems = dict(plan.problems)
    problems |= {path: reason for path, (_, reason) in unreadable.items()}
    for path in plan.images:
        if path not in sources and path not in unreadable:
            problems[path] = 'gone while it was read'
    return problems


def count_removed(plan):
    """Return how many images of the earlier index are gone."""
    if not plan.table:
        return 0
    return len(set(plan.table.paths).difference(plan.images))


def store_calibration(index, calibration):
    """Store the result of `calibrate` in an Index and on the disk.

    Raises UserError if another process has changed the index meanwhile.
    """
    with locked(index.folder):
        table = read_table(index.folder)
        name = os.path.basename(index.vectors_path)
        if not table or table.searched != name:
            raise UserError(f'{index.folder} has changed: run --calibrate again')
        table.calibration = calibration
        table.write(index.folder)
    index.calibration = calibration


def remove_old_files(index_folder, vectors):
    """Remove journals, leftovers and the vectors of earlier indexes.

    vectors: the name of the current file. Its shortened vectors are kept, too.
    """
    remove_leftovers(index_folder, older_than=0)  # the lock is held
    token = vectors.removesuffix('.npy').split('_')[-1]
    for name in os.listdir(index_folder):
        if name.startswith(FILES) and token not in name:
            # Windows does not remove a file that another process reads
            with contextlib.suppress(OSError):
                os.remove(os.path.join(index_folder, name))

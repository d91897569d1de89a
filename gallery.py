"""The index of a folder of images: built once, kept up, searched from disk.

    results/<gallery>_<hash>_<model>_index/
        index.pth           settings, paths, what was seen of every file, the name of the vectors
        vectors_<token>.npy (images, dimensions) float32, in the order of the paths
        journal_<token>.*   while images are embedded: what a killed build goes on from
        lock                held by the process that changes the index

Vectors are appended to a journal as they come. When all are there, old and new ones are copied into new vectors, and
index.pth, which names them, is replaced: what stands is always whole, and always what a new index would be.
"""
import contextlib
import hashlib
import json
import os
import secrets
import warnings
from typing import NamedTuple

import filelock
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import data_utils
import retrieval
import utils

BATCH = 32      # images embedded at a time
BLOCK = 65536   # vectors searched at a time
COPIED = 4096   # vectors copied at a time
SPLITS = {'train', 'test', 'query', 'gallery'}


class Index(NamedTuple):
    """What is known of a gallery. Everything is in the order of the paths."""
    folder: str         # of the index
    paths: list         # relative to the gallery, sorted
    sizes: list         # bytes
    vectors: object     # the .npy file, open: it can be read when another process has replaced it
    problems: dict      # {path: why it cannot be read}
    embedded: int       # images embedded by this call
    removed: int        # images that are gone since the last one


# Files


def is_image(path):
    """Whether a file is one to embed: by its ending, or by its first bytes if the ending says nothing."""
    Image.init()
    suffix = os.path.splitext(path)[1].lower()
    kind = Image.registered_extensions().get(suffix)
    if kind:
        return kind in data_utils.image_formats()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(path, formats=data_utils.image_formats()):
                return True
    except Exception:  # decoders raise many kinds
        return False


WRITTEN_HERE = ('retrieved.csv', 'pairs.csv', 'index.pth')


def list_pictures(folder, problems):
    """`data_utils.list_files` without what inference.py has written: folders that hold one of WRITTEN_HERE."""
    files = data_utils.list_files(folder, problems=problems)
    ours = {os.path.dirname(path) for path in files if os.path.basename(path) in WRITTEN_HERE} - {''}
    return [path for path in files if os.path.dirname(path) not in ours]


def scan(gallery):
    """({path: [size, mtime_ns]} of the images below a folder, {path: why} of folders that cannot be read, the number
    of other files). Answers and indexes of inference.py are left out."""
    problems, found, others = {}, {}, 0
    for path in list_pictures(gallery, problems):
        full = os.path.join(gallery, path)
        try:
            seen = os.stat(full)
        except OSError as error:  # a broken link, or gone since
            if os.path.splitext(path)[1].lower() in data_utils.IMAGE_SUFFIXES:
                problems[path] = error.strerror
            continue
        if os.path.isfile(full) and is_image(full):
            found[path] = [seen.st_size, seen.st_mtime_ns]
        else:
            others += 1
    return found, problems, others


def class_names(paths):
    """The class of every path, or None: the first folder that it lies in, if there are two such folders at least.
    Folders train, test, query and gallery are not classes, where nothing lies beside them."""
    parts = [path.split('/') for path in paths]
    if {part[0] for part in parts} <= SPLITS:
        parts = [part[1:] for part in parts]
    names = [part[0] if len(part) > 1 else None for part in parts]
    return names if len(set(names) - {None}) > 1 else [None] * len(names)


def index_folder(gallery, model_path, results_root):
    """Where the index of a gallery for a model lies."""
    real = os.path.realpath(gallery)
    place = hashlib.sha256(os.fsencode(real)).hexdigest()[:8]
    model = os.path.basename(model_path).removesuffix('.pth').removesuffix('_model')
    return os.path.join(results_root, f'{(os.path.basename(real) or "root")[:60]}_{place}_{model[:100]}_index')


def read_index(folder):
    """The contents of index.pth, checked; None if there is none, or if it is damaged, which is said."""
    path = os.path.join(folder, 'index.pth')
    if not os.path.isfile(path):
        return None
    try:
        table = utils.load(path)
        vectors = np.load(os.path.join(folder, os.path.basename(table['vectors'])), mmap_mode='r')
        pairs = [seen for seen, _ in table['problems'].values()] + table['seen']
        if not (vectors.shape == (len(table['paths']), table['dimensions']) and vectors.dtype == np.float32
                and vectors.flags.c_contiguous and len(table['seen']) == len(table['paths'])
                and isinstance(table['settings'], dict) and all(len(seen) == 2 for seen in pairs)
                and all(isinstance(path, str) for path in (*table['paths'], *table['problems']))):
            raise ValueError('its parts do not fit')
        return table
    except Exception as error:  # numpy raises many kinds for a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        print(f'notice: {path} is damaged ({reason}): the index is built anew')
        return None


# Embedding


class Pictures(Dataset):
    """Item i is (pixels of a gallery's paths[i] as uint8 (3, image_size, image_size), i, why it cannot be read)."""

    def __init__(self, gallery, paths, image_size):
        self.gallery, self.paths, self.image_size = gallery, paths, image_size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = os.path.join(self.gallery, self.paths[index])
        try:
            return data_utils.to_pixels(data_utils.load_image(path), self.image_size), index, ''
        except ValueError as error:
            problem = str(error).removeprefix(f'{path}: ') if os.path.isfile(path) else 'gone'
            return torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8), index, problem


def embed_files(root, paths, image_size, embed, name):
    """Embed images: yields (places in paths, vectors (n, dimensions) float32, {place: why it cannot be read}).

    embed: uint8 pixels (N, 3, image_size, image_size) to vectors. Raises ValueError for vectors that are not finite.
    """
    workers = min(data_utils.available_cores() // int(os.environ.get('LOCAL_WORLD_SIZE', 1)), len(paths) // BATCH)
    loader = DataLoader(Pictures(root, paths, image_size), batch_size=BATCH, num_workers=workers,
                        worker_init_fn=data_utils.leave_signals_to_parent)
    with tqdm(total=len(paths), desc=name, unit='img', disable=not utils.is_first(), delay=1) as bar:
        for pixels, places, problems in loader:
            readable = torch.tensor([not problem for problem in problems])
            vectors = embed(pixels[readable]).float().cpu() if readable.any() else torch.empty(0, 0)
            if len(vectors):
                retrieval.check_embeddings('vectors', vectors)
            yield (places[readable].tolist(), vectors.numpy(),
                   {place: problem for place, problem in zip(places.tolist(), problems) if problem})
            bar.update(len(places))


def write_journal(folder, settings, gallery, paths, seen, image_size, embed):
    """Embed images into a new journal: vectors in one file, and after them a line for each in another."""
    name = os.path.join(folder, f'journal_{secrets.token_hex(8)}')
    try:
        with open(f'{name}.f32', 'wb') as vectors_file, open(f'{name}.jsonl', 'w') as lines:
            lines.write(json.dumps(settings) + '\n')
            for places, vectors, problems in embed_files(gallery, paths, image_size, embed, 'indexing'):
                vectors_file.write(vectors.tobytes())
                vectors_file.flush()
                for place in places:
                    lines.write(json.dumps([paths[place], seen[place], vectors.shape[1]]) + '\n')
                for place, problem in problems.items():
                    if problem != 'gone':
                        lines.write(json.dumps([paths[place], seen[place], problem]) + '\n')
                lines.flush()
    except OSError as error:
        raise OSError(f'{name}.f32 cannot be written, is the disk full? ({error.strerror})') from error


def read_journals(folder, settings):
    """What the journals of a folder hold for these settings: {path: (seen, file, row)} with the vectors' file, and
    {path: (seen, why it cannot be read)}. Lines and vectors that a kill cut short are left out."""
    rows, problems = {}, {}
    for name in sorted(os.listdir(folder)):
        if not name.startswith('journal_') or not name.endswith('.jsonl'):
            continue
        vectors_path = os.path.join(folder, name.removesuffix('jsonl') + 'f32')
        with open(os.path.join(folder, name)) as file, contextlib.suppress(ValueError, TypeError, OSError):
            if json.loads(file.readline()) != settings:
                continue
            row, length = 0, os.path.getsize(vectors_path)
            for line in file:
                path, seen, found = json.loads(line)
                if not isinstance(path, str) or not (isinstance(found, str) or (isinstance(found, int) and found > 0)):
                    break
                if isinstance(found, str):
                    problems[path] = (seen, found)
                    continue
                row += 1
                if row * found * 4 <= length:
                    rows[path] = (seen, vectors_path, row - 1, found)
    return rows, problems


def remove(folder, keep):
    """Remove journals and vectors from the folder of an index, but for the vectors to keep."""
    for name in os.listdir(folder):
        if name.startswith(('journal_', 'vectors_')) and not name.startswith(keep.removesuffix('.npy')):
            with contextlib.suppress(OSError):  # Windows does not remove what another process reads
                os.remove(os.path.join(folder, name))


def write_vectors(path, rows, dimensions):
    """Copy rows, [(file, row)] of a .npy file or a journal, into a new .npy file, a block at a time."""
    sources = {file: np.load(file, mmap_mode='r') if file.endswith('.npy') else
               np.memmap(file, np.float32, 'r', shape=(os.path.getsize(file) // (4 * dimensions), dimensions))
               for file in dict.fromkeys(file for file, _ in rows)}
    try:
        with open(path + '.part', 'wb') as out:
            np.lib.format.write_array_header_1_0(out, {'descr': '<f4', 'fortran_order': False,
                                                       'shape': (len(rows), dimensions)})
            for start in range(0, len(rows), COPIED):
                part = rows[start:start + COPIED]
                block = np.empty((len(part), dimensions), np.float32)
                for file, source in sources.items():
                    here = [place for place, (other, _) in enumerate(part) if other == file]
                    block[here] = source[[part[place][1] for place in here]]
                out.write(block.tobytes())
        os.replace(path + '.part', path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(path + '.part')
        raise OSError(f'{path} cannot be written, is the disk full? ({error.strerror})') from error


# Upkeep


def stale(settings, table):
    """Why an index is of no use for these settings, as a text; empty if it is."""
    return ', '.join(f'{name} was {table["settings"].get(name)} and is {value}'
                     for name, value in settings.items() if table['settings'].get(name) != value)


@contextlib.contextmanager
def locked(folder):
    """Hold the lock of an index: of the processes that would change it, one does and the others wait."""
    lock = filelock.FileLock(os.path.join(folder, 'lock'))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f'another process is at work on {folder}: waiting for it')
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def keep_up(gallery, folder, settings, image_size, embed):
    """The Index of a gallery, brought up to date: only images that are new or changed, by size or time, are embedded.

    settings: what vectors depend on, plain values; with others all is embedded anew, which is said. embed: as of
    `embed_files`. All processes of torchrun call it together, each embeds its share. Raises ValueError if the
    gallery is no folder or has no image that can be read, OSError if it vanishes or the index cannot be written; what
    was embedded until then is not lost.
    """
    if not os.path.isdir(gallery):
        raise ValueError(f'--gallery {gallery}: no such folder')
    if utils.is_first():
        os.makedirs(folder, exist_ok=True)
    with locked(folder) if utils.is_first() else contextlib.nullcontext():
        plan = utils.from_first(make_plan(gallery, folder, settings) if utils.is_first() else None)
        if plan['todo']:
            rank, processes = utils.own_place()
            todo = plan['todo'][rank::processes]
            write_journal(folder, settings, gallery, todo, [plan['found'][path] for path in todo], image_size, embed)
        utils.anywhere(False)  # all journals are there
        index = utils.from_first(finish(gallery, folder, settings, plan) if utils.is_first() else None)
        index = index._replace(vectors=open(index.vectors, 'rb'))
        utils.anywhere(False)  # all have opened it
        return index


def make_plan(gallery, folder, settings):
    """What there is to do for a gallery: found and problems of `scan`, the index that stands, what is to embed."""
    found, problems, others = scan(gallery)
    if not found:
        raise ValueError(f'--gallery {gallery}: no images in it')
    if others:
        print(f'notice: {others:,} files of {gallery} are no images, and left alone')
    table = read_index(folder)
    why = stale(settings, table) if table else ''
    if why:
        print(f'notice: the index of {gallery} is stale, all images are embedded anew: {why}')
        table = None
    known = dict(zip(table['paths'], table['seen'])) | \
        {path: seen for path, (seen, _) in table['problems'].items()} if table else {}
    rows, unreadable = read_journals(folder, settings)
    known |= {path: entry[0] for path, entry in {**rows, **unreadable}.items()}
    todo = [path for path, seen in found.items() if known.get(path) != seen]
    if rows and todo:
        print(f'notice: going on from {len(rows):,} images of an interrupted build')
    return {'found': found, 'problems': problems, 'table': table, 'todo': todo}


def finish(gallery, folder, settings, plan):
    """Put the index together from what stood and the journals, and write it if anything has changed."""
    if not os.path.isdir(gallery):
        raise OSError(f'{gallery} vanished while it was read; what was embedded is kept, the same command goes on')
    found, table = plan['found'], plan['table']
    journal, unreadable = read_journals(folder, settings)
    sources = {}  # of every vector: file and row
    if table:
        old = os.path.join(folder, os.path.basename(table['vectors']))
        sources = {path: (old, row) for row, (path, seen) in enumerate(zip(table['paths'], table['seen']))
                   if found.get(path) == seen}
        unreadable = {**table['problems'], **unreadable}
    sources |= {path: (file, row) for path, (seen, file, row, _) in journal.items() if found.get(path) == seen}
    unreadable = {path: (seen, why) for path, (seen, why) in unreadable.items()
                  if found.get(path) == seen and path not in sources}
    paths = sorted(sources)
    if not paths:
        raise ValueError(f'--gallery {gallery}: none of its {len(found):,} images can be read, such as '
                         f'{next(iter(unreadable), next(iter(found)))}')
    removed = len(set(table['paths']).difference(found)) if table else 0
    seen = [found[path] for path in paths]
    if not table or (paths, seen, unreadable) != (table['paths'], table['seen'], table['problems']):
        dimensions = table['dimensions'] if table else next(iter(journal.values()))[3]
        name = f'vectors_{secrets.token_hex(8)}.npy'
        write_vectors(os.path.join(folder, name), [sources[path] for path in paths], dimensions)
        table = {'settings': settings, 'gallery': os.path.realpath(gallery), 'paths': paths, 'seen': seen,
                 'problems': unreadable, 'vectors': name, 'dimensions': dimensions}
        utils.save({os.path.join(folder, 'index.pth'): table})
    remove(folder, keep=table['vectors'])
    problems = {**plan['problems'], **{path: why for path, (_, why) in unreadable.items()},
                **{path: 'gone while it was read' for path in found if path not in sources and path not in unreadable}}
    return Index(folder, paths, [size for size, _ in seen], os.path.join(folder, table['vectors']), problems,
                 sum(path in journal for path in plan['todo']), removed)


# Search


def mapped(vectors, start=0, stop=None):
    """Rows of a .npy file of float32, a path or an open file, (stop - start, dimensions), mapped and not read."""
    with open(vectors, 'rb') if isinstance(vectors, str) else contextlib.nullcontext(vectors) as file:
        file.seek(0)
        np.lib.format.read_magic(file)
        (count, dimensions), _, _ = np.lib.format.read_array_header_1_0(file)
        stop = count if stop is None else stop
        # mapped for writing, though never written to, as torch wants it
        return np.memmap(file, np.float32, 'c', file.tell() + 4 * dimensions * start, (stop - start, dimensions))


def search(vectors, query, k, exclude=None):
    """`retrieval.search` in a gallery of unit vectors that lies in a .npy file, a path or an open file: the same scores
    and indices, a block at a time, so in bounded memory. The processes of torchrun all call it with the same queries,
    and each searches a part of the gallery."""
    count = len(mapped(vectors))
    rank, processes = utils.own_place()
    exclude = torch.full((len(query),), -1) if exclude is None else exclude
    available = count - int((exclude >= 0).any())
    if not 1 <= k <= available:
        raise ValueError(f'k = {k}: choose from 1 to {available}, the images that can be retrieved')
    parts = max(1, count // max(BLOCK, k + 1))           # every part holds more than k images, or is all there is
    edges = [count * part // parts for part in range(parts + 1)]
    best = torch.full((len(query), k), retrieval.LAST)
    for part in tqdm(range(rank, parts, processes), desc='searching', unit='block', delay=3, leave=False,
                     disable=rank > 0):
        start, stop = edges[part], edges[part + 1]
        block = torch.from_numpy(mapped(vectors, start, stop))  # for as long as it is searched
        inside = torch.where((exclude >= start) & (exclude < stop), exclude - start, -1)
        scores, indices = retrieval.search(query, block, k, inside, norm=1.01)
        best = torch.cat([best, retrieval.to_keys(scores, indices + start)], dim=1).sort(dim=1).values[:, :k]
    best = torch.cat(utils.gather(best), dim=1).sort(dim=1).values[:, :k]
    return retrieval.to_scores(best), best & (2 ** 31 - 1)

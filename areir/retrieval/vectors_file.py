"""A .npy file of unit vectors, searched from disk without reading it into memory."""

import os
import zlib

import numpy as np
import torch
from tqdm import tqdm

from areir.errors import UserError
from areir.files import atomic_path, refuse_special
from areir.processes import gather, rank_and_count
from areir.retrieval.ranking import check_k, search
from areir.retrieval.scores import LAST, to_indices, to_keys, to_scores

BLOCK = 65536  # vectors searched at a time
COPIED = 4096  # vectors copied at a time, and covered by one checksum
ROUNDING = 0.01  # by which the norm of a unit vector may differ from 1
LARGEST_NORM = 1 + ROUNDING


class VectorsFile:
    """A .npy file of float32 vectors (count, dimensions).

    It stays open, so it can be searched after another process has replaced it.
    Raises UserError if the file holds anything else or is cut short.
    """

    def __init__(self, path):
        refuse_special(path)
        self.path = path
        self.file = open(path, 'rb')
        try:
            version = np.lib.format.read_magic(self.file)
            header = np.lib.format.read_array_header_1_0(self.file)
        except ValueError as error:
            raise UserError(f'{path}: not a .npy file ({error})') from error
        shape, fortran_order, dtype = header
        if version != (1, 0) or fortran_order or dtype != np.dtype('<f4'):
            raise UserError(f'{path}: not a matrix of float32 in C order')
        if len(shape) != 2:
            raise UserError(f'{path}: not a matrix')
        self.count, self.dimensions = shape
        self.offset = self.file.tell()
        needed = self.offset + 4 * self.count * self.dimensions
        if os.fstat(self.file.fileno()).st_size < needed:
            raise UserError(f'{path}: cut short')

    def __len__(self):
        return self.count

    def rows(self, start=0, stop=None):
        """Map the vectors start ... stop - 1; they are read when they are used."""
        stop = self.count if stop is None else stop
        offset = self.offset + 4 * self.dimensions * start
        shape = stop - start, self.dimensions
        # torch wants memory that it may write to, so it is mapped copy-on-write
        return np.memmap(self.file, np.float32, 'c', offset, shape)

    def find_damaged(self, checksums=None):
        """Return the rows that are damaged.

        checksums: those that `write_blocks` returned. Every row of a block that does
        not have its checksum is damaged. Without checksums, the rows that are not unit
        vectors are.
        """
        damaged = []
        for block, start in enumerate(range(0, self.count, COPIED)):
            rows = self.rows(start, min(start + COPIED, self.count))
            if checksums is None:
                bad = np.flatnonzero(~are_unit_vectors(rows))
                damaged += (start + bad).tolist()
            elif checksums[block : block + 1] != [zlib.crc32(rows)]:
                damaged += range(start, start + len(rows))
        return damaged

    def search(self, query, k, exclude=None, shared=True):
        """Search as `ranking.search` does, a block of vectors at a time.

        The results are the same, and memory is bounded. shared: all processes of
        torchrun call this with the same queries, and each searches its share of the
        blocks. Otherwise, one process may call it alone.
        """
        if exclude is None:
            exclude = torch.full((len(query),), -1)
        check_k(k, self.count - int((exclude >= 0).any()))
        edges = self.block_edges(k)
        blocks = range(len(edges) - 1)
        rank, processes = rank_and_count() if shared else (0, 1)
        best = torch.full((len(query), k), LAST)
        for block in tqdm(
            blocks[rank::processes],
            desc='searching',
            unit='block',
            delay=3,
            leave=False,
            disable=rank > 0,
        ):
            start, stop = edges[block], edges[block + 1]
            keys = self.search_block(query, k, exclude, start, stop)
            best = smallest(torch.cat([best, keys], dim=1), k)
        if shared:
            best = smallest(torch.cat(gather(best), dim=1), k)
        return to_scores(best), to_indices(best)

    def block_edges(self, k):
        """Divide the vectors into blocks of more than k each, or into one."""
        blocks = max(1, self.count // max(BLOCK, k + 1))
        return [self.count * block // blocks for block in range(blocks + 1)]

    def search_block(self, query, k, exclude, start, stop):
        """Return the keys (Q, k) of the best vectors in start ... stop - 1."""
        block = torch.from_numpy(self.rows(start, stop))
        inside = (exclude >= start) & (exclude < stop)
        own = torch.where(inside, exclude - start, -1)
        scores, indices = search(query, block, k, own, norm=LARGEST_NORM)
        return to_keys(scores, indices + start)


def are_unit_vectors(rows):
    """Return whether each of the vectors (n, D) has a norm of 1; NaN has not."""
    # the square of a number beyond 1e19 is infinite, and so is the norm
    with np.errstate(over='ignore', invalid='ignore'):
        norms = np.sqrt(np.einsum('ij,ij->i', rows, rows))
        return np.abs(norms - 1) <= ROUNDING


def smallest(keys, k):
    """Return the k smallest keys of each row, in order."""
    return keys.sort(dim=1).values[:, :k]


def write_vectors(path, sources, dimensions):
    """Copy vectors into a new .npy file, a block at a time.

    sources: (file, row) for each vector; a file is a .npy file, or the raw float32 file
    of a journal. Returns what `write_blocks` does.
    """
    files = dict.fromkeys(file for file, _ in sources)
    mapped = {file: map_source(file, dimensions) for file in files}
    batches = [
        sources[start : start + COPIED] for start in range(0, len(sources), COPIED)
    ]
    blocks = (gather_rows(batch, mapped, dimensions) for batch in batches)
    return write_blocks(path, (len(sources), dimensions), blocks)


def write_blocks(path, shape, blocks):
    """Write blocks of COPIED vectors each to a new .npy file of this shape.

    Returns the CRC-32 of each block.
    """
    header = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
    checksums = []
    with atomic_path(path) as temporary, open(temporary, 'wb') as out:
        np.lib.format.write_array_header_1_0(out, header)
        for block in blocks:
            content = block.tobytes()
            out.write(content)
            checksums.append(zlib.crc32(content))
    return checksums


def map_source(file, dimensions):
    """Map a .npy file or a raw file of float32 vectors."""
    if file.endswith('.npy'):
        return VectorsFile(file).rows()
    count = os.path.getsize(file) // (4 * dimensions)
    return np.memmap(file, np.float32, 'r', shape=(count, dimensions))


def gather_rows(sources, mapped, dimensions):
    """Return the vectors of sources (n, dimensions), read file by file."""
    vectors = np.empty((len(sources), dimensions), np.float32)
    for file, rows in mapped.items():
        places = [place for place, source in enumerate(sources) if source[0] == file]
        vectors[places] = rows[[sources[place][1] for place in places]]
    return vectors

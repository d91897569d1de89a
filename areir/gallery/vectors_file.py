"""A .npy file of unit vectors, searched from disk without reading it into memory."""

import os
from functools import cached_property

import numpy as np
import torch

from areir.evaluation.ranking import begin_search, has_fast_codes
from areir.evaluation.scores import TILE, to_indices, to_scores
from areir.gallery import matrix_file
from areir.gallery.codes_file import CodesFile, codes_path
from areir.gallery.matrix_file import MatrixFile, write_blocks
from areir.processes import gather, rank_and_count

ROUNDING = 0.01  # how far the norm of a unit vector may be from 1
LARGEST_NORM = 1 + ROUNDING


class VectorsFile(MatrixFile):
    """A .npy file of float32 vectors (count, dimensions)."""

    @property
    def dimensions(self):
        return self.width

    @cached_property
    def mapped(self):
        """All vectors as a tensor; the disk is read when they are used."""
        return torch.from_numpy(self.rows())

    @cached_property
    def codes(self):
        """The CodesFile of these vectors; None if there is none or it would be slow."""
        fast = has_fast_codes(self.dimensions)
        written = os.path.isfile(codes_path(self.path))
        return CodesFile(self) if fast and written else None

    def find_damaged(self, checksums=None):
        """As in MatrixFile; without checksums, find rows that are not unit vectors."""
        if checksums is not None:
            return super().find_damaged(checksums)
        damaged = []
        for start, rows in self.blocks():
            bad = np.flatnonzero(~are_unit_vectors(rows))
            damaged += (start + bad).tolist()
        return damaged

    def search(self, query, k, exclude=None, shared=True):
        """Search as `ranking.search` does, with the same results.

        query: float32, on the CPU. shared: whether all processes of torchrun call this
        with the same queries, so that each searches its share of the tiles. If not,
        this process searches all of them.
        """
        best = begin_search(
            query, self.mapped, k, exclude, TILE, LARGEST_NORM, self.codes
        )
        rank, processes = rank_and_count() if shared else (0, 1)
        best.add_tiles(best.tiles(TILE)[rank::processes], silent=rank > 0)
        keys = best.keys
        if processes > 1:
            keys = torch.cat(gather(keys), dim=1).sort(dim=1).values[:, :k]
        return to_scores(keys), to_indices(keys)


def are_unit_vectors(rows):
    """Return whether each of the vectors (n, D) has a norm near 1: bools (n,).

    A vector with NaN has not.
    """
    # squares of numbers beyond 1e19 overflow to infinity, which is not near 1 either
    with np.errstate(over='ignore', invalid='ignore'):
        norms = np.sqrt(np.einsum('ij,ij->i', rows, rows))
        return np.abs(norms - 1) <= ROUNDING


def write_vectors(path, sources, dimensions):
    """Copy vectors into a new .npy file, block by block; return the blocks' checksums.

    sources: (file, row) for each vector, where a file is a .npy file or the raw float32
    file of a journal.
    """
    files = dict.fromkeys(file for file, _ in sources)
    mapped = {file: map_source(file, dimensions) for file in files}
    step = matrix_file.BLOCK_ROWS
    blocks = (
        gather_rows(sources[start : start + step], mapped, dimensions)
        for start in range(0, len(sources), step)
    )
    return write_blocks(path, (len(sources), dimensions), VectorsFile.dtype, blocks)


def map_source(file, dimensions):
    """Map a .npy file or a raw float32 file as vectors (count, dimensions)."""
    if file.endswith('.npy'):
        return VectorsFile(file).rows()
    count = os.path.getsize(file) // (4 * dimensions)
    return np.memmap(file, np.float32, 'r', shape=(count, dimensions))


def gather_rows(sources, mapped, dimensions):
    """Return the vectors (n, dimensions) of n sources, read file by file."""
    vectors = np.empty((len(sources), dimensions), np.float32)
    for file, rows in mapped.items():
        places = [place for place, source in enumerate(sources) if source[0] == file]
        vectors[places] = rows[[sources[place][1] for place in places]]
    return vectors

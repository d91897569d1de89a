"""Raw files of unit vectors, searched from disk without reading them into memory.

    vectors_<token>.f32     (images, D) float32
    vectors_<token>.codes   the same in 8 bits per number: codes (images, D) int8, then
                            the scale of each vector and the largest error, float32

A search reads the codes of all images, but only a few of the vectors.
"""

import os
import zlib
from functools import cached_property

import numpy as np
import torch

from areir.evaluation.ranking import BestImages, encode, has_fast_codes
from areir.evaluation.scores import TILE, to_indices, to_scores
from areir.files import WriteError, atomic_path
from areir.processes import gather, rank_and_count

BLOCK_ROWS = 4096  # vectors read or written at once
LARGEST_NORM = 1.01  # of a unit vector, with its rounding


class VectorsFile:
    """A file of float32 vectors (count, dimensions), mapped from disk.

    They can still be read after another process has replaced the file.
    """

    def __init__(self, path, dimensions):
        self.path, self.dimensions = path, dimensions
        count = os.path.getsize(path) // (4 * dimensions)
        # torch warns about read-only memory, so the file is mapped copy-on-write ('c')
        self.array = np.memmap(path, '<f4', 'c', shape=(count, dimensions))
        self.mapped = torch.from_numpy(self.array)

    def __reduce__(self):  # for pickle: another process maps the file itself
        return VectorsFile, (self.path, self.dimensions)

    def __len__(self):
        return len(self.array)

    def blocks(self, order=None):
        """Yield the vectors, or those of the rows `order`, BLOCK_ROWS at a time."""
        count = len(self) if order is None else len(order)
        for start in range(0, count, BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            yield self.array[block if order is None else order[block]]

    @cached_property
    def codes(self):
        """The codes (count, dimensions), scales and largest error of these vectors.

        None if there are none or they would be slow.
        """
        path = codes_path(self.path)
        if not has_fast_codes(self.dimensions) or not os.path.isfile(path):
            return None
        codes = torch.from_numpy(np.memmap(path, np.int8, 'c', shape=self.array.shape))
        numbers = torch.from_numpy(np.fromfile(path, '<f4', offset=codes.numel()))
        return codes, numbers[:-1], numbers[-1].item()

    def search(self, query, k, exclude=None, shared=True):
        """Search as `ranking.search` does, with the same results.

        query: float32, on the CPU. shared: whether all processes of torchrun call this
        with the same queries, so that each searches its share of the tiles. If not,
        this process searches all of them.
        """
        best = BestImages(query, self.mapped, k, exclude, LARGEST_NORM, self.codes)
        rank, processes = rank_and_count() if shared else (0, 1)
        best.add_tiles(best.tiles(TILE)[rank::processes])
        keys = best.keys
        if processes > 1:
            keys = torch.cat(gather(keys), dim=1).sort(dim=1).values[:, :k]
        return to_scores(keys), to_indices(keys)


def codes_path(path):
    """Return the path of the codes of a file of vectors."""
    return path.removesuffix('.f32') + '.codes'


def write_codes(vectors):
    """Write the codes of a VectorsFile beside it; return the CRC-32 of their file."""
    return write_blocks(codes_path(vectors.path), code_blocks(vectors))


def code_blocks(vectors):
    """Yield the arrays that the codes of a VectorsFile consist of."""
    # a small tensor kept from each block would keep malloc from using its place again
    all_scales, largest_error = torch.empty(len(vectors)), torch.zeros(1)
    places = all_scales.split(BLOCK_ROWS)
    for rows, place in zip(vectors.blocks(), places):
        codes, scales, errors = encode(torch.from_numpy(rows))
        yield codes
        place.copy_(scales)
        largest_error = torch.maximum(largest_error, errors.max())
    yield from (all_scales, largest_error)


def write_blocks(path, blocks):
    """Write arrays or tensors one after the other to a file; return its CRC-32."""
    checksum = 0
    with atomic_path(path) as temporary, open(temporary, 'wb') as file:
        for block in blocks:
            content = np.asarray(block).tobytes()
            file.write(content)
            checksum = zlib.crc32(content, checksum)
    return checksum


def append_vectors(path, vectors):
    """Append vectors (n, D) to a file, and return the row of the first.

    What a kill or a full disk has left of a row is removed before. Raises WriteError.
    """
    try:
        with open(path, 'ab') as file:
            row = file.tell() // vectors[0].nbytes
            file.truncate(row * vectors[0].nbytes)
            file.write(vectors.tobytes())
    except OSError as error:
        raise WriteError(path, error) from error
    return row


def file_crc(path):
    """Return the CRC-32 of a file, or None if it is missing or empty."""
    if not os.path.isfile(path) or not os.path.getsize(path):
        return None
    return zlib.crc32(np.memmap(path, np.uint8, 'r'))

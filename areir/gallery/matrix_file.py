"""A .npy file of a matrix, mapped from disk, with a checksum for each block of rows."""

import os
import zlib

import numpy as np

from areir.errors import UserError
from areir.files import atomic_path, refuse_special

BLOCK_ROWS = 4096  # copied at once, and covered by one checksum


class MatrixFile:
    """A .npy file that holds a matrix (count, width); subclasses may set the dtype.

    The file stays open, so it can still be read after another process has replaced it.
    Raises UserError if it holds anything else or its size does not fit its header.
    """

    dtype = np.dtype('<f4')

    def __init__(self, path):
        refuse_special(path)
        self.path = path
        self.file = open(path, 'rb')
        try:
            version = np.lib.format.read_magic(self.file)
            header = np.lib.format.read_array_header_1_0(self.file)
        except Exception as error:  # a damaged header fails in many ways
            raise UserError(f'{path}: not a .npy file ({error})') from error
        shape, fortran_order, dtype = header
        if version != (1, 0) or fortran_order or dtype != self.dtype:
            raise UserError(f'{path}: not a matrix of {self.dtype.name} in C order')
        if len(shape) != 2:
            raise UserError(f'{path}: not a matrix')
        self.count, self.width = shape
        self.offset = self.file.tell()
        needed = self.offset + self.dtype.itemsize * self.count * self.width
        if os.fstat(self.file.fileno()).st_size != needed:
            raise UserError(f'{path}: its size does not fit its header')

    def __len__(self):
        return self.count

    def rows(self, start=0, stop=None):
        """Map rows[start:stop]; the disk is read when they are used."""
        stop = self.count if stop is None else stop
        offset = self.offset + self.dtype.itemsize * self.width * start
        shape = stop - start, self.width
        # torch warns about read-only memory, so the file is mapped copy-on-write ('c')
        return np.memmap(self.file, self.dtype, 'c', offset, shape)

    def blocks(self):
        """Yield (start, rows) of each block."""
        for start in range(0, self.count, BLOCK_ROWS):
            yield start, self.rows(start, min(start + BLOCK_ROWS, self.count))

    def find_damaged(self, checksums):
        """Return the rows of all blocks that do not match their checksum.

        checksums: one for each block, as `write_blocks` returned them.
        """
        damaged = []
        for block, (start, rows) in enumerate(self.blocks()):
            if checksums[block : block + 1] != [zlib.crc32(rows)]:
                damaged += range(start, start + len(rows))
        return damaged


def write_blocks(path, shape, dtype, blocks):
    """Write a .npy file of this shape and dtype, and return the CRC-32 of each block.

    blocks: arrays of BLOCK_ROWS rows each, the last one of the rest.
    """
    header = {'descr': dtype.str, 'fortran_order': False, 'shape': shape}
    checksums = []
    with atomic_path(path) as temporary, open(temporary, 'wb') as out:
        np.lib.format.write_array_header_1_0(out, header)
        for block in blocks:
            content = block.tobytes()
            out.write(content)
            checksums.append(zlib.crc32(content))
    return checksums

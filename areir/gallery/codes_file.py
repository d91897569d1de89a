"""A second copy of the vectors of a .npy file, in 8 bits per number.

    vectors_<token>.npy         (images, D) float32
    vectors_<token>_codes.npy   (images, D + 8) int8: the codes of a vector, then the
                                bytes of its scale and its error, both float32

A search reads the codes of all images, but only a few of the vectors: first_pass.py.
"""

from functools import cached_property

import numpy as np
import torch

from areir.errors import UserError
from areir.evaluation.ranking import CodePass, encode
from areir.gallery.matrix_file import MatrixFile, write_blocks

TAIL = 8  # bytes of scale and error


class CodesFile(MatrixFile):
    """The codes of the vectors of a VectorsFile."""

    dtype = np.dtype('int8')

    def __init__(self, vectors):
        super().__init__(codes_path(vectors.path))
        if (self.count, self.width) != (vectors.count, vectors.dimensions + TAIL):
            raise UserError(f'{self.path}: not the codes of {vectors.path}')

    @cached_property
    def codes(self):
        """The codes (count, D), mapped."""
        return torch.from_numpy(self.rows())[:, :-TAIL]

    @cached_property
    def scales_and_errors(self):
        """The scale and the error of each vector, float32 (count, 2), in memory."""
        tails = self.rows()[:, -TAIL:].copy()
        return torch.from_numpy(tails.view('<f4'))

    @cached_property
    def scales(self):
        return self.scales_and_errors[:, 0].contiguous()

    @cached_property
    def largest_error(self):
        return self.scales_and_errors[:, 1].max().item()

    def first_pass(self, query, norm):
        """Return the CodePass of queries; norm: an upper bound on the image norms."""
        return CodePass(query, self.codes, self.scales, self.largest_error, norm)


def codes_path(path):
    """Return the path of the codes of a .npy file of vectors."""
    return path.removesuffix('.npy') + '_codes.npy'


def write_codes(vectors):
    """Write the codes of a VectorsFile beside it; return the checksum of each block."""
    shape = vectors.count, vectors.dimensions + TAIL
    blocks = (encoded_rows(torch.from_numpy(rows)) for _, rows in vectors.blocks())
    return write_blocks(codes_path(vectors.path), shape, CodesFile.dtype, blocks)


def encoded_rows(vectors):
    """Return the rows (n, D + 8) of a codes file for vectors (n, D)."""
    codes, scales, errors = encode(vectors)
    tails = torch.stack([scales, errors], dim=1)
    return np.hstack([codes.numpy(), tails.numpy().astype('<f4').view(np.int8)])

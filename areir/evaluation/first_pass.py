"""Approximate scores of whole tiles, with a bound on their error.

Search computes these first, and then the exact scores of the images that may be among
the best. Each class has

    slack (Q,)                 for each query, a bound on the error of its approximate
                               scores
    __call__(rows, columns)    the approximate scores (n, m) of a tile: of the queries
                               rows with the images columns, both slices
"""

import torch

from areir.evaluation.scores import products, tolerance
from areir.hardware import cpu_has_any

FLOAT32 = torch.finfo(torch.float32)
LARGEST_CODE = 127
MOST_CODES = 2**31 // LARGEST_CODE**2  # the sum of their products fits in 32 bits
# CPU instructions that multiply 8-bit codes and add in 32 bits
INSTRUCTIONS = 'avx512_vnni', 'avx_vnni', 'amx_int8'


class FloatPass:
    """Products in float32.

    query (Q, D), gallery (N, D); bound: the largest product of a query's and an
    image's norm.
    """

    def __init__(self, query, gallery, bound):
        self.query = query
        self.gallery = gallery
        slack = tolerance(query.shape[1], bound, torch.float32)
        self.slack = torch.full((len(query),), slack, device=query.device)

    def __call__(self, rows, columns):
        query, gallery = self.query, self.gallery
        return products(query, gallery, rows, columns, torch.float32)


class CodePass:
    """Products of 8-bit codes, which are exact integers, times the scales.

    query (Q, D): float32; codes (N, D), scales (N,): the gallery as `encode` returns
    it; error: the gallery's largest error; norm: an upper bound on its norms.
    """

    def __init__(self, query, codes, scales, error, norm):
        self.codes = codes
        self.scales = scales
        self.query, self.query_scales, errors = encode(query)
        norms = torch.linalg.vector_norm(query.double(), dim=1)
        # a query q = a + e and an image x = b + f, with codes a, b and errors e, f:
        # qx - ab = qf + eb, where |b| is at most norm + error
        coding = norms * error + errors * (norm + error)
        rounding = 8 * FLOAT32.eps * (norms + errors) * (norm + error)
        self.slack = (coding + rounding + FLOAT32.tiny).float()

    def __call__(self, rows, columns):
        codes = self.codes[columns]
        whole = torch._int_mm(self.query[rows], codes.T)
        approximate = whole.float()
        approximate *= self.scales[columns]
        approximate *= self.query_scales[rows, None]
        return approximate


def encode(vectors):
    """Encode finite vectors (n, D) in 8 bits per number.

    Returns (codes, scales, errors): int8 (n, D), float32 (n,) and float32 (n,).
    codes * scales[:, None] approximates the vectors, and each error is an upper bound
    on the norm of the difference.
    """
    scales = vectors.abs().amax(dim=1) / LARGEST_CODE
    scales = torch.where(scales > 0, scales, 1)
    codes = (vectors / scales[:, None]).round()
    codes = codes.clamp(-LARGEST_CODE, LARGEST_CODE)
    difference = codes.double() * scales[:, None].double()
    difference -= vectors
    errors = torch.linalg.vector_norm(difference, dim=1)
    errors *= 1.000001  # so that rounding to float32 keeps it a bound
    return codes.to(torch.int8), scales, errors.float()


def has_fast_codes(dimensions):
    """Whether this CPU multiplies codes (n, dimensions) exactly and fast.

    torch 2.14 is wrong for vectors of a single number, and with too many dimensions the
    sum exceeds 32 bits. Without INSTRUCTIONS, oneDNN adds pairs of products in 16 bits,
    which can overflow: https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html
    """
    if not 1 < dimensions < MOST_CODES:
        return False
    return cpu_has_any(*INSTRUCTIONS)

"""Approximate scores of whole tiles, and by how much they may be wrong.

Search computes them first, and then the scores themselves where they could change the
result. Each class has

    slack (Q,)         the largest difference to a score of each query
    __call__(i, j)     the approximate scores (n, m) of the images j for the queries i,
                       which are slices
"""

import torch

from areir.retrieval.scores import products, tolerance

FLOAT32 = torch.finfo(torch.float32)
LARGEST_CODE = 127
MOST_CODES = 2**31 // LARGEST_CODE**2  # whose products 32 bits can sum
INSTRUCTIONS = 'avx512_vnni', 'avx_vnni', 'amx_int8'


class FloatPass:
    """Products in float32.

    query (Q, D), gallery (N, D); bound: the largest product of their norms.
    """

    def __init__(self, query, gallery, bound):
        self.query = query
        self.gallery = gallery
        slack = tolerance(query.shape[1], bound, torch.float32)
        self.slack = torch.full((len(query),), slack, device=query.device)

    def __call__(self, i, j):
        return products(self.query, self.gallery, i, j, torch.float32)


class CodePass:
    """Products of 8-bit codes, which are exact integers, times the scales.

    query (Q, D): float32; codes (N, D), scales (N,): of the gallery, from `encode`;
    error: the largest of its errors; norm: an upper bound on the gallery's norms.
    """

    def __init__(self, query, codes, scales, error, norm):
        self.codes = codes
        self.scales = scales
        self.query, self.query_scales, errors = encode(query)
        norms = torch.linalg.vector_norm(query.double(), dim=1)
        # if q = a + e is a query and x = b + f an image, then qx - ab = qf + eb
        coding = norms * error + errors * (norm + error)
        rounding = 8 * FLOAT32.eps * (norms + errors) * (norm + error)
        self.slack = (coding + rounding + FLOAT32.tiny).float()

    def __call__(self, i, j):
        whole = torch._int_mm(self.query[i], self.codes[j].T)
        approximate = whole.float()
        approximate *= self.scales[j]
        approximate *= self.query_scales[i, None]
        return approximate


def encode(vectors):
    """Return (codes, scales, errors) of finite vectors (n, D).

    codes: int8 (n, D), and codes * scales[:, None] is near the vectors. scales, errors:
    float32 (n,); an error is at least the norm of the difference.
    """
    scales = vectors.abs().amax(dim=1) / LARGEST_CODE
    scales = torch.where(scales > 0, scales, 1)
    codes = (vectors / scales[:, None]).round()
    codes = codes.clamp(-LARGEST_CODE, LARGEST_CODE)
    difference = codes.double() * scales[:, None].double()
    difference -= vectors
    errors = torch.linalg.vector_norm(difference, dim=1)
    errors *= 1.000001
    return codes.to(torch.int8), scales, errors.float()


def has_fast_codes(dimensions):
    """Whether this CPU multiplies codes (n, dimensions) exactly and fast.

    Products of one number are wrong in torch 2.14, and the sum of too many exceeds 32
    bits. Without the instructions, oneDNN adds pairs of products in 16 bits, which can
    overflow: https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html
    """
    if not 1 < dimensions < MOST_CODES:
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in INSTRUCTIONS)

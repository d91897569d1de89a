"""Approximate scores by 8-bit codes: hand-made codes, and the bound on their error."""

import pytest
import torch
from torch.nn import functional as F

from areir.evaluation.ranking import CodePass, encode, has_fast_codes

needs_fast_codes = pytest.mark.skipif(
    not has_fast_codes(48), reason='8-bit products may overflow on this CPU'
)


def test_codes_by_hand():
    vectors = torch.tensor([[127.0, -63.4, 0.0], [0.0, 0.0, 0.0], [1.0, -2.0, 0.5]])
    codes, scales, errors = encode(vectors)
    assert codes.tolist() == [[127, -63, 0], [0, 0, 0], [64, -127, 32]]
    torch.testing.assert_close(scales, torch.tensor([1.0, 1.0, 2 / 127]))
    last = torch.tensor([1 - 128 / 127, 0.0, 0.5 - 64 / 127]).norm().item()
    torch.testing.assert_close(errors, torch.tensor([0.4, 0.0, last]))


def gallery_of(kind, generator):
    vectors = torch.randn(200, 48, generator=generator)
    if kind == 'one large number':
        vectors[:, 5] = 40
    if kind == 'sparse':
        vectors[torch.rand(vectors.shape, generator=generator) < 0.9] = 0
    if kind == 'near duplicates':
        vectors = vectors[:1] + 1e-3 * vectors
    return F.normalize(vectors)


@needs_fast_codes
@pytest.mark.parametrize(
    'kind', ['normal', 'one large number', 'sparse', 'near duplicates']
)
@pytest.mark.parametrize('size', [1.0, 1e-6, 1e6])
def test_scores_are_within_the_slack(kind, size, seed):
    generator = torch.Generator().manual_seed(seed)
    gallery = gallery_of(kind, generator)
    query = size * torch.cat([gallery[:20], torch.randn(20, 48, generator=generator)])
    codes, scales, errors = encode(gallery)
    first_pass = CodePass(query, codes, scales, errors.max().item(), norm=1.01)
    approximate = first_pass(slice(3, 40), slice(7, 200)).double()
    scores = query[3:].double() @ gallery[7:].double().T
    difference = (approximate - scores).abs().amax(dim=1)
    assert (difference <= first_pass.slack[3:]).all()
    # a bound that is far too large would be of no use
    assert (first_pass.slack < 0.05 * query.norm(dim=1) + 1e-30).all()


@needs_fast_codes
@pytest.mark.parametrize('dimensions', [2, 3, 64, 577, 4096])
def test_products_of_the_largest_codes_are_exact(dimensions):
    codes = torch.full((5, dimensions), 127, dtype=torch.int8)
    for sign in (1, -1):
        for queries in (1, 2, 16):
            products = torch._int_mm(sign * codes[:1].repeat(queries, 1), codes.T)
            assert (products == sign * 127 * 127 * dimensions).all()


def test_products_that_are_wrong_or_too_large_are_not_used():
    assert not has_fast_codes(1)
    assert not has_fast_codes(2**31 // 127**2)

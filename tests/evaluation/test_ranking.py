"""Search against a stable sort of the scores as they are defined, and 8-bit codes."""

import pytest
import torch
from retrieval_cases import (
    CONSTANTS,
    FEW_KINDS,
    KINDS,
    TILES,
    N,
    defined_scores,
    duplicates,
    expected_search,
    generator,
    make_embeddings,
    normal,
    same_search,
    vectors,
)
from torch.nn import functional as F

from areir.errors import UserError
from areir.evaluation.ranking import CodePass, encode, has_fast_codes
from areir.retrieval import search


@pytest.mark.parametrize('kind', KINDS)
def test_search_equals_a_stable_sort(kind, seed):
    query = make_embeddings(kind, seed)
    gallery = query.flip(0)
    own = torch.arange(N)
    expected_others = expected_search(query, query, N - 1, leave_one_out=True)
    for tile in TILES:
        for k in (1, 5, N):
            result = search(query, gallery, k, tile=tile)
            assert same_search(result, expected_search(query, gallery, k))
        result = search(query, query, N - 1, exclude=own, tile=tile)
        assert same_search(result, expected_others)


@pytest.mark.parametrize('kind', FEW_KINDS)
@pytest.mark.parametrize('constant', CONSTANTS)
def test_every_workspace_gives_the_same_images(kind, constant, monkeypatch):
    query = make_embeddings(kind)
    expected = search(query, query[:15], 5)
    monkeypatch.setattr(*CONSTANTS[constant])
    assert same_search(search(query, query[:15], 5, tile=7), expected)


@pytest.mark.parametrize('noise', [1e-4, 1e-7])
def test_collapsed_embeddings(noise, seed):
    query = 1 + noise * normal(300, 24, seed=seed)
    result = search(query, query, 20, exclude=torch.arange(300), tile=64)
    assert same_search(result, expected_search(query, query, 20, leave_one_out=True))


@pytest.mark.parametrize('tile', [64, 1024])
def test_duplicated_images_far_apart(tile):
    gallery = duplicates(300, 3, dimensions=576)
    places = torch.arange(0, 900, 11)
    scores = defined_scores(gallery[places], gallery)
    scores.scatter_(1, places[:, None], -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :6]
    result = search(gallery[places], gallery, 6, exclude=places, tile=tile)
    assert same_search(result, (scores.gather(1, order), order))


def test_equal_images_come_in_the_order_of_the_gallery():
    own = [-1, 0, -1, 11, 5]
    scores, indices = search(torch.ones(5, 3), torch.ones(12, 3), 11, own, tile=2)
    assert (scores == 3).all()
    expected = [[j for j in range(12) if j != excluded][:11] for excluded in own]
    assert indices.tolist() == expected


def test_minus_zero_ties_with_zero():
    gallery = torch.tensor([[0.0], [1.0], [-0.0], [0.0]])
    scores, indices = search(torch.tensor([[-0.0], [-1.0]]), gallery, 4)
    assert indices.tolist() == [[0, 1, 2, 3], [0, 2, 3, 1]]
    assert scores.tolist() == [[0, 0, 0, 0], [0, 0, 0, -1]]


def test_the_query_is_excluded_by_index_not_by_place_or_sentinel():
    """Every score is below -1, or a double of another class precedes the query."""
    embeddings = torch.tensor([[3.0, 0.0], [3.0, 0.0], [-3.0, 0.5], [-3.0, 0.5]])
    scores, indices = search(embeddings, embeddings, 3, exclude=torch.arange(4))
    assert indices.tolist() == [[1, 2, 3], [0, 2, 3], [3, 0, 1], [2, 0, 1]]
    assert torch.isfinite(scores).all()
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]) * 2
    scores, _ = search(opposite, opposite, 1, exclude=torch.arange(2))
    assert scores.tolist() == [[-4.0], [-4.0]]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_scores_are_those_of_the_float32_values(dtype, seed):
    query = normal(40, 20, seed=seed).double().add(1e-12).to(dtype)
    for tile in (3, 1024):
        result = search(query, query, 40, tile=tile)
        assert same_search(result, expected_search(query, query, 40))


# Refusals


@pytest.mark.parametrize(
    ('k', 'exclude', 'offender'),
    [
        (0, None, 'k = 0'),
        (2.0, None, r'k = 2\.0'),
        (7, None, 'k = 7: .* 1 to 6'),
        (6, torch.arange(6), 'k = 6: .* 1 to 5'),
        (1, torch.arange(5), 'exclude'),
        (1, torch.full((6,), 6), 'exclude'),
        (1, torch.full((6,), -2), 'exclude'),
    ],
)
def test_search_refuses(k, exclude, offender):
    with pytest.raises(UserError, match=offender):
        search(vectors(6), vectors(6), k, exclude)


@pytest.mark.parametrize('bad', [torch.empty(0, 6), vectors(6, dimensions=5)])
def test_search_refuses_embeddings(bad):
    for query, gallery in ((bad, vectors(6)), (vectors(6), bad)):
        with pytest.raises(UserError, match=r'non-empty|5 dim|gallery 5'):
            search(query, gallery, 1)


# 8-bit codes

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


def gallery_of(kind, seed):
    vectors = normal(200, 48, seed=seed)
    if kind == 'one large number':
        vectors[:, 5] = 40
    if kind == 'sparse':
        vectors[torch.rand(vectors.shape, generator=generator(seed)) < 0.9] = 0
    if kind == 'near duplicates':
        vectors = vectors[:1] + 1e-3 * vectors
    return F.normalize(vectors)


@needs_fast_codes
@pytest.mark.parametrize('kind', ['one large number', 'sparse', 'near duplicates'])
@pytest.mark.parametrize('size', [1.0, 1e6])
def test_approximate_scores_are_within_the_slack(kind, size, seed):
    gallery = gallery_of(kind, seed)
    query = size * torch.cat([gallery[:20], normal(20, 48, seed=seed + 1)])
    codes, scales, errors = encode(gallery)
    first_pass = CodePass(query, codes, scales, errors.max().item(), norm=1.01)
    approximate = first_pass(slice(3, 40), slice(7, 200)).double()
    scores = query[3:].double() @ gallery[7:].double().T
    difference = (approximate - scores).abs().amax(dim=1)
    assert (difference <= first_pass.slack[3:]).all()
    # a bound that is far too large would be of no use
    assert (first_pass.slack < 0.05 * query.norm(dim=1) + 1e-30).all()


@needs_fast_codes
@pytest.mark.parametrize('dimensions', [2, 577, 4096])
def test_products_of_the_largest_codes_are_exact(dimensions):
    codes = torch.full((5, dimensions), 127, dtype=torch.int8)
    for sign in (1, -1):
        for queries in (1, 2, 16):
            products = torch._int_mm(sign * codes[:1].repeat(queries, 1), codes.T)
            assert (products == sign * 127 * 127 * dimensions).all()


def test_products_that_are_wrong_or_too_large_are_not_used():
    assert not has_fast_codes(1)
    assert not has_fast_codes(2**31 // 127**2)

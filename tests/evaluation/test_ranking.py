"""Search against a stable sort of the scores as they are defined."""

import pytest
import torch
from retrieval_cases import (
    CONSTANTS,
    KINDS,
    TILES,
    N,
    bad_row,
    defined_scores,
    duplicates,
    expected_search,
    make_embeddings,
    normal,
    same_search,
    vectors,
)

from areir.errors import UserError
from areir.retrieval import evaluate, search

kinds = pytest.mark.parametrize('kind', KINDS)


@kinds
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


@kinds
@pytest.mark.parametrize('constant', CONSTANTS)
def test_every_workspace_gives_the_same_images(kind, constant, monkeypatch):
    query = make_embeddings(kind)
    expected = search(query, query[:15], 5)
    monkeypatch.setattr(*CONSTANTS[constant])
    for tile in (7, 1024):
        assert same_search(search(query, query[:15], 5, tile=tile), expected)


@kinds
def test_a_bound_on_the_norms_gives_the_same_images(kind):
    query = make_embeddings(kind)
    norm = 1.01 * query.norm(dim=1).max().item()
    assert same_search(search(query, query, 5, norm=norm), search(query, query, 5))


@kinds
def test_scores_do_not_depend_on_which_image_is_the_query(kind):
    embeddings = make_embeddings(kind)
    scores, indices = search(embeddings, embeddings, N, tile=7)
    square = torch.empty(N, N).scatter_(1, indices, scores)
    assert torch.equal(square, square.T)
    assert torch.equal(square, defined_scores(embeddings, embeddings))


@kinds
@pytest.mark.parametrize('classes', [4, 30])
def test_recall_is_that_of_the_retrieved_images(kind, classes, seed):
    embeddings, ks = make_embeddings(kind, seed), [1, 2, 5, N - 1]
    labels = torch.arange(N) * 7 % classes
    _, indices = search(embeddings, embeddings, N - 1, exclude=torch.arange(N))
    hits = labels[indices] == labels[:, None]
    expected = [hits[:, :k].any(dim=1).double().mean().item() for k in ks]
    result = evaluate(embeddings, labels, ks)
    assert [result[f'recall@{k}'] for k in ks] == expected


@pytest.mark.parametrize('noise', [1e-4, 1e-7])
def test_collapsed_embeddings(noise, seed):
    query = 1 + noise * normal(300, 24, seed=seed)
    result = search(query, query, 20, exclude=torch.arange(300), tile=64)
    assert same_search(result, expected_search(query, query, 20, leave_one_out=True))


@pytest.mark.parametrize('tile', [7, 64, 100, 1024])
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
        for k in (1, 40):
            result = search(query, query, k, tile=tile)
            assert same_search(result, expected_search(query, query, k))


def test_ties_of_the_float32_values_of_float64_embeddings():
    query = 1 + 1e-9 * normal(60, 8).double()
    assert search(query, query, 60)[1].tolist() == [list(range(60))] * 60


def test_transposed_embeddings():
    view = normal(6, 80)[:, ::2].T
    plain = view.contiguous()
    assert same_search(search(view, view, 5), search(plain, plain, 5))


def test_large_norms_that_fit_are_ranked():
    query = bad_row(9e18)
    assert same_search(search(query, query, 6), expected_search(query, query, 6))


# Refusals


@pytest.mark.parametrize(
    ('k', 'exclude', 'offender'),
    [
        (0, None, 'k = 0'),
        (-1, None, 'k = -1'),
        (2.5, None, r'k = 2\.5'),
        (2.0, None, r'k = 2\.0'),
        (7, None, 'k = 7: .* 1 to 6'),
        (6, torch.arange(6), 'k = 6: .* 1 to 5'),
        (1, torch.arange(5), 'exclude .* one index per query'),
        (1, torch.full((6,), 6), 'exclude'),
        (1, torch.full((6,), -2), 'exclude'),
    ],
)
def test_search_refuses(k, exclude, offender):
    with pytest.raises(UserError, match=offender):
        search(vectors(6), vectors(6), k, exclude)


@pytest.mark.parametrize(
    ('query', 'gallery', 'offender'),
    [
        (bad_row(torch.nan), vectors(6), 'query holds NaN'),
        (vectors(6), bad_row(torch.inf), 'gallery holds NaN'),
        (vectors(6), vectors(6, dimensions=5), '6 dimensions, gallery 5'),
        (vectors(6), torch.empty(0, 6), 'gallery must'),
        (vectors(6)[0], vectors(6), 'query must'),
        (bad_row(1e30), bad_row(1e30), 'normalise'),
    ],
)
def test_search_refuses_embeddings(query, gallery, offender):
    with pytest.raises(UserError, match=offender):
        search(query, gallery, 1)

"""Scores: exact, and independent of the caller's settings."""

import pytest
import torch
from retrieval_cases import (
    N,
    bad_row,
    bad_rows,
    defined_scores,
    labels_of,
    normal,
    patch_products,
    same_search,
    vectors,
)

from areir.errors import UserError
from areir.evaluation import metrics, ranking, scores
from areir.evaluation.metrics import rank_positives
from areir.retrieval import evaluate, search


def test_sums_that_float32_products_lose():
    """1 + 2 ** -25 + ... stays 1 where every sum is rounded to float32."""
    query, gallery = torch.full((1, 300), 2.0**-12), torch.zeros(4, 300)
    query[0, 0] = gallery[:, 0] = 1
    gallery[0, -1], gallery[2, -1] = 2**-10, 2**-9
    gallery[1, 1:], gallery[3, 1:] = 2**-13, 2**-12
    found, indices = search(query, gallery, 4)
    assert indices.tolist() == [[3, 1, 2, 0]]
    assert found.tolist() == [[1 + steps * 2**-23 for steps in (150, 75, 4, 2)]]
    ranks = rank_positives(query.expand(4, -1), [0, 1, 2, 3], gallery, [0, 1, 2, 3])
    assert ranks['rank'].tolist() == [4, 2, 3, 1]


@pytest.mark.parametrize('dimensions', [30, 400])
def test_scores_midway_between_two_float32_numbers(dimensions, monkeypatch):
    query = torch.where(normal(N, dimensions) > 0, 2.0**-27, 2.0**-28)
    query[:, 0] = 1
    query[:, -1] = torch.where(normal(N, seed=1) > 0, 2.0**-12, 0)
    labels, ks = labels_of(N, 9), [1, 5, N - 1]
    metrics_before, search_before = evaluate(query, labels, ks), search(query, query, N)
    for constant in (
        (scores, 'CHUNK', 7),
        (scores, 'WORKSPACE', 50),
        (metrics, 'SLOTS', 3),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*constant)
            for tile in (5, 64):
                assert evaluate(query, labels, ks, tile=tile) == metrics_before
                assert same_search(search(query, query, N, tile=tile), search_before)


def test_pair_scores_equal_the_definition(seed):
    query, gallery = normal(40, 30, seed=seed), normal(50, 30, seed=seed + 1)
    rows, columns = labels_of(200, 40, seed), labels_of(200, 50, seed)
    found = scores.pair_scores(query, gallery, rows, columns)
    assert torch.equal(found, defined_scores(query, gallery)[rows, columns])


@pytest.mark.parametrize('dimensions', [3, 400, 2000])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_products_stay_within_the_tolerance(dimensions, dtype, seed):
    query = normal(30, dimensions, seed=seed)
    every = slice(None)
    found = scores.products(query, query, every, every, dtype).double()
    bound = scores.check_pair(query, query)
    difference = (found - defined_scores(query, query)).abs().max().item()
    rounding = bound * 2**-24 if dtype == torch.float64 else 0  # of the score itself
    assert difference <= scores.tolerance(dimensions, bound, dtype) + rounding


def test_keys_are_in_the_order_of_retrieval(seed):
    found = torch.cat([vectors(20, seed).flatten(), torch.tensor([-0.0, 1e38, -1e38])])
    index = torch.arange(len(found))
    keys = scores.to_keys(found, index)
    expected = found.argsort(descending=True, stable=True)
    assert torch.equal(keys.sort().indices, expected)
    assert torch.equal(scores.to_scores(keys), found)
    assert torch.equal(scores.to_indices(keys), index)
    assert keys.max() < scores.LAST


@pytest.mark.parametrize(
    ('embeddings', 'offender'),
    [
        (bad_row(torch.nan), 'photos .* 1 images: 4$'),
        (bad_rows(12), 'photos .* 12 images: 3, 4, 5, 6, 7, 8, 9, 10, 11, 12$'),
        (vectors(6)[0], 'photos must'),
        (vectors(6).long(), 'photos must .*int64'),
        ([[1.0]], 'photos must be a tensor, not list'),
    ],
)
def test_embeddings_at_fault_are_named(embeddings, offender):
    with pytest.raises(UserError, match=offender):
        scores.check_embeddings('photos', embeddings)


# The caller's settings


def results_under_settings():
    query, labels = 1 + 1e-3 * normal(90, 64), labels_of(90, 7)
    found = search(query, query[:50], 10, tile=32)
    return evaluate(query, labels, [1, 5], tile=32), [x.tolist() for x in found]


def precisions():
    return (
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
    )


@pytest.fixture
def keep_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize('precision', ['high', 'medium'])
def test_matmul_precision_has_no_influence_and_stays(precision, keep_precision):
    expected = results_under_settings()
    torch.set_float32_matmul_precision(precision)
    before = precisions()
    assert results_under_settings() == expected
    assert torch.get_float32_matmul_precision() == precision
    assert precisions() == before
    with pytest.raises(UserError, match='k = 0'):
        search(torch.ones(2, 2), torch.ones(2, 2), 0)
    assert torch.get_float32_matmul_precision() == precision


def test_products_are_computed_in_full_precision(monkeypatch, keep_precision):
    products, seen = scores.products, set()

    def watched(*arguments):
        seen.add((*precisions(), torch.is_autocast_enabled('cpu')))
        return products(*arguments)

    patch_products(monkeypatch, watched)
    torch.set_float32_matmul_precision('medium')
    with torch.autocast('cpu', torch.bfloat16):
        results_under_settings()
    assert seen == {('ieee', 'ieee', False)}


def test_precision_is_restored_after_an_interruption(monkeypatch, keep_precision):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ranking, 'products', interrupt)
    torch.set_float32_matmul_precision('medium')
    with pytest.raises(KeyboardInterrupt):
        search(torch.ones(2, 2), torch.ones(2, 2), 1)
    assert torch.backends.mkldnn.matmul.fp32_precision == 'bf16'


def test_autocast_has_no_influence_and_stays():
    expected = results_under_settings()
    with torch.autocast('cpu', torch.bfloat16):
        assert results_under_settings() == expected
        assert torch.is_autocast_enabled('cpu')
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_number_of_threads_has_no_influence():
    expected, before = results_under_settings(), torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert results_under_settings() == expected
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)


def test_default_type_has_no_influence():
    expected = results_under_settings()
    query, labels = 1 + 1e-3 * normal(90, 64), labels_of(90, 7)
    torch.set_default_dtype(torch.float64)
    try:
        found = search(query, query[:50], 10, tile=32)
        result = evaluate(query, labels, [1, 5], tile=32)
        assert (result, [x.tolist() for x in found]) == expected
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('mode', [torch.enable_grad, torch.no_grad])
def test_embeddings_with_gradients(mode):
    query, labels = normal(40, 6), labels_of(40, 7)
    expected = evaluate(query, labels, [1, 5])
    with mode():
        tracked = query.clone().requires_grad_(mode is torch.enable_grad)
        assert evaluate(tracked, labels, [1, 5]) == expected


def test_inference_mode():
    query, labels = normal(40, 6), labels_of(40, 7)
    expected = evaluate(query, labels, [1, 5])
    with torch.inference_mode():
        assert evaluate(query.clone(), labels, [1, 5]) == expected


def test_arguments_stay_as_they_are():
    query, labels = normal(40, 6), labels_of(40, 7)
    before = query.clone(), labels.clone()
    evaluate(query, labels, [1], tile=7)
    search(query, query, 3, exclude=torch.arange(40), tile=7)
    assert torch.equal(query, before[0]) and torch.equal(labels, before[1])

"""Scores: exact, and independent of the caller's settings."""

import pytest
import torch
from retrieval_cases import (
    N,
    defined_scores,
    labels_of,
    normal,
    patch_products,
    same_search,
    vectors,
)
from torch.nn import functional as F

from areir.evaluation import metrics, scores
from areir.evaluation.metrics import rank_positives
from areir.evaluation.scores import BestScores, score_blocks
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


def test_products_are_computed_in_full_precision(monkeypatch, keep_precision):
    expected, products, seen = results_under_settings(), scores.products, set()

    def watched(*arguments):
        seen.add((*precisions(), torch.is_autocast_enabled('cpu')))
        return products(*arguments)

    patch_products(monkeypatch, watched)
    torch.set_float32_matmul_precision('medium')
    before = precisions()
    with torch.autocast('cpu', torch.bfloat16):
        assert results_under_settings() == expected
        assert torch.is_autocast_enabled('cpu')
    assert seen == {('ieee', 'ieee', False)}
    patch_products(monkeypatch, None)
    with pytest.raises(TypeError):
        results_under_settings()
    assert precisions() == before


def test_number_of_threads_has_no_influence():
    expected, before = results_under_settings(), torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert results_under_settings() == expected
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)


# Each query's best right and best wrong image


def collect(query, query_labels, gallery, gallery_labels, own, block=128):
    best = BestScores(len(query))
    arguments = (query, query_labels, gallery, gallery_labels, own)
    for found in score_blocks(*arguments, block):
        best.add(found)
    return best


def test_the_query_itself_is_neither_right_nor_wrong():
    images, labels = torch.eye(3), torch.tensor([0, 0, 1])
    own = torch.tensor([0, -1, 2])
    (block,) = score_blocks(images, labels, images, labels, own, 10)
    assert block.rows.tolist() == [0, 1, 2]
    assert block.right.int().tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert block.wrong.int().tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert torch.equal(block.scores, torch.eye(3))


def test_the_nearest_image_is_that_of_search(seed):
    embeddings = F.normalize(normal(60, 8, seed=seed), dim=1)
    labels, own = labels_of(60, 9, seed), torch.arange(60)
    best = collect(embeddings, labels, embeddings, labels, own)
    scores, indices = search(embeddings, embeddings, 1, own)
    right = labels[indices[:, 0]] == labels
    nearest = torch.where(right, best.best_right, best.best_wrong)
    assert torch.allclose(nearest, scores[:, 0], atol=1e-6)
    assert torch.equal(best.nearest_right[right], indices[right, 0])
    blocks = collect(embeddings, labels, embeddings, labels, own, 7)
    assert torch.equal(best.nearest_right, blocks.nearest_right)
    assert torch.allclose(best.best_right, blocks.best_right)
    assert torch.allclose(best.best_wrong, blocks.best_wrong)

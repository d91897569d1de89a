"""Search, metrics and their uncertainty against the definitions written out, and what fools evaluators."""
import math
import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import retrieval
from retrieval import compare, confidence_intervals, evaluate, measures, rank_positives, search

N = 22
TILES = [1, 2, 5, N - 1, N, N + 1, 1024]
CONSTANTS = [(name, value) for name in ('CHUNK', 'SLOTS', 'WORKSPACE') for value in (1, 3, 50)]


def defined_scores(query, gallery):
    return (query.float().double()[:, None] * gallery.float().double()[None]).sum(dim=2).float()


def brute_force(query, query_labels, ks, gallery=None, gallery_labels=None):
    """The definitions, one query at a time: sort by score, then by gallery index."""
    alone = gallery is None
    if alone:
        gallery, gallery_labels = query, query_labels
    result, places = dict.fromkeys([*(f'recall@{k}' for k in ks), 'map@r', 'r_precision'], 0), []
    for i, scores in enumerate(defined_scores(query, gallery).tolist()):
        order = sorted((-score, j) for j, score in enumerate(scores) if not (alone and i == j))
        right = [int(gallery_labels[j]) == int(query_labels[i]) for _, j in order]
        total = sum(right)
        if total:
            places.append(right.index(True) + 1)
            result['r_precision'] += sum(right[:total]) / total / len(query)
            result['map@r'] += sum(sum(right[:r + 1]) / (r + 1) for r in range(total) if right[r]) / total / len(query)
        for k in ks:
            result[f'recall@{k}'] += any(right[:k]) / len(query)
    return {**result, 'mean_rank': sum(places) / len(places) if places else 0,
            'queries_without_positive': len(query) - len(places)}


def vectorised(query, labels, ks):
    """The definitions for leave-one-out, all queries at once."""
    scores = (query.double() @ query.double().T).float()
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order[order != torch.arange(len(query))[:, None]].view(len(query), -1)
    right = labels[order] == labels[:, None]
    total, place = right.sum(dim=1), torch.arange(1, len(query))
    inside, found = right & (place <= total[:, None]), total > 0
    precision = (right.cumsum(dim=1) / place * inside).double().sum(dim=1)
    return {**{f'recall@{k}': right[:, :k].any(dim=1).double().mean().item() for k in ks},
            'map@r': (precision / total.clamp(min=1)).mean().item(),
            'r_precision': (inside.sum(dim=1).double() / total.clamp(min=1)).mean().item(),
            'mean_rank': (right.long().argmax(dim=1) + 1)[found].double().mean().item(),
            'queries_without_positive': int((~found).sum())}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def vectors(count, seed=0, dimensions=6):
    """Small dyadic numbers, whose scores are exact and often equal."""
    return torch.randint(-4, 5, (count, dimensions), generator=generator(seed)).float() / 8


def labels_of(count, classes, seed=0):
    return torch.randint(0, classes, (count,), generator=generator(seed))


def uneven_labels(count, seed=0):
    """One class of a third of the images, many of one image, and some between."""
    rest = (torch.rand(count - count // 3, generator=generator(seed)) ** 2 * count / 3).long() + 1
    labels = torch.cat([torch.zeros(count // 3, dtype=torch.long), rest])
    return labels[torch.randperm(count, generator=generator(seed))]


def duplicates(count, copies, dimensions=6, seed=0):
    return F.normalize(normal(count, dimensions, seed=seed), dim=1).repeat(copies, 1)


def same_search(found, expected):
    return all(torch.equal(one, other) for one, other in zip(found, expected))


def expected_search(query, gallery, k, alone=False):
    scores = defined_scores(query, gallery)
    order = scores.argsort(dim=1, descending=True, stable=True)
    if alone:
        order = order[order != torch.arange(len(query))[:, None]].view(len(query), -1)
    return scores.gather(1, order[:, :k]), order[:, :k]


EMBEDDINGS = {
    'random': normal(N, 6),
    'ties': vectors(N),
    'negative': torch.cat([normal(N // 2, 6).abs(), -normal(N // 2, 6, seed=1).abs()]),
    'duplicates': duplicates(11, 2),
    'equal': torch.ones(N, 6) / 3,
    'collapsed': 1 + 1e-4 * normal(N, 6),
    'one-hot': torch.eye(6)[labels_of(N, 6, seed=3)],
    'zero': normal(N, 6) * (torch.arange(N) % 3 > 0)[:, None],
    'quantised': (normal(N, 6) * 2).round() / 2,
    'wide': normal(N, 6) * 10. ** torch.randint(-12, 12, (N, 1), generator=generator(0)),
    'subnormal': normal(N, 6) * 1e-39,
    'one dimension': normal(N, 1),
}
KINDS = pytest.mark.parametrize('kind', EMBEDDINGS)


# Definitions


@KINDS
@pytest.mark.parametrize('classes', [1, 2, 9, 60])
def test_leave_one_out_equals_brute_force(kind, classes):
    query, labels, ks = EMBEDDINGS[kind], labels_of(N, classes), [1, 3, N - 1, 2]
    assert evaluate(query, labels, ks) == pytest.approx(brute_force(query, labels, ks), rel=1e-12)


@KINDS
@pytest.mark.parametrize('classes', [1, 12])
def test_query_against_gallery_equals_brute_force(kind, classes):
    query, gallery, ks = EMBEDDINGS[kind][:17], EMBEDDINGS[kind][2:], [20, 1, 10]
    arguments = (query, labels_of(17, classes + 1), ks, gallery, labels_of(20, classes, seed=1))
    result = evaluate(*arguments)
    assert result == pytest.approx(brute_force(*arguments), rel=1e-12)
    if classes == 12:
        assert result['queries_without_positive'] > 0 and result['recall@20'] < 1


@KINDS
def test_search_equals_a_stable_sort_of_the_defined_scores(kind):
    query, gallery = EMBEDDINGS[kind], EMBEDDINGS[kind].flip(0)
    for tile in TILES:
        for k in (1, 5, N):
            assert same_search(search(query, gallery, k, tile=tile), expected_search(query, gallery, k))
        assert same_search(search(query, query, N - 1, exclude=torch.arange(N), tile=tile),
                           expected_search(query, query, N - 1, alone=True))


@KINDS
@pytest.mark.parametrize('classes', [4, 15])
def test_every_tile_size_gives_the_same_numbers(kind, classes):
    query, labels, ks = EMBEDDINGS[kind], labels_of(N, classes), [1, 5, N - 1]

    def results(tile):
        return (evaluate(query, labels, ks, tile=tile),
                evaluate(query, labels, ks[:2], query[:15], labels[:15], tile=tile))

    expected = results(1000)
    assert [results(tile) for tile in TILES] == [expected] * len(TILES)


@KINDS
@pytest.mark.parametrize(('name', 'value'), CONSTANTS)
def test_every_workspace_gives_the_same_numbers(kind, name, value, monkeypatch):
    query, labels, ks = EMBEDDINGS[kind], labels_of(N, 4), [1, 5, 15]
    gallery = (query[:15], labels[:15])

    def results(tile=7):
        return (evaluate(query, labels, ks, tile=tile), evaluate(query, labels, ks, *gallery, tile=tile),
                [value.tolist() for value in search(query, gallery[0], 5, tile=tile)])

    expected = results()
    monkeypatch.setattr(retrieval, name, value)
    assert results() == expected == results(1024)


def test_metrics_by_hand():
    # on a line of angles, the query 0 sees 1, 2, 3 in this order
    angles = torch.tensor([0., .1, .3, .6])
    query = torch.stack([angles.cos(), angles.sin()], dim=1)
    result = evaluate(query[:1], [7], [1, 2], query[1:], [5, 7, 7])
    assert result['recall@1'] == 0 and result['recall@2'] == 1
    assert result['r_precision'] == pytest.approx(1 / 2)   # one of the two nearest
    assert result['map@r'] == pytest.approx(1 / 2 * 1 / 2)  # precision 1/2 at place 2, divided by R = 2
    assert result['mean_rank'] == 2


def test_ranks_by_hand():
    query, gallery = torch.tensor([[1.], [-1.], [1.]]), torch.tensor([[5.], [4.], [3.], [2.], [1.]])
    ranks = rank_positives(query, [0, 0, 9], gallery, [1, 0, 0, 1, 0])
    assert {name: value.tolist() for name, value in ranks.items()} == {
        'positives': [3, 3, 0], 'rank': [2, 1, 0], 'map@r': pytest.approx([(1 / 2 + 2 / 3) / 3, (1 + 2 / 3) / 3, 0]),
        'r_precision': pytest.approx([2 / 3, 2 / 3, 0])}
    assert {name: value.tolist() for name, value in measures(ranks, [1, 2]).items()} == {
        'recall@1': [0, 1, 0], 'recall@2': [1, 1, 0], 'map@r': ranks['map@r'].tolist(),
        'r_precision': ranks['r_precision'].tolist()}


def test_mean_rank_leaves_out_queries_without_positives():
    query, gallery = torch.tensor([[1.], [1.]]), torch.tensor([[3.], [2.], [1.]])
    assert evaluate(query, [5, 0], [1], gallery, [1, 1, 0])['mean_rank'] == 3
    assert evaluate(query, [5, 6], [1], gallery, [1, 1, 0])['mean_rank'] == 0


def test_each_k_counts_once():
    query, labels = vectors(30), labels_of(30, 5)
    assert evaluate(query, labels, iter([2, 1, 2, 1])) == evaluate(query, labels, [1, 2])


def test_recalls_come_in_the_order_asked_for():
    query, labels = vectors(30), labels_of(30, 15)
    result = evaluate(query, labels, [10, 1, 5])
    assert list(result)[:3] == ['recall@10', 'recall@1', 'recall@5']
    assert result['recall@10'] > result['recall@5'] > result['recall@1']
    assert all(result[f'recall@{k}'] == evaluate(query, labels, [k])[f'recall@{k}'] for k in (1, 5, 10))


# Larger and harder data


@pytest.mark.parametrize('seed', range(8))
def test_clustered_images_of_uneven_classes(seed):
    labels = uneven_labels(700, seed)
    query = F.normalize(normal(300, 40, seed=seed)[labels] + 1.2 * normal(700, 40, seed=seed + 100), dim=1)
    ks = [1, 2, 10, 100, 699]
    assert evaluate(query, labels, ks) == pytest.approx(vectorised(query, labels, ks), rel=1e-6)
    assert evaluate(query, labels, ks, tile=100) == evaluate(query, labels, ks)


@pytest.mark.parametrize('noise', [1e-4, 1e-7])
@pytest.mark.parametrize('seed', range(2))
def test_collapsed_embeddings(seed, noise):
    query, labels, ks = 1 + noise * normal(300, 24, seed=seed), uneven_labels(300, seed), [1, 5, 50]
    result = evaluate(query, labels, ks)
    assert result == pytest.approx(vectorised(query, labels, ks), rel=1e-6)
    assert evaluate(query, labels, ks, tile=64) == result
    assert same_search(search(query, query, 20, exclude=torch.arange(300), tile=64),
                       expected_search(query, query, 20, alone=True))


@pytest.mark.parametrize('tile', [7, 64, 100, 1024])
def test_duplicated_images_far_apart(tile):
    gallery, labels = duplicates(300, 3, dimensions=576), torch.arange(900) // 3
    places = torch.arange(0, 900, 11)
    scores = defined_scores(gallery[places], gallery).scatter_(1, places[:, None], -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :6]
    assert same_search(search(gallery[places], gallery, 6, exclude=places, tile=tile), (scores.gather(1, order), order))
    if tile > 7:
        assert evaluate(gallery, labels, [1, 2, 899], tile=tile) == evaluate(gallery, labels, [1, 2, 899])


def test_sums_that_float32_products_lose():
    # 1 + 2 ** -25 + 2 ** -25 + ... stays 1 where every sum is rounded to float32
    query, gallery = torch.full((1, 300), 2. ** -12), torch.zeros(4, 300)
    query[0, 0] = gallery[:, 0] = 1
    gallery[0, -1], gallery[2, -1] = 2 ** -10, 2 ** -9
    gallery[1, 1:], gallery[3, 1:] = 2 ** -13, 2 ** -12
    scores, indices = search(query, gallery, 4)
    assert indices.tolist() == [[3, 1, 2, 0]]
    assert scores.tolist() == [[1 + steps * 2 ** -23 for steps in (150, 75, 4, 2)]]
    ranks = rank_positives(query.expand(4, -1), [0, 1, 2, 3], gallery, [0, 1, 2, 3])
    assert ranks['rank'].tolist() == [4, 2, 3, 1]


@pytest.mark.parametrize('dimensions', [30, 400])
def test_scores_midway_between_two_float32_numbers(dimensions, monkeypatch):
    query = torch.where(normal(N, dimensions) > 0, 2. ** -27, 2. ** -28)
    query[:, 0] = 1
    query[:, -1] = torch.where(normal(N, seed=1) > 0, 2. ** -12, 0)
    labels = labels_of(N, 9)
    expected = evaluate(query, labels, [1, 5, N - 1]), search(query, query, N)
    for name, value in [('CHUNK', 7), ('WORKSPACE', 50), ('SLOTS', 3)]:
        with monkeypatch.context() as patch:
            patch.setattr(retrieval, name, value)
            for tile in (5, 64):
                assert evaluate(query, labels, [1, 5, N - 1], tile=tile) == expected[0]
                assert same_search(search(query, query, N, tile=tile), expected[1])


# Ties, and search and metrics beside each other


@KINDS
@pytest.mark.parametrize('classes', [4, 30])
def test_recall_is_that_of_the_images_found(kind, classes):
    embeddings, labels, ks = EMBEDDINGS[kind], labels_of(N, classes), [1, 2, 5, N - 1]
    _, indices = search(embeddings, embeddings, N - 1, exclude=torch.arange(N))
    hits = labels[indices] == labels[:, None]
    result = evaluate(embeddings, labels, ks)
    assert [result[f'recall@{k}'] for k in ks] == [hits[:, :k].any(dim=1).double().mean().item() for k in ks]


@KINDS
def test_scores_do_not_depend_on_which_image_is_the_query(kind):
    embeddings = EMBEDDINGS[kind]
    scores, indices = search(embeddings, embeddings, N, tile=7)
    square = torch.empty(N, N).scatter_(1, indices, scores)
    assert torch.equal(square, square.T)
    assert torch.equal(square, defined_scores(embeddings, embeddings))


def test_equal_images_are_found_in_the_order_of_the_gallery():
    own = [-1, 0, -1, 11, 5]
    scores, indices = search(torch.ones(5, 3), torch.ones(12, 3), 11, exclude=own, tile=2)
    assert (scores == 3).all()
    assert indices.tolist() == [[j for j in range(12) if j != excluded][:11] for excluded in own]


def test_minus_zero_ties_with_zero():
    gallery = torch.tensor([[0.], [1.], [-0.], [0.]])
    scores, indices = search(torch.tensor([[-0.], [-1.]]), gallery, 4)
    assert indices.tolist() == [[0, 1, 2, 3], [0, 2, 3, 1]]
    assert scores.tolist() == [[0, 0, 0, 0], [0, 0, 0, -1]]


def test_shuffled_images_have_the_same_recall():
    embeddings, labels = normal(200, 8), labels_of(200, 30)
    expected = evaluate(embeddings, labels, [1, 4, 50])
    for seed in range(3):
        order = torch.randperm(200, generator=generator(seed))
        shuffled = evaluate(embeddings[order], labels[order], [1, 4, 50])
        assert shuffled == pytest.approx(expected, rel=1e-12)
        assert all(shuffled[name] == expected[name] for name in ('recall@1', 'recall@4', 'recall@50', 'mean_rank'))


# What fools evaluators


def test_the_query_is_excluded_by_index_not_by_place_or_sentinel():
    # every similarity is below -1, and each query has an exact double of another class before it
    embeddings = torch.tensor([[3., 0.], [3., 0.], [-3., .5], [-3., .5]])
    scores, indices = search(embeddings, embeddings, 3, exclude=torch.arange(4))
    assert indices.tolist() == [[1, 2, 3], [0, 2, 3], [3, 0, 1], [2, 0, 1]]
    assert torch.isfinite(scores).all()
    opposite = torch.tensor([[1., 0.], [-1., 0.]]) * 2
    assert search(opposite, opposite, 1, exclude=torch.arange(2))[0].tolist() == [[-4.], [-4.]]
    assert evaluate(opposite, [0, 0], [1])['recall@1'] == 1
    assert evaluate(embeddings, [0, 1, 2, 3], [1, 3]) == {
        'recall@1': 0, 'recall@3': 0, 'map@r': 0, 'r_precision': 0, 'mean_rank': 0, 'queries_without_positive': 4}


def test_dropping_the_first_image_found_is_not_excluding_the_query():
    # image 0 is nearest to all, itself included; the first column is never the query for 1 ... 4
    embeddings = torch.tensor([[9., 9.], [1., .1], [1., .2], [.1, 1.], [.2, 1.]])
    result = evaluate(embeddings, [0, 1, 1, 2, 2], [1, 2])
    assert (result['recall@1'], result['recall@2'], result['mean_rank']) == (0, .8, 2)


def test_the_query_never_counts_itself():
    result = evaluate(normal(30, 8), torch.arange(30), [1, 29])
    assert result == {'recall@1': 0, 'recall@29': 0, 'map@r': 0, 'r_precision': 0, 'mean_rank': 0,
                      'queries_without_positive': 30}


def test_similarities_far_below_any_sentinel():
    embeddings = torch.tensor([[1e3, 1.], [-1e3, 2.], [1e3, -3.], [-1e3, -4.]])
    for label in torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]):
        assert evaluate(embeddings, label, [1, 2, 3]) == pytest.approx(brute_force(embeddings, label, [1, 2, 3]))


def test_query_and_gallery_share_one_numbering_of_classes():
    # numbered by themselves, queries and gallery would both have the classes 0 and 1
    result = evaluate(torch.eye(2), [10, 20], [1], torch.eye(2), [20, 30])
    assert (result['recall@1'], result['mean_rank'], result['queries_without_positive']) == (0, 2, 1)


@pytest.mark.parametrize('dtype', [torch.int64, torch.int32, torch.int16])
def test_more_classes_than_a_byte_holds(dtype):
    labels = torch.arange(300, dtype=dtype)
    query = torch.eye(300)
    assert evaluate(query, labels, [1], query, labels)['recall@1'] == 1
    assert evaluate(query, labels, [1], query.roll(256, dims=0), labels.roll(256))['recall@1'] == 1
    assert evaluate(query[:256], labels[:256], [1, 255])['recall@255'] == 0


def test_bytes_beside_larger_labels():
    query = torch.eye(4)
    result = evaluate(query, torch.tensor([0, 1, 2, 44], dtype=torch.uint8), [1], query, [256, 257, 2, 300])
    assert result['recall@1'] == 1 / 4 and result['queries_without_positive'] == 3


@pytest.mark.parametrize('labels', [
    torch.tensor([0, 200, 200, 255, 0, 255], dtype=torch.uint8), torch.tensor([0, 2, 2, 7, 0, 7], dtype=torch.int32),
    [0, 2, 2, 7, 0, 7], np.array([-5, 2, 2, 7, -5, 7]), np.array([0, 60000, 60000, 7, 0, 7], dtype=np.uint16),
    [-2 ** 63, 2 ** 62, 2 ** 62, 2 ** 63 - 1, -2 ** 63, 2 ** 63 - 1],
], ids=['uint8', 'int32', 'list', 'numpy', 'uint16', 'far apart'])
def test_labels_of_any_integer_type(labels):
    query = vectors(6)
    assert evaluate(query, labels, [1, 3]) == evaluate(query, [0, 1, 1, 2, 0, 2], [1, 3])


# Types and settings


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_scores_are_those_of_the_float32_values(dtype):
    query, labels = normal(40, 20).double().add(1e-12).to(dtype), labels_of(40, 7)
    assert evaluate(query, labels, [1, 5]) == evaluate(query.float(), labels, [1, 5])
    for tile in (3, 1024):
        for k in (1, 40):
            assert same_search(search(query, query, k, tile=tile), expected_search(query, query, k))


def test_ties_of_the_float32_values_of_float64_embeddings():
    query = 1 + 1e-9 * normal(60, 8).double()
    labels = labels_of(60, 20)
    result = evaluate(query, labels, [1, 10, 59])
    assert result == pytest.approx(brute_force(query, labels, [1, 10, 59]), rel=1e-12)
    assert search(query, query, 60)[1].tolist() == [list(range(60))] * 60


def test_transposed_and_strided_embeddings():
    query, labels = normal(6, 80), labels_of(40, 7)
    view = query[:, ::2].T
    assert evaluate(view, labels, [1, 5]) == evaluate(view.contiguous(), labels, [1, 5])
    assert same_search(search(view, view, 5), search(view.contiguous(), view.contiguous(), 5))


def test_arguments_stay_as_they_are():
    query, labels = normal(40, 6), labels_of(40, 7)
    before = query.clone(), labels.clone()
    evaluate(query, labels, [1], tile=7)
    search(query, query, 3, exclude=torch.arange(40), tile=7)
    assert torch.equal(query, before[0]) and torch.equal(labels, before[1])


def results_under_settings():
    query, labels = 1 + 1e-3 * normal(90, 64), labels_of(90, 7)
    return evaluate(query, labels, [1, 5], tile=32), [x.tolist() for x in search(query, query[:50], 10, tile=32)]


@pytest.mark.parametrize('precision', ['high', 'medium'])
def test_matmul_precision_has_no_influence_and_stays(precision):
    expected, before = results_under_settings(), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        backends = [torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision]
        assert results_under_settings() == expected
        assert torch.get_float32_matmul_precision() == precision
        assert backends == [torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision]
        with pytest.raises(ValueError, match='k = 0'):
            search(torch.ones(2, 2), torch.ones(2, 2), 0)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_products_are_computed_in_full_precision(monkeypatch):
    products, before, seen = retrieval.products, torch.get_float32_matmul_precision(), set()

    def watched(*arguments):
        seen.add((torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision,
                  torch.is_autocast_enabled('cpu')))
        return products(*arguments)

    monkeypatch.setattr(retrieval, 'products', watched)
    try:
        torch.set_float32_matmul_precision('medium')
        with torch.autocast('cpu', torch.bfloat16):
            results_under_settings()
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {('ieee', 'ieee', False)}


def test_precision_is_restored_after_an_interruption(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(retrieval, 'products', interrupt)
    try:
        torch.set_float32_matmul_precision('medium')
        with pytest.raises(KeyboardInterrupt):
            search(torch.ones(2, 2), torch.ones(2, 2), 1)
        assert torch.backends.mkldnn.matmul.fp32_precision == 'bf16'
    finally:
        torch.set_float32_matmul_precision(before)


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


def test_means_over_many_queries_do_not_depend_on_threads():
    values = torch.rand(10, 60_502, generator=generator(0), dtype=torch.float64)
    before, results = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append([retrieval.summary({'rank': torch.ones(60_502, dtype=torch.int64), 'map@r': value,
                                               'r_precision': value}, [1]) for value in values])
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


def test_default_type_has_no_influence():
    expected = results_under_settings()
    query, labels = 1 + 1e-3 * normal(90, 64), labels_of(90, 7)
    torch.set_default_dtype(torch.float64)
    try:
        assert evaluate(query, labels, [1, 5], tile=32) == expected[0]
        assert [x.tolist() for x in search(query, query[:50], 10, tile=32)] == expected[1]
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('mode', [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_embeddings_with_gradients(mode):
    query, labels = normal(40, 6), labels_of(40, 7)
    expected = evaluate(query, labels, [1, 5])
    with mode():
        assert evaluate(query.clone().requires_grad_(mode is torch.enable_grad), labels, [1, 5]) == expected


# Refusals


def bad_row(value, dtype=torch.float32):
    embeddings = vectors(6).to(dtype)
    embeddings[4, 2] = value
    return embeddings


def bad_rows(count):
    embeddings = normal(count + 3, 2)
    embeddings[3:, 1] = torch.nan
    return embeddings


@pytest.mark.parametrize(('arguments', 'offender'), [
    ((bad_row(torch.nan), [0] * 6, [1]), 'query holds NaN or infinity in 1 images: 4$'),
    ((bad_row(-torch.inf), [0] * 6, [1]), 'query holds NaN or infinity in 1 images: 4$'),
    ((bad_row(1e300, torch.float64), [0] * 6, [1]), 'query holds NaN or infinity in 1 images: 4$'),
    ((bad_rows(12), [0] * 15, [1]), 'in 12 images: 3, 4, 5, 6, 7, 8, 9, 10, 11, 12$'),
    ((vectors(6), [0] * 6, [1], bad_row(torch.nan), [0] * 6), 'gallery holds NaN or infinity in 1 images: 4$'),
    ((bad_row(1e30), [0] * 6, [1]), 'scores beyond float32, normalise'),
    ((bad_row(3e38), [0] * 6, [1], bad_row(3e38), [0] * 6), 'scores beyond float32, normalise'),
    ((vectors(6), [0] * 6, [6]), r'recall@6: choose K from 1 to 5'),
    ((vectors(6), [0] * 6, [1, 7], vectors(6), [0] * 6), r'recall@7: choose K from 1 to 6'),
    ((vectors(6), [0] * 6, [0]), 'recall@0'),
    ((vectors(6), [0] * 6, [-1]), 'recall@-1'),
    ((vectors(6), [0] * 6, [1.5]), r'recall@1\.5'),
    ((vectors(6), [0] * 6, ['2']), 'recall@2'),
    ((vectors(1), [0], [1]), 'recall@1: choose K from 1 to 0'),
    ((vectors(6), [0] * 6, [1], vectors(4)), 'together'),
    ((vectors(6), [0] * 6, [1], None, [0] * 4), 'together'),
    ((vectors(6), [0] * 5, [1]), r'query_labels must be one per image \(6,\), not \(5,\)'),
    ((vectors(6), [[0]] * 6, [1]), r'query_labels must be one per image \(6,\), not \(6, 1\)'),
    ((vectors(6), [0.] * 6, [1]), 'query_labels must be integers, not torch.float32'),
    ((vectors(6), [0] * 6, [1], vectors(4), [0.] * 4), 'gallery_labels must be integers'),
    ((vectors(6), [0] * 6, [1], vectors(4), [0] * 6), 'gallery_labels must be one per image'),
    ((vectors(6), [0] * 6, [1], vectors(4, dimensions=5), [0] * 4), 'query has 6 dimensions, gallery 5'),
    ((torch.empty(0, 6), [], [1]), 'query must be a non-empty'),
    ((torch.empty(6, 0), [0] * 6, [1]), 'query must be a non-empty'),
    ((vectors(6), [0] * 6, [1], torch.empty(0, 6), []), 'gallery must be a non-empty'),
    ((vectors(6)[0], [0] * 6, [1]), 'query must be a non-empty'),
    ((vectors(6)[None], [0], []), r'query must be a non-empty .* not \(1, 6, 6\)'),
    ((vectors(6).long(), [0] * 6, [1]), 'query must be floating point, not torch.int64'),
    ((vectors(6), [0] * 6, [1], vectors(6).byte(), [0] * 6), 'gallery must be floating point, not torch.uint8'),
])
def test_what_evaluate_refuses(arguments, offender):
    with pytest.raises(ValueError, match=offender) as error:
        evaluate(*arguments)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(('k', 'exclude', 'offender'), [
    (0, None, 'k = 0'), (-1, None, 'k = -1'), (2.5, None, r'k = 2\.5'), (2.0, None, r'k = 2\.0'),
    (7, None, 'k = 7: choose from 1 to 6'), (6, torch.arange(6), 'k = 6: choose from 1 to 5'),
    (1, torch.arange(5), 'exclude must have one index per query'), (1, torch.full((6,), 6), 'exclude must lie'),
    (1, torch.full((6,), -2), 'exclude must lie'),
])
def test_what_search_refuses(k, exclude, offender):
    with pytest.raises(ValueError, match=offender):
        search(vectors(6), vectors(6), k, exclude)


@pytest.mark.parametrize(('query', 'gallery', 'offender'), [
    (bad_row(torch.nan), vectors(6), 'query holds NaN'), (vectors(6), bad_row(torch.inf), 'gallery holds NaN'),
    (vectors(6), vectors(6, dimensions=5), '6 dimensions, gallery 5'), (vectors(6), torch.empty(0, 6), 'gallery must'),
    (vectors(6)[0], vectors(6), 'query must'), (bad_row(1e30), bad_row(1e30), 'normalise'),
])
def test_which_embeddings_search_refuses(query, gallery, offender):
    with pytest.raises(ValueError, match=offender):
        search(query, gallery, 1)


def test_large_norms_that_fit_are_ranked():
    query = bad_row(9e18)
    assert same_search(search(query, query, 6), expected_search(query, query, 6))


# Intervals and comparison


def draw_results(rng, classes, spread=1.5):
    """Hits and labels of classes of uneven sizes whose shares of hits are drawn anew; expected share 1 / 2."""
    sizes = rng.integers(2, 30, size=classes)
    share = 1 / (1 + np.exp(-spread * rng.standard_normal(classes)))
    labels = np.repeat(np.arange(classes), sizes)
    return torch.from_numpy((rng.random(len(labels)) < share[labels]).astype(float)), torch.from_numpy(labels)


@pytest.mark.parametrize('classes', [30, 100])
def test_intervals_hold_the_true_value(classes):
    rng, held = np.random.default_rng(0), 0
    for draw in range(200):
        hits, labels = draw_results(rng, classes)
        (low, high), = confidence_intervals({'recall@1': hits}, labels, seed=draw).values()
        assert low <= hits.mean() <= high
        held += low <= .5 <= high
    assert 180 <= held <= 198


def test_intervals_of_embeddings_hold_the_expected_value():
    seen = []
    for draw in range(100):
        labels = torch.arange(40).repeat_interleave(torch.randint(2, 8, (40,), generator=generator(draw)))
        noise = torch.rand(40, 1, generator=generator(draw)) * 1.5
        query = normal(40, 8, seed=draw)[labels] + noise[labels] * normal(len(labels), 8, seed=draw + 1000)
        values = measures(rank_positives(F.normalize(query, dim=1), labels), [1])
        seen.append((values['recall@1'].mean().item(), *confidence_intervals(values, labels, 500)['recall@1']))
    expected = np.mean([mean for mean, _, _ in seen])
    assert 90 <= sum(low <= expected <= high for _, low, high in seen) <= 100


def test_intervals_by_seed():
    hits, labels = draw_results(np.random.default_rng(0), 30)
    values = {'recall@1': hits, 'map@r': hits / 2}
    found = confidence_intervals(values, labels)
    assert found == confidence_intervals(values, labels, seed=0) != confidence_intervals(values, labels, seed=1)
    assert found['map@r'] == pytest.approx([limit / 2 for limit in found['recall@1']])


def test_intervals_do_not_depend_on_the_numbers_or_order_of_classes():
    hits, labels = draw_results(np.random.default_rng(0), 30)
    order = torch.randperm(len(labels), generator=generator(0))
    expected = confidence_intervals({'recall@1': hits}, labels)['recall@1']
    assert confidence_intervals({'recall@1': hits}, labels * 7 - 50)['recall@1'] == expected
    shuffled = confidence_intervals({'recall@1': hits[order]}, labels[order].tolist())['recall@1']
    assert shuffled == pytest.approx(expected)


def test_images_of_a_class_are_not_taken_as_independent():
    labels, hits = torch.arange(20).repeat_interleave(50), (torch.arange(20) % 2).repeat_interleave(50).double()
    low, high = confidence_intervals({'recall@1': hits}, labels)['recall@1']
    assert high - low > .35  # as for 20 draws; 1000 independent ones have .06


def test_one_class_has_no_interval():
    values = {'recall@1': torch.rand(9), 'map@r': torch.rand(9)}
    for limits in confidence_intervals(values, [4] * 9).values():
        assert all(map(math.isnan, limits))
    difference, low, high, p = compare({'map@r': torch.zeros(9)}, {'map@r': torch.ones(9)}, [4] * 9)['map@r']
    assert difference == -1 and math.isnan(low) and math.isnan(high) and p == 1


def test_intervals_of_sixty_thousand_images_take_seconds():
    labels = labels_of(60_502, 11_316)
    values = {f'recall@{k}': torch.rand(60_502, generator=generator(k)) for k in range(6)}
    start = time.perf_counter()
    confidence_intervals(values, labels)
    compare(values, values, labels)
    assert time.perf_counter() - start < 15


def test_identical_results_do_not_differ():
    hits, labels = draw_results(np.random.default_rng(0), 30)
    assert compare({'recall@1': hits}, {'recall@1': hits.clone()}, labels) == {'recall@1': (0, 0, 0, 1)}


def test_p_is_uniform_where_nothing_differs():
    rng, found = np.random.default_rng(0), []
    for draw in range(200):
        sizes = rng.integers(2, 30, size=40)
        labels = torch.from_numpy(np.repeat(np.arange(40), sizes))
        share = rng.random(40)[labels]
        one, other = ((torch.from_numpy(rng.random(len(labels))) < torch.from_numpy(share)).double() for _ in 'ab')
        found.append(compare({'map@r': one}, {'map@r': other}, labels, 1000, seed=draw)['map@r'][3])
    assert .01 <= np.mean(np.array(found) < .05) <= .11
    assert .4 <= np.mean(found) <= .6


def test_p_is_uniform_where_whole_classes_differ_by_chance():
    rng, found = np.random.default_rng(1), []
    labels = torch.arange(30).repeat_interleave(20)
    for draw in range(200):
        one, other = (torch.from_numpy(rng.random(30))[labels] for _ in 'ab')
        found.append(compare({'map@r': one}, {'map@r': other}, labels, 1000, seed=draw)['map@r'][3])
    assert .01 <= np.mean(np.array(found) < .05) <= .11


def test_a_clear_difference_is_found_in_both_directions():
    hits, labels = draw_results(np.random.default_rng(0), 60)
    better = torch.maximum(hits, (torch.rand(len(hits), generator=generator(0)) < .4).double())
    (gain, low, high, p), = compare({'recall@1': better}, {'recall@1': hits}, labels).values()
    assert gain == pytest.approx((better - hits).mean().item()) and 0 < low < gain < high and p < .001
    (loss, lower, upper, same_p), = compare({'recall@1': hits}, {'recall@1': better}, labels).values()
    assert (loss, lower, upper, same_p) == pytest.approx((-gain, -high, -low, p), rel=1e-9)


@pytest.mark.parametrize('tile', [0, -1, 2.5])
def test_a_tile_is_a_size(tile):
    with pytest.raises(ValueError, match='tile = '):
        evaluate(vectors(6), [0] * 6, [1], tile=tile)
    with pytest.raises(ValueError, match='tile = '):
        search(vectors(6), vectors(6), 1, tile=tile)

"""Search and metrics against the definitions written out as loops, and the corner cases that fool evaluators."""
import pytest
import torch
from torch.nn import functional as F

import retrieval
from retrieval import evaluate, search


def brute_force(query, query_labels, ks, gallery=None, gallery_labels=None):
    """The definitions, one query at a time in float64: sort by score, then by gallery index."""
    alone = gallery is None
    if alone:
        gallery, gallery_labels = query, query_labels
    result = {**{f'recall@{k}': 0 for k in ks}, 'map@r': 0, 'r_precision': 0, 'queries_without_positive': 0}
    for i in range(len(query)):
        scores = [(-float(query[i].double() @ gallery[j].double()), j) for j in range(len(gallery))
                  if not (alone and i == j)]
        right = [bool(gallery_labels[j] == query_labels[i]) for _, j in sorted(scores)]
        total = sum(right)
        for k in ks:
            result[f'recall@{k}'] += any(right[:k]) / len(query)
        if total:
            result['r_precision'] += sum(right[:total]) / total / len(query)
            result['map@r'] += sum(sum(right[:r + 1]) / (r + 1) for r in range(total) if right[r]) / total / len(query)
        else:
            result['queries_without_positive'] += 1
    return result


def vectors(count, seed=0, dimensions=6):
    """Unit vectors of small dyadic numbers before scaling, so that float32 and float64 agree on ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, (count, dimensions), generator=generator).float() / 8


def labels_of(count, classes, seed=0):
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('block', [1, 50, 333, 2 ** 24])
@pytest.mark.parametrize('classes', [2, 9, 30])
def test_leave_one_out_equals_brute_force(classes, block, monkeypatch):
    monkeypatch.setattr(retrieval, 'BLOCK', block)
    query, labels, ks = vectors(40), labels_of(40, classes), [1, 3, 39, 2]
    assert evaluate(query, labels, ks) == pytest.approx(brute_force(query, labels, ks))


@pytest.mark.parametrize('block', [1, 50, 2 ** 24])
def test_query_against_gallery_equals_brute_force(block, monkeypatch):
    monkeypatch.setattr(retrieval, 'BLOCK', block)
    query, gallery, ks = vectors(17), vectors(30, seed=1), [30, 1, 10]
    arguments = (query, labels_of(17, 12), ks, gallery, labels_of(30, 10, seed=1))
    result = evaluate(*arguments)
    assert result == pytest.approx(brute_force(*arguments))
    assert result['queries_without_positive'] > 0 and result['recall@30'] < 1


def test_metrics_by_hand():
    # on a line of angles, the query 0 sees 1, 2, 3 in this order
    angles = torch.tensor([0., .1, .3, .6])
    query = torch.stack([angles.cos(), angles.sin()], dim=1)
    result = evaluate(query[:1], [7], [1, 2], query[1:], [5, 7, 7])
    assert result['recall@1'] == 0 and result['recall@2'] == 1
    assert result['r_precision'] == pytest.approx(1 / 2)   # one of the two nearest
    assert result['map@r'] == pytest.approx(1 / 2 * 1 / 2)  # precision 1/2 at place 2, divided by R = 2


@pytest.mark.parametrize('embeddings', [
    torch.ones(12, 3) / 3 ** 0.5,                              # all equal: order is the index
    F.normalize(torch.ones(12, 3), dim=1) * -1,
    vectors(4).repeat(3, 1),                                   # duplicated images
    torch.randint(0, 2, (12, 2)).float(),                      # few distinct scores
])
def test_ties_go_by_index_in_search_and_metrics(embeddings):
    labels = torch.arange(12) % 4
    scores, indices = search(embeddings, embeddings, 11, exclude=torch.arange(12))
    for row_scores, row in zip(scores.tolist(), indices.tolist()):
        pairs = list(zip([-score for score in row_scores], row))
        assert pairs == sorted(pairs)
    hits = labels[indices] == labels[:, None]
    result = evaluate(embeddings, labels, [1, 2, 5, 11])
    for k in (1, 2, 5, 11):
        assert result[f'recall@{k}'] == pytest.approx(hits[:, :k].any(dim=1).float().mean().item())


def test_the_query_is_excluded_by_index_not_by_place_or_sentinel():
    # every similarity is below -1, and each query has an exact double of another class before it
    embeddings = torch.tensor([[3., 0.], [3., 0.], [-3., .5], [-3., .5]])
    scores, indices = search(embeddings, embeddings, 3, exclude=torch.arange(4))
    assert indices.tolist() == [[1, 2, 3], [0, 2, 3], [3, 0, 1], [2, 0, 1]]
    assert torch.isfinite(scores).all()
    opposite = torch.tensor([[1., 0.], [-1., 0.]]) * 2
    assert search(opposite, opposite, 1, exclude=torch.arange(2))[0].tolist() == [[-4.], [-4.]]
    assert evaluate(opposite, [0, 0], [1])['recall@1'] == 1
    assert evaluate(embeddings, [0, 1, 2, 3], [1, 3]) == {'recall@1': 0, 'recall@3': 0, 'map@r': 0, 'r_precision': 0,
                                                          'queries_without_positive': 4}


def test_many_classes_and_small_label_types():
    query = torch.eye(300)
    assert evaluate(query, torch.arange(300), [1], query, torch.arange(300))['recall@1'] == 1
    halves = torch.cat([torch.eye(150), torch.eye(150)])
    assert evaluate(halves, (torch.arange(300) % 150).to(torch.uint8), [1])['recall@1'] == 1


def test_each_k_counts_once():
    query, labels = vectors(30), labels_of(30, 5)
    assert evaluate(query, labels, iter([2, 1, 2, 1])) == evaluate(query, labels, [1, 2])


def test_half_precision_is_widened():
    query, labels = vectors(20), labels_of(20, 4)
    assert evaluate(query.half(), labels, [1, 5]) == evaluate(query, labels, [1, 5])
    assert search(query.bfloat16(), query.bfloat16(), 3)[0].dtype == torch.float32


def test_order_of_images_does_not_matter():
    embeddings, labels, order = torch.randn(60, 8), labels_of(60, 7), torch.randperm(60)
    assert evaluate(embeddings, labels, [1, 4]) == pytest.approx(evaluate(embeddings[order], labels[order], [1, 4]))


def bad_row(value):
    embeddings = vectors(6)
    embeddings[4, 2] = value
    return embeddings


@pytest.mark.parametrize(('arguments', 'offender'), [
    ((bad_row(torch.nan), [0] * 6, [1]), 'NaN or infinity in 1 images: 4'),
    ((bad_row(torch.inf), [0] * 6, [1]), 'NaN or infinity in 1 images: 4'),
    ((vectors(6), [0] * 6, [6]), r'recall@6: choose K from 1 to 5'),
    ((vectors(6), [0] * 6, [0]), 'recall@0'),
    ((vectors(6), [0] * 6, [1.5]), r'recall@1\.5'),
    ((vectors(6), [0] * 6, [1], vectors(4)), 'together'),
    ((vectors(6), [0] * 6, [1], None, [0] * 4), 'together'),
    ((vectors(6), [0] * 5, [1]), 'query_labels'),
    ((vectors(6), [0] * 6, [1], vectors(4), [0] * 6), 'gallery_labels'),
    ((vectors(6), [0] * 6, [1], vectors(4, dimensions=5), [0] * 4), 'query has 6 dimensions, gallery 5'),
    ((torch.empty(0, 6), [], [1]), 'query must be a non-empty'),
    ((vectors(6)[0], [0] * 6, [1]), 'query must be a non-empty'),
    ((vectors(6).long(), [0] * 6, [1]), 'floating point'),
])
def test_what_evaluate_refuses(arguments, offender):
    with pytest.raises(ValueError, match=offender):
        evaluate(*arguments)


@pytest.mark.parametrize(('k', 'exclude', 'offender'), [
    (0, None, 'k = 0'), (7, None, 'k = 7: choose from 1 to 6'), (6, torch.arange(6), 'k = 6: choose from 1 to 5'),
    (1, torch.arange(5), 'exclude must have one index per query'), (1, torch.full((6,), 6), 'exclude must lie'),
])
def test_what_search_refuses(k, exclude, offender):
    with pytest.raises(ValueError, match=offender):
        search(vectors(6), vectors(6), k, exclude)

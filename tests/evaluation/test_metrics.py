"""Metrics against their definitions, by hand, and against what fools evaluators."""

import numpy as np
import pytest
import torch
from retrieval_cases import (
    KINDS,
    N,
    bad_row,
    brute_force,
    labels_of,
    make_embeddings,
    vectors,
)

from areir.errors import UserError
from areir.evaluation.metrics import (
    measures,
    rank_positives,
    summary,
    without_lone_queries,
)
from areir.retrieval import evaluate

kinds = pytest.mark.parametrize('kind', KINDS)


# Definitions


@kinds
@pytest.mark.parametrize('classes', [1, 9, 60])
def test_leave_one_out_equals_brute_force(kind, classes, seed):
    query, ks = make_embeddings(kind, seed), [1, 3, N - 1, 2]
    labels = labels_of(N, classes, seed)
    expected = brute_force(query, labels, ks)
    assert evaluate(query, labels, ks) == pytest.approx(
        expected, rel=1e-12, nan_ok=True
    )


@kinds
def test_query_against_gallery_equals_brute_force(kind, seed):
    embeddings, ks = make_embeddings(kind, seed), [20, 1, 10]
    query_labels = labels_of(17, 13, seed)
    gallery_labels = labels_of(20, 12, seed=seed + 1)
    arguments = (embeddings[:17], query_labels, ks, embeddings[2:], gallery_labels)
    expected = brute_force(*arguments)
    assert evaluate(*arguments) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_metrics_by_hand():
    """On a line of angles, the query 0 sees 1, 2, 3 in this order."""
    angles = torch.tensor([0.0, 0.1, 0.3, 0.6])
    query = torch.stack([angles.cos(), angles.sin()], dim=1)
    result = evaluate(query[:1], [7], [1, 2], query[1:], [5, 7, 7])
    assert result['recall@1'] == 0 and result['recall@2'] == 1
    assert result['r_precision'] == pytest.approx(1 / 2)  # one of the two nearest
    assert result['map@r'] == pytest.approx(1 / 2 * 1 / 2)  # 1/2 at rank 2, R = 2
    assert result['mean_rank'] == 2


def test_ranks_by_hand():
    """The third query's class has no image in the gallery."""
    query = torch.tensor([[1.0], [-1.0], [1.0]])
    gallery = torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0]])
    ranks = rank_positives(query, [0, 0, 9], gallery, [1, 0, 0, 1, 0])
    maps = [(1 / 2 + 2 / 3) / 3, (1 + 2 / 3) / 3, 0]
    assert ranks['positives'].tolist() == [3, 3, 0]
    assert ranks['rank'].tolist() == [2, 1, 0]
    values = {name: each.tolist() for name, each in measures(ranks, [1, 2]).items()}
    assert values == {
        'recall@1': [0, 1, 0],
        'recall@2': [1, 1, 0],
        'map@r': pytest.approx(maps),
        'r_precision': pytest.approx([2 / 3, 2 / 3, 0]),
    }
    assert summary(ranks, [1])['recall@1'] == 1 / 3
    count, means = without_lone_queries(ranks, [1, 2])
    assert count == 2
    for name, mean in means.items():
        assert mean == pytest.approx(sum(values[name]) / 2)


# Images that a query ignores, and distractors


def marks(count, high, seed):
    """Numbers from -1, which says none, to high - 1."""
    return (labels_of(count, high + 1, seed) - 1).tolist()


@kinds
@pytest.mark.parametrize('ignored', ['groups', 'files', 'groups and files'])
def test_ignored_images_equal_brute_force(kind, ignored, seed):
    query, ks = make_embeddings(kind, seed), [1, 3, 10]
    labels = torch.tensor(marks(N, 4, seed))
    names = ignored.split(' and ')
    alone = {name: marks(N, 3, seed + 1 + len(name)) for name in names}
    expected = brute_force(query, labels, ks, **alone)
    for tile in (5, 1024):
        result = evaluate(query, labels, ks, tile=tile, **alone)
        assert result == pytest.approx(expected, rel=1e-12, nan_ok=True)

    gallery = query[3:], torch.tensor(marks(N - 3, 4, seed + 9))
    apart = {f'gallery_{name}': marks(N - 3, 3, seed + 7) for name in names} | alone
    expected = brute_force(query, labels, ks, *gallery, **apart)
    for tile in (5, 1024):
        result = evaluate(query, labels, ks, *gallery, tile=tile, **apart)
        assert result == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_the_rules_of_re_identification_by_hand():
    """Market-1501: the query's own camera is ignored, background is searched.

    The query, identity 7 of camera 1, sees in this order: itself (camera 1), a
    distractor, 7 of camera 2, identity 5 of camera 1, 7 of camera 3, a distractor.
    """
    query, angles = torch.tensor([[1.0, 0.0]]), torch.arange(6) / 10
    gallery = torch.stack([angles.cos(), angles.sin()], dim=1)
    result = evaluate(
        *(query, [7], [1, 2], gallery, [7, -1, 7, 5, 7, -1]),
        groups=[1],
        gallery_groups=[1, 1, 2, 1, 3, 4],
    )
    assert (result['recall@1'], result['recall@2']) == (0, 1)
    assert result['map'] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert result['map@r'] == pytest.approx(1 / 2 * 1 / 2)
    assert result['mean_rank'] == 2


def test_distractors_do_not_query():
    embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    assert evaluate(embeddings, [3, 3, -1, -1], [1])['recall@1'] == 1
    assert evaluate(embeddings, [3, -1, 3, -1], [1])['recall@1'] == 0
    with pytest.raises(UserError, match='labels: they are of distractors only'):
        evaluate(embeddings, [-1] * 4, [1])


def test_any_number_of_a_file_is_of_that_file_alone():
    assert evaluate(torch.eye(2), [0, 0], [1], files=[3, -1])['recall@1'] == 1


def test_marks_are_for_both_sides():
    with pytest.raises(UserError, match='files and gallery_files'):
        evaluate(torch.eye(2), [0, 1], [1], torch.eye(2), [0, 1], files=[0, 1])
    with pytest.raises(UserError, match='groups must be one per image'):
        evaluate(torch.eye(2), [0, 1], [1], groups=[1])


# What fools evaluators


def test_the_query_is_excluded_by_index_not_by_place_or_sentinel():
    embeddings = torch.tensor([[3.0, 0.0], [3.0, 0.0], [-3.0, 0.5], [-3.0, 0.5]])
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]) * 2
    assert evaluate(opposite, [0, 0], [1])['recall@1'] == 1
    result = evaluate(embeddings, [0, 1, 2, 3], [1, 3])
    assert result.pop('queries_without_positive') == 4
    assert np.isnan(result.pop('mean_rank'))
    assert set(result.values()) == {0}


def test_dropping_the_first_image_is_not_excluding_the_query():
    """Image 0 is nearest to all, itself included."""
    embeddings = torch.tensor(
        [[9.0, 9.0], [1.0, 0.1], [1.0, 0.2], [0.1, 1.0], [0.2, 1.0]]
    )
    result = evaluate(embeddings, [0, 1, 1, 2, 2], [1, 2])
    assert (result['recall@1'], result['recall@2']) == (0, 0.8)
    assert result['mean_rank'] == 2


def test_query_and_gallery_share_one_numbering_of_classes():
    """Numbered by themselves, both would have the classes 0 and 1."""
    result = evaluate(torch.eye(2), [10, 20], [1], torch.eye(2), [20, 30])
    assert (result['recall@1'], result['mean_rank']) == (0, 2)
    assert result['queries_without_positive'] == 1


# Types


@pytest.mark.parametrize(
    'labels',
    [
        torch.tensor([0, 200, 200, 255, 0, 255], dtype=torch.uint8),
        torch.tensor([0, 2, 2, 7, 0, 7], dtype=torch.int32),
        [0, 2, 2, 7, 0, 7],
        np.array([-5, 2, 2, 7, -5, 7]),
        np.array([0, 60000, 60000, 7, 0, 7], dtype=np.uint16),
        [-(2**63), 2**62, 2**62, 2**63 - 1, -(2**63), 2**63 - 1],
    ],
    ids=['uint8', 'int32', 'list', 'numpy', 'uint16', 'far apart'],
)
def test_labels_of_any_integer_type(labels):
    query = vectors(6)
    expected = evaluate(query, [0, 1, 1, 2, 0, 2], [1, 3])
    assert evaluate(query, labels, [1, 3]) == expected


# Refusals


@pytest.mark.parametrize(
    ('query', 'labels', 'offender'),
    [
        (bad_row(torch.nan), [0] * 6, 'embeddings holds NaN .* 1 image: 4$'),
        (bad_row(1e300, torch.float64), [0] * 6, 'embeddings holds NaN .* 1 image: 4$'),
        (bad_row(1e30), [0] * 6, 'query .* normalise'),
        (vectors(6), [0] * 5, r'^labels .* \(6,\), not \(5,\)'),
        (vectors(6), [[0, 1]] * 6, r'labels .* \(shape \(6, 2\)\)'),
        (vectors(6), [0.5] * 6, r'labels .* \(0\.5 of float64 is among them\)'),
        (torch.empty(0, 6), [], 'embeddings must'),
        (vectors(6)[0], [0] * 6, 'embeddings must'),
        (vectors(6).long(), [0] * 6, r'embeddings must .*torch\.int64'),
        (vectors(1), [0], 'recall@1: .* 1 to 0'),
    ],
)
def test_evaluate_refuses_queries(query, labels, offender):
    with pytest.raises(UserError, match=offender) as error:
        evaluate(query, labels, [1])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ('gallery', 'labels', 'offender'),
    [
        (bad_row(torch.nan), [0] * 6, 'gallery holds NaN .* 1 image: 4$'),
        (bad_row(3e38), [0] * 6, 'gallery: .* normalise'),
        (vectors(4), None, 'gallery and gallery_labels'),
        (None, [0] * 4, 'gallery and gallery_labels'),
        (vectors(4), [0] * 6, 'gallery_labels must be one per image'),
        (vectors(4, dimensions=5), [0] * 4, 'query has 6 dimensions, gallery 5'),
        (torch.empty(0, 6), [], 'gallery must'),
    ],
)
def test_evaluate_refuses_galleries(gallery, labels, offender):
    query = bad_row(3e38) if 'normalise' in offender else vectors(6)
    with pytest.raises(UserError, match=offender):
        evaluate(query, [0] * 6, [1], gallery, labels)


@pytest.mark.parametrize(('k', 'last'), [(6, 5), (0, 5), (1.5, 5)])
def test_evaluate_refuses_k(k, last):
    with pytest.raises(UserError, match=f'recall@{k}: .* 1 to {last}'):
        evaluate(vectors(6), [0] * 6, [k])

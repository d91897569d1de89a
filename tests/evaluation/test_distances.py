"""Vectors of any length, ranked by each metric."""

import pytest
import torch
from embedding_files import (
    EMBEDDINGS,
    LABELS,
    folder,
    metrics_of,
    refusal,
    save,
    save_plain,
    with_bad_row,
)
from torch.nn import functional as F

from areir.evaluation.embeddings_file import rank_file
from areir.evaluation.metrics import summary
from areir.retrieval import evaluate

pytestmark = pytest.mark.usefixtures(folder.__name__)


def lengthened(vectors, low=0.3, high=3.0):
    return vectors * torch.linspace(low, high, len(vectors))[:, None]


def nearest_first(query, gallery):
    """Return the order of the gallery by distance, in float64."""
    return torch.cdist(query.double(), gallery.double()).argsort(dim=1)


LONG = lengthened(EMBEDDINGS)


@pytest.mark.parametrize('metric', [None, 'cosine'])
def test_vectors_of_unequal_length_are_normalised(metric):
    ranked = rank_file(save_plain('file.pt', embeddings=LONG), 'cpu', metric=metric)
    expected = evaluate(F.normalize(EMBEDDINGS), LABELS, [1, 4])
    assert summary(ranked.ranks, [1, 4]) == expected
    if metric is None:
        assert '(0.52 to 5.2)' in ranked.notices[0]
    else:
        assert not ranked.notices


def test_vectors_of_almost_one_length_are_normalised():
    vectors = (F.normalize(EMBEDDINGS) * 127).round().to(torch.int8)
    path = save_plain('file.pt', embeddings=vectors)
    expected = evaluate(F.normalize(vectors.double()).float(), LABELS, [1, 4])
    assert metrics_of(path) == expected
    assert 'not of unit length' in rank_file(path, 'cpu').notices[-1]


@pytest.mark.parametrize('metric', ['dot', 'euclidean'])
def test_a_vector_that_is_far_too_long_is_said(metric):
    vectors = EMBEDDINGS.clone()
    vectors[0] *= 1e4
    path = save_plain('file.pt', embeddings=vectors)
    ranked = rank_file(path, 'cpu', metric=metric, with_pairs=True)
    assert '--verification is coarse' in ranked.notices[-1]
    ranked = rank_file(path, 'cpu', metric='cosine', with_pairs=True)
    assert not ranked.notices


def test_dot_products_are_of_the_vectors_as_they_are():
    path = save_plain('file.pt', embeddings=LONG)
    assert metrics_of(path, metric='dot') == evaluate(LONG, LABELS, [1, 4])
    path = save_plain('file.pt', embeddings=with_bad_row(1e30))
    assert 'normalise' in refusal(path, metric='dot')


@pytest.mark.parametrize('apart', [False, True])
@pytest.mark.parametrize(('scale', 'offset'), [(1, 0), (1e25, 0), (1e-25, 0), (1, 100)])
def test_euclidean_distances(apart, scale, offset):
    vectors = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    vectors = lengthened(vectors) * scale + offset
    labels = torch.arange(300) % 40
    if apart:
        query, gallery = vectors[:80], vectors[80:]
        entries = {'query_embeddings': query, 'query_labels': labels[:80]}
        path = save('file.pt', embeddings=gallery, labels=labels[80:], **entries)
        order = nearest_first(query, gallery)
        hits = labels[80:][order] == labels[:80, None]
    else:
        path = save('file.pt', embeddings=vectors, labels=labels)
        order = nearest_first(vectors, vectors)[:, 1:]
        hits = labels[order] == labels[:, None]
    ranks = rank_file(path, 'cpu', metric='euclidean').ranks
    assert torch.equal(ranks['rank'], hits.int().argmax(dim=1) + 1)


def test_vectors_of_one_length_are_ranked_alike():
    path = save_plain('file.pt', embeddings=EMBEDDINGS * 7)
    expected = evaluate(EMBEDDINGS, LABELS, [1, 4])
    for metric in (None, 'cosine', 'dot', 'euclidean'):
        assert metrics_of(path, metric=metric) == expected
    for embeddings in (EMBEDDINGS * 7, EMBEDDINGS.half(), EMBEDDINGS.bfloat16()):
        assert not rank_file(
            save_plain('file.pt', embeddings=embeddings), 'cpu'
        ).notices


def test_vectors_of_zeros_have_no_direction():
    embeddings = EMBEDDINGS.clone()
    embeddings[[3, 5]] = 0
    path = save_plain('file.pt', embeddings=embeddings)
    for metric in (None, 'cosine'):
        assert 'zeros only in 2 images: 3, 5' in refusal(path, metric=metric)
    assert metrics_of(path, metric='dot') == evaluate(embeddings, LABELS, [1, 4])
    rank_file(path, 'cpu', metric='euclidean')

"""The approximate index: its scores are exact, and its recall is measured."""

import os
import sys

import pytest
import torch
from photos import draw_photos, flip_bit, random_vectors, update

from areir.errors import UserError
from areir.evaluation.scores import pair_scores, to_keys
from areir.gallery import approximate
from areir.gallery.vectors import VectorsFile


@pytest.fixture
def faiss():
    return pytest.importorskip('faiss', reason='faiss is optional')


def test_without_faiss_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(UserError, match=r'--index faiss: .*pip install faiss-cpu'):
        approximate.load_faiss()


def assert_same_answers(index, stored, *search):
    """Check that both find the same; search: the arguments of `search`."""
    for one, other in zip(index.search(*search), stored.search(*search)):
        assert torch.equal(one, other)


def test_scores_are_exact_and_recall_is_as_measured(tmp_path, faiss):
    stored, vectors = random_vectors(tmp_path, 3000)
    index, measured = approximate.build(stored)
    assert measured['recall'] >= approximate.RECALL
    own = torch.arange(100)
    scores, indices = index.search(vectors[:100], 8, own)
    exact_scores, exact = stored.search(vectors[:100], 8, own)
    recall = (indices[:, :, None] == exact[:, None]).any(dim=1).double().mean().item()
    assert recall > 0.9 and not (indices == own[:, None]).any()
    same = indices[:, 0] == exact[:, 0]
    assert torch.equal(scores[same, 0], exact_scores[same, 0])


@pytest.mark.parametrize('distinct', [None, 75])
@pytest.mark.parametrize('factor', [1, -3])
def test_images_are_ordered_by_their_scores_then_by_index(
    tmp_path, faiss, distinct, factor
):
    """Where each vector is there once or 8 times."""
    stored, vectors = random_vectors(tmp_path, 600, distinct=distinct)
    query, own = factor * vectors, torch.arange(600)
    scores, indices = approximate.build(stored)[0].search(query, 8, own)
    rows = own.repeat_interleave(8)
    expected = pair_scores(query, vectors, rows, indices.flatten())
    assert torch.equal(scores.flatten(), expected)
    keys = to_keys(scores, indices)
    assert (keys.diff(dim=1) > 0).all() and not (indices == own[:, None]).any()


def test_a_score_halfway_between_two_floats_is_rounded_to_even(tmp_path, faiss):
    """0.5 + 2**-24 + 2**-25 becomes 0.5 + 2**-23, as in exact search.

    The second image has 0.5 + 2**-24, which float32 holds.
    """
    rows = torch.zeros(2, 3)
    rows[:, 0] = 0.5 + 2**-24
    rows[0, 1] = 2**-13
    rows[:, 2] = 0.75**0.5
    rows.numpy().tofile(tmp_path / 'vectors.f32')
    stored = VectorsFile(str(tmp_path / 'vectors.f32'), 3)
    index, _ = approximate.build(stored)
    query = torch.tensor([[1, 2**-12, 0]])
    scores, indices = index.search(query, 2)
    assert scores.tolist() == [[0.5 + 2**-23, 0.5 + 2**-24]]
    assert indices.tolist() == [[0, 1]]
    assert_same_answers(index, stored, query, 2)


def test_more_images_asked_for_than_there_are(tmp_path, faiss):
    """The excluded image is not found, and two places stay empty."""
    stored, vectors = random_vectors(tmp_path, 4)
    index, _ = approximate.build(stored)
    exact_scores, exact = stored.search(vectors, 3, torch.arange(4))
    scores, indices = index.search(vectors, 5, torch.arange(4))
    assert torch.equal(scores[:, :3], exact_scores)
    assert torch.equal(indices[:, :3], exact)
    assert (scores[:, 3:] == -torch.inf).all() and (indices[:, 3:] == -1).all()


@pytest.fixture
def opened(tmp_path, faiss):
    """Return (photos, a function that opens their approximate index)."""
    photos = draw_photos(tmp_path / 'photos')

    def called():
        return approximate.open_approximate(update(photos, tmp_path / 'index'))

    return photos, called


def test_it_is_built_once(opened, monkeypatch):
    _, again = opened
    first = again()
    monkeypatch.setattr(approximate, 'build', None)
    second = again()
    assert second.faiss_index.hnsw.efSearch == first.faiss_index.hnsw.efSearch
    assert_same_answers(second, first, torch.from_numpy(first.vectors), 3)


@pytest.mark.parametrize('damage', ['missing', 'short', 'a flipped bit'])
def test_a_damaged_one_is_built_again(opened, tmp_path, damage):
    _, again = opened
    first = again()
    (path,) = (tmp_path / 'index').glob('*.faiss')
    if damage == 'missing':
        path.unlink()
    elif damage == 'short':
        os.truncate(path, 100)
    else:
        flip_bit(path, path.stat().st_size // 2)
    assert_same_answers(again(), first, torch.from_numpy(first.vectors), 3)


def test_a_changed_folder_has_another_one(opened, tmp_path):
    photos, again = opened
    again()
    (photos / 'a/0.png').unlink()
    assert again().faiss_index.ntotal == 6
    assert len([*(tmp_path / 'index').glob('*.faiss')]) == 1

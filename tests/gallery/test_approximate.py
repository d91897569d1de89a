"""The approximate index: its scores are exact, and its recall is measured."""

import json
import sys

import numpy as np
import pytest
import torch
from photos import random_vectors

from areir.errors import UserError
from areir.gallery import approximate
from areir.gallery.vectors_file import VectorsFile


@pytest.fixture
def faiss():
    return pytest.importorskip('faiss', reason='faiss is optional')


@pytest.fixture
def vectors_3000(tmp_path, faiss):
    return random_vectors(tmp_path, 3000)


def test_without_faiss_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(UserError, match=r'--index faiss: .*pip install faiss-cpu'):
        approximate.load_faiss()


def test_scores_are_exact_and_recall_is_as_measured(tmp_path, vectors_3000):
    stored, vectors = vectors_3000
    index = approximate.open_approximate(str(tmp_path), stored)
    measured = index.measured
    assert measured['recall'] >= approximate.RECALL
    assert 1 <= measured['looked_into'] <= measured['cells']
    own = torch.arange(100)
    scores, indices = index.search(vectors[:100], 8, own)
    exact_scores, exact = stored.search(vectors[:100], 8, own)
    recall = (indices[:, :, None] == exact[:, None]).any(dim=1).double().mean().item()
    assert recall > 0.9 and not (indices == own[:, None]).any()
    same = indices[:, 0] == exact[:, 0]
    assert torch.equal(scores[same, 0], exact_scores[same, 0])
    pairs = vectors[:100, None].double() * vectors[indices].double()
    torch.testing.assert_close(scores, pairs.sum(dim=2).float())
    assert (scores.diff(dim=1) <= 0).all()


def test_it_is_read_from_its_file(tmp_path, vectors_3000, monkeypatch):
    stored, vectors = vectors_3000
    first = approximate.open_approximate(str(tmp_path), stored)
    monkeypatch.setattr(approximate, 'build', None)
    again = approximate.open_approximate(str(tmp_path), stored)
    expected = first.search(vectors[:100], 8)
    for one, other in zip(again.search(vectors[:100], 8), expected):
        assert torch.equal(one, other)


def test_a_damaged_one_is_built_again(tmp_path, vectors_3000, faiss):
    stored, _ = vectors_3000
    measured = approximate.open_approximate(str(tmp_path), stored).measured
    table = tmp_path / 'vectors.faiss.json'
    damages = (
        '[1]',
        '{"looked_into": 1}',
        json.dumps({**measured, 'looked_into': 0}),
        json.dumps({**measured, 'recall': 'x'}),
        json.dumps({**measured, 'cells': float('inf')}),
        json.dumps({**measured, 'nearest': 2.5}),
        json.dumps(measured),  # as earlier versions wrote it
    )
    for damage in damages:
        table.write_text(damage)
        index = approximate.open_approximate(str(tmp_path), stored)
        saved = json.loads(table.read_text())
        assert saved.pop('checksum')
        assert index.measured == measured == saved
    (tmp_path / 'vectors.faiss').write_bytes(b'damaged')
    assert approximate.open_approximate(str(tmp_path), stored).measured == measured
    other = str(tmp_path / 'vectors.faiss')
    faiss.write_index(faiss.IndexFlatIP(6), other)
    index = approximate.open_approximate(str(tmp_path), stored)
    assert index.faiss_index.ntotal == 3000 and index.measured == measured


def test_changed_numbers_are_noticed(tmp_path, vectors_3000):
    stored, _ = vectors_3000
    approximate.open_approximate(str(tmp_path), stored)
    path, table = tmp_path / 'vectors.faiss', tmp_path / 'vectors.faiss.json'
    content = path.read_bytes()
    for place in range(len(content) // 2, len(content), len(content) // 8):
        changed = bytearray(content)
        changed[place] ^= 64
        path.write_bytes(changed)
        approximate.open_approximate(str(tmp_path), stored)
        assert path.read_bytes() == content
    saved = json.loads(table.read_text())
    table.write_text(json.dumps({**saved, 'looked_into': saved['looked_into'] + 1}))
    approximate.open_approximate(str(tmp_path), stored)
    assert json.loads(table.read_text()) == saved


@pytest.mark.parametrize('count', [1, 2, 9, 40])
def test_a_small_one(tmp_path, faiss, count):
    stored, vectors = random_vectors(tmp_path, count)
    index = approximate.open_approximate(str(tmp_path), stored)
    assert index.measured['recall'] == 1  # it has one cell
    assert_same_answers(index, stored, vectors, min(8, count))


def test_missing_candidates_are_marked(tmp_path, faiss):
    stored, vectors = random_vectors(tmp_path, 400)
    index = approximate.open_approximate(str(tmp_path), stored)
    index.faiss_index.nprobe = 1
    scores, indices = index.search(vectors[:5], 400)
    assert (indices[:, -1] == -1).all() and (scores[:, -1] == -torch.inf).all()
    assert ((indices == -1) == (scores == -torch.inf)).all()


def open_with_all_cells(folder, stored):
    """Return the approximate index of a VectorsFile; it looks into every cell."""
    index = approximate.open_approximate(str(folder), stored)
    index.faiss_index.nprobe = index.faiss_index.nlist
    return index


def assert_same_answers(index, stored, *search):
    """Check that both find the same; search: the arguments of `search`."""
    for one, other in zip(index.search(*search), stored.search(*search)):
        assert torch.equal(one, other)


@pytest.mark.parametrize('distinct', [None, 200, 75])
def test_all_cells_give_what_exact_search_gives(tmp_path, faiss, distinct):
    """The same scores in the same order, where each vector is there 1, 3 or 8 times."""
    stored, vectors = random_vectors(tmp_path, 600, distinct=distinct)
    index = open_with_all_cells(tmp_path, stored)
    assert index.faiss_index.nlist > 1
    own = torch.arange(600)
    assert_same_answers(index, stored, vectors, 8)
    assert_same_answers(index, stored, vectors, 8, own)
    assert_same_answers(index, stored, vectors[:1], 8, own[:1])
    assert_same_answers(index, stored, -3 * vectors, 5)


def test_a_score_halfway_between_two_floats_is_rounded_to_even(tmp_path, faiss):
    """0.5 + 2**-24 + 2**-25 becomes 0.5 + 2**-23, as in exact search.

    The second image has 0.5 + 2**-24, which float32 holds.
    """
    rows = torch.zeros(2, 3)
    rows[:, 0] = 0.5 + 2**-24
    rows[0, 1] = 2**-13
    rows[:, 2] = 0.75**0.5
    np.save(tmp_path / 'vectors.npy', rows.numpy())
    stored = VectorsFile(str(tmp_path / 'vectors.npy'))
    index = open_with_all_cells(tmp_path, stored)
    query = torch.tensor([[1, 2**-12, 0]])
    scores, indices = index.search(query, 2)
    assert scores.tolist() == [[0.5 + 2**-23, 0.5 + 2**-24]]
    assert indices.tolist() == [[0, 1]]
    assert_same_answers(index, stored, query, 2)


def test_more_images_asked_for_than_there_are(tmp_path, faiss):
    """The excluded image is not found, and two places stay empty."""
    stored, vectors = random_vectors(tmp_path, 4)
    index = open_with_all_cells(tmp_path, stored)
    exact_scores, exact = stored.search(vectors, 3, torch.arange(4))
    scores, indices = index.search(vectors, 5, torch.arange(4))
    assert torch.equal(scores[:, :3], exact_scores)
    assert torch.equal(indices[:, :3], exact)
    assert (scores[:, 3:] == -torch.inf).all() and (indices[:, 3:] == -1).all()

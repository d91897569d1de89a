"""Best right and best wrong scores: by hand, in blocks, and against search."""

import math

import pytest
import torch
from retrieval_cases import labels_of, normal
from torch.nn import functional as F

from areir.evaluation.scores import BestScores, score_blocks
from areir.retrieval import search


def collect(query, query_labels, gallery, gallery_labels, own, block=128):
    best = BestScores(len(query))
    arguments = (query, query_labels, gallery, gallery_labels, own)
    for scores in score_blocks(*arguments, block):
        best.add(scores)
    return best


@pytest.fixture
def images(seed):
    embeddings = F.normalize(normal(60, 8, seed=seed), dim=1)
    return embeddings, labels_of(60, 9, seed)


def test_hand_made_vectors():
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])
    labels = torch.tensor([0, 1, 1, 0])
    best = collect(gallery, labels, gallery, labels, torch.arange(4))
    assert best.best_right.tolist() == pytest.approx([0.6, 0, 0, 0.6])
    assert best.nearest_right.tolist() == [3, 2, 1, 0]
    assert best.best_wrong.tolist() == pytest.approx([0, 0.8, -0.6, 0.8])


def test_queries_without_a_right_or_a_wrong_image():
    query, gallery = torch.eye(2), torch.eye(2)
    none = torch.full((2,), -1)
    best = collect(query, torch.tensor([5, 6]), gallery, torch.tensor([6, 6]), none)
    assert best.best_right.tolist() == [-math.inf, 1]
    assert best.best_wrong.tolist() == [1, -math.inf]


def test_the_query_itself_is_neither_right_nor_wrong():
    images, labels = torch.eye(3), torch.tensor([0, 0, 1])
    own = torch.tensor([0, -1, 2])
    (block,) = score_blocks(images, labels, images, labels, own, 10)
    assert block.rows.tolist() == [0, 1, 2]
    assert block.right.int().tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert block.wrong.int().tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert torch.equal(block.scores, torch.eye(3))


@pytest.mark.parametrize('block', [1, 7, 60])
def test_every_block_gives_the_same_scores(images, block):
    own = torch.arange(60)
    whole = collect(*images, *images, own)
    blocks = collect(*images, *images, own, block)
    assert torch.equal(whole.nearest_right, blocks.nearest_right)
    assert torch.allclose(whole.best_right, blocks.best_right)
    assert torch.allclose(whole.best_wrong, blocks.best_wrong)


def test_the_nearest_image_is_that_of_search(images):
    embeddings, labels = images
    own = torch.arange(60)
    best = collect(*images, *images, own)
    scores, indices = search(embeddings, embeddings, 1, own)
    right = labels[indices[:, 0]] == labels
    nearest = torch.where(right, best.best_right, best.best_wrong)
    assert torch.allclose(nearest, scores[:, 0], atol=1e-6)
    assert torch.equal(best.nearest_right[right], indices[right, 0])

"""Counting: every tile and workspace gives the same numbers, on hard data too."""

import pytest
import torch
from retrieval_cases import (
    CONSTANTS,
    FEW_KINDS,
    TILES,
    N,
    brute_force,
    duplicates,
    generator,
    labels_of,
    make_embeddings,
    normal,
)
from torch.nn import functional as F

from areir.evaluation import scores
from areir.evaluation.counting import AheadCounter, LabelledImages, positive_keys
from areir.retrieval import evaluate


@pytest.mark.parametrize('kind', FEW_KINDS)
@pytest.mark.parametrize('classes', [4, 15])
def test_every_tile_size_gives_the_same_numbers(kind, classes, seed):
    query, labels = make_embeddings(kind, seed), labels_of(N, classes, seed)
    gallery, ks = (query[:15], labels[:15]), [1, 5, 15]
    expected = evaluate(query, labels, ks), evaluate(query, labels, ks, *gallery)
    for tile in TILES:
        alone = evaluate(query, labels, ks, tile=tile)
        apart = evaluate(query, labels, ks, *gallery, tile=tile)
        assert (alone, apart) == expected


@pytest.mark.parametrize('kind', FEW_KINDS)
@pytest.mark.parametrize('constant', CONSTANTS)
def test_every_workspace_gives_the_same_numbers(kind, constant, monkeypatch):
    query, labels, ks = make_embeddings(kind), labels_of(N, 4), [1, 5, 15]
    gallery = (query[:15], labels[:15])
    expected = evaluate(query, labels, ks), evaluate(query, labels, ks, *gallery)
    monkeypatch.setattr(*CONSTANTS[constant])
    alone = evaluate(query, labels, ks, tile=7)
    assert (alone, evaluate(query, labels, ks, *gallery, tile=7)) == expected


def uneven_labels(count, seed=0):
    """One class of a third of the images, many of one image, and some between."""
    third = count // 3
    random = torch.rand(count - third, generator=generator(seed))
    rest = (random**2 * count / 3).long() + 1
    labels = torch.cat([torch.zeros(third, dtype=torch.long), rest])
    return labels[torch.randperm(count, generator=generator(seed))]


def test_clustered_images_of_uneven_classes(seed):
    labels = uneven_labels(700, seed)
    centres, noise = normal(300, 40, seed=seed), normal(700, 40, seed=seed + 100)
    query, ks = F.normalize(centres[labels] + 1.2 * noise, dim=1), [1, 2, 10, 100, 699]
    result = evaluate(query, labels, ks)
    assert result == pytest.approx(
        brute_force(query, labels, ks), rel=1e-12, nan_ok=True
    )
    assert evaluate(query, labels, ks, tile=100) == result


@pytest.mark.parametrize('noise', [1e-4, 1e-7])
def test_collapsed_embeddings(noise, seed):
    query, labels = 1 + noise * normal(300, 24, seed=seed), uneven_labels(300, seed)
    result = evaluate(query, labels, [1, 5, 50])
    assert result == pytest.approx(
        brute_force(query, labels, [1, 5, 50]), rel=1e-12, nan_ok=True
    )
    assert evaluate(query, labels, [1, 5, 50], tile=64) == result


def test_duplicated_images_far_apart():
    gallery, labels = duplicates(300, 3, dimensions=576), torch.arange(900) // 3
    expected = evaluate(gallery, labels, [1, 2, 899])
    assert evaluate(gallery, labels, [1, 2, 899], tile=64) == expected


@pytest.fixture
def images():
    query, gallery = torch.tensor([[1.0], [-1.0]]), torch.arange(6.0)[:, None]
    gallery_class = torch.tensor([0, 1, 1, 0, 2, 0])
    bound = scores.check_pair(query, gallery)
    return LabelledImages(
        query, gallery, torch.tensor([0, 1]), gallery_class, False, bound
    )


def test_positive_keys_by_hand(images):
    keys = positive_keys(images, 0, torch.tensor([3, 2]))
    assert scores.to_indices(keys).tolist() == [5, 3, 0, 1, 2]
    assert scores.to_scores(keys).tolist() == [5, 3, 0, -1, -2]


@pytest.mark.parametrize('tile', [1, 2, 6])
def test_images_ahead_by_hand(images, tile):
    """Query 1 gives up its second positive: 1 of 2 images ahead and itself."""
    positives = torch.tensor([3, 2])
    keys = positive_keys(images, 0, positives)
    counter = AheadCounter(images, 0, positives, keys)
    ahead = counter.count(tile)
    assert ahead[:2].tolist() == [0, 1]
    assert ahead[3] == 1
    assert counter.live.tolist() == [2, 1]

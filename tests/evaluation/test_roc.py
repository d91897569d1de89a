"""True matches at shares of false ones, against thresholds on all pairs."""

import math

import pytest
import torch
from retrieval_cases import labels_of, normal
from torch.nn import functional as F

from areir.evaluation.metrics import label_images, rank_images
from areir.evaluation.roc import PairCounter, verification


def verify(*arguments, tile=64, **marks):
    images = label_images(*arguments, **marks)
    pairs = PairCounter(images, images.bound)
    ranks = rank_images(images, tile, pairs=pairs)
    plain = rank_images(images, tile)
    assert all(torch.equal(ranks[name], plain[name]) for name in plain)
    return verification(pairs.result())


def expected(scores, right, wrong, share):
    """1 - FNMR@FMR as open-metric-learning defines it, by quantiles of scores."""
    threshold = scores[wrong].double().quantile(1 - share)
    return (scores[right] >= threshold).double().mean().item()


def clusters(count, classes, seed=0, spread=1.2):
    labels = labels_of(count, classes, seed)
    noise = spread * normal(count, 24, seed=seed + 1)
    return F.normalize(normal(classes, 24, seed=seed + 2)[labels] + noise), labels


@pytest.mark.parametrize('tile', [50, 1024])
def test_each_queries_all_others(tile):
    embeddings, labels = clusters(300, 20)
    found = verify(embeddings, labels, tile=tile)
    same, other = labels[:, None] == labels, ~torch.eye(300, dtype=torch.bool)
    scores = embeddings @ embeddings.T
    for share in (0.01, 0.001):
        value, low, high = found[f'true_matches@{share:g}']
        wanted = expected(scores, same & other, ~same, share)
        assert value == pytest.approx(wanted, abs=0.01)
        assert 0 < low < value < high < 1
    error, _, _ = found['equal_error_rate']
    missed = 1 - expected(scores, same & other, ~same, error)
    assert missed == pytest.approx(error, abs=0.003)
    assert verify(embeddings, -2 - labels, tile=tile) == found


def test_ignored_pairs_and_distractors_are_no_pairs():
    """Of 4 pairs that count, the wrong one scores between the two right ones."""
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3])
    gallery = torch.stack([angles.cos(), angles.sin()], dim=1)
    images = label_images(
        *(query, [4, -1], gallery, [4, 4, -1, 4]),
        files=[7, 8],
        gallery_files=[7, 1, 2, 3],
    )
    pairs = PairCounter(images, images.bound)
    rank_images(images, pairs=pairs)
    counts = pairs.result()
    assert counts.shape[1] == 1 and counts.sum(dim=2).flatten().tolist() == [1, 2]
    bins = counts.nonzero()
    assert bins[:, 0].tolist() == [0, 1, 1]
    assert bins[1, 2] < bins[0, 2] < bins[2, 2]
    found = verification(counts)
    assert all(map(math.isnan, found['true_matches@0.01']))  # a single wrong pair
    value, low, high = found['equal_error_rate']
    assert value == 0.5 and math.isnan(low) and math.isnan(high)

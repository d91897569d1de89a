"""The threshold of a match: hand-computed values, brute force, and what it keeps to on classes it has not seen."""
import math

import pytest
import torch
from torch.nn import functional as F

import calibration


def clusters(classes, size, dimensions=16, spread=1.0, seed=0):
    """Unit vectors of overlapping classes, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dimensions, generator=generator)
    labels = torch.arange(classes).repeat_interleave(size)
    return F.normalize(centres[labels] + spread * torch.randn(len(labels), dimensions, generator=generator)), labels


def test_wrong_and_right_scores_of_hand_made_vectors():
    angles = torch.tensor([0.0, 60, 90, 180]) * math.pi / 180
    embeddings, labels = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 1, 2])
    above, wrong, best_wrong, best_right = calibration.wrong_and_right(embeddings, labels, embeddings, labels,
                                                                       torch.arange(4))
    cos30 = math.cos(math.pi / 6)
    assert wrong.tolist() == [2, 2, 3, 3]
    assert best_wrong.tolist() == pytest.approx([0, cos30, cos30, 0], abs=1e-6)
    assert best_right[:2].tolist() == pytest.approx([0.5, 0.5]) and best_right[2:].tolist() == [-math.inf] * 2
    for score, counts in [(-1.0, [2, 2, 3, 3]), (-0.2, [1, 1, 3, 1]), (0.2, [0, 1, 1, 0]), (0.9, [0, 0, 0, 0])]:
        place = max(0, int((-math.log(1 - score) + 1e-6 >= calibration.GRID).sum()) - 1)
        assert above[:, place].tolist() == counts


@pytest.mark.parametrize('size', [1, 2, 3, 5, 8])
def test_the_share_of_smaller_galleries_equals_all_of_them(size):
    """Hypergeometric against every subset of 8 wrong images, of which so many are above."""
    from itertools import combinations
    for above in range(9):
        subsets = list(combinations(range(8), size))
        expected = sum(any(image < above for image in subset) for subset in subsets) / len(subsets)
        found = calibration.false_matches(torch.tensor([[above]]), torch.tensor([8]), size)
        assert found.item() == pytest.approx(expected, abs=1e-9)


def test_the_threshold_on_a_tail_that_follows_the_line():
    """With rates exp(-m z), where z = -log(1 - score), a rate r is reached at z = -log(r) / m."""
    for slope in (1, 2, 5):
        rates = (-slope * (calibration.GRID - calibration.GRID[0])).exp()
        for wanted in (0.5, 0.25, 0.1, 0.01, 0.001):
            z = -math.log(wanted) / slope + calibration.GRID[0].item()
            found = -math.log(1 - calibration.threshold_at(rates, wanted).item())
            assert found == pytest.approx(z, abs=2 * calibration.STEP + 0.03 * abs(z))


def test_calibration_is_what_it_says():
    embeddings, labels = clusters(30, 8)
    found = calibration.calibrate(embeddings, labels, false_match_rate=0.1)
    scores = embeddings @ embeddings.T
    wrong = scores.masked_fill(labels[:, None] == labels, -2).amax(dim=1)
    right = scores.fill_diagonal_(-2).masked_fill(labels[:, None] != labels, -2).amax(dim=1)
    assert (wrong >= found['threshold']).double().mean().item() == pytest.approx(0.1, abs=0.04)
    assert found['found'] == pytest.approx(((right > wrong) & (right >= found['threshold'])).double().mean().item())
    assert found['low'] <= found['threshold'] <= found['high'] and found['gallery_size'] == 232
    assert (found['queries'], found['classes']) == (240, 30)
    assert found['realised_low'] <= found['realised'] <= found['realised_high']
    assert found['thresholds'] == sorted(found['thresholds']) and len(found['sizes']) == len(found['thresholds'])
    assert calibration.calibrate(embeddings, labels, false_match_rate=0.1) == found  # of the seed alone


def test_a_lower_rate_needs_a_higher_threshold():
    embeddings, labels = clusters(30, 8)
    thresholds = [calibration.calibrate(embeddings, labels, false_match_rate=rate)['threshold']
                  for rate in (0.5, 0.2, 0.05, 0.01)]
    assert thresholds == sorted(thresholds) and len(set(thresholds)) == 4


@pytest.mark.parametrize('rate', [0.01, 0.05])
@pytest.mark.parametrize('size', [50, 500, 1900])
def test_the_rate_is_kept_on_classes_that_were_not_calibrated_with(rate, size):
    """On 250 new classes, with galleries smaller, as large, and larger, the mean over six calibrations is near."""
    realised = []
    for seed in range(6):
        embeddings, labels = clusters(100, 5, dimensions=8, seed=seed)
        found = calibration.calibrate(embeddings, labels, false_match_rate=rate)
        threshold, within = calibration.threshold_for(found, size)
        assert within
        query, _ = clusters(250, 1, dimensions=8, seed=1000 + seed)
        wrong, _ = clusters(size // 5, 5, dimensions=8, seed=2000 + seed)
        realised.append(((query @ wrong.T).amax(dim=1) >= threshold).double().mean().item())
    assert rate / 3 <= sum(realised) / 6 <= rate * 2


def test_thresholds_between_and_beyond_the_sizes():
    found = {'sizes': [1, 100, 10_000], 'thresholds': [0.1, 0.5, 0.9]}
    assert calibration.threshold_for(found, 100) == (pytest.approx(0.5), True)
    assert calibration.threshold_for(found, 1000) == (pytest.approx(0.7), True)
    assert calibration.threshold_for(found, 0) == (0.1, True)
    assert calibration.threshold_for(found, 1_000_000) == (0.9, False)


def test_queries_apart_from_the_gallery():
    embeddings, labels = clusters(20, 6)
    found = calibration.calibrate(embeddings[::2], labels[::2], embeddings[1::2], labels[1::2], false_match_rate=0.1)
    assert found['gallery_size'] == 57 and found['queries'] == 60
    assert calibration.calibrate(embeddings[:12], labels[:12], embeddings[12:13], labels[12:13]) is not None


@pytest.mark.parametrize('count', [1, 2, 3])
def test_few_classes(count):
    embeddings, labels = clusters(count, 6)
    found = calibration.calibrate(embeddings, labels)
    assert found is None if count == 1 else found['realised'] is None and found['threshold'] <= 0.99999


def test_a_sample_of_many_queries(monkeypatch):
    embeddings, labels = clusters(60, 8)
    whole = calibration.calibrate(embeddings, labels, false_match_rate=0.1)
    monkeypatch.setattr(calibration, 'QUERIES', 240)
    part = calibration.calibrate(embeddings, labels, false_match_rate=0.1)
    assert part['queries'] == 240 and part['gallery_size'] == whole['gallery_size']
    assert part['threshold'] == pytest.approx(whole['threshold'], abs=0.05)


@pytest.mark.parametrize('gallery_labels', [[0, 0, 1, 1], [7, 7, 8, 8], [0, 0, 0, 0], [0, 9, 9, 9]])
@pytest.mark.parametrize('seed', range(4))
def test_a_gallery_that_lacks_classes_of_the_queries(gallery_labels, seed):
    query, _ = clusters(8, 1)
    gallery, _ = clusters(4, 1, seed=1)
    found = calibration.calibrate(query, torch.arange(8) // 2, gallery, torch.tensor(gallery_labels), seed=seed)
    assert found is None or found['realised'] is None or 0 <= found['realised'] <= 1
    calibration.check(found)


def test_identical_images_of_several_classes_are_admitted():
    embeddings, labels = clusters(20, 5)
    embeddings[::5] = embeddings[0]
    found = calibration.calibrate(embeddings, labels)
    assert found['threshold'] == pytest.approx(0.99999) and found['realised'] > 0.1
    calibration.check(found)

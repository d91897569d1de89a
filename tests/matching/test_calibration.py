"""The threshold: by hand, by brute force, and on classes that did not set it."""

import math
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from retrieval_cases import generator
from torch.nn import functional as F

from areir.errors import UserError
from areir.matching import calibration, thresholds
from areir.matching.calibration import calibrate, calibrate_folder


def clusters(classes, size, dimensions=16, seed=0):
    """Unit vectors of overlapping classes, and their labels."""
    source = generator(seed)
    centres = torch.randn(classes, dimensions, generator=source)
    labels = torch.arange(classes).repeat_interleave(size)
    noise = torch.randn(len(labels), dimensions, generator=source)
    return F.normalize(centres[labels] + noise, dim=1), labels


def calibrate_among(embeddings, labels, rate=0.01):
    """Calibrate on images that are searched among themselves."""
    own = torch.arange(len(labels))
    return calibrate(embeddings, labels, embeddings, labels, rate, own)


def test_wrong_images_of_hand_made_vectors():
    angles = torch.tensor([0.0, 60, 90, 180]) * math.pi / 180
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 0, 1, 2])
    images = calibration.LabelledVectors(
        embeddings, labels, embeddings, labels, torch.arange(4)
    )
    wrong, best = calibration.count_wrong(images)
    cos30 = math.cos(math.pi / 6)
    assert wrong.number.tolist() == [2, 2, 3, 3]
    assert best.best_wrong.tolist() == pytest.approx([0, cos30, cos30, 0], abs=1e-6)
    assert best.best_right.tolist() == pytest.approx([0.5, 0.5, -math.inf, -math.inf])
    for score, counts in [
        (-1.0, [2, 2, 3, 3]),
        (-0.2, [1, 1, 3, 1]),
        (0.2, [0, 1, 1, 0]),
        (0.9, [0, 0, 0, 0]),
    ]:
        reached = -math.log(1 - score) + 1e-6 >= calibration.GRID
        place = max(0, int(reached.sum()) - 1)
        assert wrong.above[:, place].tolist() == counts


@pytest.mark.parametrize('size', [1, 2, 3, 5, 8])
def test_the_rate_of_smaller_galleries_equals_all_of_them(size):
    """Hypergeometric against every subset of 8 wrong images."""
    for above in range(9):
        subsets = list(combinations(range(8), size))
        matches = sum(any(image < above for image in subset) for subset in subsets)
        wrong = calibration.WrongImages(torch.tensor([[above]]), torch.tensor([8]))
        rate = wrong.rates(size).item()
        assert rate == pytest.approx(matches / len(subsets), abs=1e-9)


def test_the_threshold_on_a_tail_that_follows_the_line():
    """With rates exp(-m z), z = -log(1 - score), rate r is reached at -log(r) / m."""
    for slope in (1, 2, 5):
        rates = (-slope * (calibration.GRID - calibration.GRID[0])).exp()
        for wanted in (0.5, 0.25, 0.1, 0.01, 0.001):
            z = -math.log(wanted) / slope + calibration.GRID[0].item()
            threshold = calibration.threshold_at(rates, wanted).item()
            tolerance = 2 * calibration.STEP + 0.03 * abs(z)
            assert -math.log(1 - threshold) == pytest.approx(z, abs=tolerance)


def test_calibration_equals_what_it_describes():
    embeddings, labels = clusters(30, 8)
    result = calibrate_among(embeddings, labels, 0.1)
    scores, same = embeddings @ embeddings.T, labels[:, None] == labels
    wrong = scores.masked_fill(same, -2).amax(dim=1)
    right = scores.fill_diagonal_(-2).masked_fill(~same, -2).amax(dim=1)
    threshold = result['threshold']
    matched = ((right > wrong) & (right >= threshold)).double().mean().item()
    assert (wrong >= threshold).double().mean().item() == pytest.approx(0.1, abs=0.04)
    assert result['found'] == pytest.approx(matched)
    assert result['low'] <= threshold <= result['high']
    assert result['gallery_size'] == 232
    assert (result['queries'], result['classes']) == (240, 30)
    assert result['realised_low'] <= result['realised'] <= result['realised_high']
    # stored calibrations must go on to mean the same
    expected = {
        'threshold': 0.709702,
        'low': 0.699512,
        'high': 0.7185639,
        'realised': 0.1325,
        'realised_low': 0.0958333,
        'realised_high': 0.1704414,
    }
    found = {name: result[name] for name in expected}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_rate_is_kept_on_unseen_classes():
    """On 250 new classes, in galleries smaller, as large, and larger."""
    realised = {50: [], 500: [], 1900: []}
    for seed in range(6):
        result = calibrate_among(*clusters(100, 5, dimensions=8, seed=seed))
        query, _ = clusters(250, 1, dimensions=8, seed=1000 + seed)
        for size, rates in realised.items():
            wrong, _ = clusters(size // 5, 5, dimensions=8, seed=2000 + seed)
            threshold = thresholds.threshold_for(result, size).score
            matches = (query @ wrong.T).amax(dim=1) >= threshold
            rates.append(matches.double().mean().item())
    for rates in realised.values():
        assert 0.01 / 3 <= sum(rates) / 6 <= 0.01 * 2


def test_queries_apart_from_the_gallery():
    embeddings, labels = clusters(20, 6)
    query, gallery = (embeddings[::2], labels[::2]), (embeddings[1::2], labels[1::2])
    result = calibrate(*query, *gallery, false_match_rate=0.1)
    assert result['gallery_size'] == 57 and result['queries'] == 60
    tiny = embeddings[12:13], labels[12:13]
    assert calibrate(embeddings[:12], labels[:12], *tiny) is not None


def test_a_gallery_with_classes_that_no_query_has():
    """Their images are wrong for every query, and no query finds itself."""
    embeddings, labels = clusters(30, 6)
    query, own = slice(120, 180), torch.arange(120, 180)
    asked = embeddings[query], labels[query], embeddings, labels
    result = calibrate(*asked, false_match_rate=0.1, own=own)
    assert (result['classes'], result['gallery_size']) == (10, 174)
    scores = embeddings[query] @ embeddings.T
    wrong = scores.masked_fill(labels[query, None] == labels, -2).amax(dim=1)
    rate = (wrong >= result['threshold']).double().mean().item()
    assert rate == pytest.approx(0.1, abs=0.04)
    small = calibrate_among(*asked[:2], 0.1)
    assert result['threshold'] > small['threshold']
    assert 0.02 < result['realised'] < 0.3


@pytest.mark.parametrize('count', [1, 2, 5, 6])
def test_few_classes(count):
    result = calibrate_among(*clusters(count, 6))
    if count == 1:
        assert result is None
        return
    assert result['threshold'] <= 0.99999
    for name in ('low', 'high', 'realised', 'realised_low', 'realised_high'):
        assert (result[name] is None) == (count < 6)


def test_identical_images_of_several_classes_are_admitted():
    embeddings, labels = clusters(20, 5)
    embeddings[::5] = embeddings[0]
    result = calibrate_among(embeddings, labels)
    assert result['threshold'] == pytest.approx(0.99999)
    assert result['realised'] > 0.1


class Folder(SimpleNamespace):
    """Stands for a FolderCollection whose classes 0 and x trained its model."""

    def __init__(self, folder, embeddings, labels):
        super().__init__(
            folder=str(folder),
            images=[f'{number}.png' for number in range(len(labels))],
            classes=[f'product_{label}' for label in labels],
            embeddings=embeddings.numpy(),
            trained=SimpleNamespace(path='m.pth', trained_classes=['product_0', 'x']),
        )

    def __len__(self):
        return len(self.images)

    def path_of(self, index):
        return f'{self.folder}/{self.images[index]}'


def test_copies_do_not_set_the_threshold_of_a_folder(tmp_path):
    """Of ten copies of one image, in two classes, one counts."""
    embeddings, labels = clusters(12, 6)
    copies = [*range(12, 17), *range(20, 25)]
    embeddings[copies] = embeddings[12].clone()
    collection = Folder(tmp_path, embeddings, labels)
    for number in range(len(labels)):
        content = 12 if number in copies else number
        (tmp_path / f'{number}.png').write_text(f'picture {content:02}')
    found = calibrate_folder(collection, 0.05)
    others = [row for row in range(len(labels)) if row not in copies[1:]]
    alone = Folder(tmp_path / 'none', embeddings[others], labels[others])
    assert found == calibrate_folder(alone, 0.05)
    assert found['threshold'] < 0.999


def test_the_classes_that_trained_a_model_are_only_searched(tmp_path):
    embeddings, labels = clusters(8, 6)
    collection = Folder(tmp_path, embeddings, labels)
    found = calibrate_folder(collection, 0.05)
    own = torch.arange(6, 48)
    query = embeddings[own], labels[own]
    assert found == calibrate(*query, embeddings, labels, 0.05, own)
    collection.trained.trained_classes = [f'product_{label}' for label in range(7)]
    with pytest.raises(UserError, match=r'--calibrate.*m\.pth'):
        calibrate_folder(collection, 0.05)

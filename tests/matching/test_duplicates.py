"""The pairs of images of a folder and their kinds."""

import os

import pytest
import torch
from torch.nn import functional as F
from toy import ToyCollection, photo_pairs
from trained import CALIBRATION

from areir.gallery import queries
from areir.matching.duplicates import find_pairs, kinds_of_pairs
from areir.matching.thresholds import threshold_of


def test_pairs_are_of_three_kinds(tmp_path):
    collection = photo_pairs(tmp_path / 'photos')
    found = find_pairs(collection, 5)
    wanted = {
        (0, 1): 'near-duplicate',  # b.jpg is a blurred a.png
        (2, 3): 'identical',  # c.png and its copy
        (2, 4): 'near-duplicate',  # the same pixels in another format
        (3, 4): 'near-duplicate',
        (2, 5): 'same item',
        (3, 5): 'same item',
        (4, 5): 'same item',
    }
    assert dict(zip(found, kinds_of_pairs(found, collection))) == wanted
    os.remove(collection.path_of(3))
    assert kinds_of_pairs([(2, 3)], collection) == ['same item']


@pytest.mark.parametrize('calibration', [CALIBRATION, None])
def test_every_pair_that_reaches_the_threshold_is_found(
    tmp_path, seed, monkeypatch, calibration
):
    monkeypatch.setattr(queries, 'TOGETHER', 7)
    generator = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(20, 3, generator=generator))
    paths = [f'{number}.png' for number in range(20)]
    collection = ToyCollection(tmp_path, paths, vectors, calibration=calibration)
    found = find_pairs(collection, 19)
    scores = (vectors.double() @ vectors.double().T).float()
    lowest = threshold_of(collection).score if calibration else -2
    near = torch.ones(20, 20).triu(1).bool() & (scores >= lowest)
    assert set(found) == {tuple(pair) for pair in near.nonzero().tolist()}
    for (one, other), score in found.items():
        assert score == pytest.approx(scores[one, other].item())

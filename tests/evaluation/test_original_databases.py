"""Databases of the original code are ranked as that code ranked them."""

import pytest
import torch
from torch.nn import functional as F

from areir.errors import UserError
from areir.evaluation.metrics import summary
from areir.evaluation.ranked_file import rank_file
from areir.retrieval import evaluate

COUNT, HEADS = 24, 3
LABELS = (torch.arange(COUNT) % 5).tolist()
IMAGES = [f'data/car/uncropped/{number}.jpg' for number in range(COUNT)]
RANDOM = torch.randn(COUNT, HEADS, 4, generator=torch.Generator().manual_seed(0))
BY_HEAD = F.normalize(RANDOM, dim=-1)  # (N, heads, D)
FEATURES = BY_HEAD[:, 0]
TEST = {'test_features': FEATURES, 'test_labels': LABELS, 'test_images': IMAGES}


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Save entries in a file; return its name."""
    monkeypatch.chdir(tmp_path)

    def saved(**entries):
        torch.save(entries, 'old_data_base.pth')
        return 'old_data_base.pth'

    return saved


def metrics_of(path, ks=(1, 4), heads=None):
    return summary(rank_file(path, 'cpu', heads).ranks, ks)


def original_recall(features, labels, k, gallery=None, gallery_labels=None):
    """Return Recall@k from the mean of the heads' products; features (N, heads, D)."""
    others = features if gallery is None else gallery
    scores = torch.einsum('qhd,ghd->qgh', features.double(), others.double())
    scores = scores.mean(dim=2)
    if gallery is None:
        scores.fill_diagonal_(-torch.inf)
    labels = torch.tensor(labels)
    gallery_labels = labels if gallery is None else torch.tensor(gallery_labels)
    nearest = scores.argsort(dim=1, descending=True)[:, :k]
    hits = (gallery_labels[nearest] == labels[:, None]).any(dim=1)
    return hits.double().mean().item()


def test_each_image_queries_all_others(save):
    path = save(**TEST, train_features=FEATURES, train_labels=LABELS)
    assert metrics_of(path) == evaluate(FEATURES, torch.tensor(LABELS), [1, 4])
    result = rank_file(path, 'cpu')
    assert (result.images, result.has_gallery, result.dimensions) == (IMAGES, False, 4)


@pytest.mark.parametrize(
    'features',
    [list(FEATURES), list(FEATURES.split(7)), FEATURES.tolist(), FEATURES.half()],
    ids=['image by image', 'batches', 'numbers', 'half'],
)
def test_other_forms_of_features(features, save):
    half = isinstance(features, torch.Tensor)
    expected = FEATURES.half().float() if half else FEATURES
    path = save(test_features=features, test_labels=torch.tensor(LABELS))
    assert metrics_of(path) == evaluate(expected, torch.tensor(LABELS), [1, 4])


@pytest.mark.parametrize('features', [BY_HEAD, list(BY_HEAD.split(5))])
def test_heads_are_scored_by_their_mean_product(features, save):
    path = save(test_features=features, test_labels=LABELS)
    for k in (1, 4):
        expected = original_recall(BY_HEAD, LABELS, k)
        assert metrics_of(path)[f'recall@{k}'] == pytest.approx(expected)
    for heads in (1, 2, 3):
        expected = original_recall(BY_HEAD[:, :heads], LABELS, 1)
        recall = metrics_of(path, heads=heads)['recall@1']
        assert recall == pytest.approx(expected)


@pytest.mark.parametrize('features', [BY_HEAD, BY_HEAD[:, :1]])
def test_queries_with_a_gallery(features, save):
    path = save(
        test_features=features[:9],
        test_labels=LABELS[:9],
        gallery_features=features[9:],
        gallery_labels=LABELS[9:],
        gallery_images=IMAGES[9:],
    )
    result = rank_file(path, 'cpu')
    assert (len(result.labels), result.available) == (9, 15)
    assert result.gallery_images == IMAGES[9:]
    expected = original_recall(features[:9], LABELS[:9], 4, features[9:], LABELS[9:])
    assert metrics_of(path)['recall@4'] == pytest.approx(expected)


def test_a_gallery_that_repeats_the_test_images_is_none(save):
    """Otherwise each query would find itself, and recall would be 100 %."""
    path = save(**TEST, gallery_features=FEATURES.clone(), gallery_labels=LABELS)
    assert not rank_file(path, 'cpu').has_gallery
    assert metrics_of(path) == evaluate(FEATURES, torch.tensor(LABELS), [1, 4])


def test_current_names_come_first(save):
    path = save(**TEST, embeddings=-FEATURES[:9], labels=LABELS[:9])
    assert len(rank_file(path, 'cpu').labels) == 9


BAD_ROW = FEATURES.clone()
BAD_ROW[7, 2] = torch.nan


@pytest.mark.parametrize(
    ('changed', 'offender'),
    [
        ({'test_labels': None}, 'test_labels not in it, only test_features'),
        ({'test_labels': LABELS[1:]}, 'test_images must be one name per image'),
        (
            {'test_labels': LABELS[1:], 'test_images': None},
            'test_labels must be one per image',
        ),
        ({'test_features': BAD_ROW}, 'test_features holds NaN'),
        ({'test_features': []}, 'test_features must be'),
        ({'test_features': {'a': 1}}, 'test_features must be'),
        ({'test_features': [FEATURES, BY_HEAD]}, 'test_features must be'),
        ({'gallery_features': FEATURES[1:]}, 'gallery_labels not in it'),
        ({'gallery_labels': LABELS}, 'gallery_features not in it'),
        (
            {'gallery_features': FEATURES[1:], 'gallery_labels': LABELS},
            'gallery_labels must be one per image',
        ),
    ],
)
def test_what_is_at_fault_has_its_old_name(changed, offender, save):
    entries = {**TEST, **changed}
    entries = {name: value for name, value in entries.items() if value is not None}
    with pytest.raises(UserError) as refused:
        rank_file(save(**entries), 'cpu')
    line = str(refused.value)
    assert line.startswith('old_data_base.pth: ') and offender in line
    assert len(line.splitlines()) == 1

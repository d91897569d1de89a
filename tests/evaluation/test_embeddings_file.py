"""Queries and gallery of a file of embeddings, and the match of two files."""

import pathlib

import numpy as np
import pandas as pd
import pytest
import torch
from embedding_files import (
    COUNT,
    EMBEDDINGS,
    IMAGES,
    LABELS,
    QUERIES,
    TEXTS,
    both_formats,
    folder,
    metrics_of,
    objects,
    refusal,
    save,
    save_plain,
    with_bad_row,
)
from torch.nn import functional as F

from areir.errors import UserError
from areir.evaluation.embeddings_file import match_queries, rank_file
from areir.evaluation.metrics import summary
from areir.retrieval import evaluate

pytestmark = pytest.mark.usefixtures(folder.__name__)


# Reading


@both_formats
@pytest.mark.parametrize(
    'labels', [LABELS, TEXTS, LABELS.byte()], ids=['integers', 'texts', 'bytes']
)
def test_each_image_queries_all_others(name, labels):
    path = save(name, embeddings=EMBEDDINGS, labels=labels)
    assert metrics_of(path) == evaluate(EMBEDDINGS, LABELS, [1, 4])
    result = rank_file(path, 'cpu')
    assert (len(result.query.labels), result.dimensions, result.available) == (
        COUNT,
        6,
        23,
    )
    assert result.gallery is None


@both_formats
@pytest.mark.parametrize(
    ('query', 'gallery'), [('query_', ''), ('query_', 'gallery_'), ('', 'gallery_')]
)
def test_queries_with_a_gallery(name, query, gallery):
    entries = {
        query + 'embeddings': EMBEDDINGS[:9],
        query + 'labels': TEXTS[:9],
        gallery + 'embeddings': EMBEDDINGS[9:],
        gallery + 'labels': TEXTS[9:],
    }
    path = save(name, **entries)
    apart = EMBEDDINGS[9:], LABELS[9:]
    expected = evaluate(EMBEDDINGS[:9], LABELS[:9], [1, 15], *apart)
    assert metrics_of(path, [1, 15]) == expected
    result = rank_file(path, 'cpu')
    assert (len(result.query.labels), result.available) == (9, 15)


@both_formats
@pytest.mark.parametrize(
    'labels',
    [
        *(objects(TEXTS), objects([np.str_(text) for text in TEXTS])),
        objects([pathlib.Path(text) for text in TEXTS]),
        *(objects(LABELS.tolist()), LABELS.double(), LABELS.half(), LABELS[:, None]),
        *(
            LABELS[None],
            np.array(TEXTS)[:, None],
            np.array(TEXTS),
            LABELS.int().numpy(),
        ),
        [f'{label}.0' for label in LABELS],
        np.array(TEXTS, dtype=bytes),
    ],
)
def test_labels_of_any_type(name, labels):
    path = save(name, embeddings=EMBEDDINGS, labels=labels)
    assert metrics_of(path) == evaluate(EMBEDDINGS, LABELS, [1, 4])
    assert not rank_file(path, 'cpu').notices


@both_formats
@pytest.mark.parametrize(
    ('none', 'texts'),
    [(-1, False), (np.nan, False), (None, False), ('', True), ('-1', True)]
    + [(None, True), (np.nan, True), (pd.NA, True)],
)
def test_images_without_a_label_are_distractors(name, none, texts):
    if name == 'file.pt' and none is pd.NA:
        return  # torch refuses it
    labels = objects([*(TEXTS if texts else LABELS.tolist())[:-1], none])
    expected = evaluate(EMBEDDINGS, [*LABELS[:-1], -1], [1, 4])
    ranked = rank_file(save(name, embeddings=EMBEDDINGS, labels=labels), 'cpu')
    assert summary(ranked.ranks, [1, 4]) == expected
    assert '1 image without a label' in ranked.notices[0]


@pytest.mark.parametrize(
    ('label', 'notice'),
    [('None', 'None is a class'), ('class A ', "'class A ' and 'class a' are")],
)
def test_labels_that_may_mean_another(label, notice):
    path = save('file.npz', embeddings=EMBEDDINGS, labels=[*TEXTS[1:], label])
    assert notice in rank_file(path, 'cpu').notices[0]


@both_formats
@pytest.mark.parametrize('kind', [torch.int8, torch.uint8, torch.bool])
def test_vectors_of_whole_numbers_are_numbers(name, kind):
    vectors = (EMBEDDINGS * 100 + 100).to(kind)
    ranked = rank_file(save_plain(name, embeddings=vectors), 'cpu')
    assert summary(ranked.ranks, [1, 4]) == evaluate(
        F.normalize(vectors.float()), LABELS, [1, 4]
    )
    assert str(kind).removeprefix('torch.') in ranked.notices[0]


@pytest.mark.parametrize(
    ('name', 'embeddings'),
    [
        *[('file.pt', EMBEDDINGS.bfloat16()), ('file.pt', EMBEDDINGS.double())],
        ('file.pt', EMBEDDINGS.clone().requires_grad_()),
        *[('file.npz', EMBEDDINGS.numpy().astype(kind)) for kind in (object, str)],
        ('file.npz', objects(list(EMBEDDINGS.numpy()))),  # of arrays
    ],
)
def test_vectors_of_any_type(name, embeddings):
    path = save(name, embeddings=embeddings, labels=LABELS.tolist())
    plain = EMBEDDINGS.bfloat16() if embeddings.dtype == torch.bfloat16 else EMBEDDINGS
    assert metrics_of(path) == evaluate(plain.float(), LABELS, [1, 4])


@pytest.mark.parametrize('changed', [{'labels': torch.arange(COUNT)}, QUERIES])
def test_labels_by_which_nothing_is_found(changed):
    ranked = rank_file(
        save_plain('file.npz', **{'labels': -(LABELS < 9).int(), **changed}), 'cpu'
    )
    assert 'check the labels' in ranked.notices[-1]
    assert not any('single class' in notice for notice in ranked.notices)


# Contents that are refused


@pytest.mark.parametrize(
    ('present', 'missing'),
    [
        ('labels', 'embeddings not in it, only labels'),
        ('query_embeddings query_labels', 'embeddings, labels not in it'),
        ('query_embeddings embeddings labels', 'query_labels not in it'),
        (
            'query_embeddings query_labels gallery_embeddings labels',
            'gallery_labels not in it',
        ),
    ],
)
@both_formats
def test_missing_arrays(name, present, missing):
    entries = {
        key: EMBEDDINGS if 'embeddings' in key else LABELS for key in present.split()
    }
    assert f'{name}: {missing}' in refusal(save(name, **entries))


@pytest.mark.parametrize(
    ('contents', 'offender'),
    [
        ({'embeddings': with_bad_row(torch.inf)}, '1 image: 7'),
        ({'embeddings': TEXTS}, 'embeddings'),
        ({'embeddings': EMBEDDINGS[0]}, ': embeddings must be'),
        ({'embeddings': EMBEDDINGS[:0]}, 'non-empty'),
        ({'labels': TEXTS[1:]}, ': labels must be one per image'),
        ({'labels': LABELS + 0.5}, ': labels must be whole numbers or texts'),
        ({'labels': (LABELS + 2**24).float()}, 'labels must be whole numbers or texts'),
        ({'labels': LABELS.repeat(2, 1)}, ': labels must be whole numbers or texts'),
        ({'images': IMAGES, 'groups': LABELS[1:]}, ': groups must be one per image'),
        ({'labels': 'text'}, 'labels'),
        ({'images': IMAGES[1:]}, 'images must'),
        ({'images': [['a', 'b']] * COUNT}, 'images must'),
    ],
)
@both_formats
def test_contents_that_do_not_fit(name, contents, offender):
    line = refusal(save_plain(name, **contents))
    assert line.startswith(f'{name}: ') and offender in line


@pytest.mark.parametrize(
    'contents',
    [
        {'embeddings': None},
        {'labels': None},
        {'embeddings': {'a': EMBEDDINGS}},
        {'labels': [[1], [1, 2]]},
        {'embeddings': [*EMBEDDINGS.tolist()[:-1], [1.0]]},
        {'images': [['a', 'b'], ['c']] * 12},
    ],
)
def test_contents_that_are_no_arrays(contents):
    path = save('file.pt', **{'embeddings': EMBEDDINGS, 'labels': LABELS, **contents})
    assert refusal(path).startswith('file.pt: ')


@both_formats
def test_arrays_of_other_names_are_not_used(name):
    ranked = rank_file(save_plain(name, cameras=LABELS, paths=IMAGES), 'cpu')
    assert ranked.notices == ['not used: cameras, paths']


# Databases of the original code

HEADS = 3

HEADS_APART = torch.randn(COUNT, HEADS, 4, generator=torch.Generator().manual_seed(0))

BY_HEAD = F.normalize(HEADS_APART, dim=-1)  # (N, heads, D)

FEATURES = BY_HEAD[:, 0]

TEST = {'test_features': FEATURES, 'test_labels': LABELS.tolist()}


def original_recall(features, k, gallery_from=0):
    """Return Recall@k from the mean of the heads' products; features (N, heads, D)."""
    scores = torch.einsum('qhd,ghd->qgh', features.double(), features.double())
    scores = scores.mean(dim=2).fill_diagonal_(-torch.inf)
    queries = slice(0, gallery_from or None)
    nearest = scores[queries, gallery_from:].topk(k).indices + gallery_from
    hits = (LABELS[nearest] == LABELS[queries, None]).any(dim=1)
    return pytest.approx(hits.double().mean().item())


@pytest.mark.parametrize(
    'features',
    [FEATURES, list(FEATURES), list(FEATURES.split(7)), FEATURES.tolist()],
    ids=['tensor', 'image by image', 'batches', 'numbers'],
)
def test_forms_of_original_features(features):
    path = save('old.pth', **{**TEST, 'test_features': features}, test_images=IMAGES)
    assert metrics_of(path) == evaluate(FEATURES, LABELS, [1, 4])
    assert rank_file(path, 'cpu').query.images == IMAGES


@pytest.mark.parametrize('features', [BY_HEAD, list(BY_HEAD.split(5))])
def test_heads_are_scored_by_their_mean_product(features):
    path = save('old.pth', **{**TEST, 'test_features': features})
    assert metrics_of(path)['recall@4'] == original_recall(BY_HEAD, 4)
    expected = original_recall(BY_HEAD[:, :2], 1)
    assert metrics_of(path, [1], heads=2)['recall@1'] == expected
    parts = {'test_features': BY_HEAD[:9], 'gallery_features': BY_HEAD[9:]}
    parts |= {'test_labels': LABELS[:9], 'gallery_labels': LABELS[9:]}
    expected = original_recall(BY_HEAD, 4, gallery_from=9)
    assert metrics_of(save('old.pth', **parts))['recall@4'] == expected


@pytest.mark.parametrize(
    ('changed', 'offender'),
    [
        ({'test_labels': LABELS[1:]}, 'test_labels must be one per image'),
        ({'test_images': IMAGES[1:]}, 'test_images must be one name per image'),
        ({'test_features': FEATURES * torch.nan}, 'test_features holds NaN'),
        ({'test_features': []}, 'test_features must be'),
        ({'test_features': [FEATURES, BY_HEAD]}, 'test_features must be'),
        ({'gallery_features': FEATURES[1:]}, 'gallery_labels not in it'),
    ],
)
def test_what_is_at_fault_has_its_old_name(changed, offender):
    line = refusal(save('old.pth', **{**TEST, **changed}))
    assert line.startswith('old.pth: ') and offender in line


# The queries of two files


def match(one, other):
    return match_queries(rank_file(one, 'cpu'), rank_file(other, 'cpu'))


def refuse_match(one, other):
    with pytest.raises(UserError, match=f'^{one} and {other}: '):
        match(one, other)


@pytest.mark.parametrize(
    'changed',
    [
        {'images': [*IMAGES[1:], 'another.png']},
        {'embeddings': EMBEDDINGS[1:], 'labels': LABELS[1:], 'images': IMAGES[1:]},
        {'labels': LABELS.roll(1), 'images': None},
        {'labels': LABELS.clamp(max=3)},
        {'labels': torch.arange(COUNT)},
        {'files': torch.arange(COUNT) // 12 * 13},
    ],
    ids=['name', 'count', 'labels', 'merged', 'divided', 'files'],
)
def test_other_images_do_not_match(changed):
    save_plain('file.pt', images=IMAGES)
    save_plain('other.pt', **{'images': IMAGES, **changed})
    refuse_match('file.pt', 'other.pt')
    refuse_match('other.pt', 'file.pt')


def test_names_of_one_image_match():
    save_plain('file.pt', images=[f'a/{name}' for name in IMAGES])
    names = [f'./a\\{name}' for name in IMAGES[::-1]]
    reverse = {'embeddings': EMBEDDINGS.flip(0), 'labels': LABELS.flip(0)}
    save_plain('other.pt', images=names, **reverse)
    files = [rank_file(path, 'cpu') for path in ('file.pt', 'other.pt')]
    assert match_queries(*files).tolist() == list(range(COUNT))[::-1]


def test_distractors_are_not_matched():
    labels = torch.cat([LABELS[1:], torch.tensor([-1])])
    files = torch.arange(COUNT) // 2
    save_plain('file.pt', images=IMAGES, labels=labels, files=files)
    order = torch.arange(COUNT - 1, -1, -1)
    names = [IMAGES[row] for row in order]
    entries = {'embeddings': EMBEDDINGS[order], 'labels': labels[order]}
    save('other.pt', images=names, files=files[order], **entries)
    assert match('file.pt', 'other.pt').tolist() == list(range(COUNT - 2, -1, -1))


def test_images_of_one_name_do_not_match():
    save_plain('file.pt', images=['same.png'] * COUNT)
    with pytest.raises(UserError, match=r'^file\.pt: '):
        match('file.pt', 'file.pt')


@pytest.mark.parametrize(
    'gallery',
    [
        {'embeddings': EMBEDDINGS[9:20], 'labels': LABELS[9:20]},
        {'embeddings': EMBEDDINGS[9:], 'labels': LABELS[9:].clamp(max=3)},
        {'embeddings': EMBEDDINGS[9:], 'labels': LABELS[9:], 'images': IMAGES[:15]},
        None,
    ],
    ids=['smaller', 'other classes', 'other names', 'none'],
)
def test_another_gallery_does_not_match(gallery):
    images = {'embeddings': EMBEDDINGS[9:], 'labels': LABELS[9:], 'images': IMAGES[9:]}
    save('file.pt', **QUERIES, **images)
    if gallery is None:
        entries = {key.removeprefix('query_'): QUERIES[key] for key in QUERIES}
        save('other.pt', **entries)
    else:
        entries = {f'gallery_{key}': value for key, value in gallery.items()}
        save('other.pt', **QUERIES, **entries)
    refuse_match('file.pt', 'other.pt')

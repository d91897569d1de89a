"""Other programs' embeddings: what is read, matched and refused."""

import csv
import os

import numpy as np
import pytest
import torch
from embedding_files import (
    COUNT,
    EMBEDDINGS,
    IMAGES,
    LABELS,
    QUERIES,
    TEXTS,
    save,
    save_plain,
)
from torch.nn import functional as F

from areir.errors import UserError
from areir.evaluation.embeddings_file import match_queries, rank_file
from areir.evaluation.metrics import summary
from areir.retrieval import evaluate

both_formats = pytest.mark.parametrize('name', ['file.pt', 'file.npz'])


class RunsWhenUnpickled:
    def __reduce__(self):
        return os.mkdir, ('executed',)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def metrics_of(path, ks=(1, 4), heads=None, labels_csv=None):
    return summary(rank_file(path, 'cpu', heads, labels_csv).ranks, ks)


def refusal(path, *arguments, **keywords):
    with pytest.raises(UserError) as error:
        rank_file(path, 'cpu', *arguments, **keywords)
    line = str(error.value)
    assert len(line.splitlines()) == 1
    return line


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


@pytest.mark.parametrize(
    'embeddings',
    [
        *(EMBEDDINGS.bfloat16(), EMBEDDINGS.double(), EMBEDDINGS.to_sparse()),
        EMBEDDINGS.clone().requires_grad_(),
    ],
)
def test_embeddings_of_any_float_type(embeddings):
    path = save('file.pt', embeddings=embeddings, labels=LABELS.tolist())
    plain = embeddings.detach().to_dense().float()
    assert metrics_of(path) == evaluate(plain, LABELS, [1, 4])


# Files that are refused


@both_formats
@pytest.mark.parametrize('share', [0, 0.9, 'text', 'folder', 'missing'])
def test_damaged_file(name, share):
    if share == 'folder':
        os.mkdir(name)
    elif share == 'text':
        with open(name, 'w') as file:
            file.write('id,x,y\n1,2,3\n' * 100)
    elif share != 'missing':
        save_plain(name)
        os.truncate(name, int(os.path.getsize(name) * share))
    assert refusal(name).startswith(f'{name}: ')


def test_objects_are_not_executed():
    objects = np.array([RunsWhenUnpickled()] * COUNT, dtype=object)
    for key in ('embeddings', 'labels', 'images'):
        path = save_plain('file.npz', **{key: objects})
        assert refusal(path).startswith('file.npz: ')
    rank_file(save_plain('file.npz', comments=objects), 'cpu')  # not needed
    path = save_plain('file.pt', extra=RunsWhenUnpickled())
    assert refusal(path).startswith('file.pt: ')
    assert 'torch.save' in refusal(save_plain('file.pt', labels=LABELS.numpy()))
    torch.save(EMBEDDINGS, 'file.pt')
    assert refusal('file.pt').startswith('file.pt: ')
    assert not os.path.exists('executed')


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


def with_bad_row(value):
    embeddings = EMBEDDINGS.clone()
    embeddings[7, 2] = value
    return embeddings


@pytest.mark.parametrize(
    ('contents', 'offender'),
    [
        ({'embeddings': with_bad_row(torch.inf)}, '1 images: 7'),
        ({'embeddings': with_bad_row(1e30)}, 'normalise'),
        ({'embeddings': TEXTS}, 'embeddings'),
        ({'embeddings': LABELS[:, None]}, 'floating point'),
        ({'embeddings': EMBEDDINGS[0]}, ': embeddings must be'),
        ({'embeddings': EMBEDDINGS[:0]}, 'non-empty'),
        ({'labels': TEXTS[1:]}, ': labels must be one per image'),
        ({'labels': LABELS.float()}, ': labels must be integers'),
        ({'labels': 'text'}, 'labels'),
        ({'embeddings': EMBEDDINGS[:1], 'labels': LABELS[:1]}, 'a single image'),
        ({'images': IMAGES[1:]}, 'images must'),
        ({'images': [['a', 'b']] * COUNT}, 'images must'),
        ({'ensemble_size': 4}, 'ensemble_size'),
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
        {'ensemble_size': 'three'},
    ],
)
def test_contents_that_are_no_arrays(contents):
    path = save('file.pt', **{'embeddings': EMBEDDINGS, 'labels': LABELS, **contents})
    assert refusal(path).startswith('file.pt: ')


# A .npy file with the CSV of its labels

ROWS = [{'label': text} for text in TEXTS]


def write_rows(rows, array=EMBEDDINGS):
    np.save('vectors.npy', np.asarray(array))
    with open('labels.csv', 'w', newline='', encoding='utf-8') as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


@pytest.mark.parametrize(('yes', 'no'), [('True', 'False'), ('1', '')])
def test_roles_of_a_csv(yes, no):
    is_query = torch.arange(COUNT) % 3 == 0  # not in order
    rows = [
        {**row, 'is_query': yes if query else no, 'is_gallery': no if query else yes}
        for row, query in zip(ROWS, is_query)
    ]
    write_rows(rows)
    apart = EMBEDDINGS[~is_query], LABELS[~is_query]
    expected = evaluate(EMBEDDINGS[is_query], LABELS[is_query], [1, 4], *apart)
    assert metrics_of('vectors.npy', labels_csv='labels.csv') == expected


@pytest.mark.parametrize(
    ('rows', 'offender'),
    [
        (ROWS[1:], f'labels.csv has {COUNT - 1} rows'),
        ([{'name': text} for text in TEXTS], 'labels.csv: no column label or class'),
        ([*ROWS[1:], {'label': ''}], 'line 25: no label'),
        ([{**row, 'is_query': row is ROWS[0]} for row in ROWS], 'is_query'),
    ],
    ids=['rows', 'no column', 'no label', 'mixed roles'],
)
def test_a_csv_that_does_not_fit(rows, offender):
    write_rows(rows)
    assert offender in refusal('vectors.npy', labels_csv='labels.csv')


def test_a_npy_file_that_does_not_fit():
    for array in (np.ones((COUNT, 2, 2)), np.array([{}] * COUNT)):
        write_rows(ROWS, array)
        assert 'vectors.npy: ' in refusal('vectors.npy', labels_csv='labels.csv')


# Databases of the original code

HEADS = 3
RANDOM = torch.randn(COUNT, HEADS, 4, generator=torch.Generator().manual_seed(0))
BY_HEAD = F.normalize(RANDOM, dim=-1)  # (N, heads, D)
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


def test_a_gallery_that_repeats_the_test_images_is_none():
    """Otherwise each query would find itself, and recall would be 100 %."""
    gallery = {'gallery_features': FEATURES.clone(), 'gallery_labels': LABELS}
    path = save('old.pth', **TEST, **gallery)
    assert rank_file(path, 'cpu').gallery is None
    assert metrics_of(path) == evaluate(FEATURES, LABELS, [1, 4])


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
    ],
    ids=['name', 'count', 'labels', 'merged', 'divided'],
)
def test_other_images_do_not_match(changed):
    save_plain('file.pt', images=IMAGES)
    save_plain('other.pt', **{'images': IMAGES, **changed})
    refuse_match('file.pt', 'other.pt')
    refuse_match('other.pt', 'file.pt')


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

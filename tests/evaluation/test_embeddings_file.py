"""Files of embeddings: what is read, and what is refused."""

import os
from pathlib import Path

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

from areir.errors import UserError
from areir.evaluation.embeddings_file import read_embeddings
from areir.evaluation.metrics import summary
from areir.evaluation.ranked_file import rank_file
from areir.retrieval import evaluate

both_formats = pytest.mark.parametrize('name', ['file.pt', 'file.npz'])
both_labels = pytest.mark.parametrize(
    'labels', [LABELS, TEXTS], ids=['integers', 'texts']
)


class RunsWhenUnpickled:
    def __reduce__(self):
        return os.mkdir, ('executed',)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def metrics_of(path, ks):
    return summary(rank_file(path, 'cpu').ranks, ks)


def refusal(path, function=rank_file, *arguments):
    with pytest.raises(UserError) as error:
        function(path, *arguments or ['cpu'])
    line = str(error.value)
    assert len(line.splitlines()) == 1
    return line


# Reading


@pytest.mark.parametrize('name', ['file.npz', 'file.pt', 'file.pth'])
@both_labels
def test_each_image_queries_all_others(name, labels):
    path = save(name, embeddings=EMBEDDINGS, labels=labels)
    assert metrics_of(path, [1, 4, 23]) == evaluate(EMBEDDINGS, LABELS, [1, 4, 23])
    result = rank_file(path, 'cpu')
    assert (len(result.labels), result.dimensions, result.available) == (COUNT, 6, 23)
    assert not result.has_gallery


@both_formats
@pytest.mark.parametrize(
    ('query', 'gallery'), [('query_', ''), ('query_', 'gallery_'), ('', 'gallery_')]
)
@both_labels
def test_queries_with_a_gallery(name, query, gallery, labels):
    entries = {
        query + 'embeddings': EMBEDDINGS[:9],
        query + 'labels': labels[:9],
        gallery + 'embeddings': EMBEDDINGS[9:],
        gallery + 'labels': labels[9:],
    }
    path = save(name, **entries)
    apart = EMBEDDINGS[9:], LABELS[9:]
    expected = evaluate(EMBEDDINGS[:9], LABELS[:9], [1, 15], *apart)
    assert metrics_of(path, [1, 15]) == expected
    result = rank_file(path, 'cpu')
    assert (len(result.labels), result.available) == (9, 15)


def test_texts_are_numbered_alike_in_queries_and_gallery():
    query = {'query_embeddings': np.eye(2), 'query_labels': ['b', 'c']}
    path = save('file.npz', **query, embeddings=np.eye(2), labels=['a', 'b'])
    metrics = metrics_of(path, [1, 2])
    assert (metrics['recall@1'], metrics['recall@2']) == (0, 0.5)
    assert metrics['queries_without_positive'] == 1


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.uint32, np.int8, np.int32])
def test_labels_of_any_integer_type(dtype):
    path = save_plain('file.npz', labels=LABELS.numpy().astype(dtype))
    assert metrics_of(path, [1]) == evaluate(EMBEDDINGS, LABELS, [1])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_float_type(dtype):
    embeddings = EMBEDDINGS.to(dtype)
    path = save('file.pt', embeddings=embeddings, labels=LABELS.tolist())
    assert metrics_of(path, [1]) == evaluate(embeddings.float(), LABELS, [1])


@both_formats
def test_what_a_file_holds(name):
    notes = {'protocol': 'strict', 'select': 'last'}
    path = save(
        name, **QUERIES, embeddings=EMBEDDINGS, labels=LABELS, ensemble_size=3, **notes
    )
    file = read_embeddings(path)
    assert (file.path, file.ensemble_size, file.notes) == (path, 3, notes)
    assert file.query.names.labels == 'query_labels'
    assert file.gallery.names.labels == 'labels'
    assert file.query.images == IMAGES[:9] and file.gallery.images is None
    assert torch.equal(file.gallery.embeddings, EMBEDDINGS)
    plain = read_embeddings(save_plain('plain.pt'))
    assert (plain.gallery, plain.ensemble_size, plain.notes) == (None, None, {})


def test_recall_of_the_first_heads():
    path = save_plain('file.pt', ensemble_size=3)
    for heads in (1, 2, 3):
        ranks = rank_file(path, 'cpu', heads).ranks
        expected = evaluate(EMBEDDINGS[:, : 2 * heads], LABELS, [1])
        assert summary(ranks, [1]) == expected
    assert 'file.pt has 3 heads' in refusal(path, rank_file, 'cpu', 4)
    foreign = save_plain('foreign.npz')
    assert 'foreign.npz has an unknown' in refusal(foreign, rank_file, 'cpu', 1)


# Files that are refused


@pytest.mark.parametrize('name', ['missing.pt', 'missing.npz', 'folder/missing.pt', ''])
def test_missing_file(name):
    assert refusal(name).startswith(f'{name}: no such file')


@pytest.mark.parametrize('name', ['folder.pt', 'folder.npz'])
def test_folder(name):
    os.mkdir(name)
    assert refusal(name) == f'{name}: a folder'


@both_formats
@pytest.mark.parametrize('share', [0, 0.3, 0.9])
def test_damaged_file(name, share):
    save_plain(name)
    with open(name, 'rb+') as file:
        file.truncate(int(os.path.getsize(name) * share))
    assert f'{name}: damaged' in refusal(name)


@both_formats
def test_file_of_something_else(name):
    Path(name).write_text('id,x,y\n1,2,3\n' * 100)
    assert refusal(name).startswith(f'{name}: ')


@pytest.mark.parametrize('key', ['embeddings', 'labels', 'images'])
def test_objects_in_an_npz_are_refused(key):
    objects = np.array([RunsWhenUnpickled()] * COUNT, dtype=object)
    path = save_plain('file.npz', **{key: objects})
    assert refusal(path).startswith('file.npz: ')
    assert not os.path.exists('executed')


def test_objects_that_are_not_needed_are_not_read():
    objects = np.array([RunsWhenUnpickled()], dtype=object)
    rank_file(save_plain('file.npz', comments=objects), 'cpu')
    assert not os.path.exists('executed')


def test_arrays_in_a_pt_are_refused_with_advice():
    path = save_plain('file.pt', embeddings=EMBEDDINGS.numpy())
    assert 'torch.save' in refusal(path)


def test_objects_in_a_pt_are_not_executed():
    path = save_plain('file.pt', extra=RunsWhenUnpickled())
    assert refusal(path).startswith('file.pt: ')
    assert not os.path.exists('executed')


def test_a_file_that_is_no_dict():
    torch.save(EMBEDDINGS, 'file.pt')
    assert 'file.pt: not a dict' in refusal('file.pt')
    np.save('file', EMBEDDINGS.numpy())
    os.rename('file.npy', 'file.npz')
    assert refusal('file.npz').startswith('file.npz: ')


# Contents that are refused


@pytest.mark.parametrize(
    ('present', 'missing'),
    [
        ('embeddings', 'labels not in it, only embeddings'),
        ('labels', 'embeddings not in it, only labels'),
        ('', 'embeddings, labels not in it'),
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
        ({'embeddings': with_bad_row(torch.nan)}, 'embeddings holds NaN'),
        ({'embeddings': with_bad_row(torch.inf)}, '1 images: 7'),
        ({'embeddings': with_bad_row(1e30)}, 'normalise'),
        ({'embeddings': [TEXTS] * COUNT}, 'embeddings'),
        ({'embeddings': TEXTS}, 'embeddings'),
        ({'embeddings': LABELS[:, None]}, 'floating point'),
        ({'embeddings': EMBEDDINGS[0]}, ': embeddings must be'),
        ({'embeddings': EMBEDDINGS[:0]}, 'non-empty'),
        ({'labels': LABELS[1:]}, ': labels must be one per image'),
        ({'labels': TEXTS[1:]}, 'one per image'),
        ({'labels': LABELS.float()}, ': labels must be integers'),
        ({'labels': LABELS[:, None]}, 'one per image'),
        ({'labels': 'text'}, 'labels'),
    ],
)
@both_formats
def test_contents_that_do_not_fit(name, contents, offender):
    line = refusal(save_plain(name, **contents))
    assert line.startswith(f'{name}: ') and offender in line


def test_the_entry_at_fault_is_named():
    path = save(
        'file.pt', **QUERIES, gallery_embeddings=EMBEDDINGS, gallery_labels=LABELS[1:]
    )
    assert refusal(path).startswith('file.pt: gallery_labels must')
    path = save('file.pt', **QUERIES, embeddings=EMBEDDINGS[:, 1:], labels=LABELS)
    assert refusal(path).startswith('file.pt: query_embeddings has 6 dimensions')


@pytest.mark.parametrize(
    'contents',
    [
        {'embeddings': None},
        {'labels': None},
        {'embeddings': {'a': EMBEDDINGS}},
        {'labels': {'a': 1}},
        {'embeddings': [[1.0], [1.0, 2.0]]},
        {'labels': [[1], [1, 2]]},
        {'embeddings': [*EMBEDDINGS.tolist()[:-1], [1.0]]},
    ],
)
def test_contents_that_are_no_arrays(contents):
    path = save('file.pt', **{'embeddings': EMBEDDINGS, 'labels': LABELS, **contents})
    assert refusal(path).startswith('file.pt: ')


def test_a_single_image_has_nothing_to_retrieve():
    path = save('file.pt', embeddings=EMBEDDINGS[:1], labels=LABELS[:1])
    assert 'file.pt: a single image' in refusal(path)


TABLE, RAGGED = [['a', 'b']] * COUNT, [['a', 'b'], ['c']] * 12


@pytest.mark.parametrize(
    'images',
    [IMAGES[:-1], [*IMAGES, 'more.png'], 5, TABLE, RAGGED],
    ids=['few', 'many', 'number', 'table', 'ragged'],
)
def test_image_names_that_do_not_fit(images):
    assert 'file.pt: images must' in refusal(save_plain('file.pt', images=images))

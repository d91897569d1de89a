"""A .npy file of embeddings with the CSV of its labels."""

import csv

import numpy as np
import pytest
import torch

from areir.errors import UserError
from areir.evaluation.metrics import summary
from areir.evaluation.ranked_file import rank_file
from areir.gallery.collection import Collection
from areir.output.exports import export_vectors
from areir.retrieval import evaluate

COUNT = 24
EMBEDDINGS = torch.randn(COUNT, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % 5
NAMES = [f'class, {"edcba"[label]}' for label in LABELS]
IMAGES = [f'photos/ü {number}.png' for number in range(COUNT)]
LABEL_ROWS = [{'label': name} for name in NAMES]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save('vectors.npy', EMBEDDINGS.numpy())


def write_rows(rows):
    with open('labels.csv', 'w', newline='', encoding='utf-8') as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


def ranked():
    return rank_file('vectors.npy', 'cpu', labels_csv='labels.csv')


def refusal():
    with pytest.raises(UserError) as refused:
        ranked()
    return str(refused.value)


def test_each_image_queries_all_others():
    write_rows(LABEL_ROWS)
    result = ranked()
    assert summary(result.ranks, [1, 4]) == evaluate(EMBEDDINGS, LABELS, [1, 4])
    assert (result.images, result.has_gallery) == (None, False)


def test_paths_name_the_images_and_other_columns_are_ignored():
    rows = zip(IMAGES, NAMES)
    write_rows([{'path': path, 'label': name, 'size': 9} for path, name in rows])
    assert ranked().images == IMAGES


@pytest.mark.parametrize(('yes', 'no'), [('True', 'False'), ('1', '0'), ('1', '')])
def test_queries_and_gallery(yes, no):
    is_query = torch.arange(COUNT) % 3 == 0  # not in order
    rows = [
        {
            'label': name,
            'path': path,
            'is_query': yes if query else no,
            'is_gallery': no if query else yes,
        }
        for name, path, query in zip(NAMES, IMAGES, is_query)
    ]
    write_rows(rows)
    query, gallery = EMBEDDINGS[is_query], EMBEDDINGS[~is_query]
    labels = LABELS[is_query], LABELS[~is_query]
    expected = evaluate(query, labels[0], [1, 4], gallery, labels[1])
    result = ranked()
    assert summary(result.ranks, [1, 4]) == expected
    assert result.images == IMAGES[::3]
    assert sorted(result.gallery_images + result.images) == sorted(IMAGES)


def test_what_inference_py_exports():
    collection = Collection('', '', IMAGES, NAMES, EMBEDDINGS, None)
    export_vectors(collection, '.')
    result = rank_file('vectors.npy', 'cpu', labels_csv='images.csv')
    assert summary(result.ranks, [1]) == evaluate(EMBEDDINGS, LABELS, [1])
    assert result.images == IMAGES


@pytest.mark.parametrize('rows', [LABEL_ROWS[1:], [*LABEL_ROWS, {'label': 'more'}]])
def test_another_number_of_rows_names_both_files(rows):
    write_rows(rows)
    line = refusal()
    assert f'vectors.npy has {COUNT} embeddings' in line
    assert f'labels.csv has {len(rows)} rows' in line and '\n' not in line


@pytest.mark.parametrize(
    ('rows', 'offender'),
    [
        ([{'name': name} for name in NAMES], 'labels.csv: no column label or class'),
        ([*LABEL_ROWS[1:], {'label': ''}], 'line 25: no label'),
        (
            [
                {'label': name, 'is_query': number < 3}
                for number, name in enumerate(NAMES)
            ],
            'labels.csv, line 5: is_query and is_gallery',
        ),
    ],
    ids=['no column', 'no label', 'mixed roles'],
)
def test_rows_that_make_no_sense(rows, offender):
    write_rows(rows)
    assert offender in refusal()


@pytest.mark.parametrize('content', [b'\x93NUMPY\xff\xfe', b'label\n"\xe9"\n', b''])
def test_a_file_that_is_no_csv(content):
    with open('labels.csv', 'wb') as file:
        file.write(content)
    assert refusal().startswith('labels.csv')


@pytest.mark.parametrize(
    'array', [np.float32(1), np.ones(COUNT), np.ones((COUNT, 2, 2))]
)
def test_arrays_of_another_shape(array):
    write_rows(LABEL_ROWS[: len(np.atleast_1d(array))])
    np.save('vectors.npy', array)
    assert 'vectors.npy: embeddings must be' in refusal()


def test_objects_are_refused():
    write_rows(LABEL_ROWS)
    np.save('vectors.npy', np.array([{}] * COUNT), allow_pickle=True)
    assert refusal().startswith('vectors.npy: damaged, or holds objects')
    np.savez('vectors', embeddings=EMBEDDINGS)
    with open('vectors.npz', 'rb') as file, open('vectors.npy', 'wb') as renamed:
        renamed.write(file.read())
    assert refusal().startswith('vectors.npy: damaged')


def test_no_labels():
    with pytest.raises(UserError, match=r'vectors\.npy: .*--labels'):
        rank_file('vectors.npy', 'cpu')

"""Other programs' embeddings: what is read, matched and refused."""

import argparse
import csv
import os
import pathlib
import pickle

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
    RANDOM,
    TEXTS,
    save,
    save_plain,
)
from safetensors.torch import save_file
from torch.nn import functional as F

from areir.errors import UserError
from areir.evaluation.embeddings_file import (
    match_queries,
    rank_file,
    read_embeddings,
)
from areir.evaluation.metrics import summary
from areir.retrieval import evaluate

both_formats = pytest.mark.parametrize('name', ['file.pt', 'file.npz'])


class RunsWhenUnpickled:
    def __reduce__(self):
        return os.mkdir, ('executed',)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def metrics_of(path, ks=(1, 4), heads=None, **keywords):
    return summary(rank_file(path, 'cpu', heads, **keywords).ranks, ks)


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


def objects(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


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
    labels = objects([*(TEXTS if texts else LABELS.tolist())[:-1], none])
    if name == 'file.pt' and none is pd.NA:
        pytest.skip('torch refuses it')
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


def test_files_of_torch_with_arrays_and_arguments():
    entries = {'embeddings': EMBEDDINGS.numpy(), 'labels': objects(TEXTS)}
    path = save('file.pt', **entries, args=argparse.Namespace(seed=1))
    assert metrics_of(path) == evaluate(EMBEDDINGS, LABELS, [1, 4])


# Files that are refused


@both_formats
@pytest.mark.parametrize('share', [0, 0.9, 'text', 'missing'])
def test_damaged_file(name, share):
    if share == 'text':
        with open(name, 'w') as file:
            file.write('id,x,y\n1,2,3\n' * 100)
    elif share != 'missing':
        save_plain(name)
        os.truncate(name, int(os.path.getsize(name) * share))
    line = refusal(name)
    assert line.startswith(name) and ('damaged' in line) == (share == 0.9)


def test_objects_are_not_executed():
    objects = np.array([RunsWhenUnpickled()] * COUNT, dtype=object)
    for key in ('embeddings', 'labels', 'images'):
        path = save_plain('file.npz', **{key: objects})
        assert refusal(path).startswith('file.npz holds objects (posix.mkdir)')
    rank_file(save_plain('file.npz', comments=objects), 'cpu')  # not needed
    path = save_plain('file.pt', extra=RunsWhenUnpickled())
    assert refusal(path).startswith('file.pt holds objects (posix.mkdir)')
    with open('file.pkl', 'wb') as file:
        pickle.dump(RunsWhenUnpickled(), file)
    assert refusal('file.pkl').startswith('file.pkl is a pickle')
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
        ({'embeddings': EMBEDDINGS[:1], 'labels': LABELS[:1]}, 'a single image'),
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
    assert metrics_of('vectors.npy', labels='labels.csv') == expected
    parts = ['Query' if query else 'gallery' for query in is_query]
    write_rows([{**row, 'split': part} for row, part in zip(ROWS, parts)])
    assert metrics_of('vectors.npy', labels='labels.csv') == expected


def test_splits_that_are_searched_together_are_said(capsys):
    write_rows(
        [{**row, 'split': part} for row, part in zip(ROWS, ['train', 'val'] * 12)]
    )
    expected = evaluate(EMBEDDINGS, LABELS, [1, 4])
    assert metrics_of('vectors.npy', labels='labels.csv') == expected
    assert 'together: train, val' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('rows', 'offender'),
    [
        (ROWS[1:], f'labels.csv has {COUNT - 1} rows'),
        ([{'name': text} for text in TEXTS], 'labels.csv: no column label or class'),
        ([{**row, 'is_query': row is ROWS[0]} for row in ROWS], 'is_query'),
    ],
    ids=['rows', 'no column', 'mixed roles'],
)
def test_a_csv_that_does_not_fit(rows, offender):
    write_rows(rows)
    assert offender in refusal('vectors.npy', labels='labels.csv')


def test_a_npy_file_that_does_not_fit():
    for array in (np.ones((COUNT, 2, 2)), np.array([{}] * COUNT)):
        write_rows(ROWS, array)
        assert 'vectors.npy: ' in refusal('vectors.npy', labels='labels.csv')


# Tables, labels in a second file, and what other programs write


def write_table(path, **options):
    columns = {f'f{place}': EMBEDDINGS[:, place] for place in range(6)}
    frame = pd.DataFrame({'row': range(COUNT), 'class': TEXTS, **columns})
    frame.to_csv(path, **options)
    return path


def write_lists(path):
    vectors = [str(row.tolist()) for row in EMBEDDINGS[:9]]
    vectors += [str(row) for row in EMBEDDINGS[9:].numpy()]
    pd.DataFrame({'Label': TEXTS, 'box': '[1, 2]', 'embedding': vectors}).to_csv(path)
    return path


def write_text(path):
    names = ','.join([*(f'f{place}' for place in range(6)), 'label'])
    table = np.column_stack([EMBEDDINGS, LABELS])
    np.savetxt(path, table, delimiter=',', header=names)
    return path


def write_parquet(path):
    vectors = list(EMBEDDINGS.numpy())
    table = {'path': IMAGES, 'class': TEXTS, 'vector': vectors}
    pd.DataFrame(table).to_parquet(path)
    return path


def write_hdf5(path):
    with pytest.importorskip('h5py').File(path, 'w') as file:
        file['embeddings'], file['labels'] = EMBEDDINGS.numpy(), TEXTS
        file.create_group('other')
    return path


def write_safetensors(path):
    save_file({'embeddings': EMBEDDINGS, 'labels': LABELS}, path)
    return path


def write_dict(path):
    np.save(path, {'embeddings': EMBEDDINGS.numpy(), 'labels': TEXTS})
    return path


@pytest.mark.parametrize(
    'path',
    [
        lambda: write_table('v.csv', index=False),
        lambda: write_table('v.tsv', sep='\t'),
        lambda: write_table('v.csv', sep=';'),
        lambda: write_lists('v.csv'),
        lambda: write_text('v.csv'),
        lambda: write_parquet('v.parquet'),
        lambda: write_hdf5('v.h5'),
        lambda: write_safetensors('v.safetensors'),
        lambda: write_dict('v.npy'),
    ],
    ids=['csv', 'tsv', 'semicolons', 'lists', 'savetxt', 'parquet', 'hdf5']
    + ['safetensors', 'dict'],
)
def test_files_of_other_programs(path):
    assert metrics_of(path()) == evaluate(EMBEDDINGS, LABELS, [1, 4])


def write_vectors(kind):
    if kind == 'npy':
        np.save('v.npy', EMBEDDINGS.numpy())
        return 'v.npy'
    if kind == 'npz':
        return save('v.npz', embeddings=EMBEDDINGS)
    if kind == 'pt':
        torch.save(EMBEDDINGS, 'v.pt')
        return 'v.pt'
    if kind == 'pandas':
        pd.DataFrame(EMBEDDINGS.numpy()).to_csv('v.csv')
    else:
        np.savetxt(
            'v.csv', EMBEDDINGS.numpy(), delimiter={'blanks': ' '}.get(kind, ',')
        )
    return 'v.csv'


@pytest.mark.parametrize('labels', ['labels.npy', 'labels.txt', 'images.csv'])
@pytest.mark.parametrize('kind', ['npy', 'npz', 'pt', 'csv', 'blanks', 'pandas'])
def test_labels_in_a_second_file(kind, labels):
    path, apart = write_vectors(kind), f'other/{labels}'
    os.mkdir('other')
    if labels.endswith('npy'):
        np.save(apart, objects(TEXTS))
    elif labels.endswith('txt'):
        with open(apart, 'w') as file:
            file.write('\n'.join(TEXTS) + '\n')
    else:  # as inference.py exports it
        table = {'row': range(COUNT), 'path': IMAGES, 'class': TEXTS}
        pd.DataFrame(table).to_csv(apart, index=False)
    expected = evaluate(EMBEDDINGS, LABELS, [1, 4])
    assert metrics_of(path, labels=apart) == expected
    assert '--labels' in refusal(path)
    os.rename(apart, labels)
    ranked = rank_file(path, 'cpu')
    assert summary(ranked.ranks, [1, 4]) == expected
    assert labels in ranked.notices[-1]


@pytest.mark.parametrize('form', ['{}', '/data/{}', './{}'])
def test_rows_are_those_of_the_images_they_name(form):
    names = [f'img/{name}' for name in IMAGES]
    path = save(
        'file.npz', embeddings=EMBEDDINGS, images=[form.format(n) for n in names]
    )
    rows = pd.DataFrame({'path': [*names, 'img/other.png'], 'label': [*TEXTS, 'x']})
    rows[::-1].to_csv('sorted.csv')
    assert metrics_of(path, labels='sorted.csv') == evaluate(EMBEDDINGS, LABELS, [1, 4])
    rows[1:].to_csv('sorted.csv')
    assert '0.png' in refusal(path, labels='sorted.csv')


def test_labels_that_cannot_be_chosen():
    path = write_vectors('npy')
    np.save('labels.npy', LABELS[1:].numpy())
    assert f'labels.npy has {COUNT - 1} rows' in refusal(path)
    with open('labels.txt', 'w') as file:
        file.write('\n'.join(TEXTS))
    assert 'labels.npy, labels.txt lie beside it' in refusal(path)
    assert rank_file(save_plain('file.pt'), 'cpu', labels='labels.npy').labels_unused


@pytest.mark.parametrize(
    ('name', 'content', 'kind'),
    [
        ('v.npz', b'', 'an empty file'),
        ('v.npz', b'version https://git-lfs.github.com/spec/v1\n', 'a Git LFS pointer'),
        ('v.pt', b'<!DOCTYPE html><html>', 'a web page'),
        ('v.npy', b'1,2,3\n', 'a text file'),
        ('v.json', b'{"embeddings": []}', 'a text file'),
        ('v.dat', b'\0\1\2', 'of an unknown kind'),
        ('v.csv', b'label,f0,f1\na,1,2\nb,1\n', 'line 3: more or fewer cells'),
        (
            'v.csv',
            b'label,f0,f1\na,1,2\nb,1,x\n',
            'line 3: could not convert',
        ),
        (
            'v.csv',
            b'label,f0,f1\na,1,2\nb,1,\n',
            'line 3: could not convert',
        ),
        ('v.csv', b'label;f0;f1\na;0,5;0,1\n', 'no columns of vectors'),
        ('v.csv', b'label,name\na,x\n', 'no columns of vectors'),
        ('v.csv', b'label,f0,f1\n', 'without rows'),
        ('v.csv', b'label,f\na,[0.5 ... 0.1]\n', 'or have one of whole lists'),
        ('v.csv', b'\n', 'empty'),
    ],
)
def test_a_file_is_called_what_it_is(name, content, kind):
    with open(name, 'wb') as file:
        file.write(content)
    line = refusal(name)
    assert line.startswith(name) and kind in line and 'damaged' not in line


def test_a_table_with_a_missing_label():
    labels = pd.array([*LABELS.tolist()[:-1], None], dtype='Int64')
    columns = {f'f{place}': EMBEDDINGS[:, place].numpy() for place in range(6)}
    pd.DataFrame({'label': labels, **columns}).to_parquet('v.parquet')
    expected = evaluate(EMBEDDINGS, [*LABELS[:-1], -1], [1, 4])
    assert metrics_of('v.parquet') == expected


def test_a_column_that_may_be_the_labels_is_named():
    table = np.column_stack([LABELS, EMBEDDINGS])
    np.savetxt('v.csv', table, delimiter=',')
    np.save('labels.npy', LABELS.numpy())
    assert '0 has whole numbers only' in rank_file('v.csv', 'cpu').notices[0]


# The length of vectors


def lengthened(vectors, low=0.3, high=3.0):
    return vectors * torch.linspace(low, high, len(vectors))[:, None]


def nearest_first(query, gallery):
    """Return the order of the gallery by distance, in float64."""
    return torch.cdist(query.double(), gallery.double()).argsort(dim=1)


LONG = lengthened(EMBEDDINGS)


@pytest.mark.parametrize('metric', [None, 'cosine'])
def test_vectors_of_unequal_length_are_normalised(metric):
    ranked = rank_file(save_plain('file.pt', embeddings=LONG), 'cpu', metric=metric)
    expected = evaluate(F.normalize(EMBEDDINGS), LABELS, [1, 4])
    assert summary(ranked.ranks, [1, 4]) == expected
    if metric is None:
        assert '(0.52 to 5.2)' in ranked.notices[0]
    else:
        assert not ranked.notices


def test_vectors_of_almost_one_length_are_normalised():
    vectors = (F.normalize(EMBEDDINGS) * 127).round().to(torch.int8)
    path = save_plain('file.pt', embeddings=vectors)
    expected = evaluate(F.normalize(vectors.double()).float(), LABELS, [1, 4])
    assert metrics_of(path) == expected
    assert 'not of unit length' in rank_file(path, 'cpu').notices[-1]


@pytest.mark.parametrize('metric', ['dot', 'euclidean'])
def test_a_vector_that_is_far_too_long_is_said(metric):
    vectors = EMBEDDINGS.clone()
    vectors[0] *= 1e4
    path = save_plain('file.pt', embeddings=vectors)
    ranked = rank_file(path, 'cpu', metric=metric, with_pairs=True)
    assert '--verification is coarse' in ranked.notices[-1]
    ranked = rank_file(path, 'cpu', metric='cosine', with_pairs=True)
    assert not ranked.notices


def test_dot_products_are_of_the_vectors_as_they_are():
    path = save_plain('file.pt', embeddings=LONG)
    assert metrics_of(path, metric='dot') == evaluate(LONG, LABELS, [1, 4])
    path = save_plain('file.pt', embeddings=with_bad_row(1e30))
    assert 'normalise' in refusal(path, metric='dot')


@pytest.mark.parametrize('apart', [False, True])
@pytest.mark.parametrize(('scale', 'offset'), [(1, 0), (1e25, 0), (1e-25, 0), (1, 100)])
def test_euclidean_distances(apart, scale, offset):
    vectors = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    vectors = lengthened(vectors) * scale + offset
    labels = torch.arange(300) % 40
    if apart:
        query, gallery = vectors[:80], vectors[80:]
        entries = {'query_embeddings': query, 'query_labels': labels[:80]}
        path = save('file.pt', embeddings=gallery, labels=labels[80:], **entries)
        order = nearest_first(query, gallery)
        hits = labels[80:][order] == labels[:80, None]
    else:
        path = save('file.pt', embeddings=vectors, labels=labels)
        order = nearest_first(vectors, vectors)[:, 1:]
        hits = labels[order] == labels[:, None]
    ranks = rank_file(path, 'cpu', metric='euclidean').ranks
    assert torch.equal(ranks['rank'], hits.int().argmax(dim=1) + 1)


def test_vectors_of_one_length_are_ranked_alike():
    path = save_plain('file.pt', embeddings=EMBEDDINGS * 7)
    expected = evaluate(EMBEDDINGS, LABELS, [1, 4])
    for metric in (None, 'cosine', 'dot', 'euclidean'):
        assert metrics_of(path, metric=metric) == expected
    for embeddings in (EMBEDDINGS * 7, EMBEDDINGS.half(), EMBEDDINGS.bfloat16()):
        assert not rank_file(
            save_plain('file.pt', embeddings=embeddings), 'cpu'
        ).notices


def test_vectors_of_zeros_have_no_direction():
    embeddings = EMBEDDINGS.clone()
    embeddings[[3, 5]] = 0
    path = save_plain('file.pt', embeddings=embeddings)
    for metric in (None, 'cosine'):
        assert 'zeros only in 2 images: 3, 5' in refusal(path, metric=metric)
    assert metrics_of(path, metric='dot') == evaluate(embeddings, LABELS, [1, 4])
    rank_file(path, 'cpu', metric='euclidean')


# Queries in the gallery, groups and files


def save_both(names, query_names, **entries):
    own = {'query_embeddings': EMBEDDINGS[:9], 'query_labels': LABELS[:9]}
    names = {'images': names, 'query_images': query_names} if names else {}
    return save_plain('file.npz', **own, **names, **entries)


@pytest.mark.parametrize('form', ['{}', './{}', 'b/../{}', 'b\\..\\{}'])
def test_a_query_does_not_find_its_own_name(form):
    names = [f'a/{name}' for name in IMAGES]
    ranked = rank_file(save_both(names, [form.format(n) for n in names[:9]]), 'cpu')
    alone = rank_file(save_plain('alone.npz'), 'cpu').ranks
    for name, values in ranked.ranks.items():
        assert torch.equal(values, alone[name][:9])
    assert ranked.in_gallery == 9
    (notice,) = ranked.notices
    assert '9 queries, such as a/0.png' in notice


def test_equal_names_in_other_folders_are_others():
    gallery = {'embeddings': F.normalize(RANDOM.flatten(1))}
    path = save_both(IMAGES, [f'query/{name}' for name in IMAGES[:9]], **gallery)
    ranked = rank_file(path, 'cpu')
    assert ranked.in_gallery == 0 and not ranked.notices


def test_names_of_several_classes_tell_nothing():
    gallery = {'embeddings': F.normalize(RANDOM.flatten(1))}
    names = [f'{place // 5}.png' for place in range(COUNT)]  # a name in each class
    ranked = rank_file(save_both(names, names[:9], **gallery), 'cpu')
    assert ranked.in_gallery is None
    assert 'names such as 0.png are of several classes' in ranked.notices[0]
    expected = evaluate(EMBEDDINGS[:9], LABELS[:9], [1], gallery['embeddings'], LABELS)
    assert summary(ranked.ranks, [1]) == expected


def test_row_numbers_are_no_names():
    numbers = {'images': list(range(1, COUNT + 1)), 'query_images': list(range(9))}
    ranked = rank_file(save_plain('file.pt', **{**QUERIES, **numbers}), 'cpu')
    assert ranked.in_gallery is None and 'such as 1 are' in ranked.notices[0]


@pytest.mark.parametrize('named', [False, True])
def test_equal_vectors_in_the_gallery_are_noted(named):
    names = (IMAGES, [f'{name}2' for name in IMAGES[:9]]) if named else (None, None)
    ranked = rank_file(save_both(*names), 'cpu')
    assert '9 queries, such as row 0, with the vector' in ranked.notices[-1]
    assert (ranked.ranks['rank'] == 1).all()  # not ignored


@pytest.mark.parametrize('named', [False, True])
def test_repeated_images_do_not_find_themselves(named):
    again = torch.arange(COUNT + 4) % COUNT
    names = {'images': [IMAGES[row] for row in again]} if named else {}
    entries = {'embeddings': EMBEDDINGS[again], 'labels': LABELS[again]}
    ranked = rank_file(save('file.npz', **entries, **names), 'cpu')
    assert ('4 images' if named else '8 queries') in ranked.notices[0]
    assert len(ranked.notices) == 1
    files = again if named else None
    expected = evaluate(entries['embeddings'], entries['labels'], [1, 4], files=files)
    assert summary(ranked.ranks, [1, 4]) == expected


@pytest.mark.parametrize('query', ['query_{}', 'test_{}'])
@pytest.mark.parametrize('named', [False, True])
def test_a_gallery_that_repeats_the_queries_is_none(query, named):
    """Otherwise each query would find itself, and recall would be 100 %."""
    vectors = 'features' if query == 'test_{}' else 'embeddings'  # of the original code
    entries = {vectors: EMBEDDINGS, 'labels': LABELS}
    entries |= {'images': IMAGES} if named else {}
    both = {
        side.format(name): value
        for side in (query, 'gallery_{}')
        for name, value in entries.items()
    }
    ranked = rank_file(save('file.pt', **both), 'cpu')
    assert ranked.gallery is None and 'repeats the queries' in ranked.notices[0]
    assert summary(ranked.ranks, [1, 4]) == evaluate(EMBEDDINGS, LABELS, [1, 4])


GROUPS = [f'camera {number // 4}' for number in range(COUNT)]


@pytest.mark.parametrize('metric', [None, 'euclidean'])
@pytest.mark.parametrize('apart', [False, True])
@pytest.mark.parametrize('kind', ['groups', 'files'])
def test_groups_and_files_are_ignored(kind, apart, metric):
    numbers = torch.arange(COUNT) // 4
    vectors = F.normalize(EMBEDDINGS)
    if apart:
        entries = {f'query_{kind}': GROUPS[:9], f'gallery_{kind}': GROUPS[9:]}
        entries |= {'query_embeddings': vectors[:9], 'query_labels': LABELS[:9]}
        entries |= {'gallery_embeddings': vectors[9:], 'gallery_labels': LABELS[9:]}
        path = save('file.npz', **entries)
        marks = {kind: numbers[:9], f'gallery_{kind}': numbers[9:]}
        gallery = vectors[9:], LABELS[9:]
        expected = evaluate(vectors[:9], LABELS[:9], [1, 4], *gallery, **marks)
    else:
        path = save('file.npz', embeddings=vectors, labels=LABELS, **{kind: GROUPS})
        expected = evaluate(vectors, LABELS, [1, 4], **{kind: numbers})
    assert metrics_of(path, metric=metric) == expected
    assert expected != evaluate(vectors, LABELS, [1, 4])


def test_copies_that_a_group_ignores_are_not_noted():
    groups = {'groups': GROUPS, 'query_groups': GROUPS[:9]}
    assert not rank_file(save_both(None, None, **groups), 'cpu').notices


def test_groups_that_match_nothing_are_said():
    groups = {'groups': list(range(COUNT)), 'query_groups': GROUPS[:9]}
    ranked = rank_file(save_both(None, None, **groups), 'cpu')
    assert 'no group of the queries' in ranked.notices[0]


@both_formats
def test_arrays_of_other_names_are_not_used(name):
    ranked = rank_file(save_plain(name, cameras=LABELS, paths=IMAGES), 'cpu')
    assert ranked.notices == ['not used: cameras, paths']


def test_groups_of_one_side_are_refused():
    line = refusal(save_both(None, None, query_groups=GROUPS[:9]))
    assert 'groups not in it' in line


def test_cameras_of_a_csv():
    write_rows([{**row, 'camera': group} for row, group in zip(ROWS, GROUPS)])
    numbers = torch.arange(COUNT) // 4
    expected = evaluate(EMBEDDINGS, LABELS, [1, 4], groups=numbers)
    assert metrics_of('vectors.npy', labels='labels.csv') == expected


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


def test_labels_that_a_spreadsheet_has_sorted(tmp_path):
    """The column row of images.csv, which inference.py --export writes, counts."""
    np.save(tmp_path / 'vectors.npy', np.eye(4, dtype=np.float32))
    rows = ['row,path,class', '2,c.png,x', '0,a.png,y', '3,d.png,x', '1,b.png,y']
    (tmp_path / 'images.csv').write_text('\n'.join(rows))
    file = read_embeddings(str(tmp_path / 'vectors.npy'))
    assert file.query.images == ['a.png', 'b.png', 'c.png', 'd.png']
    assert file.query.labels.tolist() == [1, 1, 0, 0]

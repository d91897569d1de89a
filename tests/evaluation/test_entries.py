"""What is read of other programs' files, and what is refused."""

import argparse
import csv
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from embedding_files import (
    COUNT,
    EMBEDDINGS,
    GROUPS,
    IMAGES,
    LABELS,
    TEXTS,
    both_formats,
    folder,
    metrics_of,
    objects,
    refusal,
    save,
    save_plain,
)
from safetensors.torch import save_file

from areir.evaluation.embeddings_file import rank_file, read_embeddings
from areir.evaluation.metrics import summary
from areir.retrieval import evaluate

pytestmark = pytest.mark.usefixtures(folder.__name__)


class RunsWhenUnpickled:
    def __reduce__(self):
        return os.mkdir, ('executed',)


def test_files_of_torch_with_arrays_and_arguments():
    entries = {'embeddings': EMBEDDINGS.numpy(), 'labels': objects(TEXTS)}
    path = save('file.pt', **entries, args=argparse.Namespace(seed=1))
    assert metrics_of(path) == evaluate(EMBEDDINGS, LABELS, [1, 4])


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


# Labels in a CSV

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


def test_cameras_of_a_csv():
    write_rows([{**row, 'camera': group} for row, group in zip(ROWS, GROUPS)])
    numbers = torch.arange(COUNT) // 4
    expected = evaluate(EMBEDDINGS, LABELS, [1, 4], groups=numbers)
    assert metrics_of('vectors.npy', labels='labels.csv') == expected


def test_labels_that_a_spreadsheet_has_sorted(tmp_path):
    """The column row of images.csv, which inference.py --export writes, counts."""
    np.save(tmp_path / 'vectors.npy', np.eye(4, dtype=np.float32))
    rows = ['row,path,class', '2,c.png,x', '0,a.png,y', '3,d.png,x', '1,b.png,y']
    (tmp_path / 'images.csv').write_text('\n'.join(rows))
    file = read_embeddings(str(tmp_path / 'vectors.npy'))
    assert file.query.images == ['a.png', 'b.png', 'c.png', 'd.png']
    assert file.query.labels.tolist() == [1, 1, 0, 0]

"""The export of a collection."""

import os

import numpy as np
import pandas as pd
import pytest
from toy import ToyCollection, on_circle

from areir.files import WriteError
from areir.output.vectors_export import export_vectors

PATHS = ['a/1.png', 'b/caf\udce9.png', '3.png']


@pytest.mark.parametrize('mapped', [False, True])
def test_vectors_and_images_are_written_row_for_row(tmp_path, capsys, mapped):
    vectors = on_circle(0, 10, 20)
    np.save(tmp_path / 'stored.npy', vectors.numpy())
    if mapped:
        vectors = np.load(tmp_path / 'stored.npy', mmap_mode='c')
    collection = ToyCollection(tmp_path, PATHS, vectors, ['a', 'b', None])
    folder = tmp_path / 'out'
    export_vectors(collection, str(folder))
    assert sorted(os.listdir(folder)) == ['images.csv', 'vectors.npy']
    written = np.load(folder / 'vectors.npy')
    assert written.dtype == np.float32 and np.array_equal(written, vectors)
    table = pd.read_csv(folder / 'images.csv', encoding_errors='surrogateescape')
    assert table['row'].tolist() == [0, 1, 2] and table['path'].tolist() == PATHS
    assert table['class'].tolist()[:2] == ['a', 'b'] and table['class'].isna()[2]
    assert '3 x 2 float32' in capsys.readouterr().out


def test_a_full_disk_leaves_an_earlier_export(tmp_path, monkeypatch):
    collection = ToyCollection(tmp_path, PATHS, on_circle(0, 10, 20))
    export_vectors(collection, str(tmp_path / 'out'))
    before = (tmp_path / 'out/vectors.npy').read_bytes()

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'save', full)
    with pytest.raises(WriteError, match=r'vectors\.npy'):
        export_vectors(collection, str(tmp_path / 'out'))
    assert (tmp_path / 'out/vectors.npy').read_bytes() == before
    assert sorted(os.listdir(tmp_path / 'out')) == ['images.csv', 'vectors.npy']

"""The codes of an index are written again if they are missing or damaged."""

import os

import numpy as np
import pytest
from photos import Counting, assert_same, draw_photos, flip_bit, update

from areir.errors import UserError
from areir.files import load_tensors, write_tensors
from areir.gallery.codes_file import codes_path

# each makes NumPy raise another kind of error
HEADERS = {
    'no header': b'{(',
    'odd header': b'{[]: 1}'.ljust(70),
    'odd type': b"{'descr': ('|i1',), 'fortran_order': False, 'shape': (7, 5), }".ljust(
        70
    ),
    'deep header': b'-' * 9000,
}


@pytest.fixture
def photos(tmp_path):
    return draw_photos(tmp_path / 'photos')


@pytest.mark.parametrize(
    'kind',
    [
        *('a flipped bit', 'no header', 'odd header', 'odd type', 'deep header'),
        *('cut short', 'longer', 'missing', 'others'),
    ],
)
def test_damaged_codes_are_written_again(photos, tmp_path, kind):
    """From the vectors, which stay as they are."""
    index_folder = tmp_path / 'index'
    vectors = update(photos, index_folder).vectors.path
    path, written = codes_path(vectors), os.stat(vectors).st_mtime_ns
    with open(path, 'rb') as file:
        whole = file.read()
    if kind == 'a flipped bit':
        flip_bit(path, len(whole) - 3)
    elif kind == 'cut short':
        os.truncate(path, len(whole) - 1)
    elif kind in HEADERS:
        with open(path, 'r+b') as file:
            file.seek(10)
            file.write(HEADERS[kind])
    elif kind == 'longer':
        os.truncate(path, len(whole) + 1)
    elif kind == 'missing':
        os.remove(path)
    else:
        np.save(path, np.zeros((7, 5), np.int8))
    counting = Counting()
    index = update(photos, index_folder, embed=counting)
    assert index.vectors.path == vectors and os.stat(vectors).st_mtime_ns == written
    with open(path, 'rb') as file:
        assert file.read() == whole
    assert counting.images == 0
    assert_same(index, update(photos, tmp_path / 'new'))


@pytest.mark.parametrize('name', ['index.pth', 'vectors_*_codes.npy'])
def test_a_folder_in_the_place_of_a_file_is_named(photos, tmp_path, name):
    update(photos, tmp_path / 'index')
    (path,) = (tmp_path / 'index').glob(name)
    path.unlink()
    path.mkdir()
    (path / 'mine').write_text('kept')
    with pytest.raises(UserError, match=f'{path} is a folder in the place of a file'):
        update(photos, tmp_path / 'index')
    assert (path / 'mine').read_text() == 'kept'
    (path / 'mine').unlink()
    path.rmdir()
    assert_same(update(photos, tmp_path / 'index'), update(photos, tmp_path / 'new'))


def test_codes_are_added_to_an_index_of_earlier_versions(photos, tmp_path):
    """A second update leaves all files as they are."""
    vectors = update(photos, tmp_path / 'index').vectors.path
    os.remove(codes_path(vectors))
    path = str(tmp_path / 'index/index.pth')
    table = load_tensors(path)
    del table['checksums'][os.path.basename(codes_path(vectors))]
    write_tensors({path: table})
    update(photos, tmp_path / 'index')
    files = path, codes_path(vectors)
    written = [os.stat(file).st_mtime_ns for file in files]
    assert update(photos, tmp_path / 'index').vectors.path == vectors
    assert [os.stat(file).st_mtime_ns for file in files] == written

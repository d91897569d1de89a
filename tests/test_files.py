"""Atomic writes leave the earlier file or the whole new one; loads execute nothing."""

import json
import ntpath
import os
import pickle
import time

import pandas as pd
import pytest
import torch

from areir import files
from areir.errors import UserError


class RunsWhenUnpickled:
    """An object whose unpickling would leave a folder in the working directory."""

    def __reduce__(self):
        return os.mkdir, ('executed',)


def touch(path, age=0):
    """Write a file that was last changed `age` seconds ago."""
    path.write_text('x')
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def leftover(folder, name, age):
    """Write what a writer of `name` leaves if it is killed."""
    return touch(folder / os.path.basename(files.temporary_name(name)), age)


def test_leftover_folders_are_removed_and_links_are_not_followed(tmp_path):
    mine = touch(tmp_path / 'mine.txt')
    folder = tmp_path / os.path.basename(files.temporary_name('a'))
    folder.mkdir()
    touch(folder / 'inside')
    link = tmp_path / os.path.basename(files.temporary_name('a'))
    link.symlink_to(tmp_path)
    files.remove_leftovers(str(tmp_path), 'a', older_than=0)
    assert os.listdir(tmp_path) == [mine.name]


# Atomic paths


def test_a_failure_leaves_the_earlier_file(tmp_path):
    path = touch(tmp_path / 'a.csv')
    with (
        pytest.raises(files.WriteError, match=r'a\.csv'),
        files.atomic_path(str(path)) as temporary,
        open(temporary, 'w') as file,
    ):
        file.write('half')
        raise OSError(28, 'No space left on device')
    assert path.read_text() == 'x' and os.listdir(tmp_path) == ['a.csv']


def test_a_write_error_crosses_processes():
    error = files.WriteError('a.pth', OSError(28, 'No space left on device'))
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, OSError) and str(again) == str(error)


def test_two_writers_of_one_name_do_not_collide(tmp_path):
    path = str(tmp_path / 'a.csv')
    with files.atomic_path(path) as first, files.atomic_path(path) as second:
        for temporary in (first, second):
            with open(temporary, 'w') as file:
                file.write(temporary)
    assert (tmp_path / 'a.csv').read_text() == first  # it was moved last
    assert os.listdir(tmp_path) == ['a.csv']


def test_writing_removes_old_leftovers_of_the_same_name_only(tmp_path):
    old = leftover(tmp_path, 'a.txt', files.ABANDONED + 1)
    young = leftover(tmp_path, 'a.txt', 0)
    other = leftover(tmp_path, 'b.txt', files.ABANDONED + 1)
    files.write_text(str(tmp_path / 'a.txt'), 'new')
    assert not old.exists() and young.exists() and other.exists()
    old = leftover(tmp_path, 'a.txt', files.ABANDONED + 1)
    with files.atomic_path(str(tmp_path / 'a.txt'), tidy=False) as temporary:
        touch(tmp_path / os.path.basename(temporary))
    assert old.exists()


# Whole files


def test_text_json_and_tables(tmp_path):
    path = tmp_path / 'file'
    files.write_text(str(path), 'Schöne\r\nZeile \udcff\n')
    assert path.read_bytes() == 'Schöne\r\nZeile '.encode() + b'\xff\n'
    files.write_json(str(path), {'name': 'Schöne', 'numbers': [1, 0.1]})
    assert json.loads(path.read_text()) == {'name': 'Schöne', 'numbers': [1, 0.1]}
    table = pd.DataFrame({'epoch': [1, 2], 'loss': [0.1, 1 / 3]})
    files.write_table(str(path), table)
    pd.testing.assert_frame_equal(pd.read_csv(path), table, check_exact=True)


def test_file_names_need_not_be_valid_text(tmp_path):
    name = os.fsdecode(b'caf\xe9.csv')  # Latin-1, as old disks have it
    path = str(tmp_path / name)
    files.write_text(path, name)
    files.write_json(path, [name])
    files.write_table(path, pd.DataFrame({'path': [name]}, dtype=object))
    with open(os.fsencode(path), 'rb') as file:
        assert b'caf\xe9.csv' in file.read()
    files.write_tensors({path: {'a': 1}})
    assert files.load_own(path, ['a'], 'train again')['a'] == 1
    old = files.temporary_name(path)
    with open(old, 'w'):
        os.utime(old, (0, 0))
    files.write_text(path, name)
    assert os.listdir(tmp_path) == [name]


def test_tensors_that_cannot_be_written_leave_the_earlier_files(tmp_path, monkeypatch):
    first, second = str(tmp_path / 'first.pth'), str(tmp_path / 'second.pth')
    files.write_tensors({first: {'a': 1}, second: {'a': 1}})
    save = torch.save

    def full_disk(value, file):
        save(value, file)
        if 'second' in file.name:
            raise RuntimeError('PytorchStreamWriter failed writing file')

    monkeypatch.setattr(torch, 'save', full_disk)
    with pytest.raises(OSError, match=r'second\.pth'):
        files.write_tensors({first: {'a': 2}, second: {'a': 2}})
    assert files.load_tensors(first)['a'] == files.load_tensors(second)['a'] == 1
    assert sorted(os.listdir(tmp_path)) == ['first.pth', 'second.pth']


def test_equal_tensors_are_equal_bytes(tmp_path):
    paths = [tmp_path / name for name in ('first.pth', 'second.pth')]
    files.write_tensors({str(path): {'weights': torch.arange(5.0)} for path in paths})
    assert paths[0].read_bytes() == paths[1].read_bytes()


# Folders


def write_folder(path, content='new', mark='mark'):
    with files.atomic_folder(str(path), mark) as temporary:
        for name in (mark or 'a', content):
            with open(os.path.join(temporary, name), 'w') as file:
                file.write('x')


def test_a_folder_replaces_an_earlier_one_of_its_own(tmp_path):
    path = tmp_path / 'deep/folder'
    write_folder(path, 'old')
    write_folder(path, 'new')
    assert sorted(os.listdir(path)) == ['mark', 'new']
    assert os.listdir(tmp_path / 'deep') == ['folder']


@pytest.mark.parametrize('kind', ['folder', 'empty folder', 'file', 'link', 'broken'])
def test_what_others_wrote_is_refused(tmp_path, kind):
    path, mine = tmp_path / 'folder', tmp_path / 'mine'
    if kind == 'file':
        touch(path)
    elif kind in ('link', 'broken'):
        path.symlink_to(mine)
        if kind == 'link':
            write_folder(mine)
    else:
        path.mkdir()
        if kind == 'folder':
            touch(path / 'mine.txt')
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match='folder'):
        write_folder(path)
    assert sorted(os.listdir(tmp_path)) == before
    assert not path.is_dir() or 'new' not in os.listdir(path) or kind == 'link'


# Loading


def test_absent_files_and_folders_are_refused_by_name(tmp_path):
    for path in (tmp_path / 'absent.pth', tmp_path):
        with pytest.raises(UserError, match=path.name):
            files.load_tensors(str(path))


def test_files_of_the_legacy_format_have_no_checksums_and_are_read(tmp_path):
    path = str(tmp_path / 'a.pth')
    torch.save({'a': torch.arange(5)}, path, _use_new_zipfile_serialization=False)
    assert files.load_tensors(path)['a'].tolist() == [0, 1, 2, 3, 4]


def test_pickled_objects_are_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'calibration': RunsWhenUnpickled()}, 'a.pth')
    with pytest.raises(UserError, match=r'a\.pth'):
        files.load_tensors('a.pth')
    assert not os.path.exists('executed')


def test_names_are_cut_between_characters():
    assert files.cut_name('a中文', 5) == 'a中'
    assert files.cut_name('\udcff' * 5, 5) == '\udcff' * 5


def test_between_drives_of_windows_paths_are_absolute(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, 'path', ntpath)
        near = files.relative_path('C:\\data', 'C:\\a')
        far = files.relative_path('D:\\b', 'C:\\a')
    assert (near, far) == ('..\\data', 'D:\\b')

"""Atomic writes leave the earlier file or the whole new one; loads execute nothing."""

import json
import os
import pickle
import threading
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


# Names


def test_temporary_names_are_hidden_unique_and_in_the_same_folder(tmp_path):
    names = {files.temporary_name(f'{tmp_path}/a.csv') for _ in range(50)}
    assert len(names) == 50
    assert {os.path.dirname(name) for name in names} == {str(tmp_path)}
    assert all(os.path.basename(name).startswith('.a.csv.') for name in names)


def test_leftovers_of_one_name_are_removed_after_their_time(tmp_path):
    old = leftover(tmp_path, 'a.csv', files.ABANDONED + 1)
    young = leftover(tmp_path, 'a.csv', files.ABANDONED - 60)
    of_another = leftover(tmp_path, 'ba.csv', files.ABANDONED + 1)
    files.remove_leftovers(str(tmp_path), 'a.csv')
    assert not old.exists() and young.exists() and of_another.exists()
    files.remove_leftovers(str(tmp_path), older_than=0)
    assert os.listdir(tmp_path) == []


def test_files_with_similar_names_are_no_leftovers(tmp_path):
    names = ['a.csv', 'a.csv.part', '.a.csv.part', '.a.csv.0123456789ab', '.a.part']
    names += ['.a.csv.0123456789abc.part', '.a.csv.0123456789AB.part']
    for name in names:
        touch(tmp_path / name, files.ABANDONED + 1)
    files.remove_leftovers(str(tmp_path), older_than=0)
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_leftover_folders_are_removed_and_links_are_not_followed(tmp_path):
    mine = touch(tmp_path / 'mine.txt')
    folder = tmp_path / os.path.basename(files.temporary_name('a'))
    folder.mkdir()
    touch(folder / 'inside')
    link = tmp_path / os.path.basename(files.temporary_name('a'))
    link.symlink_to(tmp_path)
    files.remove_leftovers(str(tmp_path), 'a', older_than=0)
    assert os.listdir(tmp_path) == [mine.name]


def test_remove_takes_files_folders_links_and_nothing(tmp_path):
    (tmp_path / 'folder/deep').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'folder')
    for name in ('link', 'absent', 'folder'):
        files.remove(str(tmp_path / name))
        if name == 'link':
            assert (tmp_path / 'folder/deep').is_dir()
    assert os.listdir(tmp_path) == []


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


def test_a_write_error_is_an_os_error_that_names_file_and_reason():
    error = files.WriteError('a.pth', OSError(28, 'No space left on device'))
    assert isinstance(error, OSError)
    assert 'a.pth' in str(error) and 'No space left on device' in str(error)
    error = files.WriteError('a.pth', RuntimeError('failed writing file\nat line 7'))
    assert 'failed writing file' in str(error) and '\n' not in str(error)
    assert 'a.pth' in str(files.WriteError('a.pth', RuntimeError()))


def test_a_write_error_crosses_processes():
    error = files.WriteError('a.pth', OSError(28, 'No space left on device'))
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, OSError) and str(again) == str(error)


@pytest.mark.parametrize('error', [KeyboardInterrupt, KeyError])
def test_other_failures_keep_their_kind_and_leave_nothing(tmp_path, error):
    path = str(tmp_path / 'a.csv')
    with pytest.raises(error), files.atomic_path(path) as temporary:
        touch(tmp_path / os.path.basename(temporary))
        raise error
    assert os.listdir(tmp_path) == []


def test_a_block_that_writes_nothing_fails(tmp_path):
    path = touch(tmp_path / 'a.csv')
    with pytest.raises(files.WriteError), files.atomic_path(str(path)):
        pass
    assert path.read_text() == 'x'


def test_the_failures_of_a_block_can_be_chosen(tmp_path):
    path = str(tmp_path / 'a.csv')
    with pytest.raises(RuntimeError), files.atomic_path(path, failures=OSError):
        raise RuntimeError


def test_two_writers_of_one_name_do_not_collide(tmp_path):
    path = str(tmp_path / 'a.csv')
    with files.atomic_path(path) as first, files.atomic_path(path) as second:
        for temporary in (first, second):
            with open(temporary, 'w') as file:
                file.write(temporary)
    assert (tmp_path / 'a.csv').read_text() == first  # it was moved last
    assert os.listdir(tmp_path) == ['a.csv']


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    path = str(tmp_path / 'a.json')

    def write(number):
        for _ in range(20):
            files.write_json(path, [number] * 5000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if os.path.exists(path):
            with open(path) as file:
                values = json.load(file)
            assert len(values) == 5000 and len(set(values)) == 1
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ['a.json']


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


def test_links_and_folders_are_moved_like_files(tmp_path):
    path = tmp_path / 'a'
    with files.atomic_path(str(path)) as temporary:
        os.symlink('nowhere', temporary)
    assert os.readlink(path) == 'nowhere'
    path.unlink()
    for content in ('old', 'new'):
        with files.atomic_path(str(path)) as temporary:
            os.mkdir(temporary)
            touch(tmp_path / os.path.basename(temporary) / content)
    assert os.listdir(path) == ['new'] and os.listdir(tmp_path) == ['a']


def test_names_in_the_working_directory_need_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_text('a.txt', 'text')
    assert os.listdir(tmp_path) == ['a.txt']


# Whole files


def test_text_json_and_tables(tmp_path):
    path = tmp_path / 'file'
    files.write_text(str(path), 'Schöne\r\nZeile \udcff\n')
    assert path.read_bytes() == 'Schöne\r\nZeile '.encode() + b'\xff\n'
    files.write_json(str(path), {'name': 'Schöne', 'numbers': [1, 0.1]})
    assert json.loads(path.read_text()) == {'name': 'Schöne', 'numbers': [1, 0.1]}
    assert 'Schöne' in path.read_text() and path.read_text().endswith('}\n')
    table = pd.DataFrame({'epoch': [1, 2], 'loss': [0.1, 1 / 3]})
    files.write_table(str(path), table)
    pd.testing.assert_frame_equal(pd.read_csv(path), table, check_exact=True)


def test_file_names_need_not_be_valid_text(tmp_path):
    name = os.fsdecode(b'caf\xe9.csv')  # Latin-1, as old disks have it
    path = str(tmp_path / name)
    files.write_text(path, name)
    files.write_json(path, [name])
    files.write_table(path, pd.DataFrame({'path': [name]}))
    with open(os.fsencode(path), 'rb') as file:
        assert b'caf\xe9.csv' in file.read()
    files.write_tensors({path: [1]})
    assert files.load_tensors(path) == files.load_tensors(path, mmap=True) == [1]
    old = files.temporary_name(path)
    with open(old, 'w'):
        os.utime(old, (0, 0))
    files.write_text(path, name)
    assert os.listdir(tmp_path) == [name]


def test_a_folder_that_is_absent_is_named(tmp_path):
    with pytest.raises(OSError, match='absent'):
        files.write_text(str(tmp_path / 'absent/a.txt'), 'text')


def test_tensors_that_cannot_be_written_leave_the_earlier_files(tmp_path, monkeypatch):
    first, second = str(tmp_path / 'first.pth'), str(tmp_path / 'second.pth')
    files.write_tensors({first: 1, second: 1})
    save = torch.save

    def full_disk(value, file):
        save(value, file)
        if 'second' in file.name:
            raise RuntimeError('PytorchStreamWriter failed writing file')

    monkeypatch.setattr(torch, 'save', full_disk)
    with pytest.raises(OSError, match=r'second\.pth'):
        files.write_tensors({first: 2, second: 2})
    with pytest.raises(OSError, match=r'second\.pth'):
        files.write_tensors({second: 2})
    assert files.load_tensors(first) == files.load_tensors(second) == 1
    assert sorted(os.listdir(tmp_path)) == ['first.pth', 'second.pth']


def test_equal_tensors_are_equal_bytes(tmp_path):
    values = {'weights': torch.arange(5.0), 'names': ['a', 'b']}
    first, second = tmp_path / 'first.pth', tmp_path / 'second.pth'
    files.write_tensors({str(first): values, str(second): values})
    assert first.read_bytes() == second.read_bytes()


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


def test_a_failed_folder_leaves_the_earlier_one(tmp_path):
    path = tmp_path / 'folder'
    write_folder(path, 'old')
    with pytest.raises(OSError, match='folder'), files.atomic_folder(str(path), 'mark'):
        raise OSError(28, 'No space left on device')
    assert sorted(os.listdir(path)) == ['mark', 'old']
    assert os.listdir(tmp_path) == ['folder']


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


def test_a_folder_without_a_mark_is_written_once(tmp_path):
    write_folder(tmp_path / 'folder', mark=None)
    with pytest.raises(UserError, match='folder'):
        write_folder(tmp_path / 'folder', mark=None)


# Loading


@pytest.mark.parametrize('mmap', [False, True])
def test_tensors_are_loaded_as_they_were_written(tmp_path, mmap):
    path = str(tmp_path / 'a.pth')
    values = {'weights': torch.randn(3, 4), 'list': [1, 'two', None], 'tuple': (1.5,)}
    files.write_tensors({path: values})
    loaded = files.load_tensors(path, mmap=mmap)
    assert torch.equal(loaded.pop('weights'), values.pop('weights'))
    assert loaded == values


@pytest.mark.parametrize('mmap', [False, True])
@pytest.mark.parametrize('content', ['half', 'empty', 'text', 'image'])
def test_damaged_files_are_refused_by_name(tmp_path, content, mmap):
    path = tmp_path / 'a.pth'
    files.write_tensors({str(path): torch.randn(1000)})
    damaged = {
        'half': path.read_bytes()[:2000],
        'empty': b'',
        'text': b'import os\n',
        'image': b'\x89PNG\r\n\x1a\n' + bytes(100),
    }
    path.write_bytes(damaged[content])
    with pytest.raises(UserError, match=r'a\.pth'):
        files.load_tensors(str(path), mmap=mmap)


@pytest.mark.parametrize('mmap', [False, True])
def test_a_flipped_bit_is_noticed(tmp_path, mmap):
    path = tmp_path / 'a.pth'
    tensor = torch.ones(1000)
    files.write_tensors({str(path): {'a': torch.zeros(9), 'b': tensor}})
    content = bytearray(path.read_bytes())
    content[content.index(tensor.numpy().tobytes()) + 2001] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'a\.pth is damaged.*sum of archive/data/1 '):
        files.load_tensors(str(path), mmap=mmap)


def test_files_of_the_legacy_format_have_no_checksums_and_are_read(tmp_path):
    path = str(tmp_path / 'a.pth')
    torch.save({'a': torch.arange(5)}, path, _use_new_zipfile_serialization=False)
    assert files.load_tensors(path)['a'].tolist() == [0, 1, 2, 3, 4]


def test_absent_files_and_folders_are_refused_by_name(tmp_path):
    for path in (tmp_path / 'absent.pth', tmp_path):
        with pytest.raises(UserError, match=path.name):
            files.load_tensors(str(path))


def test_unreadable_files_keep_their_reason(tmp_path, monkeypatch):
    path = touch(tmp_path / 'a.pth')

    def refuse(*arguments, **options):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(torch, 'load', refuse)
    with pytest.raises(PermissionError, match=r'a\.pth'):
        files.load_tensors(str(path))


def test_pickled_objects_are_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open('plain.pth', 'wb') as file:
        pickle.dump({'state_dict': RunsWhenUnpickled()}, file)
    torch.save({'calibration': RunsWhenUnpickled()}, 'torch.pth')
    for name in ('plain.pth', 'torch.pth'):
        with pytest.raises(UserError, match=name):
            files.load_tensors(name)
    assert not os.path.exists('executed')


@pytest.mark.parametrize(
    ('name', 'cut'),
    [('abcdef', 'abcde'), ('中文', '中'), ('a中文', 'a中'), 2 * ('\udcff' * 5,)],
)
def test_names_are_cut_between_characters(name, cut):
    assert files.cut_name(name, 5) == cut

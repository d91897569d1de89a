"""The index of a folder: it always equals an index built from scratch."""

import contextlib
import multiprocessing
import os
import random
import re
import shutil
import sqlite3

import numpy as np
import pytest
import torch
from photos import (
    PIXEL_FORMAT,
    SETTINGS,
    Counting,
    assert_same,
    draw,
    draw_photos,
    embed,
    embed_in_steps,
    flip_bit,
    update,
)
from special import largest_file

from areir.data.images import load_image
from areir.errors import UserError
from areir.files import WriteError
from areir.gallery import index as index_module
from areir.gallery.index import Update, locked
from areir.gallery.vectors import codes_path

STOPPED = 77  # exit code of a process that a test has ended


@pytest.fixture
def photos(tmp_path):
    return draw_photos(tmp_path / 'photos')


@pytest.fixture(scope='module')
def context():
    """Starts processes from one that has imported torch."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch', 'torch.utils.data'])
    return context


def names_in(index_folder):
    """Return the kinds of files in an index, without what a kill leaves of SQLite's."""
    names = sorted(name.split('_')[0] for name in os.listdir(index_folder))
    return [name for name in names if not name.endswith('-journal')]


def test_vectors_are_in_the_order_of_the_paths(photos, tmp_path):
    index = update(photos, tmp_path / 'index')
    assert index.paths == [f'a/{n}.png' for n in (0, 2, 4, 6)] + [
        f'b/{n}.png' for n in (1, 3, 5)
    ]
    pixels = [PIXEL_FORMAT.to_pixels(load_image(photos / path)) for path in index.paths]
    expected = embed(torch.stack(pixels))
    np.testing.assert_allclose(index.vectors.array, expected, atol=1e-6)
    assert index.sizes == [os.path.getsize(photos / path) for path in index.paths]
    assert names_in(index.folder) == ['index.sqlite', 'vectors', 'vectors']


def change_something(photos, rng):
    """Add, change, remove, rename or damage a file."""
    files = sorted(path for path in photos.rglob('*') if path.is_file())
    one = rng.choice(files)
    act = rng.choice(['add', 'change', 'remove', 'rename', 'damage', 'text'])
    if act == 'add':
        draw(photos / rng.choice('abc') / f'new {rng.random()}.png', rng.randrange(999))
    elif act == 'change' and one.suffix == '.png':
        draw(one, rng.randrange(999))
    elif act == 'change':
        one.write_text('other')
    elif act == 'remove' and len(files) > 3:
        one.unlink()
    elif act == 'rename':
        one.rename(one.with_name(f'{rng.random()}{one.suffix}'))
    elif act == 'damage':
        one.write_bytes(one.read_bytes()[:40])
    elif act == 'text':
        (photos / f'{rng.random()}.txt').write_text('not an image')


@pytest.mark.parametrize('repetition', range(3))
def test_an_updated_index_equals_a_new_one(photos, tmp_path, seed, repetition):
    rng = random.Random(seed + repetition)
    for turn in range(6):
        for _ in range(rng.randrange(4)):
            change_something(photos, rng)
        draw(photos / 'a' / 'whole.png', turn)
        new = update(photos, tmp_path / f'new {turn}')
        assert_same(update(photos, tmp_path / 'index'), new)
    assert names_in(tmp_path / 'index') == ['index.sqlite', 'vectors', 'vectors']


def test_only_new_or_changed_images_are_embedded(photos, tmp_path, capsys):
    (photos / 'a/broken.png').write_text('no image')
    (photos / 'a/no\nte.txt').write_text('text')
    index, counting = tmp_path / 'index', Counting()
    assert update(photos, index, embed=counting).embedded == counting.images == 7
    before = {path: os.stat(path).st_mtime_ns for path in index.iterdir()}
    assert update(photos, index, embed=counting).embedded == 0
    assert counting.images == 7
    after = {path: os.stat(path).st_mtime_ns for path in index.iterdir()}
    assert before == after  # nothing is written
    draw(photos / 'c/new.png', 8)
    draw(photos / 'a/0.png', 9)
    (photos / 'b/1.png').unlink()
    changed = update(photos, index, embed=counting)
    assert counting.images == 9 and (changed.embedded, changed.removed) == (2, 1)
    os.utime(photos / 'a/2.png')
    assert update(photos, index, embed=counting).embedded == 1
    for line in capsys.readouterr().out.splitlines():
        assert line.startswith('notice: left out 1 file of') and r'a/no\nte.txt' in line


def test_equal_scores_are_ordered_by_path(photos, tmp_path):
    update(photos, tmp_path / 'index')
    for name in ('b/0.png', '0.png', 'a/z.png'):  # copies that come later
        shutil.copy(photos / 'a/0.png', photos / name)
    index = update(photos, tmp_path / 'index')
    query = index.vectors.mapped[index.paths.index('a/0.png')]
    found = index.vectors.search(query[None], 4)[1][0].tolist()
    paths = [index.paths[row] for row in found]
    assert paths == ['0.png', 'a/0.png', 'a/z.png', 'b/0.png']


def test_other_settings_make_it_stale(photos, tmp_path, capsys):
    update(photos, tmp_path / 'index')
    other = {**SETTINGS, 'model': 'b'}
    assert update(photos, tmp_path / 'index', other).embedded == 7
    assert re.search('index is .*another model', capsys.readouterr().out)
    assert update(photos, tmp_path / 'index', other).embedded == 0
    assert names_in(tmp_path / 'index') == ['index.sqlite', 'vectors', 'vectors']


def test_files_of_inference_are_not_indexed(photos, tmp_path):
    new = update(photos, tmp_path / 'new')
    marks = {
        'results/answer': 'retrieved.csv',
        'results/all_duplicates': 'duplicates.html',
    }
    for name, mark in marks.items():
        draw(photos / name / 'query.png', 90)
        (photos / name / mark).write_text('')
    for _ in range(2):
        index = update(photos, photos / 'results/index')
        assert_same(index, new)
    assert index.embedded == 0


# Ends in the middle


POINTS = {  # a function, and whether the end comes before it
    'an empty database': (index_module, 'write_state', True),
    'vectors without rows': (index_module, 'append_vectors', False),
    'all rows': (index_module, 'write_blocks', True),
    'a file without name': (Update, 'write_files', False),
    'the old file': (Update, 'remove_old_files', True),
}


def update_until(photos, index_folder, point):
    """Update an index, but end the process at a point, as a kill does."""
    owner, name, before = POINTS[point]
    function = getattr(owner, name)

    def last(*arguments):
        if not before:
            function(*arguments)
        os._exit(STOPPED)

    setattr(owner, name, last)
    update(photos, index_folder)


@pytest.mark.parametrize('is_new', [True, False])
@pytest.mark.parametrize('point', list(POINTS))
def test_a_killed_update_continues(photos, tmp_path, context, point, is_new):
    index_folder = tmp_path / 'index'
    if not is_new:
        update(photos, index_folder)
        draw(photos / 'a/1 new.png', 50)
        (photos / 'b/1.png').unlink()
    worker = context.Process(target=update_until, args=(photos, index_folder, point))
    worker.start()
    worker.join()
    assert worker.exitcode == STOPPED
    expected = update(photos, tmp_path / 'new')
    index = update(photos, index_folder)
    assert_same(index, expected)
    if point in ('all rows', 'a file without name', 'the old file'):
        assert index.embedded == 0
    assert names_in(index_folder) == ['index.sqlite', 'vectors', 'vectors']
    assert update(photos, index_folder).embedded == 0


def test_an_interrupted_update_keeps_what_was_embedded(photos, tmp_path, monkeypatch):
    embed_in_steps(monkeypatch)
    counting = Counting()

    def failing(pixels):
        if counting.images == 4:
            raise KeyboardInterrupt
        return counting(pixels)

    with pytest.raises(KeyboardInterrupt):
        update(photos, tmp_path / 'index', embed=failing)
    with open(next((tmp_path / 'index').glob('*.f32')), 'ab') as file:
        file.write(b'cut short')
    index = update(photos, tmp_path / 'index')
    assert index.embedded == 3
    assert_same(index, update(photos, tmp_path / 'new'))


def wide_embed(pixels):
    return torch.nn.functional.pad(embed(pixels), (0, 5994))


@pytest.mark.parametrize(
    ('size', 'name', 'left'), [(1000, r'index\.sqlite', 7), (60_000, r'\.f32', 5)]
)
def test_a_full_disk_loses_nothing(photos, tmp_path, monkeypatch, size, name, left):
    """A limit on the size of files; a vector has 24,000 bytes."""
    embed_in_steps(monkeypatch)
    with largest_file(size), pytest.raises(WriteError, match=name):
        update(photos, tmp_path / 'index', embed=wide_embed)
    index = update(photos, tmp_path / 'index', embed=wide_embed)
    assert index.embedded == left
    assert_same(index, update(photos, tmp_path / 'new', embed=wide_embed))


def test_a_folder_that_vanishes_midway(photos, tmp_path, monkeypatch):
    embed_in_steps(monkeypatch)
    away = tmp_path / 'away'

    def vanishing(pixels):
        if not away.exists():
            photos.rename(away)
        return embed(pixels)

    with pytest.raises(OSError, match='photos vanished'):
        update(photos, tmp_path / 'index', embed=vanishing)
    away.rename(photos)
    assert update(photos, tmp_path / 'index').embedded == 5


def test_files_that_vanish_midway_are_listed(photos, tmp_path, monkeypatch):
    embed_in_steps(monkeypatch)

    def removing(pixels):
        (photos / 'b/5.png').unlink(missing_ok=True)
        return embed(pixels)

    index = update(photos, tmp_path / 'index', embed=removing)
    assert list(index.problems) == ['b/5.png'] and 'gone' in index.problems['b/5.png']
    assert len(index.paths) == 6
    assert update(photos, tmp_path / 'index').problems == {}


def test_a_folder_without_readable_images_is_refused(photos, tmp_path):
    (tmp_path / 'empty').mkdir()
    for name in ('empty', 'nowhere'):
        with pytest.raises(UserError, match=f'--gallery .*{name}'):
            update(tmp_path / name, tmp_path / 'index')
    (tmp_path / 'empty/broken.jpg').write_text('no image')
    with pytest.raises(UserError, match=r'broken\.jpg'):
        update(tmp_path / 'empty', tmp_path / 'index')
    with pytest.raises(UserError, match='NaN'):
        update(photos, tmp_path / 'index', embed=lambda pixels: embed(pixels) * np.nan)


# Several processes


def test_processes_that_build_one_index_do_not_damage_it(photos, tmp_path, context):
    for number in range(20):
        draw(photos / 'c' / f'{number}.png', 100 + number)
    arguments = photos, tmp_path / 'index'
    workers = [context.Process(target=update, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert update(photos, tmp_path / 'index').embedded == 0
    assert_same(update(photos, tmp_path / 'index'), update(photos, tmp_path / 'new'))


def update_and_tell(photos, index_folder, outputs):
    """Send each line that an update prints, and at last how many images it embedded."""
    index_module.print = lambda line, **options: outputs.put(line)
    outputs.put(update(photos, index_folder).embedded)


def test_an_update_waits_for_another_process(photos, tmp_path, context):
    outputs = context.Queue()
    arguments = photos, tmp_path / 'index', outputs
    worker = context.Process(target=update_and_tell, args=arguments)
    with locked(tmp_path / 'index') as database:
        database.execute('DELETE FROM images')
        database.commit()  # does not end the lock
        worker.start()
        assert str(tmp_path / 'index') in outputs.get()
        assert worker.is_alive() and outputs.empty()
    assert outputs.get() == 7
    worker.join()


def test_an_index_that_is_replaced_can_still_be_searched(photos, tmp_path):
    index = update(photos, tmp_path / 'index')
    query = torch.tensor(index.vectors.array)
    draw(photos / 'a/new.png', 50)
    assert len(update(photos, tmp_path / 'index').paths) == 8
    assert not os.path.exists(index.vectors.path)
    indices = index.vectors.search(query, 1)[1]
    assert indices.flatten().tolist() == list(range(7))


# Damage


@pytest.mark.parametrize(
    ('length', 'embedded'), [(None, 7), (0, 7), (167, 1), (200, 0)]
)
def test_vectors_of_another_size_are_embedded_again(photos, tmp_path, length, embedded):
    """Seven vectors have 168 bytes; what lies behind them is removed."""
    path = update(photos, tmp_path / 'index').vectors.path
    if length is None:
        os.remove(path)
    else:
        os.truncate(path, length)
    again = update(photos, tmp_path / 'index')
    assert again.embedded == embedded
    assert os.path.getsize(again.vectors.path) == 168
    assert_same(again, update(photos, tmp_path / 'new'))


def test_only_the_image_of_a_flipped_bit_is_embedded_again(photos, tmp_path, capsys):
    index = update(photos, tmp_path / 'index')
    flip_bit(index.vectors.path, 167)
    counting = Counting()
    again = update(photos, tmp_path / 'index', embed=counting)
    assert counting.images == 1
    assert f'{index.folder} is damaged: 1 image ' in capsys.readouterr().out
    assert_same(again, update(photos, tmp_path / 'new'))
    assert update(photos, tmp_path / 'index').embedded == 0


def test_a_flipped_bit_in_the_database_is_noticed(photos, tmp_path, seed):
    rng = random.Random(seed)
    expected = update(photos, tmp_path / 'new')
    for number in range(40):
        shutil.copytree(tmp_path / 'new', tmp_path / str(number))
        path = tmp_path / str(number) / 'index.sqlite'
        flip_bit(path, rng.randrange(os.path.getsize(path)))
        assert_same(update(photos, path.parent), expected)
        assert update(photos, path.parent).embedded == 0


@pytest.mark.parametrize(
    'statement',
    [
        None,
        'PRAGMA user_version = 99',
        'DROP TABLE images',
        'UPDATE state SET content = content || 1',
    ],
)
def test_a_damaged_database_is_built_again(photos, tmp_path, statement):
    update(photos, tmp_path / 'index')
    path = tmp_path / 'index/index.sqlite'
    if statement:
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute(statement)
    else:
        os.truncate(path, 5000)
    index = update(photos, tmp_path / 'index')
    assert index.embedded == 7
    assert_same(index, update(photos, tmp_path / 'new'))
    assert names_in(tmp_path / 'index') == ['index.sqlite', 'vectors', 'vectors']


@pytest.mark.parametrize('name', [b'place INTEGER', b'content BLOB'])
def test_a_column_whose_name_is_no_text_is_noticed(photos, tmp_path, name):
    update(photos, tmp_path / 'index')
    path = tmp_path / 'index/index.sqlite'
    content = path.read_bytes()
    path.write_bytes(content.replace(name, b'\xa0' + name[1:]))
    index = update(photos, tmp_path / 'index')
    assert index.embedded == 7
    assert_same(index, update(photos, tmp_path / 'new'))


@pytest.mark.parametrize('is_there', [True, False])
def test_damaged_codes_are_written_again(photos, tmp_path, capsys, is_there):
    path = codes_path(update(photos, tmp_path / 'index').vectors.path)
    with open(path, 'rb') as file:
        whole = file.read()
    if is_there:
        flip_bit(path, len(whole) - 3)
    else:
        os.remove(path)
    index = update(photos, tmp_path / 'index')
    assert path in capsys.readouterr().out and index.embedded == 0
    with open(codes_path(index.vectors.path), 'rb') as file:
        assert file.read() == whole

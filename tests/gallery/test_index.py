"""The index of a folder: it always equals an index built from scratch."""

import multiprocessing
import os
import random
import shutil
import time

import numpy as np
import pytest
import torch
from photos import (
    SETTINGS,
    SIDE,
    Counting,
    assert_same,
    draw,
    draw_photos,
    embed,
    embed_in_steps,
    flip_bit,
    update,
)

from areir.data.images import load_image, to_pixels
from areir.errors import UserError
from areir.files import load_tensors, write_tensors
from areir.gallery import matrix_file


@pytest.fixture
def photos(tmp_path):
    return draw_photos(tmp_path / 'photos')


def test_vectors_are_in_the_order_of_the_paths(photos, tmp_path):
    index = update(photos, tmp_path / 'index')
    assert index.paths == [f'a/{n}.png' for n in (0, 2, 4, 6)] + [
        f'b/{n}.png' for n in (1, 3, 5)
    ]
    pixels = [to_pixels(load_image(photos / path), SIDE) for path in index.paths]
    expected = embed(torch.stack(pixels))
    np.testing.assert_allclose(index.vectors.rows(), expected, atol=1e-6)
    assert index.sizes == [os.path.getsize(photos / path) for path in index.paths]


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


@pytest.mark.parametrize('repetition', range(5))
def test_an_updated_index_equals_a_new_one(photos, tmp_path, seed, repetition):
    rng = random.Random(seed + repetition)
    for turn in range(6):
        for _ in range(rng.randrange(4)):
            change_something(photos, rng)
        draw(photos / 'a' / 'whole.png', turn)
        new = update(photos, tmp_path / f'new {turn}')
        assert_same(update(photos, tmp_path / 'index'), new)
    names = os.listdir(tmp_path / 'index')
    kept = [name for name in names if name.startswith(('vectors', 'journal'))]
    assert len(kept) == 2  # the vectors and their codes


def test_only_new_or_changed_images_are_embedded(photos, tmp_path, capsys):
    index, counting = tmp_path / 'index', Counting()
    assert update(photos, index, embed=counting).embedded == counting.images == 7
    before = sorted(os.listdir(index)), os.stat(index / 'index.pth').st_mtime_ns
    assert update(photos, index, embed=counting).embedded == 0
    assert counting.images == 7
    after = sorted(os.listdir(index)), os.stat(index / 'index.pth').st_mtime_ns
    assert before == after  # nothing is written
    draw(photos / 'c/new.png', 8)
    draw(photos / 'a/0.png', 9)
    (photos / 'b/1.png').unlink()
    changed = update(photos, index, embed=counting)
    assert counting.images == 9 and (changed.embedded, changed.removed) == (2, 1)
    os.utime(photos / 'a/2.png')
    assert update(photos, index, embed=counting).embedded == 1
    assert 'stale' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ('setting', 'value'), [('model', 'b'), ('image_size', 8), ('preprocessing', 'x')]
)
def test_other_settings_make_it_stale(photos, tmp_path, capsys, setting, value):
    update(photos, tmp_path / 'index')
    other = {**SETTINGS, setting: value}
    assert update(photos, tmp_path / 'index', other).embedded == 7
    output = capsys.readouterr().out
    was = SETTINGS.get(setting)
    assert 'stale' in output and f'{setting} was {was} and is {value}' in output
    assert update(photos, tmp_path / 'index', other).embedded == 0


def test_files_of_inference_are_not_indexed(photos, tmp_path):
    new = update(photos, tmp_path / 'new')
    marks = {'results/answer': 'retrieved.csv', 'results/all_pairs': 'pairs.csv'}
    for name, mark in marks.items():
        draw(photos / name / 'query.png', 90)
        (photos / name / mark).write_text('')
    for _ in range(2):
        index = update(photos, photos / 'results/index')
        assert_same(index, new)
    assert index.embedded == 0


def test_files_that_are_not_images_are_pointed_out(photos, tmp_path, capsys):
    (photos / 'a/no\nte.txt').write_text('text')
    update(photos, tmp_path / 'index')
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith('notice: 1 files') and line.endswith(r'such as a/no\nte.txt')


# Several processes


def build(folder, index, ready):
    ready.wait()
    update(folder, index)


@pytest.mark.slow
def test_processes_that_build_one_index_do_not_damage_it(photos, tmp_path):
    for number in range(60):
        draw(photos / 'c' / f'{number}.png', 100 + number)
    context = multiprocessing.get_context('spawn')
    ready = context.Event()
    arguments = photos, tmp_path / 'index', ready
    workers = [context.Process(target=build, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    time.sleep(0.5)
    ready.set()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert update(photos, tmp_path / 'index').embedded == 0
    assert_same(update(photos, tmp_path / 'index'), update(photos, tmp_path / 'new'))


def test_an_index_that_is_replaced_can_still_be_searched(photos, tmp_path):
    index = update(photos, tmp_path / 'index')
    query = torch.tensor(index.vectors.rows())
    draw(photos / 'a/new.png', 50)
    assert len(update(photos, tmp_path / 'index').paths) == 8
    assert not os.path.exists(index.vectors.path)
    indices = index.vectors.search(query, 1)[1]
    assert indices.flatten().tolist() == list(range(7))


def test_leftovers_of_killed_processes_are_removed(photos, tmp_path):
    update(photos, tmp_path / 'index')
    names = sorted(os.listdir(tmp_path / 'index'))
    leftovers = ['vectors_ab.npy.part', 'journal_ab.f32']  # of earlier versions
    for name in [*leftovers, '.index.pth.0123456789ab.part']:
        (tmp_path / 'index' / name).write_bytes(b'1234')
    assert update(photos, tmp_path / 'index').embedded == 0
    assert sorted(os.listdir(tmp_path / 'index')) == names


# Damage


def without_checksums(index):
    """Make an index as earlier versions wrote it."""
    path = f'{index.folder}/index.pth'
    table = load_tensors(path)
    del table['checksums']
    write_tensors({path: table})


def damage_vectors(kind, path):
    """Damage a .npy file."""
    vectors = np.load(path)
    if kind == 'cut':
        os.truncate(path, 140)
    elif kind == 'missing':
        os.remove(path)
    elif kind == 'empty':
        os.truncate(path, 0)
    elif kind == 'zip':
        with open(path, 'wb') as file:
            file.write(b'PK\x03\x04 and so on')
    elif kind == 'float64':
        np.save(path, vectors.astype(float))
    elif kind == 'fortran':
        np.save(path, np.asfortranarray(vectors))
    else:
        np.save(path, vectors.flatten())


@pytest.mark.parametrize(
    'kind', ['cut', 'missing', 'empty', 'zip', 'float64', 'fortran', 'flat']
)
def test_an_index_with_damaged_vectors_is_built_again(photos, tmp_path, capsys, kind):
    index = update(photos, tmp_path / 'index')
    damage_vectors(kind, index.vectors.path)
    assert_same(update(photos, tmp_path / 'index'), update(photos, tmp_path / 'new'))
    assert 'is damaged' in capsys.readouterr().out


@pytest.mark.parametrize('place', [128, 128 + 7 * 6 * 4 - 1])
def test_a_flipped_bit_in_a_vector_is_noticed(photos, tmp_path, capsys, place):
    index = update(photos, tmp_path / 'index')
    flip_bit(index.vectors.path, place)
    counting = Counting()
    again = update(photos, tmp_path / 'index', embed=counting)
    assert counting.images == 7  # a block of vectors has one checksum
    assert f'{index.folder} is damaged: 7 vectors' in capsys.readouterr().out
    assert_same(again, update(photos, tmp_path / 'new'))
    assert update(photos, tmp_path / 'index').embedded == 0


def test_only_the_block_of_a_flipped_bit_is_embedded_again(
    photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(matrix_file, 'BLOCK_ROWS', 3)
    index = update(photos, tmp_path / 'index')
    flip_bit(index.vectors.path, 128 + 4 * 24)
    counting = Counting()
    again = update(photos, tmp_path / 'index', embed=counting)
    assert counting.images == 3
    assert_same(again, update(photos, tmp_path / 'new'))


def test_an_index_of_earlier_versions_has_no_checksums_and_is_read(
    photos, tmp_path, capsys
):
    without_checksums(update(photos, tmp_path / 'index'))
    index = update(photos, tmp_path / 'index')
    assert index.embedded == 0 and not capsys.readouterr().out
    assert_same(index, update(photos, tmp_path / 'new'))


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e19, 1e30])
def test_vectors_that_are_damaged_are_embedded_again(photos, tmp_path, capsys, value):
    index = update(photos, tmp_path / 'index')
    without_checksums(index)
    vectors = np.load(index.vectors.path)
    vectors[2, 3] = vectors[5, 0] = value
    np.save(index.vectors.path, vectors)
    (photos / index.paths[5]).unlink()
    counting = Counting()
    again = update(photos, tmp_path / 'index', embed=counting)
    assert counting.images == again.embedded == again.removed == 1
    (notice,) = capsys.readouterr().out.splitlines()
    assert f'{index.folder} is damaged' in notice and '2 vectors' in notice
    assert_same(again, update(photos, tmp_path / 'new'))
    assert update(photos, tmp_path / 'index').embedded == 0


@pytest.mark.parametrize(
    'changed',
    [
        None,
        {'settings': [1]},
        {'problems': {'x': 3}},
        {'seen': [[1]] * 7},
        {'paths': [1]},
        {'paths': [1] * 7},
        {'dimensions': 5},
        {'vectors': 3},
        {'checksums': 3},
    ],
)
def test_an_index_with_a_damaged_table_is_built_again(
    photos, tmp_path, capsys, changed
):
    update(photos, tmp_path / 'index')
    path = str(tmp_path / 'index/index.pth')
    if changed:
        write_tensors({path: load_tensors(path) | changed})
    else:
        (tmp_path / 'index/index.pth').write_bytes(b'nothing')
    assert_same(update(photos, tmp_path / 'index'), update(photos, tmp_path / 'new'))
    assert f'{path} is damaged' in capsys.readouterr().out


def test_a_table_of_other_contents_is_built_again(photos, tmp_path, capsys):
    update(photos, tmp_path / 'index')
    write_tensors({str(tmp_path / 'index/index.pth'): {'paths': [1]}})
    assert_same(update(photos, tmp_path / 'index'), update(photos, tmp_path / 'new'))
    assert 'is damaged' in capsys.readouterr().out


def test_a_table_does_not_lead_out_of_its_folder(photos, tmp_path):
    update(photos, tmp_path / 'index')
    path = str(tmp_path / 'index/index.pth')
    np.save(tmp_path / 'vectors_elsewhere.npy', np.zeros((7, 6), np.float32))
    changed = {'vectors': '../vectors_elsewhere.npy'}
    write_tensors({path: load_tensors(path) | changed})
    assert_same(update(photos, tmp_path / 'index'), update(photos, tmp_path / 'new'))


def test_a_folder_that_vanishes_midway(photos, tmp_path, monkeypatch):
    update(photos, tmp_path / 'index')
    table = (tmp_path / 'index/index.pth').read_bytes()
    for number in range(6):
        draw(photos / 'c' / f'{number}.png', 50 + number)
    embed_in_steps(monkeypatch)
    away = tmp_path / 'away'

    def vanishing(pixels):
        if not away.exists():
            photos.rename(away)
        return embed(pixels)

    with pytest.raises(OSError, match='photos vanished'):
        update(photos, tmp_path / 'index', embed=vanishing)
    assert (tmp_path / 'index/index.pth').read_bytes() == table
    away.rename(photos)
    counting = Counting()
    index = update(photos, tmp_path / 'index', embed=counting)
    assert counting.images == 4 and len(index.paths) == 13


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
    with pytest.raises(UserError, match=r'none of its 1 images .*broken\.jpg'):
        update(tmp_path / 'empty', tmp_path / 'index')
    with pytest.raises(UserError, match='NaN'):
        update(photos, tmp_path / 'index', embed=lambda pixels: embed(pixels) * np.nan)
    assert not (tmp_path / 'index/index.pth').exists()


def test_an_emptied_folder_leaves_its_index(photos, tmp_path):
    update(photos, tmp_path / 'index')
    before = (tmp_path / 'index/index.pth').read_bytes()
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(UserError, match='--gallery'):
        update(photos, tmp_path / 'index')
    assert (tmp_path / 'index/index.pth').read_bytes() == before

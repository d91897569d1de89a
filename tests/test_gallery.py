"""The index of a folder: whatever happens to the folder or to the build, it is what a new index would be."""
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import approximate
import data_utils
import gallery
import retrieval
import utils

SIDE = 4
SETTINGS = {'model': 'a', 'image_size': SIDE}
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def embed(pixels):
    """Unit vectors of pixels, by a fixed projection."""
    matrix = torch.randn(3 * SIDE * SIDE, 6, generator=torch.Generator().manual_seed(0))
    return F.normalize(pixels.flatten(1).float() @ matrix + 1)


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)


def keep_up(folder, index, settings=SETTINGS, function=embed):
    return gallery.keep_up(str(folder), str(index), settings, SIDE, function)


def contents(index):
    return index.paths, index.problems, np.load(index.vectors.name)


def assert_same(index, other):
    paths, problems, vectors = contents(index)
    other_paths, other_problems, other_vectors = contents(other)
    assert paths == other_paths and problems == other_problems
    np.testing.assert_allclose(vectors, other_vectors, atol=1e-6)


@pytest.fixture
def photos(tmp_path):
    for number in range(7):
        draw(tmp_path / 'photos' / ('ab'[number % 2]) / f'{number}.png', number)
    return tmp_path / 'photos'


def test_vectors_are_those_of_the_images_in_the_order_of_the_paths(photos, tmp_path):
    index = keep_up(photos, tmp_path / 'index')
    assert index.paths == ['a/0.png', 'a/2.png', 'a/4.png', 'a/6.png', 'b/1.png', 'b/3.png', 'b/5.png']
    pixels = torch.stack([data_utils.to_pixels(data_utils.load_image(photos / path), SIDE) for path in index.paths])
    np.testing.assert_allclose(np.load(index.vectors.name), embed(pixels), atol=1e-6)
    assert index.sizes == [os.path.getsize(photos / path) for path in index.paths]


@pytest.mark.parametrize('seed', range(5))
def test_upkeep_equals_an_index_built_anew(photos, tmp_path, seed):
    """Random additions, changes, removals, renamings and damage, in rounds."""
    rng = random.Random(seed)
    for turn in range(6):
        for _ in range(rng.randrange(4)):
            files = sorted(path for path in photos.rglob('*') if path.is_file())
            one = rng.choice(files)
            act = rng.choice(['add', 'change', 'remove', 'rename', 'damage', 'text'])
            if act == 'add':
                draw(photos / rng.choice('abc') / f'new {rng.random()}.png', rng.random().__hash__() % 1000)
            elif act == 'change':
                draw(one, rng.randrange(1000)) if one.suffix == '.png' else one.write_text('other')
            elif act == 'remove' and len(files) > 3:
                one.unlink()
            elif act == 'rename':
                one.rename(one.with_name(f'{rng.random()}{one.suffix}'))
            elif act == 'damage':
                one.write_bytes(one.read_bytes()[:40])
            elif act == 'text':
                (photos / f'{rng.random()}.txt').write_text('not an image')
        draw(photos / 'a' / 'whole.png', turn)
        assert_same(keep_up(photos, tmp_path / 'index'), keep_up(photos, tmp_path / f'anew {turn}'))
    assert len([name for name in os.listdir(tmp_path / 'index') if name.startswith(('vectors', 'journal'))]) == 1


def test_only_what_is_new_or_changed_is_embedded(photos, tmp_path, capsys):
    index, seen = tmp_path / 'index', []

    def counting(pixels):
        seen.append(len(pixels))
        return embed(pixels)
    assert keep_up(photos, index, function=counting).embedded == 7 and sum(seen) == 7
    before = sorted(os.listdir(index)), os.stat(index / 'index.pth').st_mtime_ns
    assert keep_up(photos, index, function=counting).embedded == 0 and sum(seen) == 7
    assert before == (sorted(os.listdir(index)), os.stat(index / 'index.pth').st_mtime_ns)  # nothing is written
    draw(photos / 'c/new.png', 8)
    draw(photos / 'a/0.png', 9)
    (photos / 'b/1.png').unlink()
    after = keep_up(photos, index, function=counting)
    assert sum(seen) == 9 and (after.embedded, after.removed) == (2, 1)
    os.utime(photos / 'a/2.png')
    assert keep_up(photos, index, function=counting).embedded == 1
    assert 'stale' not in capsys.readouterr().out


@pytest.mark.parametrize(('setting', 'value'), [('model', 'b'), ('image_size', 8), ('preprocessing', 'x')])
def test_other_settings_make_it_stale_and_that_is_said(photos, tmp_path, capsys, setting, value):
    keep_up(photos, tmp_path / 'index')
    index = keep_up(photos, tmp_path / 'index', {**SETTINGS, setting: value})
    assert index.embedded == 7
    assert f'stale, all images are embedded anew: {setting} was' in capsys.readouterr().out
    assert keep_up(photos, tmp_path / 'index', {**SETTINGS, setting: value}).embedded == 0


def test_an_interrupted_build_goes_on(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gallery, 'BATCH', 2)
    monkeypatch.setattr(data_utils, 'available_cores', lambda: 0)  # none is read ahead
    batches = []

    def failing(pixels):
        batches.append(len(pixels))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return embed(pixels)
    with pytest.raises(KeyboardInterrupt):
        keep_up(photos, tmp_path / 'index', function=failing)
    assert not (tmp_path / 'index/index.pth').exists()
    index = keep_up(photos, tmp_path / 'index')
    assert 'going on from 4 images' in capsys.readouterr().out and index.embedded == 3
    assert_same(index, keep_up(photos, tmp_path / 'anew'))


def test_a_journal_cut_anywhere_is_used_as_far_as_it_is_whole(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, 'BATCH', 2)
    monkeypatch.setattr(data_utils, 'available_cores', lambda: 0)  # none is read ahead
    anew = keep_up(photos, tmp_path / 'anew')
    found, _, _ = gallery.scan(str(photos))
    whole = tmp_path / 'whole'
    whole.mkdir()
    gallery.write_journal(str(whole), SETTINGS, str(photos), list(found), list(found.values()), SIDE, embed)
    for length, file in [(1, 'jsonl'), (90, 'jsonl'), (201, 'jsonl'), (0, 'f32'), (30, 'f32'), (100, 'f32')]:
        cut = tmp_path / f'cut {length} {file}'
        shutil.copytree(whole, cut)
        path, = cut.glob(f'*.{file}')
        path.write_bytes(path.read_bytes()[:length])
        calls = []
        assert_same(keep_up(photos, cut, function=lambda pixels, calls=calls: calls.append(len(pixels))
                            or embed(pixels)), anew)
        if length == 100:
            assert sum(calls) == 3  # 4 vectors of 24 bytes are whole


@pytest.mark.parametrize('line', ['5', '["a", [1, 2], null]', '[["a"], [1, 2], 64]', '["a/0.png", [1, 2], -4]', '{}'])
def test_a_line_of_a_journal_that_makes_no_sense_ends_it(photos, tmp_path, line):
    found, _, _ = gallery.scan(str(photos))
    (tmp_path / 'index').mkdir()
    gallery.write_journal(str(tmp_path / 'index'), SETTINGS, str(photos), list(found), list(found.values()), SIDE,
                          embed)
    path, = (tmp_path / 'index').glob('*.jsonl')
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([*lines[:3], line, *lines[3:]]) + '\n')
    assert_same(keep_up(photos, tmp_path / 'index'), keep_up(photos, tmp_path / 'anew'))


def test_what_was_written_here_is_no_part_of_the_gallery(photos, tmp_path):
    anew = keep_up(photos, tmp_path / 'anew')
    for name, mark in (('results/answer', 'retrieved.csv'), ('results/all_pairs', 'pairs.csv')):
        draw(photos / name / 'query.png', 90)
        (photos / name / mark).write_text('')
    for _ in range(2):
        index = keep_up(photos, photos / 'results/index')
        assert_same(index, anew)
    assert index.embedded == 0


def build(folder, index, ready):
    ready.wait()
    keep_up(folder, index)


def test_processes_that_build_one_index_do_not_damage_it(photos, tmp_path):
    for number in range(60):
        draw(photos / 'c' / f'{number}.png', 100 + number)
    context = multiprocessing.get_context('spawn')
    ready = context.Event()
    processes = [context.Process(target=build, args=(photos, tmp_path / 'index', ready)) for _ in range(3)]
    for process in processes:
        process.start()
    time.sleep(0.5)
    ready.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert keep_up(photos, tmp_path / 'index').embedded == 0
    assert_same(keep_up(photos, tmp_path / 'index'), keep_up(photos, tmp_path / 'anew'))


def test_an_index_that_is_replaced_can_still_be_searched(photos, tmp_path):
    index = keep_up(photos, tmp_path / 'index')
    query = torch.from_numpy(np.load(index.vectors.name))
    draw(photos / 'a/new.png', 50)
    assert len(keep_up(photos, tmp_path / 'index').paths) == 8 and not os.path.exists(index.vectors.name)
    assert gallery.search(index.vectors, query, 1)[1].flatten().tolist() == list(range(7))


@pytest.mark.parametrize('damage', ['table', 'vectors', 'no vectors', 'other', 'empty', 'zip', 'float64', 'fortran',
                                    'settings', 'problems', 'seen'])
def test_a_damaged_index_is_built_anew(photos, tmp_path, capsys, damage):
    index = keep_up(photos, tmp_path / 'index')
    if damage == 'table':
        (tmp_path / 'index/index.pth').write_bytes(b'nothing')
    elif damage == 'vectors':
        with open(index.vectors.name, 'r+b') as file:
            file.truncate(140)
    elif damage == 'no vectors':
        os.remove(index.vectors.name)
    elif damage in ('empty', 'zip'):
        with open(index.vectors.name, 'wb') as file:
            file.write(b'' if damage == 'empty' else b'PK\x03\x04 and so on')
    elif damage in ('float64', 'fortran'):
        vectors = np.load(index.vectors.name)
        np.save(index.vectors.name, vectors.astype(float) if damage == 'float64' else np.asfortranarray(vectors))
    elif damage in ('settings', 'problems', 'seen'):
        table = utils.load(str(tmp_path / 'index/index.pth'))
        wrong = {'settings': [1], 'problems': {'x': 3}, 'seen': [[1]] * 7}[damage]
        utils.save({str(tmp_path / 'index/index.pth'): {**table, damage: wrong}})
    else:
        utils.save({str(tmp_path / 'index/index.pth'): {'paths': [1]}})
    assert_same(keep_up(photos, tmp_path / 'index'), keep_up(photos, tmp_path / 'anew'))
    assert 'is damaged' in capsys.readouterr().out


def test_a_table_does_not_lead_out_of_its_folder(photos, tmp_path):
    keep_up(photos, tmp_path / 'index')
    table = utils.load(str(tmp_path / 'index/index.pth'))
    np.save(tmp_path / 'vectors_elsewhere.npy', np.zeros((7, 6), np.float32))
    utils.save({str(tmp_path / 'index/index.pth'): {**table, 'vectors': '../vectors_elsewhere.npy'}})
    assert_same(keep_up(photos, tmp_path / 'index'), keep_up(photos, tmp_path / 'anew'))


# Files


def test_all_kinds_of_files(photos, tmp_path):
    frames = [Image.new('RGB', (9, 9), colour) for colour in ('red', 'blue')]
    frames[0].save(photos / 'animated.gif', save_all=True, append_images=frames[1:])
    frames[0].save(photos / 'animated.webp', save_all=True, append_images=frames[1:])
    Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)).save(photos / 'deep.tif')
    Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)).save(photos / 'deep.png')
    Image.new('RGB', (1, 1), 'red').save(photos / 'one.bmp')
    Image.new('CMYK', (9, 9)).save(photos / 'cmyk.jpg')
    Image.new('RGBA', (32, 32)).save(photos / 'clear.ico')
    Image.new('RGB', (9, 9), 'green').save(photos / 'without ending', 'PNG')
    Image.new('1', (20_000, 20_000)).save(photos / 'huge.png')
    (photos / 'notes.txt').write_text('P3 is not enough to be an image')
    (photos / 'empty.jpg').write_bytes(b'')
    (photos / 'broken link.jpg').symlink_to('nowhere')
    index = keep_up(photos, tmp_path / 'index')
    assert {'animated.gif', 'animated.webp', 'deep.tif', 'deep.png', 'one.bmp', 'cmyk.jpg', 'clear.ico',
            'without ending'} <= set(index.paths)
    assert set(index.problems) == {'huge.png', 'empty.jpg', 'broken link.jpg'}
    assert 'decompression bomb' in index.problems['huge.png'] and '400000000 pixels' in index.problems['huge.png']
    assert 'notes.txt' not in index.paths
    again = keep_up(photos, tmp_path / 'index')
    assert again.embedded == 0 and again.problems == index.problems  # listed again, not tried again


def test_postscript_is_not_handed_to_another_program(photos, tmp_path):
    script = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n'
    for name in ('drawing.eps', 'disguised.jpg', 'bare'):
        (photos / name).write_bytes(script)
    index = keep_up(photos, tmp_path / 'index')
    assert 'cannot identify' in index.problems['disguised.jpg'] and len(index.problems) == 1
    assert len(index.paths) == 7


def test_links_and_loops(photos, tmp_path):
    (photos / 'a/loop').symlink_to(photos)
    (tmp_path / 'elsewhere').mkdir()
    draw(tmp_path / 'elsewhere/0.png', 1)  # a name that a/0.png has
    (photos / 'linked').symlink_to(tmp_path / 'elsewhere')
    (photos / 'b/link.png').symlink_to(photos / 'a/0.png')
    index = keep_up(photos, tmp_path / 'index')
    assert len(index.paths) == 9 and {'linked/0.png', 'a/0.png', 'b/link.png'} <= set(index.paths)


def test_names_that_are_no_utf8(photos, tmp_path):
    raw = os.path.join(os.fsencode(photos), b'caf\xe9.png')
    shutil.copy(os.fsencode(photos / 'a/0.png'), raw)
    index = keep_up(photos, tmp_path / 'index')
    assert os.fsdecode(b'caf\xe9.png') in index.paths and keep_up(photos, tmp_path / 'index').embedded == 0


def test_a_folder_that_cannot_be_read_is_said(photos, tmp_path, monkeypatch):
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith('/b'):
            raise PermissionError(13, 'Permission denied')
        return scandir(folder)
    monkeypatch.setattr(os, 'scandir', refusing)
    index = keep_up(photos, tmp_path / 'index')
    assert index.problems == {'b/': 'Permission denied'} and len(index.paths) == 4


def test_a_folder_that_vanishes_midway(photos, tmp_path, monkeypatch):
    keep_up(photos, tmp_path / 'index')
    table = (tmp_path / 'index/index.pth').read_bytes()
    for number in range(6):
        draw(photos / 'c' / f'{number}.png', 50 + number)
    monkeypatch.setattr(gallery, 'BATCH', 2)
    monkeypatch.setattr(data_utils, 'available_cores', lambda: 0)  # none is read ahead
    away = tmp_path / 'away'

    def vanishing(pixels):
        if not away.exists():
            photos.rename(away)
        return embed(pixels)
    with pytest.raises(OSError, match=r'photos vanished while it was read; what was embedded is kept'):
        keep_up(photos, tmp_path / 'index', function=vanishing)
    assert (tmp_path / 'index/index.pth').read_bytes() == table
    away.rename(photos)
    calls = []
    index = keep_up(photos, tmp_path / 'index', function=lambda pixels: calls.append(len(pixels)) or embed(pixels))
    assert sum(calls) == 4 and len(index.paths) == 13


def test_files_that_vanish_midway_are_said(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, 'BATCH', 2)
    monkeypatch.setattr(data_utils, 'available_cores', lambda: 0)  # none is read ahead

    def removing(pixels):
        (photos / 'b/5.png').unlink(missing_ok=True)
        return embed(pixels)
    index = keep_up(photos, tmp_path / 'index', function=removing)
    assert index.problems == {'b/5.png': 'gone while it was read'} and len(index.paths) == 6
    assert keep_up(photos, tmp_path / 'index').problems == {}


def test_what_cannot_be_indexed_is_refused(photos, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='empty: no images in it'):
        keep_up(tmp_path / 'empty', tmp_path / 'index')
    with pytest.raises(ValueError, match='nowhere: no such folder'):
        keep_up(tmp_path / 'nowhere', tmp_path / 'index')
    (tmp_path / 'empty/broken.jpg').write_text('no image')
    with pytest.raises(ValueError, match=r'none of its 1 images can be read, such as broken\.jpg'):
        keep_up(tmp_path / 'empty', tmp_path / 'index')
    with pytest.raises(ValueError, match='NaN'):
        keep_up(photos, tmp_path / 'index', function=lambda pixels: embed(pixels) * torch.nan)
    assert not (tmp_path / 'index/index.pth').exists()


def test_an_emptied_gallery_leaves_its_index(photos, tmp_path):
    keep_up(photos, tmp_path / 'index')
    before = (tmp_path / 'index/index.pth').read_bytes()
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(ValueError, match='no images'):
        keep_up(photos, tmp_path / 'index')
    assert (tmp_path / 'index/index.pth').read_bytes() == before


@pytest.mark.parametrize(('paths', 'names'), [
    (['a/1.png', 'b/2.png', 'b/deep/3.png'], ['a', 'b', 'b']),
    (['a/1.png', 'b/2.png', '3.png'], ['a', 'b', None]),
    (['1.png', '2.png'], [None, None]),
    (['a/1.png', 'a/2.png'], [None, None]),
    (['train/a/1.png', 'test/b/2.png'], ['a', 'b']),
    (['train/a/1.png', 'b/2.png'], ['train', 'b']),
])
def test_classes_are_the_folders_where_there_are_class_folders(paths, names):
    assert gallery.class_names(paths) == names


def test_indexes_have_names_of_their_own(tmp_path):
    names = {gallery.index_folder(str(tmp_path / gallery_name), model, 'results')
             for gallery_name in ('one/photos', 'two/photos') for model in ('x_model.pth', 'y_model.pth')}
    assert len(names) == 4 and all(os.path.basename(name).startswith('photos_') for name in names)
    assert gallery.index_folder('.', 'x.pth', 'r') == gallery.index_folder(os.getcwd() + '/', 'x.pth', 'r')


# Search


def random_vectors(tmp_path, count, dimensions=6, distinct=None):
    vectors = F.normalize(torch.randn(distinct or count, dimensions, generator=torch.Generator().manual_seed(1)))
    vectors = vectors[torch.arange(count) % len(vectors)]
    np.save(tmp_path / 'vectors.npy', vectors.numpy())
    return str(tmp_path / 'vectors.npy'), vectors


@pytest.mark.parametrize(('count', 'block', 'k', 'distinct'), [
    (50, 7, 5, None), (50, 7, 50, None), (50, 1, 3, 10), (23, 100, 22, 4), (1, 1, 1, None), (64, 8, 8, 3)])
def test_search_in_blocks_equals_search_in_memory_and_brute_force(tmp_path, monkeypatch, count, block, k, distinct):
    monkeypatch.setattr(gallery, 'BLOCK', block)
    path, vectors = random_vectors(tmp_path, count, distinct=distinct)  # with ties
    query = torch.cat([vectors[:9], F.normalize(torch.randn(5, 6))])
    scores, indices = gallery.search(path, query, k)
    expected = retrieval.search(query, vectors, k)
    assert torch.equal(scores, expected[0]) and torch.equal(indices, expected[1])
    product = (query.double() @ vectors.double().T).float()
    for row in range(len(query)):
        order = sorted(range(count), key=lambda index, row=row: (-product[row, index].item(), index))
        if distinct is None:
            assert indices[row].tolist() == order[:k]


@pytest.mark.parametrize('block', [3, 10, 100])
def test_a_query_is_excluded_by_its_place(tmp_path, monkeypatch, block):
    monkeypatch.setattr(gallery, 'BLOCK', block)
    path, vectors = random_vectors(tmp_path, 40)
    own = torch.tensor([0, -1, 39, 12])
    found = gallery.search(path, vectors[[0, 1, 39, 12]], 39, own)
    expected = retrieval.search(vectors[[0, 1, 39, 12]], vectors, 39, own)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    with pytest.raises(ValueError, match='choose from 1 to 39'):
        gallery.search(path, vectors[:4], 40, own)


def test_memory_is_bounded(tmp_path):
    """A gallery is searched in a process that may not take as much memory as its vectors."""
    count, dimensions = 300_000, 256
    path = str(tmp_path / 'vectors.npy')
    stored = np.lib.format.open_memmap(path, 'w+', np.float32, (count, dimensions))
    rng = np.random.default_rng(0)
    for start in range(0, count, 30_000):
        block = rng.standard_normal((30_000, dimensions), np.float32)
        stored[start:start + 30_000] = block / np.linalg.norm(block, axis=1, keepdims=True)
    stored.flush()
    code = f'''
import sys
sys.path.insert(0, {REPOSITORY!r})
import gallery, numpy as np, torch
query = torch.from_numpy(np.load({path!r}, mmap_mode='c')[:4].copy())
gallery.BLOCK = 16384
print(gallery.search({path!r}, query, 5)[1][:, 0].tolist(), end=' ')
with open('/proc/self/status') as file:
    print(next(line.split()[1] for line in file if line.startswith('VmHWM')))
'''
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    baseline = subprocess.run([sys.executable, '-c', f'import sys; sys.path.insert(0, {REPOSITORY!r}); import gallery, '
                               'resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)'],
                              capture_output=True, text=True, check=True).stdout
    assert found.startswith('[0, 1, 2, 3] ')
    used = int(found.split()[-1]) - int(baseline)
    assert used * 1024 < count * dimensions * 4 / 3  # the vectors are 300 MB


# The approximate index


def test_without_faiss_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(ValueError, match='faiss is not installed: pip install faiss-cpu, or leave --index out'):
        approximate.load_faiss()


def test_the_approximate_index(tmp_path):
    faiss = pytest.importorskip('faiss', reason='faiss is optional: pip install faiss-cpu')
    path, vectors = random_vectors(tmp_path, 3000)
    index, found = approximate.opened(str(tmp_path), path)
    assert found['recall'] >= approximate.RECALL and 1 <= found['looked_into'] <= found['cells']
    own = torch.arange(100)
    scores, indices = approximate.nearest(index, path, vectors[:100], 8, own)
    exact_scores, exact = gallery.search(path, vectors[:100], 8, own)
    recall = (indices[:, :, None] == exact[:, None]).any(dim=1).double().mean().item()
    assert recall > 0.9 and not (indices == own[:, None]).any()
    same = indices[:, 0] == exact[:, 0]  # scores are those of the vectors themselves
    assert torch.equal(scores[same, 0], exact_scores[same, 0])
    product = (vectors[:100, None].double() * vectors[indices].double()).sum(dim=2).float()
    torch.testing.assert_close(scores, product)
    assert (scores.diff(dim=1) <= 0).all()

    again, _ = approximate.opened(str(tmp_path), path)  # from the file
    assert torch.equal(approximate.nearest(again, path, vectors[:100], 8, own)[1], indices)
    (tmp_path / 'vectors.faiss').write_bytes(b'damaged')
    for wrong in ('[1]', '{"looked_into": 1}', json.dumps({**found, 'looked_into': 0}),
                  json.dumps({**found, 'recall': 'x'})):
        (tmp_path / 'vectors.faiss.json').write_text(wrong)
        assert approximate.opened(str(tmp_path), path)[1] == found
    faiss.write_index(faiss.IndexFlatIP(6), str(tmp_path / 'vectors.faiss'))
    mended, measured = approximate.opened(str(tmp_path), path)
    assert mended.ntotal == 3000 and measured['recall'] == found['recall']
    assert json.loads((tmp_path / 'vectors.faiss.json').read_text()) == measured


@pytest.mark.parametrize('count', [1, 2, 9, 40])
def test_a_small_approximate_index(tmp_path, count):
    pytest.importorskip('faiss', reason='faiss is optional: pip install faiss-cpu')
    path, vectors = random_vectors(tmp_path, count)
    index, found = approximate.opened(str(tmp_path), path)
    scores, indices = approximate.nearest(index, path, vectors, min(8, count), None)
    exact = gallery.search(path, vectors, min(8, count))
    if found['recall'] == 1:
        assert torch.equal(indices, exact[1]) and torch.equal(scores, exact[0])

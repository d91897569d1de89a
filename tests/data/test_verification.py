"""Every unreadable image is named; odd splits are pointed out; workers end in order."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from official import many_cars, tree, write_car_folder, write_classes
from PIL import Image

from areir.data.lists import Record
from areir.data.splits import load_split
from areir.data.verification import (
    count_lost,
    count_parts,
    find_oddities,
    parallel,
    start_pool,
)
from areir.errors import UserError
from areir.scripts.data_utils import prepare


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


def records(*pairs):
    return [Record(split, label, 'x') for split, label in pairs]


# Images


def test_all_unreadable_images_are_named_and_nothing_is_written(root):
    rows = many_cars(18)
    write_car_folder(root, [*rows, ('000019.jpg', (25, 1, 30, 9), 150)])
    folder = root / 'car/car_ims'
    content = (folder / '000002.jpg').read_bytes()
    (folder / '000002.jpg').write_bytes(content[: len(content) // 2])
    (folder / '000005.jpg').write_bytes(b'')
    (folder / '000009.jpg').write_text('<html>404</html>')
    (folder / '000018.jpg').unlink()
    before = tree(root)
    with pytest.raises(UserError, match='5 of 19') as error:
        prepare(root, 'car', num_workers=2)
    named = [name for name, _, _ in rows if name in str(error.value)]
    assert named == ['000002.jpg', '000005.jpg', '000009.jpg', '000018.jpg']
    assert '000019.jpg: box' in str(error.value)
    assert 'cars_annos.mat, row 19' in str(error.value)
    assert tree(root) == before


def test_mean_and_deviation_are_exact(root, tmp_path):
    photos = tmp_path / 'photos'
    write_classes(photos, images=3, size=(31, 17))
    prepare(root, 'shoes', photos, image_size=12)
    split = load_split(root, 'shoes')
    assert len(split.train) == 6
    stack = []
    for path in split.train.images:
        with Image.open(root / 'shoes' / path) as image:
            stack.append(image.resize((12, 12), Image.Resampling.BILINEAR))
    pixels = np.stack(stack).astype(np.float64) / 255
    np.testing.assert_allclose(split.info['mean'], pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(split.info['std'], pixels.std((0, 1, 2)), rtol=1e-12)


# Counts


def test_odd_splits_are_pointed_out():
    def oddities(*pairs):
        return find_oddities('shoes', records(*pairs))

    fine = [('train', 1), ('test', 2), ('test', 2)]
    assert oddities(*fine) == []
    assert oddities(('train', 1), ('query', 2), ('gallery', 2)) == []
    (warning,) = oddities(*fine, ('test', 3))
    assert 'always miss' in warning
    (warning,) = oddities(*fine, ('train', 2))
    assert 'both in training and in the test' in warning
    lost = [('train', 1), ('query', 2), ('query', 2), ('gallery', 3)]
    assert 'find: 2;' in oddities(*lost)[0]
    # distractors are neither queries nor a class
    assert oddities(*fine, ('test', '-1')) == []
    # published boxes of cars fit, so the folder of images must be another one
    assert 'beyond' in find_oddities('car', records(*fine), beyond=1)[2]


def test_distractors_are_no_class():
    parts = records(('train', 'a'), ('gallery', 'b'), ('gallery', '-1'))
    assert count_parts(parts) == {'train': (1, 1), 'gallery': (2, 1)}


def test_queries_that_find_only_copies_or_their_group_are_lost():
    rows = [  # part, label, group, content; whether its query is lost
        ('query', 'a', 'cam1', 'w', True),  # of its class, its group alone
        ('query', 'a', 'cam2', 'x', False),
        ('query', 'b', None, 'y', True),  # of its class, a copy of it alone
        ('query', 'b', None, 'z', False),
        ('query', '-1', None, 'u', False),
        ('gallery', 'a', 'cam1', 'v', False),
        ('gallery', 'b', None, 'y', False),
    ]
    found = [Record(part, label, 'x', group=group) for part, label, group, _, _ in rows]
    contents = [row[3] for row in rows]
    assert count_lost(found, contents) == sum(row[4] for row in rows)
    # each searches all others: a class of copies, and a class of one group
    rows = [('a', None, 'x'), ('a', None, 'x'), ('b', '1', 'y'), ('b', '1', 'z')]
    rows += [('c', None, 'u'), ('c', None, 'u'), ('c', None, 'v'), ('d', '1', 'w')]
    found = [Record('test', label, 'x', group=group) for label, group, _ in rows]
    assert count_lost(found, [content for _, _, content in rows]) == 5


# Worker processes


def square_or_die(number):
    if number == 120:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def press_ctrl_c(number):
    """Send this worker what Ctrl-C sends to every process of a terminal."""
    os.kill(os.getpid(), signal.SIGINT)
    return number


def test_results_are_in_the_order_of_the_jobs():
    with start_pool(2) as pool:
        results = parallel(pool, square_or_die, range(100), 'squares')
        assert results == [number**2 for number in range(100)]
        assert parallel(pool, press_ctrl_c, range(3), 'numbers') == [0, 1, 2]
        assert parallel(pool, square_or_die, [], 'squares') == []
        with pytest.raises(UserError, match='--num_workers'):
            parallel(pool, square_or_die, range(140), 'squares')


ORPHAN = """
import time
from areir.data.verification import start_pool

def work():
    print('started', flush=True)
    time.sleep(600)

with start_pool(1) as pool:
    pool.submit(work).result()
"""


@pytest.mark.slow
def test_workers_end_with_their_parent():
    process = subprocess.Popen(
        [sys.executable, '-c', ORPHAN], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b'started\n'
        process.kill()
        # ends when no worker is left that could write
        assert process.stdout.read() == b''


@pytest.mark.slow
def test_workers_start_after_multithreaded_arithmetic(tmp_path):
    """OpenMP's threads do not survive a fork: who waits for them waits forever."""
    write_classes(tmp_path / 'photos')
    code = (
        'import sys, torch, data_utils; torch.rand(10 ** 7).sum(); '
        'data_utils.prepare(*sys.argv[1:])'
    )
    words = [tmp_path / 'data', 'shoes', tmp_path / 'photos']
    command = [sys.executable, '-c', code, *map(str, words)]
    subprocess.run(command, cwd=REPOSITORY, timeout=300, check=True)

"""From image files to vectors: order, batches, and files that cannot be read."""

import subprocess
import sys

import pytest
import torch
from official import noise, write_image

from areir.data import loading
from areir.data.images import PixelFormat, load_image
from areir.data.loading import embed_files, make_loader

SIDE = 8
PIXEL_FORMAT = PixelFormat(SIDE)


def embed(pixels):
    """Turn pixels (N, 3, 8, 8) into 4-D vectors that differ from image to image."""
    weights = torch.arange(3 * SIDE * SIDE * 4).view(-1, 4).sin()
    return pixels.flatten(1).float() @ weights / 255


def collect(batches):
    """Return ({index: vector}, {index: problem}) of what embed_files yields."""
    vectors, problems = {}, {}
    for indices, rows, unreadable in batches:
        assert len(indices) == len(rows)
        vectors.update(zip(indices, rows))
        problems.update(unreadable)
    return vectors, problems


def expected(path):
    return embed(PIXEL_FORMAT.to_pixels(load_image(path))[None])[0]


@pytest.fixture
def paths(tmp_path):
    """Seven images; their names say nothing about their order."""
    names = [f'{(3 * i) % 7}.png' for i in range(7)]
    for number, name in enumerate(names):
        write_image(tmp_path / name, noise(seed=number))
    return [str(tmp_path / name) for name in names]


@pytest.fixture
def small_batches(monkeypatch):
    """Two images are embedded at a time, in this process."""
    monkeypatch.setattr(loading, 'BATCH', 2)
    monkeypatch.setattr(loading, 'available_cores', lambda: 0)


def test_vectors_belong_to_their_paths_whatever_the_batch(paths, small_batches):
    batches = list(embed_files(paths, PIXEL_FORMAT, embed, 'embedding'))
    assert [indices for indices, _, _ in batches] == [[0, 1], [2, 3], [4, 5], [6]]
    vectors, problems = collect(batches)
    assert not problems
    backwards, _ = collect(embed_files(paths[::-1], PIXEL_FORMAT, embed, 'embedding'))
    for index, path in enumerate(paths):
        torch.testing.assert_close(vectors[index], expected(path))
        torch.testing.assert_close(backwards[6 - index], expected(path))


def test_unreadable_and_vanished_files_cost_no_others(paths, small_batches, tmp_path):
    (tmp_path / 'text').write_text('not an image')
    (tmp_path / 'cut.png').write_bytes(b'\x89PNG')
    names = ('text', 'cut.png', 'gone.png')
    bad = [str(tmp_path / name) for name in names]
    # one batch with one problem, one with two, the rest whole

    def remove_the_last(pixels):
        (tmp_path / paths[-1]).unlink(missing_ok=True)
        return embed(pixels)

    mixed = [paths[0], *bad, *paths[1:]]
    wanted = {index: expected(mixed[index]) for index in (0, *range(4, 9))}
    batches = embed_files(mixed, PIXEL_FORMAT, remove_the_last, 'embedding')
    vectors, problems = collect(batches)
    assert sorted(problems) == [1, 2, 3, 9]
    assert problems[3] == problems[9] == 'gone'
    assert vectors.keys() == wanted.keys()
    for index in vectors:
        torch.testing.assert_close(vectors[index], wanted[index])


def test_worker_processes_yield_the_same(paths, small_batches, monkeypatch):
    here, _ = collect(embed_files(paths, PIXEL_FORMAT, embed, 'embedding'))
    monkeypatch.setattr(loading, 'available_cores', lambda: 2)
    assert make_loader(paths, PIXEL_FORMAT).num_workers == 2
    vectors, problems = collect(embed_files(paths, PIXEL_FORMAT, embed, 'embedding'))
    assert not problems and list(vectors) == list(here)
    assert all(torch.equal(vectors[index], here[index]) for index in here)


def test_a_program_that_fails_does_not_wait_for_its_workers(paths):
    """They ignore SIGTERM, which Python sends them before it waits."""
    program = (
        'import sys; from areir.data.images import PixelFormat; '
        'from areir.data.loading import make_loader; '
        'loader = make_loader(sys.argv[1:], PixelFormat(8), num_workers=1); '
        'next(iter(loader)); sys.exit("the program ends")'
    )
    words = [sys.executable, '-c', program, *paths]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert 'the program ends' in done.stderr

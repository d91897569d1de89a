"""From image files to vectors: order, batches, and files that cannot be read."""

import pytest
import torch
from official import noise, write_image
from PIL import Image

from areir.data import loading
from areir.data.images import load_image, normalise, to_pixels
from areir.data.loading import (
    Embedder,
    ImageDataset,
    embed_batches,
    embed_files,
    make_loader,
)

SIDE = 8


def embed(pixels):
    """Turn pixels (N, 3, 8, 8) into 4-D vectors that differ from image to image."""
    weights = torch.arange(3 * SIDE * SIDE * 4).view(-1, 4).sin()
    return pixels.flatten(1).float() @ weights / 255


def collect(batches):
    """Return ({index: vector}, {index: problem}) of what embed_batches yields."""
    vectors, problems = {}, {}
    for indices, rows, unreadable in batches:
        assert len(indices) == len(rows)
        vectors.update(zip(indices, rows))
        problems.update(unreadable)
    return vectors, problems


def expected(path):
    return embed(to_pixels(load_image(path), SIDE)[None])[0]


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


def test_items_are_pixels_index_and_problem(tmp_path):
    write_image(tmp_path / 'a.png', Image.new('RGB', (30, 10), (1, 2, 3)))
    write_image(tmp_path / 'b.png', Image.new('L', (5, 9), 200))
    dataset = ImageDataset([tmp_path / 'a.png', tmp_path / 'b.png'], SIDE)
    assert len(dataset) == 2
    for number, colour in enumerate([(1, 2, 3), (200, 200, 200)]):
        pixels, index, problem = dataset[number]
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, SIDE, SIDE))
        assert (index, problem) == (number, '')
        assert (pixels == torch.tensor(colour).view(3, 1, 1)).all()


def test_unreadable_items_are_blank_and_say_why(tmp_path):
    (tmp_path / 'text.png').write_text('not an image')
    names = ('text.png', 'absent.png')
    dataset = ImageDataset([str(tmp_path / name) for name in names], SIDE)
    pixels, index, problem = dataset[0]
    assert not pixels.any() and index == 0
    assert problem and not problem.startswith(str(tmp_path))
    assert dataset[1][2] == 'gone'


def test_vectors_belong_to_their_paths(paths, small_batches):
    vectors, problems = collect(embed_files(paths, SIDE, embed, 'embedding'))
    assert sorted(vectors) == list(range(7)) and not problems
    for index, path in enumerate(paths):
        torch.testing.assert_close(vectors[index], expected(path))


def test_batches_are_yielded_in_order(paths, small_batches):
    batches = [batch for batch, _, _ in embed_files(paths, SIDE, embed, 'embedding')]
    assert batches == [[0, 1], [2, 3], [4, 5], [6]]


def test_a_vector_does_not_depend_on_its_batch(paths, small_batches):
    together, _ = collect(embed_files(paths, SIDE, embed, 'embedding'))
    for index, path in enumerate(paths):
        alone, _ = collect(embed_files([path], SIDE, embed, 'embedding'))
        torch.testing.assert_close(alone[0], together[index])
    backwards, _ = collect(embed_files(paths[::-1], SIDE, embed, 'embedding'))
    for index in range(7):
        torch.testing.assert_close(backwards[6 - index], together[index])


def test_unreadable_and_vanished_files_cost_no_others(paths, small_batches, tmp_path):
    (tmp_path / 'text').write_text('not an image')
    content = (tmp_path / paths[1]).read_bytes()
    cut = tmp_path / 'cut.png'
    cut.write_bytes(content[: len(content) // 2])
    gone = tmp_path / 'gone.png'
    # one batch with one problem, one with two, the rest whole
    mixed = [paths[0], str(tmp_path / 'text'), str(cut), str(gone), *paths[1:]]
    vectors, problems = collect(embed_files(mixed, SIDE, embed, 'embedding'))
    assert sorted(problems) == [1, 2, 3] and problems[3] == 'gone'
    assert sorted(vectors) == [0, *range(4, 10)]
    for index in vectors:
        torch.testing.assert_close(vectors[index], expected(mixed[index]))


def test_files_that_vanish_midway_are_reported(paths, small_batches, tmp_path):
    def remove_the_last(pixels):
        (tmp_path / paths[-1]).unlink(missing_ok=True)
        return embed(pixels)

    vectors, problems = collect(embed_files(paths, SIDE, remove_the_last, 'embedding'))
    assert sorted(vectors) == list(range(6)) and problems == {6: 'gone'}


def test_an_image_that_cannot_be_read_is_never_embedded(small_batches, tmp_path):
    def refuse(pixels):
        raise AssertionError('embedded')

    (tmp_path / 'text').write_text('not an image')
    _, problems = collect(embed_files([str(tmp_path / 'text')], SIDE, refuse, 'x'))
    assert list(problems) == [0]


def test_no_files_are_no_batches(small_batches):
    assert list(embed_files([], SIDE, embed, 'embedding')) == []


def test_worker_processes_yield_the_same(paths, small_batches):
    loader = make_loader(paths, SIDE, num_workers=2)
    vectors, problems = collect(embed_batches(loader, embed, len(paths), 'embedding'))
    here, _ = collect(embed_files(paths, SIDE, embed, 'embedding'))
    assert not problems and list(vectors) == list(here)
    assert all(torch.equal(vectors[index], here[index]) for index in here)


def test_a_loader_takes_the_batches_it_is_given(paths):
    loader = make_loader(paths, SIDE, batches=[[4, 0], [2]], num_workers=0)
    assert [indices.tolist() for _, indices, _ in loader] == [[4, 0], [2]]


def test_the_embedder_normalises_what_the_network_gets():
    class Net:
        def embed(self, images):
            return images.mean((2, 3))

    mean, std = (0.5, 0.1, 0.25), (0.25, 0.2, 0.5)
    embedder = Embedder(Net(), mean, std, SIDE)
    pixels = torch.full((2, 3, SIDE, SIDE), 51, dtype=torch.uint8)
    assert embedder.image_size == SIDE
    expected = normalise(pixels, mean, std).mean((2, 3))
    torch.testing.assert_close(embedder(pixels), expected)

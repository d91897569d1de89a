"""Reduced copies: the pixels of a loader are the same with and without them."""

import os
from types import SimpleNamespace

import pytest
import torch
from official import noise

from areir.data.copies import HEADER, make_copies
from areir.data.images import PixelFormat
from areir.data.loading import make_loader
from areir.training.batches import CropAndFlip, EpochSampler

FORMAT = PixelFormat(8)
SIDE = 8
SIZES = [(64, 48), (24, 18), (16, 16), (15, 16), (40, 7)]  # the fourth is not large


@pytest.fixture
def paths(tmp_path):
    """Images of SIZES; the one of 40 x 7 pixels is large and keeps its height."""
    for number, size in enumerate(SIZES):
        noise(size, number).save(tmp_path / f'{number}.png')
    return [str(tmp_path / f'{number}.png') for number in range(len(SIZES))]


def open_copies(tmp_path, paths, sides=(SIDE,)):
    images = dict.fromkeys(range(len(sides)), paths)
    os.makedirs(tmp_path / 'results', exist_ok=True)
    return make_copies(str(tmp_path / 'results/copies'), images, dict(enumerate(sides)))


def read(paths, copies, workers=0, pixel_format=FORMAT):
    options = {'num_workers': workers, 'copies': copies}
    loader = make_loader(paths, pixel_format, [list(range(5))], **options)
    ((pixels, _, problems),) = loader
    assert not any(problems)
    return pixels


def stored(copies, paths):
    """Return {index: size} of the copies that are there."""
    found = {}
    for index, path in enumerate(paths):
        image = copies.read(index, os.stat(path))
        if image:
            found[index] = image.size
    return found


@pytest.mark.parametrize('workers', [0, 2])
def test_large_images_are_copied_and_give_the_same_pixels(tmp_path, paths, workers):
    expected = read(paths, None)
    first = open_copies(tmp_path, paths)[0]
    assert torch.equal(read(paths, first, workers), expected)
    again = open_copies(tmp_path, paths)[0]  # as a resumed run does
    assert stored(again, paths) == {0: (8, 8), 1: (8, 8), 2: (8, 8), 4: (8, 7)}
    assert torch.equal(read(paths, again, workers), expected)


def test_copies_are_read_and_only_of_unchanged_images(tmp_path, paths):
    copies = open_copies(tmp_path, paths)[0]
    before = read(paths, copies)
    stat = os.stat(paths[0])
    noise(SIZES[0], 9).save(paths[0])
    with open(paths[0], 'ab') as file:
        file.truncate(stat.st_size)
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert torch.equal(read(paths, copies), before)  # of the copy
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert not torch.equal(read(paths, copies)[0], before[0])
    os.remove(paths[1])
    options = {'num_workers': 0, 'copies': copies}
    ((_, _, problems),) = make_loader(paths, FORMAT, [list(range(5))], **options)
    assert [bool(problem) for problem in problems] == [False, True, False, False, False]


def test_a_damaged_copy_is_made_again(tmp_path, paths):
    copies = open_copies(tmp_path, paths)[0]
    before = read(paths, copies)
    with open(copies.path, 'r+b') as file:
        file.seek(HEADER.size + 5)
        value = file.read(1)[0]
        file.seek(HEADER.size + 5)
        file.write(bytes([value ^ 1]))
    assert 0 not in stored(copies, paths)
    assert torch.equal(read(paths, copies), before)
    assert 0 in stored(copies, paths)


def test_each_loader_has_its_own_slots(tmp_path, paths):
    copies = open_copies(tmp_path, paths, (8, 4))
    for number, pixel_format in ((0, FORMAT), (1, PixelFormat(4))):
        pixels = read(paths, copies[number], pixel_format=pixel_format)
        assert torch.equal(pixels, read(paths, None, pixel_format=pixel_format))
    assert stored(copies[0], paths)[0] == (8, 8)
    assert stored(copies[1], paths) == dict.fromkeys(range(5), (4, 4))


def test_a_full_disk_stops_copies_only(tmp_path, paths, capsys, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda path: SimpleNamespace(free=1000))
    assert open_copies(tmp_path, paths) == {}
    assert 'no space' in capsys.readouterr().out
    monkeypatch.undo()
    copies = open_copies(tmp_path, paths)[0]
    os.rename(copies.path, copies.path + 'x')
    os.symlink('/dev/full', copies.path)
    copies.mapped = torch.zeros(10_000, dtype=torch.uint8).numpy()
    assert torch.equal(read(paths, copies), read(paths, None))


def test_small_images_have_no_copies(tmp_path, paths, capsys):
    assert open_copies(tmp_path, [paths[3]]) == {}
    assert not capsys.readouterr().out
    assert not (tmp_path / 'results/copies').exists()


@pytest.mark.parametrize('least_area', [0.3, 0.9, 1])
def test_no_crop_of_a_copy_is_enlarged(least_area):
    crop = CropAndFlip(10_000, FORMAT, seed=0, least_area=least_area)
    crop.draw(1)
    if least_area == 1:
        assert crop.side == 8
        return
    sides = (crop.regions[:, 2:] - crop.regions[:, :2]) * crop.side
    assert 8 - 1e-3 <= sides.min() < 8 * 1.2


def test_crops_are_the_same_in_every_epoch_with_copies(tmp_path, paths):
    def crops(copies):
        sampler = EpochSampler(5, 5, seed=0)
        crop = CropAndFlip(5, FORMAT, 0, least_area=0.4)
        options = {'num_workers': 0, 'transform': crop, 'copies': copies}
        loader = make_loader(paths, FORMAT, sampler, **options)
        batches = []
        for epoch in (1, 2):
            sampler.set_epoch(epoch)
            batches += [pixels for pixels, _, _ in loader]
        return torch.stack(batches)

    side = CropAndFlip(5, FORMAT, 0, least_area=0.4).side
    copies = open_copies(tmp_path, paths, (side,))[0]
    assert torch.equal(crops(copies), crops(None))
    assert torch.equal(crops(copies), crops(None))

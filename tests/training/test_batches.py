"""Every process knows the batches of an epoch and decodes its share of each."""

import pytest
import torch
from PIL import Image

from areir.data.images import load_image, to_pixels
from areir.data.loading import ImageDataset, make_loader
from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.training import batches
from areir.training.batches import (
    EpochSampler,
    InOrder,
    ViewSampler,
    crop_regions,
    epoch_batches,
    own_share,
    whole_batches,
)

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
    """10 images of 8 pixels."""
    folder = tmp_path_factory.mktemp('images') / 'photos'
    draw_sample(
        str(folder), train_classes=1, test_classes=1, images_per_class=5, side=8
    )
    return [str(path) for path in sorted(folder.rglob('*.png'))]


def pretend(monkeypatch, rank, processes):
    """Make this process one of several."""
    monkeypatch.setattr(batches, 'rank_and_count', lambda: (rank, processes))


def test_an_epoch_holds_each_image_once_and_mirrors_half_of_them():
    rows, mirrored = epoch_batches(403, 8, seed=3, epoch=2)
    assert rows.shape == mirrored.shape == (50, 8)
    assert rows.dtype == torch.int64 and mirrored.dtype == torch.bool
    assert rows.unique().numel() == 400 and rows.max() < 403
    assert 150 < mirrored.sum() < 250  # 5 deviations about 200


def test_seed_and_epoch_decide_an_epoch():
    rows, mirrored = epoch_batches(403, 8, seed=3, epoch=2)
    again = epoch_batches(403, 8, seed=3, epoch=2)
    assert torch.equal(again[0], rows) and torch.equal(again[1], mirrored)
    for seed, epoch in ((4, 2), (3, 1)):
        other = epoch_batches(403, 8, seed=seed, epoch=epoch)
        assert not torch.equal(other[0], rows)
        assert not torch.equal(other[1], mirrored)
    state = torch.random.get_rng_state()
    epoch_batches(403, 8, seed=3, epoch=2)
    assert state.equal(torch.random.get_rng_state())


@pytest.mark.parametrize('processes', [1, 2, 3, 5, 8, 11])
def test_shares_make_up_the_batch(processes):
    batch = list(range(40, 48))
    shares = [own_share(batch, rank, processes) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert [image for share in shares for image in share][:8] == batch


def test_a_sampler_is_told_the_epoch():
    sampler = EpochSampler(20, 8, seed=3)
    assert list(sampler) == epoch_batches(20, 8, 3, 1)[0].tolist()
    sampler.set_epoch(4)
    rows, mirrored = epoch_batches(20, 8, 3, 4)
    assert list(sampler) == rows.tolist() == list(sampler)
    assert torch.equal(sampler.mirrored, mirrored) and len(sampler) == 2


@pytest.mark.parametrize('start', [0, 1, 2])
def test_a_sampler_begins_within_an_epoch(start):
    sampler = EpochSampler(20, 8, seed=3)
    sampler.set_epoch(2, start)
    rows = epoch_batches(20, 8, 3, 2)[0]
    assert list(sampler) == rows[start:].tolist()
    assert len(sampler) == 2 - start
    assert torch.equal(sampler.remaining(), rows[start:])


def test_a_sampler_yields_the_share_of_its_process(monkeypatch):
    sampler, in_order = EpochSampler(20, 8, seed=3), InOrder(10, 4)
    whole = list(sampler)
    for rank in range(3):
        pretend(monkeypatch, rank, 3)
        assert list(sampler) == [own_share(batch, rank, 3) for batch in whole]
        rows = ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])
        assert list(in_order) == [own_share(batch, rank, 3) for batch in rows]


def test_images_in_order():
    sampler = InOrder(10, 4)
    assert list(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(sampler) == 3
    assert torch.cat(sampler.remaining()).tolist() == list(range(10))


@pytest.mark.parametrize('processes', [1, 2, 3, 5])
def test_shares_of_all_processes_are_put_together(monkeypatch, paths, processes):
    """Each process in turn is given what the others would send."""
    sampler = EpochSampler(len(paths), 4, seed=1)
    sampler.set_epoch(2, start=1)
    pixels = torch.stack([item[0] for item in make_loader(paths, 8).dataset])
    sent = []
    for rank in range(processes):
        pretend(monkeypatch, rank, processes)
        loader = make_loader(paths, 8, sampler, num_workers=0)
        sent.append([images for images, _, _ in loader])
    assert len({images.shape for share in sent for images in share}) == 1

    for rank in range(processes):
        pretend(monkeypatch, rank, processes)
        step = iter(range(len(sampler)))

        def gather(own, rank=rank, step=step):
            number = next(step)
            assert torch.equal(own, sent[rank][number])
            return [share[number] for share in sent]

        monkeypatch.setattr(batches, 'gather', gather)
        loader = make_loader(paths, 8, sampler, num_workers=0)
        whole = list(whole_batches(loader, CPU))
        assert [batch.tolist() for _, batch, _ in whole] == sampler.remaining().tolist()
        for images, batch, problems in whole:
            assert torch.equal(images, pixels[batch])
            assert problems == [''] * 4


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_cannot_be_read_is_named(paths, tmp_path, workers):
    damaged = tmp_path / 'damaged.png'
    with open(paths[0], 'rb') as file:
        damaged.write_bytes(file.read()[:100])
    for bad in (damaged, tmp_path / 'absent.png'):
        named = [*paths[:4], str(bad)]
        loader = make_loader(named, 8, InOrder(5, 3), num_workers=workers)
        with pytest.raises(UserError, match=bad.name):
            list(whole_batches(loader, CPU))


# Crops


@pytest.mark.parametrize('least_area', [0.05, 0.4, 0.9])
def test_crops_are_large_enough_and_inside(least_area):
    generator = torch.Generator().manual_seed(2)
    regions = crop_regions((50, 40), least_area, generator)
    assert regions.shape == (50, 40, 4)
    left, top, right, bottom = regions.flatten(0, 1).T
    assert regions.min() >= 0 and regions.max() <= 1
    width, height = right - left, bottom - top
    assert width.min() > 0 and height.min() > 0
    # a side longer than the image was cut, which leaves the other side alone
    least = min(least_area, (least_area * 3 / 4) ** 0.5)
    assert (width * height).min() > least - 1e-4
    assert (width / height).log().abs().max() < torch.tensor(4 / 3).log() + 1e-4
    # places are uniform: each corner is as far from its edge as the opposite one
    for before, after in ((left, 1 - right), (top, 1 - bottom)):
        assert before.mean() == pytest.approx(after.mean().item(), abs=0.02)


def test_drawing_crops_leaves_batches_and_the_global_state_alone():
    state = torch.random.get_rng_state()
    plain, cropped = EpochSampler(20, 4, 3), EpochSampler(20, 4, 3, 0.5)
    assert state.equal(torch.random.get_rng_state())
    images = [[image for image, _ in batch] for batch in cropped]
    assert images == list(plain)
    other = EpochSampler(20, 4, seed=4, least_area=0.5)
    assert not torch.equal(other.regions, cropped.regions)


def whole_batches_of(sampler, paths, processes, monkeypatch):
    """Return the pixels of all batches, decoded by several processes in turn."""
    shares = []
    for rank in range(processes):
        pretend(monkeypatch, rank, processes)
        loader = make_loader(paths, 8, sampler, num_workers=0)
        shares.append([images for images, _, _ in loader])
    numbers = iter(range(len(sampler)))

    def gather(own):
        number = next(numbers)
        return [share[number] for share in shares]

    monkeypatch.setattr(batches, 'gather', gather)
    loader = make_loader(paths, 8, sampler, num_workers=0)
    return list(whole_batches(loader, CPU))


@pytest.mark.parametrize('processes', [1, 2, 3])
def test_crops_are_the_same_for_any_number_of_processes(monkeypatch, paths, processes):
    sampler = EpochSampler(len(paths), 4, seed=1, least_area=0.3)
    sampler.set_epoch(2, start=1)
    whole = whole_batches_of(sampler, paths, processes, monkeypatch)
    assert len(whole) == 1
    for number, (images, batch, _) in enumerate(whole, 1):
        assert torch.equal(batch, sampler.batches[number])
        for pixels, row, region in zip(images, batch, sampler.regions[number]):
            image = load_image(paths[row])
            assert torch.equal(pixels, to_pixels(image, 8, tuple(region.tolist())))


@pytest.mark.parametrize('processes', [1, 2, 3])
def test_views_are_the_same_for_any_number_of_processes(monkeypatch, paths, processes):
    sampler = ViewSampler(len(paths), 4, views=2, seed=1, least_area=0.3)
    whole = whole_batches_of(sampler, paths, processes, monkeypatch)
    assert [len(batch) for _, batch, _ in whole] == [4, 4, 2, 4, 4, 2]
    rows = torch.cat([batch for _, batch, _ in whole])
    assert rows.tolist() == [*range(10), *range(10)]
    regions = torch.cat(sampler.regions)
    images = torch.cat([images for images, _, _ in whole])
    for pixels, row, region in zip(images, rows, regions):
        image = load_image(paths[row])
        assert torch.equal(pixels, to_pixels(image, 8, tuple(region.tolist())))
    flips = [len(batch) for batch in sampler.mirrored]
    assert flips == [4, 4, 2, 4, 4, 2]


def test_an_item_with_a_region_is_that_part_of_the_image(paths, tmp_path):
    dataset = ImageDataset(paths, 8)
    whole, index, problem = dataset[3]
    assert (index, problem) == (3, '')
    all_of_it, index, problem = dataset[3, (0.0, 0.0, 1.0, 1.0)]
    assert torch.equal(all_of_it, whole) and (index, problem) == (3, '')
    # a half of an image of 16 pixels is 8 pixels, which nothing resizes
    values = torch.arange(3 * 16 * 16).view(16, 16, 3) % 256
    Image.fromarray(values.byte().numpy()).save(tmp_path / 'large.png')
    large = ImageDataset([str(tmp_path / 'large.png')], 8)
    part, _, _ = large[0, (0.5, 0.25, 1.0, 0.75)]
    assert torch.equal(part, values[4:12, 8:].permute(2, 0, 1).byte())
    absent = ImageDataset([str(tmp_path / 'absent.png')], 8)
    blank, _, problem = absent[0, (0.0, 0.0, 0.5, 0.5)]
    assert problem == 'gone' and blank.shape == (3, 8, 8) and not blank.any()

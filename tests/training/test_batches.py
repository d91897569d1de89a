"""Every process knows the batches of an epoch and decodes its share of each."""

import os

import pytest
import torch
from conftest import REPOSITORY
from experiments import INFO, PIXEL_FORMAT, arguments, draw_split
from PIL import Image
from torchvision.transforms import v2

from areir import seeds
from areir.data.images import PixelFormat
from areir.data.splits import Part, Split
from areir.errors import UserError
from areir.training import batches
from areir.training.batches import (
    CropAndFlip,
    EpochSampler,
    InOrder,
    crop_regions,
    load_data,
    make_loaders,
    training_batches,
)

CPU = torch.device('cpu')
SMALL = PixelFormat(8)


def test_an_epoch_holds_each_image_once_in_an_order_of_its_own():
    sampler = EpochSampler(403, 8, seed=3)
    rows = sampler.batches
    assert rows.shape == (50, 8)
    assert rows.unique().numel() == 400 and rows.max() < 403
    assert torch.equal(EpochSampler(403, 8, seed=3).batches, rows)
    assert not torch.equal(EpochSampler(403, 8, seed=4).batches, rows)
    sampler.set_epoch(2)
    assert not torch.equal(sampler.batches, rows)


def test_a_sampler_begins_within_an_epoch_and_takes_another_order():
    sampler = EpochSampler(6, 4, seed=3, order=lambda epoch: torch.arange(9) + epoch)
    assert sampler.batches.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    sampler.set_epoch(2, start=1)
    assert list(sampler) == [[(6, 2), (7, 2), (8, 2), (9, 2)]] and len(sampler) == 1


def test_a_sampler_yields_the_share_of_its_process(monkeypatch):
    """All shares have one size, so images may be decoded twice."""
    sampler = InOrder(6, 4, epochs=[7, 9])
    shares = []
    for rank in range(3):
        monkeypatch.setattr(batches, 'rank_and_count', lambda rank=rank: (rank, 3))
        assert {epoch for share in sampler for _, epoch in share} == {7, 9}
        shares.append([[image for image, _ in share] for share in sampler])
    assert shares[0] == [[0, 1], [4], [0, 1], [4]]
    assert shares[1] == [[2, 3], [5], [2, 3], [5]]
    assert shares[2] == [[0, 1], [4], [0, 1], [4]]


# Crops and flips


@pytest.mark.parametrize('least_area', [0.05, 0.9])
def test_crops_are_large_enough_and_inside(least_area):
    generator = torch.Generator().manual_seed(2)
    regions = crop_regions(2000, least_area, generator)
    left, top, right, bottom = regions.T
    assert regions.min() >= 0 and regions.max() <= 1
    width, height = right - left, bottom - top
    # a side longer than the image was cut, which leaves the other side alone
    least = min(least_area, (least_area * 3 / 4) ** 0.5)
    assert (width * height).min() > least - 1e-4
    assert (width / height).log().abs().max() < torch.tensor(4 / 3).log() + 1e-4
    # places are uniform: each corner is as far from its edge as the opposite one
    for before, after in ((left, 1 - right), (top, 1 - bottom)):
        assert before.mean() == pytest.approx(after.mean().item(), abs=0.02)


@pytest.fixture
def ramp():
    """A pillow image of 16 pixels, each with a colour of its own."""
    values = torch.arange(16 * 16).view(16, 16, 1).expand(16, 16, 3)
    return Image.fromarray(values.byte().numpy())


def test_half_of_the_images_are_mirrored(ramp):
    transform = CropAndFlip(400, SMALL, seed=3)
    whole = SMALL.to_pixels(ramp)
    mirrored = 0
    for index in range(400):
        pixels = transform(ramp, index, epoch=2)
        same = torch.equal(pixels, whole)
        assert same or torch.equal(pixels, whole.flip(2))
        mirrored += not same
    assert 150 < mirrored < 250  # 5 deviations about 200


def test_a_crop_is_that_region_of_the_image(ramp):
    transform = CropAndFlip(50, SMALL, seed=3, least_area=0.2)
    transform.draw(1)
    for index in range(50):
        pixels = SMALL.to_pixels(ramp, transform.regions[index].tolist())
        if transform.mirrored[index]:
            pixels = pixels.flip(2)
        assert torch.equal(transform(ramp, index, 1), pixels)
    # half of an image of 16 pixels is 8 pixels, which nothing resizes
    whole = torch.arange(16 * 16).view(16, 16).byte()
    assert torch.equal(SMALL.to_pixels(ramp, (0.5, 0.25, 1, 0.75))[1], whole[4:12, 8:])


def test_what_is_seen_depends_on_seed_epoch_and_image_alone(ramp):
    one, other = (CropAndFlip(20, SMALL, seed=3, least_area=0.2) for _ in range(2))
    first = [one(ramp, index, 1) for index in range(20)]
    one(ramp, 5, 2)
    for index in (7, 3, 19):
        assert torch.equal(other(ramp, index, 1), first[index])
        assert torch.equal(one(ramp, index, 1), first[index])
    another = CropAndFlip(20, SMALL, seed=4, least_area=0.2)
    for changed in (another(ramp, 3, 1), one(ramp, 3, 2), one(ramp, 4, 1)):
        assert not torch.equal(changed, first[3])


# Which images


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    return draw_split(tmp_path_factory.mktemp('images') / 'photos')


def many_classes(images_per_class, classes=10):
    """Return a Split of some training classes."""
    labels = torch.arange(classes).repeat_interleave(images_per_class)
    names = [f'{number}.png' for number in range(len(labels))]
    part = Part(names, labels, [f'class {number}' for number in range(classes)])
    return Split('photos', INFO, 'abc', {'train': part, 'test': part})


@pytest.mark.parametrize(
    ('select', 'classes'), [('last', 1), ('val', 1), ('val', 2), ('val', 3)]
)
def test_a_single_class_teaches_nothing(monkeypatch, select, classes):
    split = many_classes(2, classes)
    monkeypatch.setattr(batches, 'load_split', lambda *names: split)
    with pytest.raises(UserError, match='shoes'):
        load_data(arguments(select=select))


def test_components_come_from_a_sample_that_the_seed_draws(split, monkeypatch):
    monkeypatch.setattr(batches, 'FIT_IMAGES', 4)
    drawn = []
    for seed in (1, 1, 2):
        args = arguments(dimensions=8, seed=seed)
        dataset = make_loaders(split, args, PIXEL_FORMAT, CPU)['fit'].dataset
        assert dataset.transform is None  # images as they are
        drawn.append(dataset.paths)
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 4 and drawn[0] == sorted(drawn[0])


def test_images_and_meta_labels_of_a_batch_belong_together(split):
    loader = make_loaders(split, arguments(), PIXEL_FORMAT, CPU)['train']
    loader.batch_sampler.set_epoch(2, start=1)
    meta_labels = torch.arange(30).view(10, 3)
    batches = list(training_batches(loader, meta_labels, CPU))
    rows = loader.batch_sampler.remaining
    assert len(batches) == len(rows) == 1
    for (images, labels), row in zip(batches, rows):
        assert torch.equal(labels, meta_labels[row])
        items = [loader.dataset[index, 2][0] for index in row.tolist()]
        assert torch.equal(images, PIXEL_FORMAT.normalise(torch.stack(items)))


def test_a_transform_of_torchvision_is_one_with_a_seed(ramp):
    """As docs/training.md shows it."""
    with open(os.path.join(REPOSITORY, 'docs/training.md'), encoding='utf-8') as file:
        programs = [part.split('```')[0] for part in file.read().split('```python\n')]
    (source,) = (program for program in programs if 'class Augment' in program)
    names = {**vars(seeds), 'v2': v2}
    exec(source, names)
    one, other = names['Augment'](seed=1, side=8), names['Augment'](seed=1, side=8)
    first = one(ramp, 3, 1)
    assert first.shape == (3, 8, 8) and first.dtype == torch.uint8
    one(ramp, 4, 1)
    assert torch.equal(other(ramp, 3, 1), first)
    assert not torch.equal(other(ramp, 3, 2), first)


@pytest.mark.parametrize(('classes', 'images'), [(500, 3), (4, 30)])
def test_a_sample_to_whiten_has_several_images_of_each_class(
    monkeypatch, classes, images
):
    monkeypatch.setattr(batches, 'FIT_IMAGES', 100)
    labels = torch.arange(classes).repeat_interleave(images)
    order = batches.sample_order(labels, seed=3)
    assert order.sort().values.tolist() == list(range(len(labels)))
    assert not torch.equal(order, batches.sample_order(labels, seed=4))
    sizes = torch.bincount(labels[order[:100]])
    assert sizes[sizes > 0].tolist() == ([2] * 50 if classes == 500 else [25] * 4)

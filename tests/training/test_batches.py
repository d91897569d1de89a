"""Every process knows the batches of an epoch and decodes its share of each."""

import pytest
import torch

from areir.data.loading import make_loader
from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.training import batches
from areir.training.batches import (
    EpochSampler,
    InOrder,
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

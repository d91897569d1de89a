"""Batches that are the same in all processes; each process decodes a share."""

import torch

from areir.errors import UserError
from areir.processes import gather, rank_and_count
from areir.seeds import CROP, ORDER, VIEW, random_generator

ASPECT = 4 / 3  # a crop's width and height, as shares of the image's, differ by less


def epoch_batches(count, batch_size, seed, epoch):
    """Draw an epoch's batches in random order, and which images are mirrored.

    count: of all images. Returns int64 and bool, both (batches, batch_size). They
    depend on the arguments alone, so every process and every resumed run draws the
    same.
    """
    generator = random_generator(seed, ORDER, epoch)
    whole = count // batch_size * batch_size
    order = torch.randperm(count, generator=generator)[:whole]
    mirrored = torch.rand(whole, generator=generator) < 0.5
    return order.view(-1, batch_size), mirrored.view(-1, batch_size)


def crop_regions(shape, least_area, generator):
    """Draw the part of each image that training sees: shares of width and height.

    Returns float (*shape, 4): left, top, right, bottom. Areas are uniform between
    least_area and 1, aspect ratios log-uniform up to ASPECT, and places uniform, as in
    torchvision's RandomResizedCrop, but a side that would be longer than the image is
    cut to it.
    """
    area, aspect, left, top = torch.rand(4, *shape, generator=generator)
    area = least_area + (1 - least_area) * area
    aspect = ASPECT ** (2 * aspect - 1)
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    left, top = left * (1 - width), top * (1 - height)
    corners = left, top, left + width, top + height
    return torch.stack(corners, dim=-1).clamp(max=1)


def own_share(batch, rank, processes):
    """Return the items of a batch (a list) that process `rank` decodes.

    All shares have the same size, so the first images of a batch may be decoded twice.
    """
    size = -(-len(batch) // processes)
    first = rank * size
    return [batch[index % len(batch)] for index in range(first, first + size)]


class EpochSampler:
    """Batch sampler of the training images: this process's share of each batch.

    count: of all images; least_area: the smallest share of an image that a crop keeps,
    1 for no crop.
    Call set_epoch before each pass, as with torch's DistributedSampler.
    """

    def __init__(self, count, batch_size, seed, least_area=1):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.least_area = least_area
        self.set_epoch(1)

    def set_epoch(self, epoch, start=0):
        """Draw the batches of an epoch; iteration begins at batch `start`."""
        self.batches, self.mirrored = epoch_batches(
            self.count, self.batch_size, self.seed, epoch
        )
        self.regions = None
        if self.least_area < 1:
            generator = random_generator(self.seed, CROP, epoch)
            shape = self.batches.shape
            self.regions = crop_regions(shape, self.least_area, generator)
        self.epoch, self.start = epoch, start

    def remaining(self):
        """Return the batches that are left, int64 (batches, batch_size)."""
        return self.batches[self.start :]

    def __len__(self):
        return len(self.remaining())

    def __iter__(self):
        rank, processes = rank_and_count()
        for number, batch in enumerate(self.remaining().tolist(), self.start):
            if self.regions is not None:
                batch = with_regions(batch, self.regions[number])
            yield own_share(batch, rank, processes)


def with_regions(batch, regions):
    """Return the items of `ImageDataset` for images and the regions of them, (N, 4)."""
    return [(image, tuple(region)) for image, region in zip(batch, regions.tolist())]


class ViewSampler:
    """Batch sampler of all images in order, once for each of several views.

    Each view of an image has a crop and a flip of its own. count: of all images;
    least_area: as in EpochSampler. mirrored: bool (N,) of each batch.
    """

    def __init__(self, count, batch_size, views, seed, least_area):
        self.shape = views, count
        self.batches, self.regions, self.mirrored = [], [], []
        for view in range(views):
            generator = random_generator(seed, VIEW, view)
            regions = crop_regions((count,), least_area, generator)
            mirrored = torch.rand(count, generator=generator) < 0.5
            self.batches += torch.arange(count).split(batch_size)
            self.regions += regions.split(batch_size)
            self.mirrored += mirrored.split(batch_size)

    def remaining(self):
        """Return the batches, each a tensor of image numbers."""
        return self.batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        rank, processes = rank_and_count()
        for batch, regions in zip(self.batches, self.regions):
            yield own_share(with_regions(batch.tolist(), regions), rank, processes)


class InOrder:
    """Batch sampler of all images in order: this process's share of each batch."""

    def __init__(self, count, batch_size):
        self.batches = torch.arange(count).split(batch_size)

    def remaining(self):
        """Return the batches, each a tensor of image numbers."""
        return self.batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        rank, processes = rank_and_count()
        for batch in self.batches:
            yield own_share(batch.tolist(), rank, processes)


def whole_batches(loader, device):
    """Put the shares of all processes together.

    loader: a DataLoader of `ImageDataset` with one of the samplers above. Yields
    whole batches in the same form: (pixels (N, 3, S, S) on the device, indices (N,),
    problems, all empty). Raises UserError naming an image that cannot be read.
    """
    batches = loader.batch_sampler.remaining()
    for batch, (pixels, indices, problems) in zip(batches, loader):
        for index, problem in zip(indices.tolist(), problems):
            if problem:
                raise UserError(f'{loader.dataset.paths[index]}: {problem}')
        shares = gather(pixels.to(device, non_blocking=True))
        pixels = torch.cat(shares)[: len(batch)]
        yield pixels, batch, [''] * len(batch)

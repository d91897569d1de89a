"""Batches that are the same in all processes; each process decodes a share."""

import torch

from areir.errors import UserError
from areir.processes import gather, rank_and_count
from areir.seeds import ORDER, derive_seed


def epoch_batches(images, batch_size, seed, epoch):
    """Draw an epoch's batches in random order, and which images are mirrored.

    Returns int64 and bool, both (batches, batch_size). They depend on the arguments
    alone, so every process and every resumed run draws the same.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, ORDER, epoch))
    whole = images // batch_size * batch_size
    order = torch.randperm(images, generator=generator)[:whole]
    mirrored = torch.rand(whole, generator=generator) < 0.5
    return order.view(-1, batch_size), mirrored.view(-1, batch_size)


def own_share(batch, rank, processes):
    """Return the images of a batch (a list) that process `rank` decodes.

    All shares have the same size, so the first images of a batch may be decoded twice.
    """
    size = -(-len(batch) // processes)
    first = rank * size
    return [batch[index % len(batch)] for index in range(first, first + size)]


class EpochSampler:
    """Batch sampler of the training images: this process's share of each batch.

    Call set_epoch before each pass, as with torch's DistributedSampler.
    """

    def __init__(self, images, batch_size, seed):
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.set_epoch(1)

    def set_epoch(self, epoch, start=0):
        """Draw the batches of an epoch; iteration begins at batch `start`."""
        self.batches, self.mirrored = epoch_batches(
            self.images, self.batch_size, self.seed, epoch
        )
        self.start = start

    def remaining(self):
        """Return the batches that are left, int64 (batches, batch_size)."""
        return self.batches[self.start :]

    def __len__(self):
        return len(self.remaining())

    def __iter__(self):
        rank, processes = rank_and_count()
        for batch in self.remaining().tolist():
            yield own_share(batch, rank, processes)


class InOrder:
    """Batch sampler of all images in order: this process's share of each batch."""

    def __init__(self, images, batch_size):
        self.batches = torch.arange(images).split(batch_size)

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

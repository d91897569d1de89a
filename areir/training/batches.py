"""The images of a run: which ones, how they are transformed, and their batches.

All processes see the same batches, and each decodes a share of every batch. If they
divide the heads, the shares are put together; else each trains on its own.
"""

import math
import os

import torch

from areir.data.copies import make_copies
from areir.data.loading import make_loader
from areir.data.splits import hold_out, load_split, prepared_names
from areir.errors import UserError
from areir.hardware import memory_format, most_workers
from areir.processes import gather, rank_and_count
from areir.seeds import CROP, ORDER, SAMPLE, random_generator

ASPECT = 4 / 3  # a crop's aspect ratio differs from the image's by at most this factor
TEST_BATCH = {'strict': 64, 'published': 8}  # images, for each --protocol
FIT_IMAGES = 4096  # the most training images that a projection is fitted to


def load_data(args):
    """Return the Split of the dataset, with classes held out for --select val.

    If the dataset has no boxes, args.crop_type becomes 'uncropped', with a notice.
    Raises UserError if too few classes are left to train, or if flags need a test that
    the dataset lacks.
    """
    prepared = prepared_names(args.data_root).get(args.data_name)
    if args.crop_type == 'cropped' and prepared == ['uncropped']:
        print(
            f'notice: --crop_type cropped: {args.data_name} has no boxes, so its whole '
            'images are used'
        )
        args.crop_type = 'uncropped'
    split = load_split(args.data_root, args.data_name, args.crop_type)
    flags = {'protocol': 'published', 'select': 'test', 'whole_gallery': 'no'}
    for flag, value in flags.items():
        if not split.test_parts and getattr(args, flag) == value:
            raise UserError(
                f'--{flag} {value}: {args.data_name} has no test classes, because all '
                'of them train'
            )
    held_out = ''
    if args.select == 'val':
        split = hold_out(split, args.seed)
        held_out = ' besides those that --select val holds out'
    classes = len(split.train.classes)
    if classes < 2:
        raise UserError(
            f'--data_name {args.data_name}: training needs at least 2 classes and has '
            f'{classes}{held_out}: add classes to the dataset'
        )
    return split


def parts_to_embed(split, args):
    """Return {name: Part} of the images that a test embeds, those of training first.

    'fit' is a sample of the training images, for the projection, and 'rest' are all
    others, for --whole_gallery.
    """
    order = sample_order(split.train.labels, args.seed)
    projects = args.dimensions or args.whitening
    fit, rest = order.tensor_split([FIT_IMAGES if projects else 0])
    parts = {'fit': split.train.rows(fit.sort().values)}
    if args.whole_gallery == 'yes':
        parts['rest'] = split.train.rows(rest.sort().values)
    parts |= {name: part for name, part in split.parts.items() if name != 'train'}
    return {name: part for name, part in parts.items() if len(part)}


def sample_order(labels, seed):
    """Return a random order of images (N,) that begins with a sample of FIT_IMAGES.

    The covariance within classes needs several images of a class. So each class of the
    sample has an equal share of it, at least two images; other classes come later.
    """
    generator = random_generator(seed, SAMPLE)
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].sort(stable=True).indices]
    sizes = torch.bincount(labels)
    firsts = sizes.cumsum(0) - sizes
    place = torch.arange(len(labels)) - firsts[labels[order]]  # within the class
    share = max(2, -(-FIT_IMAGES // len(sizes)))
    turn = torch.randperm(len(sizes), generator=generator)[labels[order]]
    rounds = place // share * len(sizes) + turn
    return order[rounds.sort(stable=True).indices]


def make_loaders(
    split, args, pixel_format, device, copies_folder=None, divides_images=False
):
    """Return {part: DataLoader} of 'train' and of `parts_to_embed`.

    copies_folder: of reduced copies, or None; divides_images: see `EpochSampler`.
    """
    parts = {'train': split.train, **parts_to_embed(split, args)}
    crop = CropAndFlip(len(split.train), pixel_format, args.seed, args.crop_area)
    paths, copies = {}, {}
    for name, part in parts.items():
        paths[name] = [os.path.join(split.folder, image) for image in part.images]
    if copies_folder:
        sides = dict.fromkeys(parts, pixel_format.image_size) | {'train': crop.side}
        copies = make_copies(copies_folder, paths, sides)
    workers = min(args.num_workers, most_workers(len(parts)))
    if workers < args.num_workers:
        print(
            f'notice: --num_workers {args.num_workers}: {workers} for each of '
            f'{len(parts)} loaders, as few files may be open at a time (ulimit -n)'
        )
    loaders = {}
    for name, part in parts.items():
        count = len(part)
        sampler, transform = InOrder(count, TEST_BATCH[args.protocol]), None
        if name == 'train':
            size, transform = min(args.batch_size, count), crop
            sampler = EpochSampler(count, size, args.seed, None, divides_images)
        loaders[name] = make_loader(
            paths[name],
            pixel_format,
            sampler,
            workers,
            pin_memory=device.type == 'cuda',
            transform=transform,
            copies=copies.get(name),
        )
    return loaders


class CropAndFlip:
    """A transform of training images: crop at random, squash to a square, maybe flip.

    count: the number of images; least_area: the smallest share of an image that a crop
    keeps, 1 for whole images. Crop and flip depend on seed, epoch and index alone.
    """

    def __init__(self, count, pixel_format, seed, least_area=1):
        self.count, self.pixel_format = count, pixel_format
        self.seed, self.least_area = seed, least_area
        self.epoch = None  # the epoch whose crops and flips are drawn
        # of a reduced image: the shortest side of a crop, see `crop_regions`, is not
        # enlarged
        least_side = math.sqrt(least_area / ASPECT) if least_area < 1 else 1
        self.side = math.ceil(pixel_format.image_size / least_side)

    def __call__(self, image, index, epoch):
        """Return uint8 pixels (3, S, S) of a pillow image, number `index`."""
        if epoch != self.epoch:
            self.draw(epoch)
        region = None if self.regions is None else self.regions[index].tolist()
        pixels = self.pixel_format.to_pixels(image, region)
        return pixels.flip(2) if self.mirrored[index] else pixels

    def draw(self, epoch):
        """Draw the crops and the flips of all images in an epoch."""
        order, draws = draw_order(self.count, self.seed, epoch)
        self.mirrored = torch.empty(self.count, dtype=torch.bool)
        self.mirrored[order] = draws < 0.5
        self.regions = None
        if self.least_area < 1:
            generator = random_generator(self.seed, CROP, epoch)
            self.regions = crop_regions(self.count, self.least_area, generator)
        self.epoch = epoch


def draw_order(count, seed, epoch):
    """Draw an epoch's order of all images, and a number from 0 to 1 for each place."""
    generator = random_generator(seed, ORDER, epoch)
    order = torch.randperm(count, generator=generator)
    return order, torch.rand(count, generator=generator)


def crop_regions(count, least_area, generator):
    """Draw a crop of each image, in shares of its width and height.

    Returns float (count, 4): left, top, right, bottom. Areas are uniform between
    least_area and 1, aspect ratios log-uniform between 1 / ASPECT and ASPECT, and
    positions uniform, as in torchvision's RandomResizedCrop; but a side longer than the
    image's is cut to it.
    """
    area, aspect, left, top = torch.rand(4, count, generator=generator)
    area = least_area + (1 - least_area) * area
    aspect = ASPECT ** (2 * aspect - 1)
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    left, top = left * (1 - width), top * (1 - height)
    corners = left, top, left + width, top + height
    return torch.stack(corners, dim=1).clamp(max=1)


class InOrder:
    """Batch sampler of all images in order: this process's `equal_share` of each batch.

    Items are (image, epoch). epochs: all images come once for each, transformed as in
    that epoch; by default they come once, not transformed.
    """

    divides_images = False  # see `EpochSampler`

    def __init__(self, count, batch_size, epochs=(None,)):
        rows = torch.arange(count).split(batch_size)
        self.remaining = [row for _ in epochs for row in rows]  # numbers of images
        self.epochs = [epoch for epoch in epochs for _ in rows]

    def __len__(self):
        return len(self.remaining)

    def __iter__(self):
        rank, processes = rank_and_count()
        for batch, epoch in zip(self.remaining, self.epochs):
            items = [(image, epoch) for image in batch.tolist()]
            take = exact_share if self.divides_images else equal_share
            yield take(items, rank, processes)


class EpochSampler(InOrder):
    """Batch sampler of the training images: this process's share of each batch.

    order: a function of the epoch that returns the numbers of its images, int64
    (images,); by default all `count` in random order. Leftovers that fill no batch are
    dropped. divides_images: whether a process trains on its share alone, so that no
    image may be in two of them. Call set_epoch before each pass, as with torch's
    DistributedSampler.
    """

    def __init__(self, count, batch_size, seed, order=None, divides_images=False):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.order, self.divides_images = order, divides_images
        self.set_epoch(1)

    def own(self, batch):
        """Return what this process trains on of a batch."""
        return exact_share(batch, *rank_and_count()) if self.divides_images else batch

    @property
    def share(self):
        """The share of a batch that this process trains on."""
        return len(self.own(range(self.batch_size))) / self.batch_size

    def set_epoch(self, epoch, start=0):
        """Draw the batches of an epoch; iteration begins at batch `start`."""
        if self.order:
            order = self.order(epoch)
        else:
            order, _ = draw_order(self.count, self.seed, epoch)
        whole = len(order) // self.batch_size * self.batch_size
        self.batches = order[:whole].view(-1, self.batch_size)
        self.epoch, self.start = epoch, start
        self.remaining = self.batches[start:]
        self.epochs = [epoch] * len(self.remaining)


def equal_share(batch, rank, processes):
    """Return the items of a batch (a list) that process `rank` decodes.

    All shares have the same size, so the first images of a batch may be decoded twice.
    """
    size = -(-len(batch) // processes)
    first = rank * size
    return [batch[index % len(batch)] for index in range(first, first + size)]


def exact_share(batch, rank, processes):
    """Return every item of a batch in one process's share; they may differ by one."""
    return batch[rank::processes]


def image_batches(loader, device, divides_images):
    """Yield (indices of a whole batch, images (N, 3, S, S)), normalised, on the device.

    loader: a DataLoader of `ImageDataset` with one of the samplers above.
    divides_images: whether the images are this process's share of the batch; otherwise
    all shares are put together. Raises UserError naming an image that cannot be read.
    """
    remaining = loader.batch_sampler.remaining
    for batch, (pixels, indices, problems) in zip(remaining, loader):
        for index, problem in zip(indices.tolist(), problems):
            if problem:
                raise UserError(f'{loader.dataset.paths[index]}: {problem}')
        pixels = pixels.to(device, non_blocking=pixels.is_pinned())
        if not divides_images:
            pixels = put_together(pixels, batch)
        images = loader.dataset.pixel_format.normalise(pixels)
        yield batch, images.contiguous(memory_format=memory_format(images.device))


def put_together(share, batch):
    """Return the rows of a whole batch from each process's equal share of them."""
    return torch.cat(gather(share))[: len(batch)]


def compute_batches(loader, function, device, divides_images):
    """Yield (indices, function(images)) of whole batches, from equal shares.

    function: from images (N, 3, S, S) to rows (N, ...). divides_images: whether each
    process calls it with its share of the images, and the rows are put together;
    otherwise each calls it with all images.
    """
    for batch, images in image_batches(loader, device, divides_images):
        rows = function(images)
        yield batch, put_together(rows, batch) if divides_images else rows


def training_batches(loader, meta_labels, device):
    """Yield (images, meta-labels) of each remaining batch of the epoch.

    They are those that this process trains on. meta_labels: those of all training
    images, (images, heads of this process).
    """
    sampler = loader.batch_sampler
    for batch, images in image_batches(loader, device, sampler.divides_images):
        yield images, meta_labels[sampler.own(batch)]

"""The images of a run: batches to train on, and parts of the split to embed."""

import os
from functools import partial

import torch
from torch.nn import functional as F
from tqdm import tqdm

from areir.data.loading import embed_batches, make_loader
from areir.data.splits import hold_out, load_split, prepared_names
from areir.errors import UserError
from areir.processes import gather, is_first, rank_and_count, until_signal
from areir.seeds import SAMPLE, random_generator
from areir.training import published
from areir.training.batches import (
    CropAndFlip,
    EpochSampler,
    InOrder,
    to_images,
    whole_batches,
)

TEST_BATCH = 64
FIT_IMAGES = 4096  # training images at most that a projection is fitted to


def load_data(args):
    """Return the Split of the dataset, with classes held out for --select val.

    Raises UserError if too few images are held out, or too few classes left to train.
    """
    prepared = prepared_names(args.data_root).get(args.data_name)
    if args.crop_type == 'cropped' and prepared == ['uncropped']:
        print(
            f'notice: --crop_type cropped: {args.data_name} has no boxes, so its whole '
            'images are used'
        )
        args.crop_type = 'uncropped'
    split = load_split(args.data_root, args.data_name, args.crop_type)
    held_out = ''
    if args.select == 'val':
        split = hold_out(split, args.seed)
        if len(split.parts['val'].images) < 2:
            raise UserError(
                '--select val: the held-out classes have fewer than two images'
            )
        held_out = ' beside those that --select val holds out'
    classes = len(split.train.classes)
    if classes < 2:
        raise UserError(
            f'--data_name {args.data_name}: training needs at least 2 classes and has '
            f'{classes}{held_out}: add classes to the dataset'
        )
    return split


def usable_recalls(recalls, available):
    """Return the K that `available` images allow. Raises UserError if none is left."""
    dropped = [k for k in recalls if k > available]
    if dropped:
        names = ','.join(map(str, dropped))
        print(f'notice: recall@{names} dropped: {available:,} images can be retrieved')
    if len(dropped) == len(recalls):
        raise UserError(f'--recalls: choose at least one from 1 to {available}')
    return [k for k in recalls if k <= available]


# Loaders and batches


def make_loaders(split, args, device):
    """Return {part: DataLoader} of the training images and of those to embed.

    With --dimensions, the part 'fit' is a sample of the training images as they are.
    """
    published_protocol = args.protocol == 'published'
    test_batch = published.TEST_BATCH if published_protocol else TEST_BATCH
    images = {name: part.images for name, part in split.parts.items()}
    if args.dimensions:
        images['fit'] = draw_images(split.train.images, FIT_IMAGES, args.seed)
    loaders = {}
    for name, names in images.items():
        count = len(names)
        sampler, transform = InOrder(count, test_batch), None
        if name == 'train':
            batch_size = min(args.batch_size, count)
            sampler = EpochSampler(count, batch_size, args.seed)
            transform = CropAndFlip(count, args.image_size, args.seed, args.crop_area)
        loaders[name] = make_loader(
            [os.path.join(split.folder, image) for image in names],
            args.image_size,
            sampler,
            args.num_workers,
            pin_memory=device.type == 'cuda',
            transform=transform,
        )
    return loaders


def draw_images(images, most, seed):
    """Return at most `most` of the images, drawn from the seed, in their order."""
    if len(images) <= most:
        return images
    generator = random_generator(seed, SAMPLE)
    drawn = torch.randperm(len(images), generator=generator)[:most].sort().values
    return [images[index] for index in drawn.tolist()]


def progress_bar(batches, sampler, description):
    """Wrap the remaining batches of an epoch in a progress bar that counts images."""
    return tqdm(
        batches,
        desc=description,
        total=len(sampler.batches),
        initial=sampler.start,
        unit='img',
        unit_scale=sampler.batch_size,
        disable=not is_first(),
    )


def embed_part(net, loader, info, dtype, signals, description, projection=None):
    """Embed the images of a loader with the heads of all processes.

    dtype: of the result; projection: applied to the embeddings, or None. Returns
    (images, D) in rank 0, an empty tensor elsewhere.
    Raises KeyboardInterrupt once `signals` is not empty.
    """
    count = len(loader.dataset)
    embeddings = torch.empty(0, dtype=dtype)
    batches = whole_batches(loader, next(net.trunk.parameters()).device)
    embed = partial(embed_with_all_heads, net, info)
    embedded = embed_batches(batches, embed, count, description)
    saved = 'the trained epoch is saved'
    for indices, vectors, _ in until_signal(embedded, signals, saved):
        if is_first():
            if projection:
                vectors = projection(vectors)
            if not len(embeddings):
                embeddings = torch.empty(count, vectors.shape[1], dtype=dtype)
            embeddings[indices] = vectors.to(dtype)
    return embeddings


def embed_with_all_heads(net, info, pixels):
    """Return the embeddings (N, D) of uint8 pixels in rank 0.

    Each process embeds with its heads, rank r with heads r, r + processes, ...
    """
    _, processes = rank_and_count()
    own = net.embed(to_images(pixels, info))
    own = own.unflatten(1, (len(net.heads), -1))  # (N, heads here, D / E)
    most = -(-net.ensemble_size // processes)
    padded = F.pad(own, (0, 0, 0, most - own.shape[1])).contiguous()
    whole = own.new_empty(len(own), net.ensemble_size, own.shape[2])
    for rank, share in enumerate(gather(padded)):
        heads = len(range(rank, net.ensemble_size, processes))
        whole[:, rank::processes] = share[:, :heads]
    return whole.flatten(1)

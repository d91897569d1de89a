"""The features of a trunk that is not trained, computed once and mapped from a file.

    <run>_trunk_features/<fingerprint>.npy    float16 (views * images, ...)

Random crops and flips happen before the trunk, so the images are transformed as in the
epochs 1 to VIEWS, and every epoch of training draws one of these views of each image.
The name of the file is a hash of everything that the features depend on, so they are
computed again when images or weights change. It ends with the CRC-32 of what is before.
"""

import hashlib
import json
import os
import shutil
import time
from dataclasses import astuple
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import nn

from areir import processes
from areir.bars import progress_bar
from areir.data.loading import make_loader
from areir.files import atomic_path
from areir.gallery.vectors import file_crc
from areir.hardware import memory_format
from areir.seeds import VIEW, random_generator
from areir.training.batches import InOrder, compute_batches

VIEWS = 4
BATCH = 64  # images whose features are computed at a time
HIGHEST = 65504  # of float16
WHOLE = 0x2144DF1C  # the CRC-32 of any bytes that are followed by their own CRC-32


def feature_maker(trainer, dataset, experiment, run, progress, signals):
    """Let the trainer take features instead of images; return what makes its batches.

    dataset: of the training images; progress: counts the seconds that it takes.
    Returns a function like `training_batches`. All processes call this together.
    Raises KeyboardInterrupt once `signals` is not empty.
    """
    args, pixel_format = experiment.args, dataset.pixel_format
    started = time.perf_counter()
    trainer.model.trunk.eval()
    settings = [args.crop_area, args.seed, VIEWS, trainer.precision]
    settings += astuple(pixel_format)
    name = fingerprint(dataset.paths, trainer.model.trunk, settings)
    path = os.path.join(run.path('trunk_features'), f'{name}.npy')
    loader = make_loader(
        dataset.paths,
        pixel_format,
        InOrder(len(dataset), BATCH, epochs=range(1, VIEWS + 1)),
        args.num_workers,
        transform=dataset.transform,
        copies=dataset.copies,
    )
    ensure_features(path, loader, trainer, signals)
    trainer.trunk = nn.Identity()
    progress.seconds += time.perf_counter() - started
    space = trainer.model.heads[0].layouts[trainer.model.shared_stages - 1].space
    memory = torch.contiguous_format
    if space == (2, 3):
        memory = memory_format(trainer.device)
    return partial(feature_batches, np.load(path, mmap_mode='r'), memory)


def fingerprint(paths, trunk, settings):
    """Return a hash of image files, the weights of the trunk and plain settings."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for path in paths:
        stat = os.stat(path)
        line = json.dumps([path, stat.st_size, stat.st_mtime_ns])
        digest.update(os.fsencode(line))
    for name, value in trunk.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def ensure_features(path, loader, trainer, signals):
    """Write the features of all views, unless they are there; remove other files."""
    checksum = file_crc(path) if processes.is_first() else WHOLE
    if checksum not in (None, WHOLE):
        print(f'notice: {path} is damaged: the features are computed again')
    if not processes.any_process(checksum != WHOLE):
        return
    features = view_features(loader, trainer)
    features = processes.until_signal(features, signals, 'no epoch is trained yet')
    if processes.is_first():
        folder = os.path.dirname(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        with atomic_path(path) as temporary:
            write_views(temporary, features, VIEWS * len(loader.dataset))
    else:
        for _ in features:  # computes this process's share
            pass
    processes.wait_for_all()


@torch.no_grad()
def view_features(loader, trainer):
    """Yield the trunk's features, float16 (N, ...), of each batch of all views."""

    def compute(images):
        return trainer.trunk(images).float().clamp(-HIGHEST, HIGHEST).half()

    for _, features in compute_batches(loader, compute, trainer.device, True):
        yield features.cpu()


def write_views(path, batches, count):
    """Write batches of features to a new file; count: of all their rows."""
    first = next(batches)
    fields = {'descr': '<f2', 'fortran_order': False}
    fields['shape'] = (count, *first.shape[1:])
    with open(path, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, fields)
        total, batches = -(-count // BATCH), chain([first], batches)
        for features in progress_bar(batches, 'trunk features', total):
            file.write(features.numpy().tobytes())
        file.flush()
        file.write(file_crc(path).to_bytes(4, 'little'))


def feature_batches(features, memory_format, loader, meta_labels, device):
    """Yield (features (N, ...), meta-labels) of the epoch's remaining batches.

    features: the mapped file, (views * images, ...); memory_format: that of the trunk's
    features; the other arguments are those of `training_batches`.
    """
    sampler = loader.batch_sampler
    views = len(features) // sampler.count
    generator = random_generator(sampler.seed, VIEW, sampler.epoch)
    drawn = torch.randint(views, sampler.batches.shape, generator=generator)
    rows = drawn * sampler.count + sampler.batches
    for row, batch in zip(rows[sampler.start :], sampler.remaining):
        values = torch.from_numpy(features[sampler.own(row).numpy()]).to(device)
        values = values.float().contiguous(memory_format=memory_format)
        yield values, meta_labels[sampler.own(batch)]

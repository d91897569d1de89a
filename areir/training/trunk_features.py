"""The features of a trunk that is not trained, computed once and mapped from a file.

    <run>_trunk_features/<fingerprint>.npy    float16 (views * images, C, H, W)

The last four bytes of the file are the CRC-32 of those before them.

Random crops and flips happen before the trunk, so a few views of each image are kept,
each with a crop and a flip of its own, and every epoch draws one of them. The name of
the file is a hash of everything that the features depend on, so they are computed again
when images or weights change.
"""

import hashlib
import io
import json
import math
import os
import shutil
import time
import zlib
from functools import partial
from itertools import chain

import numpy as np
import torch
from tqdm import tqdm

from areir import processes
from areir.data.images import flip
from areir.data.loading import make_loader
from areir.errors import UserError
from areir.files import atomic_path, file_checksum
from areir.seeds import CROP, random_generator
from areir.training.batches import ViewSampler, whole_batches
from areir.training.loaders import to_images, training_batches

VIEWS = 4
BATCH = 64  # images whose features are computed at a time
HIGHEST = 65504  # of float16


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


def batch_maker(trainer, loaders, experiment, run, progress, signals):
    """Return the function that makes an epoch's batches: `training_batches`.

    With --freeze_trunk, the features are prepared first: they are written to the run's
    folder for them, unless they are there, and the seconds that it takes are counted in
    `progress`. The trainer then takes features instead of images, and the function that
    is returned makes batches of features. All processes call it together. Raises
    KeyboardInterrupt once `signals` is not empty.
    """
    args, split = experiment.args, experiment.split
    if args.freeze_trunk == 'no':
        return training_batches
    started = time.perf_counter()
    trainer.model.trunk.eval()
    paths = loaders['train'].dataset.paths
    settings = [args.image_size, args.crop_area, args.seed, VIEWS, trainer.precision]
    settings += [split.info['mean'], split.info['std']]
    name = fingerprint(paths, trainer.model.trunk, settings)
    sampler = ViewSampler(len(paths), BATCH, VIEWS, args.seed, args.crop_area)
    loader = make_loader(paths, args.image_size, sampler, args.num_workers)
    folder = run.path('trunk_features')
    path = ensure_features(folder, name, loader, trainer, split.info, signals)
    trainer.skip_trunk()
    progress.done.seconds += time.perf_counter() - started
    return partial(feature_batches, np.load(path, mmap_mode='r'))


def ensure_features(folder, name, loader, trainer, info, signals):
    """Write the features of all views of the training images, unless they are there.

    folder: of all such files, of which only this one is kept; name: its fingerprint;
    loader: a DataLoader with a ViewSampler. Returns the path.
    """
    path = os.path.join(folder, f'{name}.npy')
    damaged = processes.is_first() and os.path.isfile(path) and not is_whole(path)
    if damaged:
        print(f'notice: {path} is damaged: the features are computed again')
    if not processes.any_process(damaged or not os.path.isfile(path)):
        return path
    features = view_features(loader, trainer, info)
    features = processes.until_signal(features, signals, 'no epoch is trained yet')
    if not processes.is_first():
        for _ in features:  # decodes this process's share
            pass
    else:
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        with atomic_path(path) as temporary:
            write_views(temporary, features, loader.batch_sampler.shape)
    processes.wait_for_all()
    return path


@torch.no_grad()
def view_features(loader, trainer, info):
    """Yield the trunk's features, float16 (N, C, H, W), of each batch of all views."""
    mirrored = loader.batch_sampler.mirrored
    for (pixels, _, _), flips in zip(whole_batches(loader, trainer.device), mirrored):
        features = trainer.trunk(flip(to_images(pixels, info), flips))
        yield features.float().clamp(-HIGHEST, HIGHEST).half().cpu()


def write_views(path, batches, shape):
    """Write batches of features to a new file; shape: (views, images)."""
    views, images = shape
    first = next(batches)
    whole = (views * images, *first.shape[1:])
    check_space(path, 2 * math.prod(whole))
    header = npy_header(whole)
    checksum = zlib.crc32(header)
    with (
        open(path, 'wb') as file,
        tqdm(total=views * images, desc='trunk features', unit='img') as bar,
    ):
        file.write(header)
        for features in chain([first], batches):
            content = features.numpy().tobytes()
            file.write(content)
            checksum = zlib.crc32(content, checksum)
            bar.update(len(features))
        file.write(checksum.to_bytes(4, 'little'))


def npy_header(shape):
    """Return what a .npy file of float16 begins with."""
    header = io.BytesIO()
    fields = {'descr': '<f2', 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def is_whole(path):
    """Whether a file of features ends with its checksum."""
    with open(path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size - 4
        checksum = file_checksum(file, size)
        return size >= 0 and file.read() == checksum.to_bytes(4, 'little')


def check_space(path, size):
    """Raise UserError if a disk has not enough space for a file of `size` bytes."""
    free = shutil.disk_usage(os.path.dirname(path)).free
    if size > free:
        raise UserError(
            f'{os.path.dirname(path)}: the features of the frozen trunk need '
            f'{size / 1e9:.1f} GB and the disk has {free / 1e9:.1f}: use '
            '--freeze_trunk no'
        )


def feature_batches(features, loader, meta_labels, info, device):
    """Yield (features (N, C, H, W), meta-labels) of the epoch's remaining batches.

    features: the mapped file, (views * images, C, H, W); the other arguments are those
    of `training_batches`.
    """
    sampler = loader.batch_sampler
    views = len(features) // sampler.count
    generator = random_generator(sampler.seed, CROP, sampler.epoch)
    drawn = torch.randint(views, sampler.batches.shape, generator=generator)
    rows = drawn * sampler.count + sampler.batches
    for row, batch in zip(rows[sampler.start :], sampler.remaining()):
        values = torch.from_numpy(features[row.numpy()]).to(device).float()
        values = values.contiguous(memory_format=torch.channels_last)
        yield values, meta_labels[batch]

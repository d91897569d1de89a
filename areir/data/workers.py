"""Worker processes that read images, and what they compute over many of them."""

import os
import signal
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import parent_process

import numpy as np
from tqdm import tqdm

from areir.data.images import load_image, resize
from areir.errors import UserError
from areir.processes import ignore_signals


def start_pool(num_workers):
    """Return a pool of worker processes, to be used in a `with` statement."""
    return ProcessPoolExecutor(num_workers, initializer=start_worker)


def start_worker():
    """Leave Ctrl-C to the parent process and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()


def start_loader_worker(number):
    """Worker init of a DataLoader: as `start_worker`, but leave SIGTERM to the parent.

    torch itself notices only after seconds that the parent has been killed.
    """
    ignore_signals()
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """Wait for the parent process, then end this one at once."""
    parent_process().join()
    os._exit(1)


def parallel(pool, function, jobs, description):
    """Return the results of function(job) in order, with a progress bar.

    Raises UserError if a worker process was killed.
    """
    results = pool.map(function, jobs, chunksize=16)
    try:
        return list(tqdm(results, total=len(jobs), desc=description, unit='img'))
    except BrokenExecutor as error:
        raise UserError(
            f'{description}: a worker process was killed, perhaps memory ran out: '
            'try a smaller --num_workers'
        ) from error


def pixel_sums(job):
    """Return the sums of the pixels and of their squares, three integers each.

    job: (path, image_size). Computed by numpy: torch's threads do not survive the fork
    that starts a worker process.
    """
    path, image_size = job
    pixels = resize(load_image(path), image_size).reshape(-1, 3).astype(np.int64)
    return pixels.sum(0).tolist(), (pixels**2).sum(0).tolist()


def channel_statistics(pool, paths, image_size):
    """Return the mean and standard deviation of the pixels / 255, per channel.

    They are those of all images at image_size, and exact, because integers are summed.
    """
    jobs = [(path, image_size) for path in paths]
    sums, square_sums = zip(*parallel(pool, pixel_sums, jobs, 'mean and deviation'))
    count = len(paths) * image_size**2
    mean, std = [], []
    for total, square in zip(map(sum, zip(*sums)), map(sum, zip(*square_sums))):
        mean.append(total / count / 255)
        std.append((square * count - total**2) ** 0.5 / count / 255)
    return tuple(mean), tuple(std)

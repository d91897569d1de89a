"""From image files to embeddings: the dataset, its loader, and the loop over it."""

import atexit
import contextlib
import os
import signal
import threading
from multiprocessing import active_children, parent_process

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, get_worker_info

from areir.bars import progress_bar
from areir.data.images import load_image
from areir.errors import UserError
from areir.hardware import available_cores, local_processes, most_workers

BATCH = 32  # images embedded at a time
GONE = 'gone'  # the problem of a file that is not there


class Piped:
    """A tensor that a worker process sends through its pipe, and that arrives as one.

    torch would use shared memory, which is small in containers, and keep a file
    descriptor open for each tensor.
    """

    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return torch.from_numpy, (self.tensor.numpy(),)


def collate(items):
    """Return a batch of items of `ImageDataset`: (pixels, indices (N,), problems)."""
    pixels, indices, problems = zip(*items)
    tensors = torch.stack(pixels), torch.tensor(indices)
    if get_worker_info():
        tensors = map(Piped, tensors)
    return *tensors, list(problems)


class ImageDataset(Dataset):
    """Item i is (pixels, i, problem) of paths[i], a file or what `load_image` takes.

    Item (i, epoch) is the same with the pixels that transform(image, i, epoch) returns
    of the pillow image, reduced to transform.side. copies: a Copies for large images.
    pixels: uint8 (3, S, S), of a PixelFormat. problem: '', or GONE, or why the file
    cannot be read; its pixels are then zeros.
    """

    def __init__(self, paths, pixel_format, transform=None, copies=None):
        self.paths = paths
        self.pixel_format, self.transform = pixel_format, transform
        self.copies = copies

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, item):
        index, epoch = item if isinstance(item, tuple) else (item, None)
        path = self.paths[index]
        try:
            image = self.load(index)
            if epoch is None:
                pixels = self.pixel_format.to_pixels(image)
            else:
                pixels = self.transform(image, index, epoch)
            return pixels, index, ''
        except UserError as error:
            problem = str(error).removeprefix(f'{path}: ')
            side = self.pixel_format.image_size
            blank = torch.zeros(3, side, side, dtype=torch.uint8)
            is_gone = isinstance(path, str) and not os.path.exists(path)
            return blank, index, GONE if is_gone else problem

    def load(self, index):
        """Return an image, reduced if it is large; from its copy if there is one."""
        path, stat = self.paths[index], None
        if self.copies:
            with contextlib.suppress(OSError):  # `load_image` says why
                stat = os.stat(path)
        if stat and (image := self.copies.read(index, stat)):
            return image
        side = self.transform.side if self.transform else self.pixel_format.image_size
        reduction = self.pixel_format.reduction(side)
        image = load_image(path, least=side, reduce=reduction)
        if stat and reduction.happened:
            self.copies.write(index, stat, image)
        return image


def start_worker(number=None, on_sigterm=signal.SIG_IGN):
    """Begin a worker process: leave Ctrl-C to the parent and end with it.

    torch itself notices only after seconds that the parent has been killed. number: of
    a DataLoader's worker; on_sigterm: the handler.
    """

    def end_with_parent():
        parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_sigterm)
    threading.Thread(target=end_with_parent, daemon=True).start()


def kill_workers():
    """Kill the workers that are left at exit: Python would wait for them for ever."""
    for worker in active_children():
        if worker.daemon:
            worker.kill()


def make_loader(
    paths,
    pixel_format,
    batches=None,
    num_workers=None,
    pin_memory=False,
    transform=None,
    copies=None,
):
    """Return a DataLoader of (pixels (N, 3, S, S), indices (N,), problems).

    batches: lists of items of `ImageDataset`, or a batch sampler; by default at most
    BATCH images at a time. transform, copies: see `ImageDataset`.
    num_workers: processes that decode; by default the cores, fewer for few images, and
    none for pictures that are no files.
    """
    if batches is None:
        # a few images come in small batches, so that decoding and embedding overlap
        size = min(BATCH, max(4, len(paths) // 12))
        batches = BatchSampler(range(len(paths)), size, drop_last=False)
    if num_workers is None and not all(isinstance(path, str) for path in paths):
        num_workers = 0
    if num_workers is None:
        cores = available_cores() // local_processes()
        num_workers = min(cores, len(paths) // BATCH, most_workers())
    atexit.unregister(kill_workers)  # once is enough
    atexit.register(kill_workers)
    return DataLoader(
        ImageDataset(paths, pixel_format, transform, copies),
        batch_sampler=batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        collate_fn=collate,
        worker_init_fn=start_worker,
    )


class Embedder:
    """Turns pixels into embeddings: normalises them and runs the network.

    net: a module with embed(images (N, 3, H, W)) -> (N, D); pixel_format: that of the
    images it was trained on.
    """

    def __init__(self, net, pixel_format, device='cpu'):
        self.net, self.pixel_format, self.device = net, pixel_format, device

    def __call__(self, pixels):
        """Return the embeddings (N, D) of uint8 pixels (N, 3, S, S)."""
        return self.net.embed(self.pixel_format.normalise(pixels.to(self.device)))


def embed_files(paths, pixel_format, embed, description):
    """Embed image files, or what `load_image` takes, with a progress bar.

    embed: from pixels, as of `make_loader`, to vectors (N, D).
    Yields (indices, vectors (n, D) on the CPU, {index: problem}) of each batch, without
    vectors for unreadable images.
    """
    options = {'unit': 'img', 'delay': 1, 'leave': False}
    with progress_bar(None, description, len(paths), **options) as bar:
        for pixels, indices, problems in make_loader(paths, pixel_format):
            readable = torch.tensor([not problem for problem in problems])
            vectors = torch.empty(0, 0)
            if readable.any():
                vectors = embed(pixels[readable]).float().cpu()
            unreadable = zip(indices.tolist(), problems)
            unreadable = {index: problem for index, problem in unreadable if problem}
            yield indices[readable].tolist(), vectors, unreadable
            bar.update(len(indices))

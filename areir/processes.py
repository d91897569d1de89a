"""The processes of torchrun: their ranks, what they exchange, and their signals.

Without torchrun there is one process of rank 0, and every function here returns at
once what that process alone would have.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from datetime import timedelta

import torch
from torch import distributed

from areir.errors import UserError
from areir.files import make_writable, remove, remove_leftovers, temporary_name
from areir.hardware import limit_threads, local_device

SMALL = 2**16  # numbers of a tensor that is not sent by itself
SIGNALS = signal.SIGINT, signal.SIGTERM


@contextlib.contextmanager
def left_as_found():
    """Put back what a script changes in its process, which may be a notebook.

    Signal handlers, threads and the generator of torch on the CPU, and the variable of
    --quiet. A notebook keeps the frames of an error: what they hold, such as models and
    the workers of loaders, is freed.
    """
    quiet, threads = os.environ.get('TQDM_DISABLE'), torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except (UserError, KeyboardInterrupt) as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        torch.set_num_threads(threads)
        os.environ.pop('TQDM_DISABLE', None)
        if quiet is not None:
            os.environ['TQDM_DISABLE'] = quiet
        set_handlers(handlers)


def set_handlers(handlers):
    """Set {signal: handler}; in a thread, where that is not possible, do nothing."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def join():
    """Connect the processes of torchrun: nccl between GPUs, gloo between CPUs.

    Returns (rank, number of processes). Only rank 0 keeps its stdout.
    """
    limit_threads()
    world = int(os.environ.get('WORLD_SIZE', 1))
    if world == 1:
        return 0, 1
    rank = int(os.environ['RANK'])
    if rank:
        sys.stdout = open(os.devnull, 'w')
    backend = 'gloo'
    if torch.cuda.is_available():
        backend = 'cpu:gloo,cuda:nccl'
        torch.cuda.set_device(local_device())
    # The others wait while rank 0 evaluates, which can take long. A process that dies
    # is noticed at once, whatever the timeout.
    distributed.init_process_group(backend, timeout=timedelta(hours=4))
    return rank, world


def leave():
    """Wait for all processes, then disconnect."""
    if distributed.is_initialized():
        wait_for_all()
        distributed.destroy_process_group()


def rank_and_count():
    """Return (rank, number of processes)."""
    if distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def is_first():
    """Whether this is rank 0, the process that prints and writes."""
    return rank_and_count()[0] == 0


@contextlib.contextmanager
def failures_of_others():
    """Re-raise a failed collective as ConnectionError: another rank has died."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            'another process of this run has ended; its message says why. The same '
            'command continues from what was saved (train.py needs --resume)'
        ) from error


def sum_over_all(tensor):
    """Sum a tensor over all processes, in place, and return it."""
    if distributed.is_initialized():
        with failures_of_others():
            distributed.all_reduce(tensor)
    return tensor


def start_sum(tensors, dtype):
    """Start to sum each tensor over all processes, in place; return what ends it.

    The tensors have their sums when that function has returned. Large ones are sent in
    `dtype`, the others together, because sending takes a millisecond between CPUs.
    """
    if not distributed.is_initialized() or not tensors:
        return lambda: None
    small = [tensor for tensor in tensors if tensor.numel() < SMALL]
    large = [tensor for tensor in tensors if tensor.numel() >= SMALL]
    together = [torch.cat([tensor.flatten() for tensor in small])] if small else []
    sent = [tensor.to(dtype) for tensor in large] + together
    with failures_of_others():
        works = [distributed.all_reduce(tensor, async_op=True) for tensor in sent]

    def finish():
        with failures_of_others():
            for work in works:
                work.wait()
        sums = sent[: len(large)]
        if small:
            sums += together[0].split([tensor.numel() for tensor in small])
        for tensor, total in zip(large + small, sums):
            if tensor is not total:
                tensor.copy_(total.view_as(tensor))

    return finish


def gather(tensor):
    """Return [tensor of rank 0, of rank 1, ...]; all have one shape."""
    if not distributed.is_initialized():
        return [tensor]
    tensors = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    with failures_of_others():
        distributed.all_gather(tensors, tensor)
    return tensors


def gather_objects(value):
    """Return [value of rank 0, of rank 1, ...]; values can be pickled."""
    if not distributed.is_initialized():
        return [value]
    values = [None] * distributed.get_world_size()
    with failures_of_others():
        distributed.all_gather_object(values, value)
    return values


def from_first(value):
    """Return rank 0's value, which can be pickled, in every process."""
    return gather_objects(value)[0]


def any_process(condition):
    """Whether the condition is true in any process. All wait for each other."""
    return bool(sum_over_all(torch.tensor(float(bool(condition)))))


def wait_for_all():
    """Return when every process has called this."""
    any_process(False)


def check_shared_folder(folder):
    """Make a folder to write to, and remove what killed processes left there.

    Raises UserError if it cannot be written, OSError if it is not the same for all
    processes.
    """
    probe = temporary_name(os.path.join(folder, 'probe'))
    if is_first():
        make_writable(folder, '--results_root')
        remove_leftovers(folder)
        os.mkdir(probe)
    try:
        name = from_first(os.path.basename(probe))
        if any_process(not os.path.isdir(os.path.join(folder, name))):
            raise OSError(
                f'{folder} is not one folder for all processes: the nodes must share it'
            )
    finally:
        remove(probe)


def catch_signals():
    """Install handlers for SIGTERM and Ctrl-C that append to the returned list.

    In a thread that is not the main one, none are installed.
    """
    signals = []

    def note(number, frame):
        if not signals and is_first():
            os.write(2, b'\nstopping after this batch; a checkpoint is written first\n')
        signals.append(number)

    set_handlers(dict.fromkeys(SIGNALS, note))
    return signals


def until_signal(batches, signals, state):
    """Yield batches. Raises KeyboardInterrupt once `signals` is not empty.

    state: what is saved, as the message says it.
    """
    for batch in batches:
        if signals:
            raise KeyboardInterrupt(
                f'{state}; the same command with --resume continues'
            )
        yield batch

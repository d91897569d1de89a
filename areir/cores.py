"""The cores of this machine, and the processes that share them."""

import os


def available_cores():
    """Return the number of cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def local_processes():
    """Return how many processes torchrun started on this machine."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', 1))

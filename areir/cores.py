"""The cores of this machine, what they compute fast, and who shares them."""

import os


def available_cores():
    """Return the number of cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def cpu_has_any(*instructions):
    """Whether the CPU has one of these instructions, named as torch names them."""
    import torch  # takes seconds, which --help does without

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in instructions)


def local_processes():
    """Return how many processes torchrun started on this machine."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', 1))

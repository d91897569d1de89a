"""Independent random streams, all derived from one seed."""

from contextlib import contextmanager

import numpy as np
import torch

# what a stream is for
TRUNK, HEAD, PARTITION, ORDER, CROP, VIEW, SAMPLE, DROP = range(8)


def derive_seed(seed, purpose, index=0, *indices):
    """Return an independent 64-bit seed for each (seed, purpose, index, ...).

    So one head can be drawn without drawing the others.
    """
    sequence = np.random.SeedSequence([seed, purpose, index, *indices])
    return int(sequence.generate_state(1, np.uint64)[0])


def random_generator(seed, purpose, *indices):
    """Return a torch.Generator with the seed of `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *indices))


@contextmanager
def random_stream(seed):
    """Draw what is initialised inside from `seed`; leave the global state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield

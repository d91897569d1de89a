"""Small files of embeddings."""

import numpy as np
import torch
from torch.nn import functional as F

COUNT = 24
RANDOM = torch.randn(COUNT, 3, 2, generator=torch.Generator().manual_seed(0))
EMBEDDINGS = F.normalize(RANDOM, dim=2).flatten(1)  # of three heads
LABELS = torch.arange(COUNT) % 5
TEXTS = [f'class {"edcba"[label]}' for label in LABELS]
IMAGES = [f'{number}.png' for number in range(COUNT)]
QUERIES = {
    'query_embeddings': EMBEDDINGS[:9],
    'query_labels': LABELS[:9],
    'query_images': IMAGES[:9],
}


def save(name, **entries):
    if name.endswith('.npz'):
        np.savez(name, **{key: np.asarray(value) for key, value in entries.items()})
    else:
        torch.save(entries, name)
    return name


def save_plain(name, **changed):
    """Save EMBEDDINGS and LABELS with changes; None removes an entry."""
    entries = {'embeddings': EMBEDDINGS, 'labels': LABELS, **changed}
    return save(
        name, **{key: value for key, value in entries.items() if value is not None}
    )

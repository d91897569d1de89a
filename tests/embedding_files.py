"""Small files of embeddings, what they give, and how they are refused."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from areir.errors import UserError
from areir.evaluation.embeddings_file import rank_file
from areir.evaluation.metrics import summary

COUNT = 24
RANDOM = torch.randn(COUNT, 3, 2, generator=torch.Generator().manual_seed(0))
EMBEDDINGS = F.normalize(RANDOM, dim=2).flatten(1)  # of three heads
LABELS = torch.arange(COUNT) % 5
TEXTS = [f'class {"edcba"[label]}' for label in LABELS]
IMAGES = [f'{number}.png' for number in range(COUNT)]
GROUPS = [f'camera {number // 4}' for number in range(COUNT)]
QUERIES = {
    'query_embeddings': EMBEDDINGS[:9],
    'query_labels': LABELS[:9],
    'query_images': IMAGES[:9],
}
both_formats = pytest.mark.parametrize('name', ['file.pt', 'file.npz'])


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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a new folder."""
    monkeypatch.chdir(tmp_path)


def objects(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def with_bad_row(value):
    embeddings = EMBEDDINGS.clone()
    embeddings[7, 2] = value
    return embeddings


def metrics_of(path, ks=(1, 4), heads=None, **keywords):
    return summary(rank_file(path, 'cpu', heads, **keywords).ranks, ks)


def refusal(path, *arguments, **keywords):
    with pytest.raises(UserError) as error:
        rank_file(path, 'cpu', *arguments, **keywords)
    line = str(error.value)
    assert len(line.splitlines()) == 1
    return line

"""After an epoch: what is embedded, how it is shortened, and which epoch is kept."""

from types import SimpleNamespace

import pytest
import torch
from experiments import arguments, make_embeddings, make_experiment
from torch.nn import functional as F

from areir.training import testing
from areir.training.record import KEPT_EPOCH
from areir.training.result import Result
from areir.training.run import EpochProgress, Progress
from areir.training.testing import embed_parts, record_epoch

INFO = {'mean': [0.5] * 3, 'std': [0.25] * 3}


def vectors(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 6, generator=generator), dim=1)


PARTS = {'train': None, 'query': vectors(4, 1), 'gallery': vectors(9, 2)}
PARTS['fit'] = vectors(30, 3)


@pytest.fixture
def embedded(monkeypatch):
    """Make the loaders of PARTS the vectors; return what was embedded, in order."""
    calls = []

    def embed_part(net, loader, info, dtype, signals, description, projection=None):
        calls.append((description, dtype))
        assert (net, info, signals) == ('net', INFO, [])
        whole = projection(loader) if projection else loader
        return whole.to(dtype)

    monkeypatch.setattr(testing, 'embed_part', embed_part)
    return calls


def test_without_components_the_parts_are_embedded(embedded):
    args = arguments(dimensions=0, store='fp16')
    parts = {name: value for name, value in PARTS.items() if name != 'fit'}
    embeddings, projection = embed_parts('net', parts, args, INFO, [])
    assert projection is None and list(embeddings) == ['query', 'gallery']
    assert torch.equal(embeddings['gallery'], PARTS['gallery'].half())
    assert [dtype for _, dtype in embedded] == [torch.float16] * 2


def test_components_are_fitted_first_in_float32(embedded):
    """And only to training images: the others do not change them."""
    args = arguments(dimensions=3, whitening=0.5, store='fp16')
    embeddings, projection = embed_parts('net', PARTS, args, INFO, [])
    dtypes = [dtype for _, dtype in embedded]
    assert dtypes == [torch.float32, torch.float16, torch.float16]
    assert 'PCA' in embedded[0][0]
    assert list(embeddings) == ['query', 'gallery']
    wanted = testing.fit_projection(PARTS['fit'], 3, 0.5)
    assert torch.equal(projection.matrix, wanted.matrix)
    for name, short in embeddings.items():
        assert torch.equal(short, wanted(PARTS[name]).half())
    others = {**PARTS, 'query': PARTS['gallery'], 'gallery': PARTS['query']}
    _, again = embed_parts('net', others, args, INFO, [])
    assert torch.equal(again.matrix, projection.matrix)


# The epoch that is kept


class Files:
    """Stands for a Run and notes what it writes."""

    name = 'shoes'

    def __init__(self):
        self.rows, self.epochs = [], []

    def write_csv(self, progress):
        self.rows = list(progress.rows)

    def keep(self, model, database, provenance):
        assert model['epoch'] == database['epoch'] == provenance['epoch']
        assert model['version'] == database['version']
        self.epochs.append(model['epoch'])


@pytest.mark.parametrize(
    ('select', 'kept'),
    [('last', [0, 1, 2, 3]), ('test', [0, 2]), ('val', [0, 2])],
)
def test_the_best_epoch_is_kept_even_the_one_before_training(
    monkeypatch, capsys, select, kept
):
    """Epochs are better with less spread, and the second of two equal ones is not."""
    monkeypatch.setattr(testing, 'model_weights', lambda folder, size: {'x': folder})
    experiment = make_experiment(select=select, recipe='current')
    progress, files = Progress(), Files()
    for epoch, spread in enumerate((2.0, 3.0, 0.01, 0.01)):
        progress.begin_epoch(epoch)
        progress.done = EpochProgress(batches=4, loss=4.0, accuracy=2.0, seconds=8.0)
        result = Result(experiment, epoch, make_embeddings(experiment, 0, spread))
        record_epoch(experiment, files, progress, result, 'folder', 1e-3, 0.0)
    assert files.epochs == kept
    assert [row['epoch'] for row in files.rows] == [0, 1, 2, 3]
    assert progress.kept.startswith(f'kept epoch {kept[-1]}, {KEPT_EPOCH[select]}')
    output = capsys.readouterr().out.splitlines()
    assert [line[:15] for line in output[:2]] == ['before training', 'epoch 1/3: loss']


def test_an_epoch_takes_the_seconds_of_training_and_of_its_test(monkeypatch):
    monkeypatch.setattr(testing, 'model_weights', lambda folder, size: {})
    clock = SimpleNamespace(perf_counter=lambda: 107.0)
    monkeypatch.setattr(testing, 'time', clock)
    experiment = make_experiment(recipe='current')
    embeddings = make_embeddings(experiment)
    progress, files = Progress(), Files()
    progress.done.seconds = 5.0  # of the features of a frozen trunk
    for epoch in (0, 1):
        result = Result(experiment, epoch, embeddings)
        record_epoch(experiment, files, progress, result, 'folder', 1e-3, 100.0)
    assert [row['seconds'] for row in files.rows] == [7, 12]
    assert [row['train_seconds'] for row in files.rows] == [5, 5]

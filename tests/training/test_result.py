"""What an epoch reaches: its metrics, its score, its intervals, its threshold."""

from unittest.mock import Mock

import pytest
import torch
from experiments import (
    INFO,
    arguments,
    draw_split,
    make_embeddings,
    make_experiment,
    paths_of,
)
from torch.nn import functional as F

from areir.data.images import load_image, normalise, to_pixels
from areir.matching.calibration import calibrate
from areir.networks.projection import fit_projection
from areir.retrieval import evaluate
from areir.training import result as module
from areir.training.batches import make_loaders
from areir.training.record import KEPT_EPOCH
from areir.training.result import (
    Result,
    embed_part,
    embed_parts,
    record_epoch,
)
from areir.training.run import Progress
from model import EnsembleModel

CPU = torch.device('cpu')
MEAN_STD = INFO['mean'], INFO['std']


def result_of(**changed):
    experiment = make_experiment(**changed)
    embeddings = make_embeddings(experiment)
    return Result(experiment, 2, embeddings), experiment.split, embeddings


def test_the_metrics_are_those_of_the_test_images():
    result, split, embeddings = result_of()
    wanted = evaluate(embeddings['test'], split.query.labels, [1, 2])
    assert result.queries_without_positive == wanted.pop('queries_without_positive')
    assert result.metrics == pytest.approx(wanted)
    assert 0.2 < result.metrics['recall@1'] < 1 and result.val_metrics == {}


def test_queries_search_a_gallery_of_its_own():
    result, split, embeddings = result_of(gallery=True)
    query, gallery = split.parts['query'], split.parts['gallery']
    arguments = [embeddings['query'], query.labels, [1, 2]]
    wanted = evaluate(*arguments, embeddings['gallery'], gallery.labels)
    del wanted['queries_without_positive']
    assert result.metrics == pytest.approx(wanted)
    assert result.calibration['queries'] == 12
    assert result.calibration['gallery_size'] == 20


def test_the_score_of_held_out_classes():
    result, split, embeddings = result_of(select='val')
    val = split.parts['val']
    wanted = evaluate(embeddings['val'], val.labels, [1])
    del wanted['queries_without_positive']
    assert result.val_metrics == pytest.approx(wanted)
    assert result.score == result.val_metrics['recall@1']


@pytest.mark.parametrize(
    ('select', 'name', 'dtype'),
    [
        ('last', 'test', torch.float16),
        ('test', 'test', torch.float32),
        ('val', 'val', torch.float32),
    ],
)
def test_the_threshold_is_set_on_classes_without_training(select, name, dtype):
    """On those held out if there are any, else on the test classes."""
    experiment = make_experiment(select=select)
    embeddings = make_embeddings(experiment)
    embeddings = {part: values.to(dtype) for part, values in embeddings.items()}
    arguments = embeddings[name].float(), experiment.split.parts[name].labels
    wanted = calibrate(*arguments, false_match_rate=0.05)
    assert Result(experiment, 1, embeddings).calibration == wanted


# Embedding


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    return draw_split(tmp_path_factory.mktemp('images') / 'photos')


@pytest.fixture
def net(slim_backbone):
    return EnsembleModel('resnet18', 3, 4, seed=1)


def embed(net, split, signals=(), dtype=torch.float32):
    loaders = make_loaders(split, arguments(dimensions=0), CPU)
    return embed_part(net, loaders['test'], INFO, dtype, signals, 'embedding test')


def test_all_images_are_embedded_in_their_order(net, split):
    images = [to_pixels(load_image(path), 32) for path in paths_of(split, 'test')]
    images = normalise(torch.stack(images), *MEAN_STD)
    embeddings = embed(net, split)
    assert embeddings.shape == (10, 12) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, net.embed(images))
    half = embed(net, split, dtype=torch.float16)
    assert torch.equal(half, embeddings.half())


def test_a_signal_stops_embedding(net, split):
    with pytest.raises(KeyboardInterrupt, match='--resume'):
        embed(net, split, signals=[15])


# The parts of a split, and their components


def vectors(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 6, generator=generator), dim=1)


PARTS = {'train': None, 'query': vectors(4, 1), 'gallery': vectors(9, 2)}
PARTS['fit'] = vectors(30, 3)


@pytest.fixture
def embedded(monkeypatch):
    """Make the loaders of PARTS the vectors; return the types that are asked for."""
    calls = []

    def embed_part(net, loader, info, dtype, signals, description, projection=None):
        calls.append(dtype)
        whole = projection(loader) if projection else loader
        return whole.to(dtype)

    monkeypatch.setattr(module, 'embed_part', embed_part)
    return calls


def test_components_are_fitted_first_in_float32(embedded):
    """And only to training images."""
    args = arguments(dimensions=3, whitening=0.5, store='fp16')
    embeddings, projection = embed_parts('net', PARTS, args, INFO, [])
    assert embedded == [torch.float32, torch.float16, torch.float16]
    assert list(embeddings) == ['query', 'gallery']
    wanted = fit_projection(PARTS['fit'], 3, 0.5)
    assert torch.equal(projection.matrix, wanted.matrix)
    for name, short in embeddings.items():
        assert torch.equal(short, wanted(PARTS[name]).half())


# The epoch that is kept


@pytest.mark.parametrize(
    ('select', 'kept'),
    [('last', [0, 1, 2, 3]), ('test', [0, 2]), ('val', [0, 2])],
)
def test_the_best_epoch_is_kept_even_the_one_before_training(monkeypatch, select, kept):
    """Epochs are better with less spread, and the second of two equal ones is not."""
    monkeypatch.setattr(module, 'model_weights', lambda folder, size: {'x': folder})
    experiment = make_experiment(select=select, recipe='current')
    progress, run = Progress(), Mock()
    for epoch, spread in enumerate((2.0, 3.0, 0.01, 0.01)):
        progress.begin_epoch(epoch)
        progress.batches, progress.loss, progress.accuracy = 4, 4.0, 2.0
        result = Result(experiment, epoch, make_embeddings(experiment, 0, spread))
        record_epoch(experiment, run, progress, result, 'folder', 1e-3, 0.0)
    for index in range(3):  # model, database and provenance
        files = [call.args[index] for call in run.keep.call_args_list]
        assert [file['epoch'] for file in files] == kept
    assert [row['epoch'] for row in progress.rows] == [0, 1, 2, 3]
    assert progress.kept.startswith(f'kept epoch {kept[-1]}, {KEPT_EPOCH[select]}')

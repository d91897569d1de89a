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

from areir.data.images import load_image, normalise, to_pixels
from areir.matching.calibration import calibrate
from areir.retrieval import evaluate
from areir.training import result as module
from areir.training.batches import make_loaders
from areir.training.record import KEPT_EPOCH
from areir.training.result import (
    Result,
    embed_part,
    record_epoch,
)
from areir.training.run import Progress
from model import EnsembleModel

CPU = torch.device('cpu')
MEAN_STD = INFO['mean'], INFO['std']


def test_the_metrics_are_those_of_the_test_images():
    experiment = make_experiment()
    embeddings = make_embeddings(experiment)
    result = Result(experiment, 2, embeddings)
    wanted = evaluate(embeddings['test'], experiment.split.query.labels, [1, 2])
    assert result.queries_without_positive == wanted.pop('queries_without_positive')
    assert result.metrics == pytest.approx(wanted)
    assert 0.2 < result.metrics['recall@1'] < 1 and result.val_metrics == {}


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


def embed(net, split, dtype=torch.float32):
    loaders = make_loaders(split, arguments(dimensions=0), CPU)
    return embed_part(net, loaders['test'], INFO, dtype, [], 'embedding test')


def test_all_images_are_embedded_in_their_order(net, split):
    images = [to_pixels(load_image(path), 32) for path in paths_of(split, 'test')]
    images = normalise(torch.stack(images), *MEAN_STD)
    embeddings = embed(net, split)
    assert embeddings.shape == (10, 12) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, net.embed(images))
    half = embed(net, split, dtype=torch.float16)
    assert torch.equal(half, embeddings.half())


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

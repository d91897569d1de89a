"""benchmarks/quality.py and recipe.py: their parts, and runs of the smallest size."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY
from test_benchmarks import call, tables  # noqa: F401
from torch.nn import functional as F

sys.path.insert(0, os.path.join(REPOSITORY, 'benchmarks'))
import lite0
import methods
import peers
import quality
import recipe
from quality import METHODS

from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.evaluation.embeddings_file import rank_file
from areir.networks.projection import fit_projection
from areir.retrieval import evaluate

LABELS = torch.arange(6).repeat_interleave(2)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Return a folder of class folders: 6 to train on and 6 to test with."""
    folder = tmp_path_factory.mktemp('quality') / 'small'
    draw_sample(
        str(folder), train_classes=6, test_classes=6, images_per_class=8, side=32
    )
    return folder


# EfficientNet-Lite0


@pytest.mark.parametrize('size, before, after', [(7, 2, 2), (8, 1, 2)])
def test_padding_is_that_of_tensorflow(size, before, after):
    convolution = lite0.SameConv2d(1, 1, 5, 2, bias=False)
    images = torch.randn(1, 1, size, size)
    padded = F.pad(images, (before, after, before, after))
    expected = F.conv2d(padded, convolution.weight, stride=2)
    assert torch.equal(convolution(images), expected)
    assert expected.shape[2] == 4


# Peers


@pytest.fixture(scope='module')
def dataset(photos, tmp_path_factory):
    args = SimpleNamespace(weights='none', image_size=32)
    root = str(tmp_path_factory.mktemp('prepared'))
    return methods.open_dataset(args, root, 'whole', str(photos))


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['multi_similarity', 'proxy_anchor'])
def test_losses_train_the_network_and_their_own_weights(dataset, loss, slim_backbone):
    pytest.importorskip('pytorch_metric_learning')
    run = peers.Run(loss, 'none', dataset, lr=1e-3, seed=0, epochs=1)
    watched = [run.model.heads[0].fc.weight, *run.trainer.loss.parameters()]
    before = [weights.detach().clone() for weights in watched]
    assert run.train_epoch(1) > 0
    for old, weights in zip(before, watched):
        assert not torch.equal(old, weights)
    vectors = peers.read(run.model, dataset, 'test', 'logits')
    assert vectors.shape == (48, peers.DIMENSIONS)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(48), atol=1e-3)


# What is trained, and what is not repeated


class FakeTrainer:
    """Trains nothing; the middle learning rate is the best."""

    lrs = (0.1, 0.2, 0.4)
    default_lr = 0.2

    def __init__(self, run, calls):
        self.run, self.calls = run, calls

    def time_epoch(self, dataset):
        self.calls.append((self.run, 'timing'))
        return 0, 0.25

    def train(self, dataset, lr, seed, epochs):
        self.calls.append((self.run, lr, seed, epochs))
        vectors = F.one_hot(LABELS, 6).float()
        if lr != 0.2:
            vectors = vectors.flip(0) * torch.tensor([1.0, -1.0] * 6)[:, None]
        return methods.Trained(epochs / 4, 10, {'embedding': vectors})


@pytest.fixture
def fake_runs(monkeypatch):
    """Replace all training; return the list of calls."""
    calls = []
    runs = {method.run for method in METHODS.values()}
    trainers = {run: FakeTrainer(run, calls) for run in runs}
    whole, tuning = (
        SimpleNamespace(
            labels=lambda part: LABELS,
            paths=lambda part: list('abcdefghijkl'),
            split=SimpleNamespace(train=range(count)),
        )
        for count in (6, 4)
    )
    monkeypatch.setattr(quality, 'make_trainers', lambda weights: trainers)
    monkeypatch.setattr(quality.Experiment, 'whole', whole)
    monkeypatch.setattr(quality.Experiment, 'tuning', tuning)
    return calls


def test_a_learning_rate_is_chosen_and_finished_runs_are_kept(
    fake_runs,
    tmp_path,
    tables,  # noqa: F811
):
    flags = ['--data', 'd', '--results', tmp_path, '--seconds', 2]
    flags += ['--methods', 'cosface,ours,ours_no_flag']
    tables(quality, *flags, '--seeds', 1)
    tuning = [('cosface', lr, 0, 12) for lr in FakeTrainer.lrs]
    expected = [('cosface', 'timing'), *tuning, ('cosface', 0.2, 0, 8)]
    assert [run for run in fake_runs if run[0] == 'cosface'] == expected
    # ours without a flag shares the run of its learning rate
    assert fake_runs.count(('current', 0.2, 0, 8)) == 1
    done = len(fake_runs)
    rows = tables(quality, *flags, '--seeds', 2)
    assert fake_runs[done:] == [(run, 0.2, 1, 8) for run in ('cosface', 'current')]
    row = rows['CosFace']
    assert row['Recall@1'] == '100.00% (100.0 to 100.0)'
    assert (row['lr'], row['each seed'], row['seconds']) == ('0.2', '100.0, 100.0', '2')
    difference = rows['ours, no flag']['Recall@1, difference']
    assert difference == '+0.0 (+0.0 to +0.0)'
    tables(quality, *flags, '--seeds', 3, '--table')
    assert len(fake_runs) == done + 2  # it trains nothing
    ranked = rank_file(
        str(tmp_path / 'final_current_embedding_0.2_2s_seed1.npz'), 'cpu'
    )
    assert ranked.ranks['rank'].tolist() == [1] * 12


# Real runs


@pytest.mark.slow
def test_quality(photos, tmp_path, tables, slim_backbone):  # noqa: F811
    pytest.importorskip('pytorch_metric_learning')
    methods = 'pixels,untrained,norm_softmax,norm_softmax_white,ours_no_flag'
    flags = ['--data', photos, '--results', tmp_path, '--methods', methods]
    rows = tables(quality, *flags, '--image_size', 32, '--seconds', 0.1, '--seeds', 1)
    numbers = {label: row['numbers'] for label, row in rows.items()}
    assert numbers['raw pixels'] == str(3 * 32 * 32)
    assert numbers['normalised softmax'] == '512'
    assert int(numbers['normalised softmax, features whitened']) <= 32  # the width
    assert numbers['ours, no flag'] == '47'  # fewer than images


@pytest.mark.slow
def test_costs(photos, tables, slim_backbone):  # noqa: F811
    pytest.importorskip('pytorch_metric_learning')
    methods = 'untrained,norm_softmax,ours_no_flag'
    flags = ['--data', photos, '--image_size', 32, '--methods', methods, '--cost']
    rows = tables(quality, *flags)
    backbone, peer, ours = (
        int(row['parameters'].replace(',', '')) for row in rows.values()
    )
    linear, class_weights = 32 * 512 + 512, 512 * 6
    assert peer == backbone + linear + class_weights
    assert ours > backbone


# The recipe


def test_difference_is_paired(monkeypatch):
    labels = torch.arange(12).repeat_interleave(2)
    right = (torch.arange(24) % 3 > 0).double()
    better = right.clone()
    better[:12] = 1
    results = {
        recipe.RECIPE: [(10, {'recall@1': right, 'map@r': right})] * 2,
        'other': [
            (20, {'recall@1': better, 'map@r': right}),
            (30, {'recall@1': right, 'map@r': right}),
        ],
    }
    rows = {}
    monkeypatch.setattr(recipe.common, 'print_table', rows.update)
    recipe.print_parts(results, labels)
    assert rows[recipe.RECIPE]['Recall@1'] == '66.67%'
    # 4 of the 24 queries are right in one of two seeds
    assert rows['other']['Recall@1'] == '75.00%'
    assert rows['other']['Recall@1, difference'].startswith('+8.3 (')
    assert rows['other']['MAP@R, difference'] == '+0.0 (+0.0 to +0.0)'


@pytest.mark.slow
def test_parts_of_the_recipe(photos, tables, monkeypatch, slim_backbone):  # noqa: F811
    changes = {recipe.RECIPE: {}, '1 head': {'ensemble_size': 1}}
    monkeypatch.setattr(recipe, 'get_changes', lambda *_: changes)
    flags = ['--data', photos, '--image_size', 32, '--epochs', 1, '--seeds', 1]
    rows = tables(recipe, *flags)
    assert list(rows) == list(changes)
    assert all(0 < float(row['Recall@1'][:-1]) <= 100 for row in rows.values())


# Dimensions and whitening


def write_run(root, whitening=0.75):
    """Write the files of a run; return (its name, fitted and test vectors, labels)."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(3, 0.1, 40)
    fitted, vectors = spread * torch.randn(2, 120, 40, generator=generator) + 0.5
    labels = torch.arange(120) % 5
    vectors[:, 30:] += 0.2 * torch.randn(5, 10, generator=generator)[labels]
    projection = fit_projection(fitted, 4096, whitening)
    run = str(root / 'small')
    torch.save({'projection': dict(projection.named_buffers())}, f'{run}_model.pth')
    database = {'embeddings': projection(vectors), 'labels': labels}
    torch.save(database, f'{run}_data_base.pth')
    with open(f'{run}_run.json', 'w') as file:
        json.dump({'arguments': {'whitening': whitening}}, file)
    return run, fitted, vectors, labels


def test_metrics_are_those_of_projections_that_were_fitted(tmp_path, tables):  # noqa: F811
    run, fitted, vectors, labels = write_run(tmp_path)
    found = recipe.measure_dimensions(run)
    assert list(found) == [16, 32, 40]
    for length, metrics in found.items():
        for whitening in recipe.WHITENINGS:
            projection = fit_projection(fitted, length, whitening)
            expected = evaluate(projection(vectors), labels, [1])
            assert metrics[whitening] == expected
    rows = tables(recipe, '--run', run)
    assert list(rows) == [16, 32, 40]
    run, *_ = write_run(tmp_path, whitening=0)  # its deviations are lost
    with pytest.raises(UserError, match='--whitening'):
        recipe.measure_dimensions(run)

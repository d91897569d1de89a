"""benchmarks/quality.py: its parts, its bookkeeping, and a run of the smallest size."""

import contextlib
import csv
import io
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, os.path.join(REPOSITORY, 'benchmarks'))
import common  # noqa: F401
import lite0
import peers
import quality
import quality_results
import quality_runs
from quality_results import METHODS, Results

import utils
from areir.data.images import load_image, to_pixels
from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.evaluation.ranked_file import rank_file
from areir.files import write_tensors

FLAGS = ('--image_size', 32, '--seconds', 1, '--seeds', 1)
SETTINGS = {'data': 'd', 'weights': 'none', 'image_size': 32, 'crop_area': 0.4}
LABELS = torch.arange(6).repeat_interleave(2)
PATHS = list('abcdefghijkl')


@pytest.fixture(autouse=True)
def ordinary_memory(monkeypatch):
    # it would change how the whole test process allocates
    monkeypatch.setattr(utils, 'keep_freed_memory', lambda: None)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Return a folder of class folders: 6 to train on and 5 to test with."""
    folder = tmp_path_factory.mktemp('quality') / 'small'
    draw_sample(
        str(folder), train_classes=6, test_classes=5, images_per_class=8, side=32
    )
    return folder


def call(*flags):
    """Return the lines that benchmarks/quality.py prints."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, 'argv', ['quality.py', *map(str, flags)])
        quality.main()
    return output.getvalue().splitlines()


def read_rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


# EfficientNet-Lite0


def test_stages_of_lite0():
    features = torch.zeros(2, 3, 64, 64)
    shapes = []
    for stage in lite0.build_lite0('none'):
        features = stage.eval()(features)
        shapes.append(tuple(features.shape[1:]))
    assert shapes == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (lite0.WIDTH, 2, 2)]


@pytest.mark.parametrize('kernel', [3, 5])
@pytest.mark.parametrize('size', [7, 8])
def test_padding_is_that_of_tensorflow(kernel, size):
    convolution = lite0.SameConv2d(1, 1, kernel, 2, bias=False)
    images = torch.randn(1, 1, size, size)
    total = (-(-size // 2) - 1) * 2 + kernel - size  # of the SAME scheme
    before, after = total // 2, total - total // 2
    padded = F.pad(images, (before, after, before, after))
    expected = F.conv2d(padded, convolution.weight, stride=2)
    assert torch.equal(convolution(images), expected)
    assert expected.shape[2] == -(-size // 2)


def test_lite0_loads_weights(tmp_path):
    state = nn.Sequential(*lite0.build_lite0('none')).state_dict()
    saved = {f'_name{i}': tensor for i, tensor in enumerate(state.values())}
    saved['_fc.weight'] = torch.zeros(3, lite0.WIDTH)
    path = str(tmp_path / 'weights.pth')
    write_tensors({path: saved})
    loaded = nn.Sequential(*lite0.build_lite0(path)).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_lite0_refuses_other_weights(tmp_path):
    path = str(tmp_path / 'weights.pth')
    write_tensors({path: {'weight': torch.zeros(3)}})
    with pytest.raises(UserError, match=r'weights\.pth'):
        lite0.build_lite0(path)


def test_lite0_loads_the_installed_weights():
    pytest.importorskip(lite0.PACKAGE)
    assert len(lite0.build_lite0(lite0.weights_path())) == 4


# Peers


def test_crops_are_within_the_image():
    boxes = peers.random_boxes(500, 0.4, torch.Generator().manual_seed(0))
    left, top, right, bottom = boxes.T
    assert boxes.min() >= 0 and boxes.max() <= 1 + 1e-6
    area = (right - left) * (bottom - top)
    assert 0.35 < area.min() < 0.45 and area.max() > 0.9
    aspect = (right - left) / (bottom - top)
    assert 0.74 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.34


def test_a_crop_of_everything_is_the_test_image(photos):
    path = str(next(photos.glob('train/*/*')))
    pixels = peers.crop(path, (0.0, 0.0, 1.0, 1.0000001), 16)
    assert torch.equal(pixels, to_pixels(load_image(path), 16))


def test_random_batches_hold_every_image_once():
    batches = peers.CropBatches(torch.arange(70), None, 0.4, seed=0)
    first, second = ([[row for row, _ in batch] for batch in batches] for _ in 'ab')
    assert len(batches) == 2 and [len(batch) for batch in first] == [32, 32]
    assert len({row for batch in first for row in batch}) == 64
    assert first != second


def test_batches_of_four_images_per_class():
    pytest.importorskip('pytorch_metric_learning')
    labels = torch.arange(60) // 6
    for batch in peers.CropBatches(labels, 4, 0.4, seed=0):
        counts = labels[[row for row, _ in batch]].bincount()
        assert set(counts.tolist()) <= {0, 4} and counts.sum() == 32


def test_schedule():
    rates = [peers.learning_rate(step, 100) for step in range(100)]
    assert rates.index(max(rates)) == 5 and max(rates) == 1
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] < 0.01


def test_whitened_features():
    features = torch.randn(300, 8) * torch.arange(1, 9)
    whitened = quality_runs.whiten(features, features)
    assert torch.allclose(whitened.norm(dim=1), torch.ones(300))
    covariance = whitened.T.cov(correction=0)
    assert torch.allclose(covariance, torch.eye(8) / 8, atol=0.05)


@pytest.mark.parametrize('loss', peers.LOSSES)
def test_every_loss_can_be_trained(loss):
    pytest.importorskip('pytorch_metric_learning')
    labels = torch.arange(16) // 2
    images = peers.Images([''] * 16, labels, 8, [0.5] * 3, [0.25] * 3)
    net = peers.PeerNet([nn.Conv2d(3, 4, 3)], 4)
    trainer = peers.PeerTrainer(net, loss, images, 0.4, seed=0)
    trainer.begin(lr=1e-3, epochs=2)
    before = net.linear.weight.clone()
    pixels = torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8)
    assert 0 < trainer.step(pixels, labels) < 100
    assert not torch.equal(net.linear.weight, before)
    assert net.project(torch.ones(2, 4)).shape == (2, peers.DIMENSIONS)


# The results


RIGHT = torch.eye(6)[LABELS]  # every image is nearest to its class
THIRD = torch.eye(6)[[0, 0, 1, 1, 2, 3, 3, 2, 4, 5, 5, 4]]  # those of two classes are


def record(results, run, lr, seed, vectors, budget='9'):
    """Record a final run on the images of LABELS."""
    images = SimpleNamespace(labels=LABELS, paths=PATHS)
    key = {'kind': 'final', 'run': run, 'lr': lr, 'seed': seed, 'budget': budget}
    results.record({**key, 'epochs': 2, 'seconds': 8.5}, 'embedding', vectors, images)


@pytest.fixture
def lines(tmp_path):
    """Return the Lines of a peer with one seed, of ours with two, and of none."""
    results = Results(str(tmp_path / 'r.csv'), SETTINGS)
    record(results, 'cosface', 1e-3, 0, THIRD)
    record(results, 'current', 5e-4, 0, THIRD)
    record(results, 'current', 5e-4, 1, RIGHT)
    # another setting and another learning rate do not count
    other = Results(results.path, {**SETTINGS, 'image_size': 64})
    record(other, 'current', 5e-4, 2, THIRD)
    record(results, 'cosface', 3e-3, 0, RIGHT)
    record(results, 'cosface', 1e-3, 0, RIGHT, budget='90')
    chosen = {'cosface': 1e-3, 'ours': 5e-4, 'proxy_anchor': 1e-3}
    return {
        name: quality_results.read_line(results, METHODS[name], lr, '9')
        for name, lr in chosen.items()
    }


def test_another_budget_is_another_run(lines):
    assert lines['cosface'].mean('recall@1') == pytest.approx(1 / 3)


def test_table(lines, capsys):
    quality_results.print_table(lines)
    text = capsys.readouterr().out.splitlines()
    assert text[0].startswith('12 images of 6 classes')
    rows = {line[:38].strip(): line[38:].split() for line in text}
    assert 'proxy-anchor' in text  # nothing but its label
    assert text.index('proxy-anchor') < text.index('Recall@1 of each seed')
    # the rows of the second table replace those of the first
    assert rows['CosFace'] == ['33.33'] and rows['ours'] == ['33.33', '100.00']
    first = next(line for line in text if line.startswith('ours'))
    assert first.split()[1:6] == ['6', '0.0005', '2', '8', '66.67']
    low, to, high = first.split()[6:9]
    assert (low, to, high) == ('50.00', 'to', '91.67')


def test_comparison(lines, capsys):
    quality_results.print_comparison(lines)
    title, row = capsys.readouterr().out.splitlines()[1:]
    assert 'best peer, CosFace' in title
    assert row.split()[:3] == ['ours', 'Recall@1', '+33.33']


def test_without_peers_nothing_is_compared(lines, capsys):
    quality_results.print_comparison({'ours': lines['ours']})
    assert not capsys.readouterr().out


def test_vectors_are_kept_for_evaluate_py(lines, tmp_path):
    path = str(tmp_path / 'r' / 'current_embedding_0.0005_9s_seed1.npz')
    ranked = rank_file(path, 'cpu')
    assert ranked.images == PATHS and ranked.ranks['rank'].tolist() == [1] * 12


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
        return quality_runs.Trained(epochs / 4, 10, {'embedding': vectors})


@pytest.fixture
def fake_runs(monkeypatch):
    """Replace all training; return the list of calls."""
    calls = []
    runs = {method.run for method in METHODS.values()}
    trainers = {run: FakeTrainer(run, calls) for run in runs}
    for run in ('pixels', 'untrained'):
        trainers[run].lrs = (None,)
    images = SimpleNamespace(labels=LABELS, paths=PATHS)
    whole, tuning = (
        SimpleNamespace(
            images=lambda part: images,
            split=SimpleNamespace(train=range(count)),
        )
        for count in (6, 4)
    )
    monkeypatch.setattr(quality, 'make_trainers', lambda args: trainers)
    monkeypatch.setattr(quality.Experiment, 'whole', whole)
    monkeypatch.setattr(quality.Experiment, 'tuning', tuning)
    return calls


def test_a_learning_rate_is_chosen_and_finished_runs_are_kept(fake_runs, tmp_path):
    path = tmp_path / 'r.csv'
    flags = ['--data', 'd', '--results', path, '--seconds', 2, '--methods', 'cosface']
    call(*flags, '--seeds', 1)
    tuning = [('cosface', lr, 0, 12) for lr in FakeTrainer.lrs]
    expected = [('cosface', 'timing'), *tuning, ('cosface', 0.2, 0, 8)]
    assert fake_runs == expected
    call(*flags, '--seeds', 2)
    assert fake_runs == [*expected, ('cosface', 0.2, 1, 8)]
    assert [row['kind'] for row in read_rows(path)].count('final') == 2
    call(*flags, '--seeds', 2, '--tune_seconds', 1)
    assert fake_runs[6:] == [('cosface', lr, 0, 6) for lr in FakeTrainer.lrs]


def test_ours_without_a_flag_shares_the_run_of_its_learning_rate(fake_runs, tmp_path):
    flags = ['--data', 'd', '--results', tmp_path / 'r.csv', '--seconds', 2]
    lines = call(*flags, '--seeds', 1, '--methods', 'ours,ours_no_flag,pixels')
    assert fake_runs.count(('current', 0.2, 0, 8)) == 1
    assert ('pixels', None, 0, 0) in fake_runs
    rows = {line[:38].strip(): line[38:].split() for line in lines}
    assert rows['ours'] == rows['ours, no flag']


def test_the_table_alone_trains_nothing(fake_runs, tmp_path):
    lines = call('--data', 'd', '--results', tmp_path / 'r.csv', '--table')
    assert not fake_runs
    assert {method.label for method in METHODS.values()} <= set(lines)


@pytest.mark.parametrize(
    'flag', ['--methods=ours,magic', '--seconds=nan', '--data=', '--results=r']
)
def test_bad_flags_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        call('--data', 'd', flag)
    assert flag.partition('=')[0] in capsys.readouterr().err


# Real runs


@pytest.mark.slow
def test_held_out_classes_are_a_third(photos, tmp_path):
    root = str(tmp_path)
    args = SimpleNamespace(weights='none', image_size=32)
    whole = quality_runs.open_dataset(args, root, 'whole', str(photos))
    quality_runs.link_held_out(whole.split, str(tmp_path / 'held_out'), seed=0)
    held_out = str(tmp_path / 'held_out')
    split = quality_runs.open_dataset(args, root, 'tuning', held_out).split
    held, kept = split.query.classes, split.train.classes
    assert len(held) == 2 and len(kept) == 4
    assert sorted([*held, *kept]) == whole.split.train.classes


@pytest.mark.slow
def test_peers(photos, tmp_path):
    pytest.importorskip('pytorch_metric_learning')
    path = tmp_path / 'r.csv'
    methods = 'pixels,untrained,norm_softmax,norm_softmax_white'
    flags = ['--data', photos, '--results', path, '--methods', methods]
    lines = call(*flags, *FLAGS)
    rows = len(read_rows(path))
    assert call(*flags, *FLAGS) == lines
    assert len(read_rows(path)) == rows  # nothing was repeated
    table = lines[: lines.index('Recall@1 of each seed')]
    lengths = {line[:38].strip(): line[38:].split()[:1] for line in table}
    assert lengths['raw pixels'] == [str(3 * 32 * 32)]
    assert lengths['normalised softmax'] == ['512']
    assert lengths['normalised softmax, features whitened'] == ['47']
    assert lengths['ours'] == []


@pytest.mark.slow
def test_ours(photos, tmp_path):
    path = tmp_path / 'r.csv'
    flags = ['--data', photos, '--results', path, '--methods', 'ours_no_flag']
    call(*flags, *FLAGS)
    final = read_rows(path)[-1]
    assert final['kind'] == 'final' and final['run'] == 'current'
    assert float(final['seconds']) > 0 and 0 <= float(final['recall@1']) <= 1


@pytest.mark.slow
def test_costs(photos, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    pytest.importorskip('pytorch_metric_learning')
    methods = 'untrained,norm_softmax,norm_softmax_ours,ours_no_flag'
    flags = ['--data', photos, '--image_size', 32, '--methods', methods, '--cost']
    rows = [line[38:].replace(',', '').split() for line in call(*flags)[1:]]
    backbone, peer, ours = (int(parameters) for parameters, _ in rows)
    linear, class_weights = 512 * 512 + 512, 512 * 6
    assert backbone == 11_176_512 < ours
    assert peer == backbone + linear + class_weights
    assert all(int(megabytes) > 0 for _, megabytes in rows)


def test_a_diverged_training_finds_nothing():
    vectors = torch.full((12, 4), torch.nan)
    assert quality_runs.whiten(vectors, vectors).isnan().all()
    values = quality_results.values_per_query(vectors, LABELS)
    assert values['recall@1'].tolist() == [0] * 12

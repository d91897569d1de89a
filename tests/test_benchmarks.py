"""Each benchmark with its smallest sizes: it runs, and its figures are plausible."""

import contextlib
import io
import json
import os
import re
import sys

import numpy
import pytest
import torch
from conftest import REPOSITORY
from trained import MODEL_ARGS, save_database, save_model

sys.path.insert(0, os.path.join(REPOSITORY, 'benchmarks'))
import common
import confidence
import demo
import embedding
import evaluation
import false_matches
import noise
import search
import training

import utils
from areir import hardware
from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.retrieval import evaluate
from model import TrainedModel

SMALL_NETWORK = ['--ensemble_size', '2', '--image_size', '32', '--rounds', '1']


def call(module, *flags):
    """Return the lines that the main function of a benchmark prints."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, 'argv', [module.__file__, *map(str, flags)])
        module.main()
    return output.getvalue().splitlines()


def measure_here(script, flags, processes=1):
    """Replace `measure_apart`: measure in this process, which saves its start."""
    assert processes == 1
    name = os.path.basename(script).removesuffix('.py')
    return json.loads(call(sys.modules[name], *flags)[-1])


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(common, 'measure_apart', measure_here)
    # it would change how the whole test process allocates
    monkeypatch.setattr(utils, 'keep_freed_memory', lambda: None)


def numbers(line):
    """Return the numbers of a line that are words of their own."""
    words = line.replace(',', '').split()
    return [float(word) for word in words if re.fullmatch(r'-?\d+(\.\d+)?', word)]


# What they share


def test_a_measurement_apart_returns_its_last_line(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text('import sys\nprint("x")\nprint({"1": 2}[sys.argv[1]])')
    assert common.measure_apart(str(script), [1]) == 2


def test_a_failed_measurement_says_why(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text('raise KeyError("faiss")')
    with pytest.raises(UserError, match='faiss'):
        common.measure_apart(str(script), [])
    script.write_text('import os\nos.kill(os.getpid(), 9)')
    with pytest.raises(UserError, match='-9'):
        common.measure_apart(str(script), [])


def test_ways_take_turns():
    calls = []
    runs = common.take_turns('ab', 2, lambda way: calls.append(way) or len(calls))
    assert calls == ['a', 'b', 'a', 'b']
    assert runs == {'a': [1, 3], 'b': [2, 4]}


def test_medians():
    assert common.median([3, 1, 2]) == 2
    assert common.median([4, 1, 3, 2]) == 3
    runs = {'ours': [{'seconds': 2}, {'seconds': 1}, {'seconds': 9}]}
    assert common.median_seconds(runs) == {'ours': 2}


# Training and embedding


@pytest.mark.slow
def test_training(in_process, monkeypatch):
    """In fp32: one step of bf16 on so few images rounds the losses apart."""
    monkeypatch.setattr(utils, 'has_native_bf16', lambda device: False)
    lines = call(training, '--batch_size', 4, '--steps', 1, *SMALL_NETWORK)
    joint, ours = lines[-2:]
    assert joint.startswith('joint loop') and ours.startswith('ours, 1 process ')
    first, second = joint.split()[-2:], ours.split()[-2:]
    for loss, other in zip(first, second):
        assert float(loss) == pytest.approx(float(other), rel=0.002)
    assert numbers(joint)[1] == 1 and numbers(ours)[5] == 0  # faster, MB sent


@pytest.mark.slow
def test_two_processes_of_training_send_the_gradient():
    flags = ['--processes', '1,2', '--no_joint', '--steps', 1, '--batch_size', 4]
    one, two = call(training, *flags, *SMALL_NETWORK)[-2:]
    # bf16 rounds differently in two processes
    tolerance = 0.02 if hardware.has_native_bf16(torch.device('cpu')) else 0
    losses = [[float(word) for word in line.split()[-2:]] for line in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=tolerance)
    gradient = 4 * 157_504 / 1e6
    assert numbers(one)[5] == 0 and numbers(two)[5] > 0.9 * gradient


def test_ways_of_training_must_begin_with_the_same_loss():
    runs = {'joint': [{'losses': [2.5]}], 1: [{'losses': [2.6]}]}
    with pytest.raises(SystemExit, match=r'2\.6'):
        training.check_agreement(runs)


@pytest.mark.slow
def test_memory_of_training(monkeypatch):
    monkeypatch.setattr(training, 'MODEL_TYPES', ['resnet18'])
    lines = call(training, '--memory', '--batch_size', 2, *SMALL_NETWORK)[2:]
    assert [line.split()[0] for line in lines] == ['resnet18', 'se-resnet18']
    for line in lines:
        weights, moments, head, trunk, together, of_two, of_eight = numbers(line)
        assert moments == pytest.approx(2 * weights, abs=0.02)
        assert together >= weights + moments + trunk
        assert together >= of_two >= of_eight >= head


@pytest.mark.slow
def test_embedding(in_process):
    lines = call(embedding, '--images', 4, *SMALL_NETWORK)[2:]
    assert [line.split()[0] for line in lines] == list(embedding.WAYS)
    for line in lines:
        assert numbers(line)[2] > 0.99  # the cosine


# Retrieval


def evaluation_rows(methods):
    flags = ['--sizes', 1200, '--rounds', 1, '--methods', methods]
    rows = [line.split() for line in call(evaluation, *flags)[2:]]
    return {row[1]: row[5:] for row in rows}


@pytest.mark.slow
def test_evaluation(in_process):
    recalls = evaluation_rows('ours,released,topk,product')
    assert recalls['released'] == recalls['topk'] == recalls['ours']
    assert recalls['product'] == ['-'] * 4
    assert 0 < float(recalls['ours'][0]) < float(recalls['ours'][1])


@pytest.mark.slow
def test_evaluation_by_faiss(in_process):
    pytest.importorskip('faiss')
    recalls = evaluation_rows('ours,faiss')
    assert recalls['faiss'] == recalls['ours']


@pytest.mark.slow
def test_evaluation_by_pml(in_process):
    pytest.importorskip('pytorch_metric_learning')
    pytest.importorskip('faiss')
    recalls = evaluation_rows('ours,pml')
    assert recalls['pml'] == [recalls['ours'][0], '-', '-', '-']


def test_methods_of_evaluation_must_agree():
    runs = {'ours': [{'metrics': {'recall@1': 0.5, 'map@r': 0.1}}]}
    runs['faiss'] = [{'metrics': {'recall@1': 0.501}}]
    evaluation.check_agreement(runs, 1000)
    with pytest.raises(SystemExit, match='faiss'):
        evaluation.check_agreement(runs, 10_000)


def test_evaluation_refuses_unknown_methods(capsys):
    with pytest.raises(SystemExit):
        call(evaluation, '--methods', 'ours,magic')
    assert '--methods' in capsys.readouterr().err


@pytest.mark.slow
def test_evaluation_in_a_process_of_its_own():
    lines = call(evaluation, '--sizes', 1200, '--rounds', 1, '--methods', 'ours')
    assert len(lines) == 3 and lines[2].split()[1] == 'ours'


@pytest.mark.slow
def test_search_from_a_file(in_process, tmp_path):
    flags = ['--sizes', 1000, '--methods', 'exact', '--folder', tmp_path]
    assert call(search, *flags)[-1].endswith('100.00%  ')
    assert (tmp_path / 'vectors_1000.f32').exists()


@pytest.mark.slow
def test_search_by_faiss(in_process):
    pytest.importorskip('faiss')
    lines = call(search, '--sizes', 1000, '--methods', 'approximate,flat,hnsw')[2:]
    recalls = [float(re.search(r'([\d.]+)%', line)[1]) for line in lines]
    assert recalls[0] >= 95 and recalls[1] == 100 and recalls[2] >= 95


@pytest.mark.slow
def test_search_goes_on_after_a_failure(tmp_path):
    """A method whose process fails gets a row that says so."""
    path = tmp_path / 'vectors_1000.f32'
    path.write_bytes(b'')
    (tmp_path / 'vectors_1000.f32.queries.npy').write_bytes(b'')
    flags = ['--sizes', 1000, '--methods', 'exact', '--folder', tmp_path]
    assert 'failed: ' in call(search, *flags)[-1]


# Noise


@pytest.fixture(scope='module')
def floor():
    return noise.noise_floor(
        classes=10,
        images_per_class=24,
        ensemble_size=16,
        meta_class_size=5,
        image_size=32,
        steps=8,
    )


@pytest.mark.slow
def test_strict_reports_chance(floor):
    results, chance = floor
    value, (low, high) = results['strict', 'in class order']
    assert low <= chance <= high and low <= value <= high


@pytest.mark.slow
def test_the_order_of_images_changes_nothing_in_strict(floor):
    results, _ = floor
    in_order, shuffled = (
        results['strict', order] for order in ('in class order', 'shuffled')
    )
    assert in_order[0] == shuffled[0]


@pytest.mark.slow
def test_published_reads_the_class_from_the_batch(floor):
    results, chance = floor
    value, (low, _) = results['published', 'in class order']
    assert low > chance
    assert value > 1.5 * results['strict', 'in class order'][0]
    _, (low, high) = results['published', 'shuffled']
    assert low <= chance <= high


@pytest.mark.slow
def test_noise_prints_four_rows():
    flags = ['--classes', 2, '--images_per_class', 3, '--steps', 1]
    flags += ['--ensemble_size', 1, '--meta_class_size', 2, '--image_size', 64]
    lines = call(noise, *flags)
    assert 'chance 40.0%' in lines[0] and len(lines) == 5


# A run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Return the beginning of the names of a run's files: an untrained model's."""
    root = tmp_path_factory.mktemp('run')
    folder = root / 'data/small'
    folder.parent.mkdir()
    draw_sample(
        str(folder), train_classes=6, test_classes=5, images_per_class=6, side=32
    )
    saved = save_model(root / 'small_model.pth')
    save_database(root / 'small_data_base.pth', folder, saved)
    arguments = {**MODEL_ARGS, 'with_se': 'yes', 'seed': 0}
    (root / 'small_run.json').write_text(json.dumps({'arguments': arguments}))
    return root / 'small'


@pytest.mark.slow
def test_demo(run):
    lines = call(demo, run)
    assert lines[1].startswith('66 images of 11 classes')
    recalls = {line[:20].strip(): line.split()[-1] for line in lines[2:]}
    assert list(recalls) == ['raw pixels', 'untrained network', 'trained network']
    assert recalls['untrained network'] == recalls['trained network']
    database = torch.load(f'{run}_data_base.pth')
    recall = evaluate(database['embeddings'], database['labels'], [1])['recall@1']
    assert recalls['trained network'] == f'{recall:.2%}'


@pytest.mark.slow
def test_embedding_names_a_file_that_cannot_be_read(tmp_path, run):
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'no image')
    embedder = TrainedModel(f'{run}_model.pth').embedder(torch.device('cpu'))
    with pytest.raises(UserError, match=r'broken\.png'):
        common.embed_all([str(broken)], embedder)


@pytest.mark.slow
def test_new_figures(run):
    trained = TrainedModel(f'{run}_model.pth')
    sizes = {'train_classes': 2, 'test_classes': 1, 'images_per_class': 4}
    embeddings, labels = false_matches.new_figures(trained, (1, 2), side=32, **sizes)
    assert embeddings.shape == (24, 6)
    classes = [2, 0, 1, 5, 3, 4]  # the folder test comes before train
    assert labels.tolist() == [label for label in classes for _ in range(4)]
    assert not torch.allclose(embeddings[:12], embeddings[12:])


def test_false_match_rate():
    query = torch.tensor([[1.0, 0], [0, 1]])
    labels = torch.tensor([0, 1])
    gallery = torch.tensor([[1.0, 0], [0.6, 0.8], [0, -1]])
    rate = false_matches.false_match_rate
    # the best wrong images score 0.6 and 0 for the labels 0, 1, 2
    wrong = torch.tensor([0, 1, 2])
    assert rate(query, labels, gallery, wrong, 0.5) == 0.5
    assert rate(query, labels, gallery, wrong, 0.7) == 0
    assert rate(query, labels, gallery, wrong, -0.5) == 1


@pytest.mark.slow
def test_false_matches(run, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(60, 6, generator=generator)
    figures = torch.nn.functional.normalize(vectors, dim=1), torch.arange(60) // 5
    monkeypatch.setattr(false_matches, 'new_figures', lambda trained: figures)
    monkeypatch.setattr(false_matches, 'DRAWS', 2)
    lines = call(false_matches, run)
    assert [line.split()[0] for line in lines[1:]] == ['1%', '5%', '10%']
    assert all(line.count('±') == 3 for line in lines[1:])


def test_confidence_that_is_kept(seed):
    """Answers that are right as often as they say."""
    generator = torch.Generator().manual_seed(seed)
    confidences = torch.rand(40_000, generator=generator, dtype=torch.float64)
    right = torch.rand(40_000, generator=generator) < confidences
    lines = confidence.reliability(list(zip(confidences.tolist(), right.tolist())))
    assert len(lines) == len(confidence.EDGES) - 1
    for low, high, _, mean, share in lines:
        assert low <= mean <= high and share == pytest.approx(mean, abs=0.04)


def test_confidence_of_a_file(tmp_path, capsys, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(30, 8, generator=generator)
    labels = torch.arange(300) // 10
    vectors = centres[labels] + 0.3 * torch.randn(300, 8, generator=generator)
    path = tmp_path / 'x.npz'
    numpy.savez(path, embeddings=vectors.numpy(), labels=labels.numpy())
    monkeypatch.setattr(confidence, 'DRAWS', 3)
    monkeypatch.setattr(sys, 'argv', ['confidence.py', str(path)])
    confidence.main()
    lines = capsys.readouterr().out.splitlines()
    assert 'queries get a class' in lines[0] and 'are right' in lines[1]
    assert float(lines[1].split('%')[0]) > 90
    assert lines[-1].startswith('95% to 100%')

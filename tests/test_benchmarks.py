"""Each benchmark with its smallest sizes: it runs, and its figures are plausible."""

import json
import math
import os
import re
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from trained import MODEL_ARGS, save_database, save_model

sys.path.insert(0, os.path.join(REPOSITORY, 'benchmarks'))
import backbones
import claims
import common
import demo
import embedding
import evaluation
import gpu
import search
import training

from areir import hardware
from areir.data.sample import draw_sample
from areir.evaluation.metrics import measures, rank_positives
from areir.retrieval import evaluate
from areir.scripts.data_utils import prepare

SMALL_NETWORK = ['--ensemble_size', 2, '--image_size', 32, '--rounds', 1]


def call(module, *flags):
    """Call the main function of a benchmark."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [module.__file__, *map(str, flags)])
        # it would change how the whole test process allocates
        patch.setattr(hardware, 'keep_freed_memory', lambda: None)
        module.main()


@pytest.fixture
def tables(monkeypatch):
    """Return a function that calls a benchmark in this process: (module, *flags).

    It returns the rows of all its tables, {name: {column: text}}.
    """
    rows = {}

    def collect(table):
        for name, row in table.items():
            rows.setdefault(name, {}).update(row)

    monkeypatch.setattr(common, 'print_table', collect)
    monkeypatch.setattr(
        common, 'apart', lambda function, *arguments, processes=1: function(*arguments)
    )

    def run(module, *flags):
        call(module, *flags)
        return rows

    return run


def numbers(row):
    """Return the numbers in a row of a table."""
    words = ' '.join(row.values()).replace(',', '').split()
    return [float(word) for word in words if re.fullmatch(r'-?\d+(\.\d+)?', word)]


# What they share


def test_a_measurement_apart_that_fails():
    with pytest.raises(KeyError, match='VmNone'):
        common.apart(common.memory, 'VmNone')
    with pytest.raises(RuntimeError):  # as if killed for its memory
        common.apart(os._exit, 9)


# Training and embedding


@pytest.mark.slow
def test_training(tables):
    rows = tables(training, '--batch_size', 4, '--steps', 1, *SMALL_NETWORK)
    joint, ours = rows.values()
    assert joint['x faster'] == '1.00' and ours['MB sent'] == '0.00'
    losses = [float(row['losses'].split()[0]) for row in (joint, ours)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.slow
def test_memory_of_training(tables, monkeypatch):
    monkeypatch.setattr(training, 'PUBLISHED', ['resnet18'])
    rows = tables(training, '--memory', '--batch_size', 2, *SMALL_NETWORK)
    assert list(rows) == ['resnet18', 'se-resnet18']
    for row in rows.values():
        weights, moments, head, trunk, together, of_two, of_eight = numbers(row)
        assert moments == pytest.approx(2 * weights, abs=0.02)
        assert together >= weights + moments + trunk
        assert together >= of_two >= of_eight >= head


@pytest.mark.slow
def test_embedding(tables):
    rows = tables(embedding, '--images', 4, *SMALL_NETWORK)
    assert all(float(rows[way]['cosine']) > 0.99 for way in embedding.WAYS)


@pytest.mark.slow
def test_embedding_of_untrained_networks(tables):
    names = ['test_vit', 'test_efficientnet']
    rows = tables(embedding, '--images', 4, '--rounds', 1, '--untrained', *names)
    assert list(rows) == names
    assert all(float(row['cosine']) > 0.99 for row in rows.values())


@pytest.mark.slow
def test_training_beside_plain_fine_tuning(tables):
    network = ['--model_type', 'test_vit', '--shared_stages', 3, '--frozen_stages', 1]
    sizes = ['--image_size', 160, '--ensemble_size', 2, '--rounds', 1]
    flags = ['--timm', '--steps', 1, '--batch_size', 2, *network, *sizes]
    for row in tables(training, *flags).values():
        first, second = map(float, row['losses'].split())
        assert first == pytest.approx(math.log(12), rel=0.3) and second < first


@pytest.mark.slow
def test_backbones(capsys):
    names = 'test_vit', 'test_resnet', 'cait_xxs24_224'
    call(backbones, '--check', *names)
    *rows, total = map(str.split, capsys.readouterr().out.splitlines())
    vit, resnet, cait = rows
    assert vit[1:4] == ['4', 'NLC+1', '160/16'] and len(vit) == 9
    assert resnet[1:4] == ['4', 'NCHW', '160/32'] and len(resnet) == 9
    for row in (vit, resnet):
        parts, folded, narrow = map(float, row[-3:])
        assert min(parts, folded) > 0.9999 and narrow > 0.95
    assert cait[1] == 'no:' and total[:3] == ['2', 'of', '3']


# On a GPU


@pytest.mark.slow
def test_gpu_on_a_cpu(tables, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    parts = 'steps,embedding,parallel,transformer,photographs,evaluation'
    rows = tables(gpu, '--tiny', '--parts', parts)
    losses = [numbers(rows[f'ours, {count} processes'])[-1] for count in (1, 2)]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    assert rows['ours, heads compiled'] == {'notes': 'not measured: needs a GPU'}
    for name in ('joint loop, fp32', 'joint loop, bf16'):
        *measured, loss = numbers(rows[name])
        assert min(measured) > 0 and 1.5 < loss < 3.5
    assert rows['fp32']['notes'] == 'cosine 1.00000'
    assert min(numbers(rows['matrix product'])) > 0
    assert capsys.readouterr().out.splitlines()[-1].endswith('0.00e+00')


# Retrieval


@pytest.mark.slow
def test_evaluation(tables):
    pytest.importorskip('faiss')
    pytest.importorskip('pytorch_metric_learning')
    rows = tables(evaluation, '--sizes', 1200, '--rounds', 1)
    recalls = {method: list(row.values())[3:] for method, row in rows.items()}
    assert recalls['released'] == recalls['ours']
    assert recalls['faiss'] == recalls['ours']
    assert recalls['pml'] == [recalls['ours'][0], '-', '-', '-']
    assert 0 < float(recalls['ours'][0]) < float(recalls['ours'][1])


@pytest.mark.slow
def test_search(tables):
    pytest.importorskip('faiss')
    rows = tables(search, '--sizes', 1000)
    index = rows.pop(search.METHODS['index'])
    assert index['.f32 bytes'] == '1024' and index['.codes bytes'] == '260'
    ours, approximate, flat, hnsw = (float(row['recall'][:-1]) for row in rows.values())
    assert ours == flat == 100 and min(approximate, hnsw) > 95


# Claims


@pytest.mark.slow
def test_published_reads_the_class_from_the_batch(slim_backbone):
    """Strict reports chance for noise, in any order."""
    results, chance = claims.noise_floor(
        classes=10,
        images_per_class=24,
        ensemble_size=16,
        meta_class_size=5,
        image_size=32,
        steps=8,
    )
    strict, (low, high) = results['strict', 'in class order']
    assert low <= chance <= high and low <= strict <= high
    assert results['strict', 'shuffled'][0] == strict
    published, (low, _) = results['published', 'in class order']
    assert low > chance and published > 1.5 * strict
    _, (low, high) = results['published', 'shuffled']
    assert low <= chance <= high


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
    prepare(str(folder.parent), 'small')
    arguments = {**MODEL_ARGS, 'with_se': 'yes', 'seed': 0}
    (root / 'small_run.json').write_text(json.dumps({'arguments': arguments}))
    return root / 'small'


@pytest.mark.slow
def test_demo(run, monkeypatch, capsys):
    monkeypatch.setattr(hardware, 'has_native_bf16', lambda device: False)
    call(demo, run)
    lines = capsys.readouterr().out.splitlines()
    found = {line[:20].strip(): line[20:] for line in lines[3:]}
    assert list(found) == ['raw pixels', 'untrained network', 'trained network']
    assert found['untrained network'] == found['trained network']
    database = torch.load(f'{run}_data_base.pth')  # of all images
    new = torch.tensor(['/test/' in f'/{image}' for image in database['images']])
    vectors, labels = database['embeddings'], database['labels']
    among_new = evaluate(vectors[new], labels[new], [1])['recall@1']
    hits = measures(rank_positives(vectors, labels), [1])['recall@1']
    recalls = among_new, hits[~new].mean(), hits[new].mean()
    percents = re.findall(r'([\d.]+)%', found['trained network'])
    assert percents == [f'{100 * recall:.2f}' for recall in recalls]


def test_false_match_rate():
    query, labels = torch.eye(2), torch.tensor([0, 1])
    gallery = torch.tensor([[1.0, 0], [0.6, 0.8], [0, -1]])
    # the best wrong images score 0.6 and 0 for the labels 0, 1, 2
    wrong = torch.tensor([0, 1, 2])
    for threshold, rate in ((0.5, 0.5), (0.7, 0), (-0.5, 1)):
        found = claims.false_match_rate(query, labels, gallery, wrong, threshold)
        assert found == rate


@pytest.mark.slow
def test_false_matches(run, tables, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(60, 6, generator=generator)
    figures = torch.nn.functional.normalize(vectors, dim=1), torch.arange(60) // 5
    monkeypatch.setattr(claims, 'new_figures', lambda trained: figures)
    monkeypatch.setattr(claims, 'DRAWS', 2)
    rows = tables(claims, 'false_matches', run)
    assert list(rows) == ['1%', '5%', '10%']
    assert all(' '.join(row.values()).count('±') == 3 for row in rows.values())


def test_confidence_of_a_file(tmp_path, tables, monkeypatch, capsys):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(30, 8, generator=generator)
    labels = torch.arange(300) // 10
    vectors = centres[labels] + 0.3 * torch.randn(300, 8, generator=generator)
    path = tmp_path / 'x.npz'
    np.savez(path, embeddings=vectors.numpy(), labels=labels.numpy())
    monkeypatch.setattr(claims, 'DRAWS', 3)
    assert '95% to 100%' in tables(claims, 'confidence', path)
    right = capsys.readouterr().out.splitlines()[-1]
    assert right.endswith('are right') and float(right.split('%')[0]) > 90

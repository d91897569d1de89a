"""The script evaluate.py: what it prints, compares and refuses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from embedding_files import COUNT, EMBEDDINGS, IMAGES, save_plain
from torch.nn import functional as F

from areir import retrieval
from areir.evaluation.embeddings_file import rank_file
from areir.evaluation.intervals import class_means, compare, confidence_intervals
from areir.evaluation.metrics import measures, rank_positives
from areir.scripts import evaluate, utils

LABELS = torch.arange(COUNT) % 6
TEXTS = [f'class {"fedcba"[label]}' for label in LABELS]
SCRIPT = os.path.join(REPOSITORY, 'evaluate.py')


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Save EMBEDDINGS and LABELS with changes in a file; return its name."""
    monkeypatch.chdir(tmp_path)
    return lambda name, **changed: save_plain(name, **{'labels': LABELS, **changed})


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the script in this process; return its output."""

    def called(*flags):
        monkeypatch.setattr(sys, 'argv', ['evaluate.py', *map(str, flags)])
        utils.run_script(evaluate.main)
        captured = capsys.readouterr()
        assert not captured.err
        return captured.out

    return called


@pytest.fixture
def refusal(monkeypatch, capsys):
    """Call the script, which must refuse; return its one line."""

    def refused(*flags):
        monkeypatch.setattr(sys, 'argv', ['evaluate.py', *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            utils.run_script(evaluate.main)
        captured = capsys.readouterr()
        assert end.value.code == 2 and not captured.out
        (line,) = captured.err.splitlines()
        assert line.startswith('evaluate.py: error: ')
        return line

    return refused


# Printing


def test_json_holds_what_the_functions_return(save, call):
    report = json.loads(call(save('file.pt'), '--json', '--recalls', '1,2'))
    values = measures(rank_positives(EMBEDDINGS, LABELS), [1, 2])
    intervals = confidence_intervals(values, LABELS)
    of_classes = confidence_intervals(values, LABELS, per_class=True)
    assert report == {
        'file': 'file.pt',
        'queries': COUNT,
        'classes': 6,
        'dimensions': 6,
        'how': 'each queries all others, itself excluded by its index',
        'metrics': retrieval.evaluate(EMBEDDINGS, LABELS, [1, 2]),
        'intervals': {name: list(limits) for name, limits in intervals.items()},
        'per_class_metrics': class_means(values, LABELS),
        'per_class_intervals': {name: [*limits] for name, limits in of_classes.items()},
    }


@pytest.mark.parametrize('classes', [1, 5])
def test_few_classes_have_no_interval(save, call, classes):
    save('file.pt', labels=torch.arange(COUNT) % classes, ensemble_size=2)
    flags = 'file.pt', '--compare', 'file.pt', '--evaluate_heads', '1'
    output = call(*flags, '--json')
    assert 'NaN' not in output
    assert json.loads(output)['intervals']['map@r'] == [None, None]
    text = call(*flags)
    assert 'nan' not in text.lower() and '95 %' not in text
    assert text.count('no interval below 6 classes') == 3
    assert ('single class' in text) == (classes == 1)


def test_table(save, call):
    save('file.pt', embeddings=torch.eye(6).repeat(2, 1), labels=torch.arange(12) % 6)
    lines = call('file.pt', '--recalls', '1').splitlines()
    assert lines[0].startswith('file.pt: 12 images of 6 classes, 6 dimensions')
    rows = {line[:14].strip(): line[14:].split() for line in lines}
    for name in ('recall@1', 'map@r', 'r_precision'):
        assert rows[name] == ['100.00%'] * 6
    assert rows['mean rank'][0] == '1.0' and rows['no positive'][0] == '0'


def test_a_large_class_does_not_hide_the_others(save, call):
    """Only the images of the class of 12 are found: 12 of 24, 1 of 7 classes."""
    embeddings = torch.cat([torch.eye(1, 14).repeat(12, 1), torch.eye(14)[1:13]])
    labels = [0] * 12 + [1 + place % 6 for place in range(12)]
    save('file.pt', embeddings=embeddings, labels=torch.tensor(labels))
    report = json.loads(call('file.pt', '--recalls', '1', '--json'))
    assert report['metrics']['recall@1'] == pytest.approx(12 / 24, abs=1 / 24)
    assert report['per_class_metrics']['r_precision'] < 0.2
    low, high = report['per_class_intervals']['r_precision']
    assert low < report['per_class_metrics']['r_precision'] < high


def test_lone_queries_have_no_mean_rank(save, call):
    save('file.pt', labels=torch.arange(COUNT))
    assert json.loads(call('file.pt', '--json'))['metrics']['mean_rank'] is None
    assert 'nan' not in call('file.pt')


def test_verification(save, call, refusal):
    save('file.pt')
    values = json.loads(call('file.pt', '--json', '--verification'))['verification']
    assert [*values] == [
        *('true_matches@0.01', 'true_matches@0.001', 'true_matches@0.0001'),
        'equal_error_rate',
    ]
    value, low, high = values['equal_error_rate']
    assert 0 < low < value < high < 1
    assert 'equal error rate' in call('file.pt', '--verification', 'roc.svg')
    with open('roc.svg') as file:
        assert 'false matches' in file.read()
    save('lone.pt', labels=torch.arange(COUNT))
    assert 'too few pairs' in call('lone.pt', '--verification')


@pytest.mark.parametrize(
    ('notes', 'marked'),
    [
        ({'protocol': 'strict', 'select': 'last'}, False),
        ({}, False),
        ({'protocol': 'loose'}, True),
        ({'select': 'test'}, True),
    ],
)
def test_results_of_another_protocol_are_marked(notes, marked, save, call):
    output = call(save('file.pt', **notes))
    assert ('not comparable' in output) == marked


def test_recall_of_the_first_heads(save, call, refusal):
    flags = ('--evaluate_heads', '1,3')
    heads = json.loads(call(save('file.pt', ensemble_size=3), '--json', *flags))
    expected = retrieval.evaluate(EMBEDDINGS[:, :2], LABELS, [1])['recall@1']
    assert heads['heads']['1']['recall@1'] == pytest.approx(expected)
    assert 'recall@1 of the first heads' in call('file.pt', *flags)
    save('file.pt', ensemble_size=1)
    assert '--whitening 0' in refusal('file.pt', '--evaluate_heads', '2')


# Lone queries

ALONE = torch.tensor([*[0] * 10, *[1] * 11, 2, 3, 4])  # three classes of one image


def test_lone_queries_are_left_out_as_well(save, call):
    report = json.loads(call(save('file.pt', labels=ALONE), '--json'))
    without = report['without_lone_queries']
    assert report['metrics']['queries_without_positive'] == 3
    assert without['queries'] == 21
    for name, value in without['metrics'].items():
        assert report['metrics'][name] == pytest.approx(value * 21 / COUNT)
    lines = call('file.pt', '--recalls', '1').splitlines()
    (line,) = [line for line in lines if line.startswith('without the 3 lone queries')]
    row = lines[lines.index(line) + 1].split()
    assert row == ['recall@1', f'{without["metrics"]["recall@1"]:.2%}']


# Labels in a CSV


def test_npy_with_labels(save, call):
    save('file.pt')
    np.save('file.npy', EMBEDDINGS.numpy())
    rows = [f'{label},{name}' for label, name in zip(TEXTS, IMAGES)]
    with open('labels.csv', 'w') as file:
        file.write('\n'.join(['label,path', *rows]))
    flags = ('--labels', 'labels.csv', '--json', '--recalls', '1')
    report = json.loads(call('file.npy', *flags, '--compare', 'file.pt'))
    assert report['metrics'] == retrieval.evaluate(EMBEDDINGS, LABELS, [1])
    assert report['difference']['map@r']['p'] == 1
    report = json.loads(call('file.pt', *flags, '--compare', 'file.npy'))
    assert report['other']['metrics'] == report['metrics']


def test_metrics_and_notices_of_both_files(save, call):
    longer = EMBEDDINGS * torch.linspace(0.3, 3, COUNT)[:, None]
    save('file.pt', embeddings=longer)
    output = call('file.pt', '--compare', 'file.pt')
    assert output.count('file.pt: the vectors are not of unit length') == 2
    for metric in ('cosine', 'dot', 'euclidean'):
        flags = ('--metric', metric, '--json', '--recalls', '1')
        report = json.loads(call('file.pt', *flags, '--compare', 'file.pt'))
        expected = measures(rank_file('file.pt', 'cpu', metric=metric).ranks, [1])
        recall = report['metrics']['recall@1']
        assert recall == report['other']['metrics']['recall@1']
        assert recall == pytest.approx(expected['recall@1'].mean().item())
        assert metric in report['how'] and 'notices' not in report


def test_queries_in_the_gallery_are_counted(save, call):
    query = {'query_embeddings': EMBEDDINGS[:9], 'query_labels': LABELS[:9]}
    save('file.npz', images=IMAGES, query_images=IMAGES[:9], **query)
    report = json.loads(call('file.npz', '--json', '--recalls', '1'))
    assert report['queries_in_gallery'] == 9
    assert 'such as 0.png' in call('file.npz')


def test_labels_that_do_not_go_with_the_file(save, refusal):
    save('file.pt')
    np.save('file.npy', EMBEDDINGS.numpy())
    assert '--labels' in refusal('file.npy')
    assert '--labels' in refusal('file.pt', '--labels', 'file.npy')
    assert 'labels.csv' in refusal('file.npy', '--labels', 'labels.csv')


# Comparing


def test_comparison_of_the_same_images_in_another_order(save, call):
    other = F.normalize(EMBEDDINGS + 0.7 * EMBEDDINGS.flip(0))
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    texts, images = [TEXTS[i] for i in order], [IMAGES[i] for i in order]
    save('file.pt', images=IMAGES)
    save('other.npz', embeddings=other[order], labels=texts, images=images)
    flags = ('--json', '--recalls', '1,5', '--compare', 'other.npz')
    report = json.loads(call('file.pt', *flags))
    ours = measures(rank_positives(EMBEDDINGS, LABELS), [1, 5])
    theirs = measures(rank_positives(other, LABELS), [1, 5])
    expected = compare(ours, theirs, LABELS)
    for name, row in report['difference'].items():
        assert tuple(row.values()) == pytest.approx(expected[name])
        difference = report['metrics'][name] - report['other']['metrics'][name]
        assert row['difference'] == pytest.approx(difference)
    theirs = retrieval.evaluate(other, LABELS, [1, 5])
    assert report['other']['metrics'] == pytest.approx(theirs)


def test_the_other_file_is_named_where_it_is_at_fault(save, refusal):
    save('file.pt')
    save('other.pt', embeddings=EMBEDDINGS * torch.nan)
    assert 'other.pt: ' in refusal('file.pt', '--compare', 'other.pt')
    assert 'missing.pt' in refusal('file.pt', '--compare', 'missing.pt')


# Refusals


@pytest.mark.parametrize(
    ('flags', 'offender'),
    [
        (['--recalls', '1,24'], 'recall@24'),
        (['--recalls', '0'], '--recalls'),
        (['--recalls', '1.5'], '--recalls'),
        (['--device', 'meta'], '--device meta: '),
        (['--compare', ''], '--compare: empty'),
        (['--verification', 'file.pt'], '--verification'),
        (['--verification', 'file.pt/curve.svg'], '--verification'),
    ],
)
def test_flags_that_do_not_fit(flags, offender, save, refusal):
    assert offender in refusal(save('file.pt'), *flags)


# In a process


@pytest.mark.slow
def test_output_that_cannot_be_written(save):
    command = [sys.executable, SCRIPT, save('file.pt')]
    pipe = subprocess.PIPE
    with open('/dev/full', 'w') as full:
        result = subprocess.run(command, stdout=full, stderr=pipe, text=True)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    gone = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    gone.stdout.close()
    assert gone.stderr.read() == '' and gone.wait() == 0

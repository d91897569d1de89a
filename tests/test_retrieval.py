"""The doors evaluate and search: arrays of any kind, and the doctests of all doors."""

import doctest
import importlib

import numpy as np
import pandas as pd
import pytest
import torch
from embedding_files import EMBEDDINGS, GROUPS, LABELS, TEXTS, objects
from torch.nn import functional as F

import areir
from areir.errors import UserError
from areir.retrieval import evaluate, search

MASK = torch.arange(len(LABELS)) % 3 == 0
ROWS = MASK.nonzero().flatten()
APART = EMBEDDINGS[~MASK], LABELS[~MASK]
EXPECTED = evaluate(EMBEDDINGS, LABELS, [1, 4])
DIVIDED = evaluate(EMBEDDINGS[MASK], LABELS[MASK], [1, 4], *APART)


@pytest.mark.parametrize(
    'module', sorted({'areir.cli', *(module for module, _ in areir.DOORS.values())})
)
def test_doctests(module):
    result = doctest.testmod(importlib.import_module(module))
    assert not result.failed
    assert result.attempted or module != 'areir.retrieval'


# Arrays of any kind


@pytest.mark.parametrize(
    'embeddings',
    [
        EMBEDDINGS.numpy(),
        EMBEDDINGS.double(),
        EMBEDDINGS.tolist(),
        list(EMBEDDINGS.numpy()),
        pd.DataFrame(EMBEDDINGS.numpy()),
        pd.Series(list(EMBEDDINGS.numpy())),
        objects(list(EMBEDDINGS.numpy())),
        EMBEDDINGS.numpy()[::-1].copy()[::-1],
        np.asfortranarray(EMBEDDINGS.numpy()),
        EMBEDDINGS.clone().requires_grad_(),
    ],
    ids=str,
)
def test_embeddings_of_any_kind(embeddings):
    assert evaluate(embeddings, LABELS, [1, 4]) == EXPECTED
    scores, indices = search(embeddings, embeddings, 3)
    wanted = search(EMBEDDINGS, EMBEDDINGS, 3)
    assert isinstance(scores, np.ndarray) != isinstance(embeddings, torch.Tensor)
    for one, other in zip((scores, indices), wanted):
        assert torch.equal(torch.as_tensor(one), other)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_short_floats_are_taken_as_they_are(dtype):
    short = EMBEDDINGS.to(dtype)
    wanted = evaluate(short.float(), LABELS, [1, 4])
    assert evaluate(short, LABELS, [1, 4]) == wanted
    if dtype == torch.float16:
        array = short.numpy()
        array.flags.writeable = False  # as those of a memory map
        assert evaluate(array, LABELS, [1, 4]) == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_is_used_where_the_gallery_lies():
    on_gpu = EMBEDDINGS.cuda()
    assert evaluate(on_gpu, LABELS.cuda(), [1, 4], query=MASK) == DIVIDED
    apart = on_gpu[~MASK.cuda()], LABELS[~MASK]
    assert evaluate(EMBEDDINGS[MASK], LABELS[MASK], [1, 4], *apart) == DIVIDED
    scores, _ = search(EMBEDDINGS.numpy(), on_gpu, 3)
    assert scores.is_cuda


@pytest.mark.parametrize(
    'labels',
    [
        TEXTS,
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        pd.Series(TEXTS, index=range(5, 5 + len(TEXTS))),
        pd.Categorical(TEXTS),
        pd.Series(LABELS).astype('Int64'),
        LABELS.numpy()[:, None].astype(float),
        list(LABELS),
        [b'%d' % label for label in LABELS],
        [('brand', int(label)) for label in LABELS],
    ],
    ids=lambda labels: f'{type(labels).__name__} {labels[5]!r:.9}',
)
def test_labels_of_any_kind(labels):
    assert evaluate(EMBEDDINGS, labels, [1, 4]) == EXPECTED
    groups = evaluate(EMBEDDINGS, LABELS, [1], groups=GROUPS)
    numbers = np.unique(GROUPS, return_inverse=True)[1]
    assert groups == evaluate(EMBEDDINGS, labels, [1], groups=numbers)


@pytest.mark.parametrize('none', [-1, '-1', None, float('nan'), pd.NA, ''], ids=repr)
def test_distractors_of_any_kind(none):
    expected = evaluate(EMBEDDINGS, [*LABELS[:-1], -1], [1, 4])
    for labels in (LABELS.tolist(), TEXTS):
        labels = [*labels[:-1], none]
        assert evaluate(EMBEDDINGS, labels, [1, 4]) == expected
        assert evaluate(EMBEDDINGS, pd.Series(labels), [1, 4]) == expected


def test_queries_and_gallery_share_one_numbering():
    apart = EMBEDDINGS[~MASK], np.array(TEXTS)[~MASK]
    assert evaluate(EMBEDDINGS[MASK], np.array(TEXTS)[MASK], [1, 4], *apart) == DIVIDED


# Some query the others


@pytest.mark.parametrize(
    'query',
    [MASK, MASK.numpy(), MASK.tolist(), pd.Series(MASK), ROWS, ROWS.flip(0).tolist()],
    ids=lambda query: type(query).__name__,
)
def test_some_images_query_the_others(query):
    assert evaluate(EMBEDDINGS.numpy(), TEXTS, [1, 4], query=query) == DIVIDED


def test_cameras_of_queries_and_gallery():
    numbers = np.unique(GROUPS, return_inverse=True)[1]
    marks = {'groups': numbers[MASK], 'gallery_groups': numbers[~MASK]}
    wanted = evaluate(EMBEDDINGS[MASK], LABELS[MASK], [1], *APART, **marks)
    assert evaluate(EMBEDDINGS, LABELS, [1], query=MASK, groups=GROUPS) == wanted
    files = {name.replace('groups', 'files'): value for name, value in marks.items()}
    wanted = evaluate(EMBEDDINGS[MASK], LABELS[MASK], 1, *APART, **files)
    assert evaluate(EMBEDDINGS, LABELS, 1, query=MASK, files=GROUPS) == wanted


@pytest.mark.parametrize(
    ('arguments', 'offender'),
    [
        ({'query': MASK[:-1]}, 'query must be a mask or indices'),
        ({'query': [99]}, 'query must be a mask or indices'),
        ({'query': [0.5]}, 'query must be a mask or indices'),
        ({'query': []}, 'query must be a mask or indices'),
        ({'query': ~MASK & MASK}, 'query: choose some'),
        ({'query': MASK | True}, 'query: choose some'),
        ({'query': MASK.int()}, 'a mask has the type bool'),
        ({'query': MASK, 'gallery': EMBEDDINGS}, 'give no gallery'),
        ({'query': MASK, 'labels': LABELS[1:]}, r'^labels .* \(24,\), not \(23,\)$'),
        ({'query': MASK, 'groups': [1]}, r'^groups .* \(24,\), not \(1,\)$'),
        ({'labels': LABELS[1:]}, r'labels .* \(24,\), not \(23,\)$'),
        ({'embeddings': EMBEDDINGS[0], 'query': MASK}, r'^embeddings .*not \(6,\)$'),
        ({'embeddings': EMBEDDINGS[:, 0].tolist()}, 'embeddings must be'),
        ({'embeddings': []}, 'embeddings must be'),
        ({'embeddings': objects([[1.0], [1.0, 2.0]])}, 'embeddings must be'),
        ({'embeddings': ['a.jpg', 'b.jpg']}, 'embeddings must be'),
        ({'embeddings': EMBEDDINGS.numpy().astype(int)}, 'floating point'),
    ],
)
def test_refusals(arguments, offender):
    arguments = {'embeddings': EMBEDDINGS, 'labels': LABELS, **arguments}
    embeddings, labels = arguments.pop('embeddings'), arguments.pop('labels')
    with pytest.raises(ValueError, match=offender) as error:
        evaluate(embeddings, labels, **arguments)
    assert len(str(error.value).splitlines()) == 1


def test_none_is_refused_in_one_line():
    for refused, offender in (
        (lambda: evaluate(EMBEDDINGS, None), r'^labels must be one per image'),
        (lambda: search(EMBEDDINGS[:2], EMBEDDINGS, 1, [0, None]), 'exclude must be'),
    ):
        with pytest.raises(UserError, match=offender) as error:
            refused()
        assert len(str(error.value).splitlines()) == 1


def test_rows_that_are_not_finite_are_named_as_given():
    broken = EMBEDDINGS.clone()
    broken[7] = torch.nan
    with pytest.raises(ValueError, match=r'embeddings holds NaN .*: 7$'):
        evaluate(broken, LABELS, query=MASK)


# Another program


@pytest.mark.parametrize('classes', [3, 40])
def test_figures_of_pytorch_metric_learning(classes, seed):
    """It leaves out queries that nothing can answer."""
    module = 'pytorch_metric_learning.utils.accuracy_calculator'
    calculator = pytest.importorskip(module).AccuracyCalculator(
        include=('precision_at_1', 'mean_average_precision_at_r', 'r_precision'),
        k='max_bin_count',
        device=torch.device('cpu'),
    )
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=300)
    noise = rng.normal(size=(300, 16))
    embeddings = F.normalize(torch.tensor(noise + 0.2 * noise[labels])).float()
    theirs = calculator.get_accuracy(embeddings, torch.tensor(labels))
    ours = evaluate(embeddings.numpy(), labels.astype(str), 1)
    answered = 300 - ours['queries_without_positive']
    names = {'recall@1': 'precision_at_1', 'map@r': 'mean_average_precision_at_r'}
    for name, their_name in {**names, 'r_precision': 'r_precision'}.items():
        # rounding may swap two images whose scores are nearly equal
        expected = pytest.approx(theirs[their_name], abs=2e-4)
        assert ours[name] * 300 / answered == expected

"""What an epoch reaches: its metrics, its score, its intervals, its threshold."""

from dataclasses import replace
from unittest.mock import Mock

import experiments
import numpy as np
import pytest
import torch
from experiments import (
    PIXEL_FORMAT,
    arguments,
    draw_split,
    make_embeddings,
    make_experiment,
    paths_of,
)
from trained import read_images

from areir.matching.calibration import calibrate
from areir.retrieval import evaluate
from areir.scripts.model import EnsembleModel
from areir.training import batches
from areir.training import result as module
from areir.training.batches import make_loaders, parts_to_embed
from areir.training.result import Result, embed_part, embed_parts, record_epoch
from areir.training.run import Progress

CPU = torch.device('cpu')


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
    own = torch.arange(len(arguments[1]))
    wanted = calibrate(*arguments, *arguments, false_match_rate=0.05, own=own)
    assert Result(experiment, 3, embeddings).calibration == wanted
    # the last epoch is kept: those before need no threshold
    earlier = Result(experiment, 2, embeddings).calibration
    assert earlier == (None if select == 'last' else wanted)


# The whole gallery


def in_one_gallery(experiment, embeddings):
    """Return vectors, classes and {'train', 'new', 'val': rows} of all images."""
    parts = parts_to_embed(experiment.split, experiment.args)
    vectors = torch.cat([embeddings[name] for name in parts])
    classes = [part.classes[label] for part in parts.values() for label in part.labels]
    rows, first = {'train': [], 'new': [], 'val': []}, 0
    for name, part in parts.items():
        kind = {'fit': 'train', 'rest': 'train', 'val': 'val'}.get(name, 'new')
        rows[kind] += range(first, first + len(part))
        first += len(part)
    return vectors, np.array(classes), rows


@pytest.mark.parametrize(
    'changed',
    [
        {},
        {'dimensions': 6},
        {'select': 'val'},
        {'dimensions': 6, 'gallery': True},
        {'select': 'val', 'gallery': True},
    ],
)
def test_every_image_is_searched_among_all_others(monkeypatch, changed):
    """By the nearest image of each in one matrix of scores, and the names of classes.

    Some training images are a sample for components; one test class was trained, too.
    """
    monkeypatch.setattr(batches, 'FIT_IMAGES', 5)
    monkeypatch.setattr(experiments, 'CLASSES', [*'xabcde'])
    experiment = make_experiment(whole_gallery='yes', **changed)
    embeddings = make_embeddings(experiment)
    vectors, classes, rows = in_one_gallery(experiment, embeddings)
    nearest = (vectors @ vectors.T).fill_diagonal_(-2).argmax(dim=1)
    hits = classes[nearest] == classes
    result = Result(experiment, 3, embeddings)
    wanted = {
        'all_recall@1_trained': hits[rows['train']].mean(),
        'all_recall@1_new': hits[rows['new']].mean(),
    }
    assert len(rows['train']) == 12 and len(rows['new']) == 36
    assert result.all_metrics == pytest.approx(wanted)
    assert 0 < wanted['all_recall@1_trained'] < wanted['all_recall@1_new'] < 1
    for name, (low, high) in list(result.intervals.items())[-2:]:
        assert low < wanted[name] < high

    # an unknown image is of a class that was not trained
    asked = rows['val' if 'select' in changed else 'new']
    searched = rows['train'] + asked
    labels = torch.from_numpy(np.unique(classes, return_inverse=True)[1])
    own = len(rows['train']) + torch.arange(len(asked))
    calibration = calibrate(
        *(vectors[asked], labels[asked], vectors[searched], labels[searched]),
        false_match_rate=0.05,
        own=own,
    )
    for name in ('queries', 'gallery_size', 'threshold', 'found', 'realised'):
        assert result.calibration[name] == pytest.approx(calibration[name]), name


# Embedding


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    return draw_split(tmp_path_factory.mktemp('images') / 'photos')


@pytest.fixture
def net(slim_backbone):
    return EnsembleModel('resnet18', 3, 4, seed=1)


def embed(net, split, dtype=torch.float32):
    loaders = make_loaders(split, arguments(dimensions=0), PIXEL_FORMAT, CPU)
    return embed_part(net, loaders['test'], dtype, [], 'embedding test')


def test_all_images_are_embedded_in_their_order(net, split):
    images = read_images(paths_of(split, 'test'), PIXEL_FORMAT)
    embeddings = embed(net, split)
    assert embeddings.shape == (10, 12) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, net.embed(images))
    half = embed(net, split, dtype=torch.float16)
    assert torch.equal(half, embeddings.half())


@pytest.mark.parametrize('fit_images', [4, 10, 4096])
def test_training_images_are_embedded_once_and_as_they_are(
    net, split, monkeypatch, fit_images
):
    """Those that the projection is fitted to, and the others."""
    monkeypatch.setattr(batches, 'FIT_IMAGES', fit_images)
    args = arguments(dimensions=3, whole_gallery='yes', store='fp32')
    loaders, parts = (
        make_loaders(split, args, PIXEL_FORMAT, CPU),
        parts_to_embed(split, args),
    )
    embeddings, projection = embed_parts(net, loaders, split, args, [])
    assert set(embeddings) == set(parts) == set(loaders) - {'train'}
    paths = [path for part in parts.values() for path in part.images]
    assert sorted(paths) == sorted(split.train.images + split.query.images)
    for name, part in parts.items():
        images = [f'{split.folder}/{path}' for path in part.images]
        wanted = projection(net.embed(read_images(images, PIXEL_FORMAT)))
        torch.testing.assert_close(embeddings[name], wanted)
        for path, label in zip(part.images, part.labels):
            whole = split.parts['test' if name == 'test' else 'train']
            assert whole.labels[whole.images.index(path)] == label


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


def test_copies_groups_and_distractors_follow_the_rules_of_evaluation():
    experiment = make_experiment(gallery=True, whole_gallery='yes')
    split = experiment.split
    query, gallery = split.parts['query'], split.parts['gallery']
    gallery.labels[[0, 9]] = -1
    for name, low, high in (('groups', -1, 3), ('files', -12, 12)):
        for number, images in enumerate((query, gallery, split.train)):
            generator = torch.Generator().manual_seed(number)
            drawn = torch.randint(low, high, (len(images),), generator=generator)
            setattr(images, name, drawn.clamp(min=-1))
    embeddings = make_embeddings(experiment)
    result = Result(experiment, 3, embeddings)
    wanted = evaluate(
        *(embeddings['query'], query.labels, [1, 2]),
        *(embeddings['gallery'], gallery.labels),
        groups=query.groups,
        gallery_groups=gallery.groups,
        files=query.files,
        gallery_files=gallery.files,
    )
    lone = wanted.pop('queries_without_positive')
    assert result.queries_without_positive == lone
    assert result.metrics == pytest.approx(wanted) and 'map' in wanted
    hits, labels = result.all_hits['all_recall@1_new']
    assert len(hits) == len(query) + len(gallery) - 2 and -1 not in labels

    # in the whole gallery, too
    vectors, classes, rows = in_one_gallery(experiment, embeddings)
    parts = parts_to_embed(split, experiment.args).values()
    labels, groups, files = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ('labels', 'groups', 'files')
    )
    classes[labels == -1] = ''
    numbers = torch.from_numpy(np.unique(classes, return_inverse=True)[1])
    right = numbers[:, None] == numbers
    ignored = torch.eye(len(numbers), dtype=torch.bool)
    ignored |= right & (groups[:, None] == groups) & (groups >= 0)
    ignored |= (files[:, None] == files) & (files >= 0)
    nearest = (vectors @ vectors.T).masked_fill(ignored, -2).argmax(dim=1)
    found = right[torch.arange(len(right)), nearest].double()
    known = torch.tensor(rows['new'])[labels[rows['new']] >= 0]
    assert result.all_metrics == pytest.approx(
        {
            'all_recall@1_trained': found[rows['train']].mean().item(),
            'all_recall@1_new': found[known].mean().item(),
        }
    )
    # each file sets the threshold once
    before = [files[rows['new'][:place]] for place in range(len(rows['new']))]
    once = [
        files[row] < 0 or files[row] not in old for row, old in zip(rows['new'], before)
    ]
    asked = sum(first and labels[row] >= 0 for row, first in zip(rows['new'], once))
    assert result.calibration['queries'] == asked


def test_copies_of_all_queries_in_the_gallery_set_no_threshold():
    """As in VeRi-776, where the queries are images of the gallery, too."""
    experiment = make_experiment(gallery=True)
    embeddings = make_embeddings(experiment)
    wanted = Result(experiment, 3, embeddings).calibration
    parts, query = experiment.split.parts, experiment.split.query
    gallery = parts['gallery']
    query.files = torch.arange(len(query))
    parts['gallery'] = replace(
        gallery,
        images=gallery.images + query.images,
        labels=torch.cat([gallery.labels, query.labels]),
        files=torch.cat([torch.full((len(gallery),), -1), query.files]),
    )
    both = torch.cat([embeddings['gallery'], embeddings['query']])
    result = Result(experiment, 3, {**embeddings, 'gallery': both})
    assert result.calibration == wanted and wanted['queries'] == len(query)

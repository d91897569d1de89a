"""What an epoch reaches: its metrics, its score, its intervals, its threshold."""

import pytest
import torch
from experiments import make_embeddings, make_experiment

from areir.matching.calibration import calibrate
from areir.retrieval import evaluate
from areir.training.result import Result


def result_of(epoch=2, seed=0, **changed):
    experiment = make_experiment(**changed)
    embeddings = make_embeddings(experiment, seed)
    return Result(experiment, epoch, embeddings), experiment.split, embeddings


def test_the_metrics_are_those_of_the_test_images():
    result, split, embeddings = result_of()
    wanted = evaluate(embeddings['test'], split.query.labels, [1, 2])
    assert result.queries_without_positive == wanted.pop('queries_without_positive')
    assert result.metrics == pytest.approx(wanted)
    assert list(result.metrics)[:3] == ['recall@1', 'recall@2', 'map@r']
    assert 0.2 < result.metrics['recall@1'] < 1 and result.val_metrics == {}


def test_queries_search_a_gallery_of_its_own():
    result, split, embeddings = result_of(gallery=True)
    query, gallery = split.parts['query'], split.parts['gallery']
    arguments = [embeddings['query'], query.labels, [1, 2]]
    wanted = evaluate(*arguments, embeddings['gallery'], gallery.labels)
    del wanted['queries_without_positive']
    assert result.metrics == pytest.approx(wanted)


@pytest.mark.parametrize(('protocol', 'epoch'), [('strict', 2), ('strict', 7)])
def test_the_last_epoch_has_the_highest_score(protocol, epoch):
    assert result_of(epoch, protocol=protocol)[0].score == epoch


def test_the_score_of_the_test_classes():
    result, _, _ = result_of(select='test')
    assert result.score == result.metrics['recall@1']
    experiment = make_experiment(select='test')
    experiment.recalls = [2]  # the user need not ask for recall@1
    other = Result(experiment, 2, make_embeddings(experiment))
    assert other.score == result.score and 'recall@1' not in other.metrics


def test_the_score_of_held_out_classes():
    result, split, embeddings = result_of(select='val')
    val = split.parts['val']
    wanted = evaluate(embeddings['val'], val.labels, [1])
    del wanted['queries_without_positive']
    assert result.val_metrics == pytest.approx(wanted)
    assert result.score == result.val_metrics['recall@1']
    assert result.metrics.keys() != result.val_metrics.keys()


def test_intervals_hold_the_metrics():
    result, _, _ = result_of()
    names = [name for name in result.metrics if name != 'mean_rank']
    assert list(result.intervals) == names
    for name, (low, high) in result.intervals.items():
        assert low <= result.metrics[name] <= high


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('select', ['last', 'val', 'test'])
def test_the_threshold_is_set_on_classes_without_training(select, dtype):
    """On those held out if there are any, else on the test classes."""
    experiment = make_experiment(select=select)
    embeddings = make_embeddings(experiment)
    embeddings = {name: values.to(dtype) for name, values in embeddings.items()}
    name = 'val' if select == 'val' else 'test'
    arguments = embeddings[name].float(), experiment.split.parts[name].labels
    wanted = calibrate(*arguments, false_match_rate=0.05)
    calibration = Result(experiment, 1, embeddings).calibration
    assert calibration == wanted
    assert calibration['classes'] == (2 if select == 'val' else 6)
    assert calibration['false_match_rate'] == 0.05


def test_the_threshold_of_queries_and_gallery():
    result, _, _ = result_of(gallery=True)
    assert result.calibration['queries'] == 12
    assert result.calibration['gallery_size'] == 20

"""A dataset without a test: all its classes train, as a user has it."""

import json

import pandas as pd
import pytest
import torch
from slim import use_slim_backbone
from train_runs import assert_same_run, dying, read

from areir.retrieval import evaluate
from areir.training.trainer import Trainer

SMALL = [
    *('--image_size', 32, '--num_workers', 0, '--num_epochs', 2),
    *('--weights', 'none', '--ensemble_size', 2),
]
HALVES, ALL = 'half_uncropped_resnet18_2_3', 'all_uncropped_resnet18_2_5'


@pytest.fixture(scope='module')
def shop(slim, tmp_path_factory):
    """(project, results): 5 classes of 6 images, prepared as `half` and as `all`.

    A run of each is finished; that of `all` has the threshold of the other one.
    """
    results = tmp_path_factory.mktemp('results')
    photos = slim.root / 'data/photos/test'
    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        for name, share in (('half', 0.5), ('all', 0)):
            flags = ['--data_name', name, '--data_path', photos, '--image_size', 32]
            slim.ask('data_utils.py', *flags, '--test_share', share)
        flags = [*SMALL, '--results_root', results]
        slim.ask('train.py', '--data_name', 'half', *flags)
        flags += ['--threshold_from', HALVES]
        slim.output = slim.ask('train.py', '--data_name', 'all', *flags)
    return slim, results


def test_the_figure_is_that_of_the_training_images(shop):
    project, results = shop
    run = json.loads((results / f'{ALL}_run.json').read_text())
    database = read(results, 'data_base', ALL)
    assert len(database['images']) == 30 and database['trained']
    recall = evaluate(database['embeddings'], database['labels'], [1])['recall@1']
    assert run['metrics'] == {'all_recall@1_trained': pytest.approx(recall)}
    assert run['intervals'].keys() == run['metrics'].keys()
    table = pd.read_csv(results / f'{ALL}_results.csv')
    assert table['all_recall@1_trained'].iloc[-1] == pytest.approx(recall)
    assert not [name for name in table if name.startswith('test_')]
    lines = project.output.splitlines()
    (line,) = [line for line in lines if line.startswith('epoch 2/2')]
    assert f'{recall:.2%} trained (optimistic)' in line
    assert any('nothing says how new ones' in line for line in lines)


def test_the_threshold_is_that_of_the_earlier_run(shop):
    project, results = shop
    halves = json.loads((results / f'{HALVES}_run.json').read_text())
    calibration = halves['calibration']
    for name in ('model', 'data_base'):
        assert read(results, name, ALL)['calibration'] == calibration
    assert f'threshold of a match: {calibration["threshold"]:.3f}' in project.output
    assert f'those of {HALVES}' in project.output


def test_the_model_searches(shop, slim_backbone):
    project, results = shop
    at = ['--results_root', results]
    query = project.root / 'data/photos/test/figure_07/figure_07_01.png'
    known = ['--data_base', f'{ALL}_data_base.pth', '--query_img_name', query]
    folder = ['--gallery', project.root / 'data/photos/test', '--query_img_name', query]
    for flags in (known, [*folder, '--model', results / f'{ALL}_model.pth']):
        assert 'match' in project.ask('inference.py', *at, *flags)
    file = results / f'{ALL}_data_base.pth'
    project.ask('inference.py', *at, '--data_base', file, '--report')
    page = (results / f'{ALL}_report.html').read_text()
    assert 'Optimistic' in page and f'those of the run <bdi>{HALVES}</bdi>' in page
    assert 'optimistic' in project.ask('evaluate.py', file)


def test_an_interrupted_run_goes_on(shop, slim_backbone, tmp_path):
    """By the same command, with its own name and the threshold of another run."""
    project, results = shop
    flags = [
        '--data_name',
        'all',
        *SMALL,
        '--results_root',
        tmp_path,
        '--run_name',
        ALL,
    ]
    flags += ['--threshold_from', results / HALVES, '--overwrite', '--resume']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, 'step', dying(Trainer.step, 2))
        code, _, errors = project.call('train.py', *flags)
    assert code == 1 and 'Killed' in errors
    assert 'resumed' in project.ask('train.py', *flags)
    assert_same_run(results, tmp_path, ALL)
    assert 'is finished' in project.ask('train.py', *flags)


def test_without_an_earlier_run_there_is_no_threshold(shop, slim_backbone, tmp_path):
    """Unless classes are held out."""
    project, _ = shop
    flags = ['--data_name', 'all', *SMALL, '--results_root', tmp_path]
    output = project.ask('train.py', *flags)
    assert read(tmp_path, 'model', ALL)['calibration'] is None
    assert '--threshold_from' in output.splitlines()[-2]
    query = project.root / 'data/photos/test/figure_07/figure_07_01.png'
    known = ['--data_base', f'{ALL}_data_base.pth', '--query_img_name', query]
    known += ['--results_root', tmp_path]
    assert '--threshold_from' in project.ask('inference.py', *known)
    output = project.ask('train.py', *flags, '--run_name', 'held', '--select', 'val')
    assert 'optimistic' in output and 'nothing says' not in output
    assert read(tmp_path, 'model', 'held')['calibration']['classes'] == 2
    table = pd.read_csv(tmp_path / 'held_results.csv')
    assert {'val_recall@1', 'all_recall@1_trained'} <= set(table)
    assert len(read(tmp_path, 'data_base', 'held')['images']) == 18


@pytest.mark.parametrize(
    ('flags', 'text'),
    [
        (['--select', 'test'], '--select test'),
        (['--protocol', 'published'], '--protocol published'),
        (['--whole_gallery', 'no'], '--whole_gallery no'),
        (['--threshold_from', 'nowhere'], 'nowhere_run.json'),
        (['--threshold_from', HALVES, '--run_name', HALVES], '--run_name'),
        (['--threshold_from', HALVES, '--num_epochs', 3], '--num_epochs is 3'),
        (['--threshold_from', HALVES, '--mirror', 'no'], '--mirror is no'),
        (
            ['--threshold_from', HALVES, '--meta_class_size', 4],
            '--meta_class_size is 4',
        ),
        (['--threshold_from', HALVES, '--false_match_rate', 0.5], '--false_match_rate'),
    ],
)
def test_what_cannot_be(shop, slim_backbone, flags, text):
    project, results = shop
    words = ['--data_name', 'all', *SMALL, '--results_root', results, *flags]
    assert text in project.refuse('train.py', *words)


def test_an_unfinished_run_gives_no_threshold(shop, tmp_path):
    project, results = shop
    run = json.loads((results / f'{HALVES}_run.json').read_text())
    (tmp_path / 'begun_run.json').write_text(json.dumps({**run, 'finished': False}))
    (tmp_path / 'small_run.json').write_text(json.dumps({**run, 'calibration': None}))
    words = ['--data_name', 'all', *SMALL, '--results_root', tmp_path]
    for name in ('begun', 'small'):
        flag = ['--threshold_from', tmp_path / name]
        assert f'{name}: that run has' in project.refuse('train.py', *words, *flag)


def test_a_large_dataset_keeps_all_its_images(
    shop, slim_backbone, monkeypatch, tmp_path
):
    """The components are fitted to a part of them, which is embedded apart."""
    project, _ = shop
    monkeypatch.setattr('areir.training.batches.FIT_IMAGES', 20)
    flags = ['--data_name', 'all', *SMALL, '--results_root', tmp_path]
    project.ask('train.py', *flags)
    database = read(tmp_path, 'data_base', ALL)
    assert len(set(database['images'])) == len(database['embeddings']) == 30
    names = [database['classes'][label] for label in database['labels'].tolist()]
    assert names == [image.split('/')[-2] for image in database['images']]
    assert torch.isfinite(database['embeddings']).all()

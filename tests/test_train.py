"""train.py as a user runs it: what it says, writes, keeps and refuses."""

import json
import math
import os
import shutil

import pandas as pd
import pytest
import torch
from slim import use_slim_backbone
from train_runs import EVERY_BATCH, FLAGS, RUN, assert_same_run, read, read_table, train
from trained import embed, read_images

from areir import hardware
from areir.data.images import PixelFormat
from areir.data.splits import Split
from areir.retrieval import evaluate
from areir.scripts.model import EnsembleModel
from areir.training.trainer import Trainer

SHORT = ['--num_epochs', 2, '--num_workers', 0]
FILES = ['curves.svg', 'data_base.pth', 'model.pth', 'results.csv', 'run.json']


@pytest.mark.slow
def test_the_files_of_a_run_belong_together(small):
    """In a process of its own, with a real network."""
    output = small.succeed('train.py', *FLAGS, *SHORT)
    assert '3 heads of 3 meta-classes' in output and 'epoch 2/2' in output
    results = small.root / 'results'
    assert sorted(os.listdir(results)) == [f'{RUN}_{name}' for name in FILES]
    table = pd.read_csv(results / f'{RUN}_results.csv')
    assert table['epoch'].tolist() == [1, 2]
    assert table['lr'].tolist() == [1e-4, 1e-6]

    saved, database = read(results, 'model'), read(results, 'data_base')
    model = EnsembleModel(**saved['model_args'])
    model.load_state_dict(saved['state_dict'])
    folder = small.root / 'data/small'
    paths = [str(folder / image) for image in database['images']]
    images = read_images(paths, PixelFormat(**saved['pixel_format']))
    embeddings = model.embed(images)
    torch.testing.assert_close(embeddings, database['embeddings'], rtol=0, atol=1e-5)
    again = evaluate(embeddings, database['labels'], [1, 2, 4])
    assert table['test_recall@2'].iloc[-1] == pytest.approx(again['recall@2'])
    run = json.loads((results / f'{RUN}_run.json').read_text())
    assert run['metrics']['map@r'] == pytest.approx(again['map@r'])
    shutil.rmtree(results)


# The network is slim from here on


@pytest.fixture(scope='module')
def base(slim, tmp_path_factory):
    """Results of a finished run of two epochs."""
    results = tmp_path_factory.mktemp('base')
    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        train(slim, results, *SHORT)
    return results


def test_the_same_command_gives_the_same_numbers(slim, slim_backbone, base, tmp_path):
    """With other numbers of workers, into another folder, from a model of ours.

    Quietly, too: then only figures and files are printed.
    """
    weights = ['--weights', base / f'{RUN}_model.pth']
    loud, quiet = (
        train(slim, tmp_path / workers, *SHORT, *weights, *flags)
        for workers, *flags in [('0',), ('2', '--num_workers', 2, '--quiet')]
    )
    assert '\nepoch 2/2: ' in quiet and '\nwrote ' in quiet
    assert '\nrun ' in loud and '\nrun ' not in quiet
    assert_same_run(tmp_path / '0', tmp_path / '2')
    losses = [read_table(folder)['train_loss'][0] for folder in (tmp_path / '0', base)]
    assert losses[0] != losses[1]


def test_search_resizes_images_as_training_did(
    slim, slim_backbone, tmp_path, monkeypatch
):
    """Queries and a folder's images, by another filter than the default."""
    bicubic = PixelFormat(40, (0.5,) * 3, (0.25,) * 3, 'bicubic')
    monkeypatch.setattr(Split, 'pixel_format', lambda split, image_size: bicubic)
    monkeypatch.setattr(hardware, 'has_native_bf16', lambda device: False)
    train(slim, tmp_path, *SHORT, '--image_size', 40, '--crop_area', 0.5, '--lr', 3e-2)
    saved, database = read(tmp_path, 'model'), read(tmp_path, 'data_base')
    paths = [slim.root / 'data/small' / image for image in database['images']]
    wanted = embed(saved, paths)
    torch.testing.assert_close(database['embeddings'], wanted, rtol=0, atol=1e-5)
    bilinear = {**saved['pixel_format'], 'interpolation': 'bilinear'}
    others = embed({**saved, 'pixel_format': bilinear}, paths)
    assert (others - wanted).abs().max() > 1e-2

    query = shutil.copy(paths[0], tmp_path / 'query.png')
    model = ['--model', tmp_path / f'{RUN}_model.pth']
    photos = slim.root / 'data/photos/test'
    for folder, *searched in (
        [slim.root / 'data/small', '--data_base', f'{RUN}_data_base.pth'],
        [photos, *model, '--gallery', photos],
    ):
        flags = ['--results_root', tmp_path, '--query_img_name', query]
        slim.ask('inference.py', *searched, *flags)
        table = pd.read_csv(tmp_path / 'query/retrieved.csv')
        found = [folder / path for path in table['path']]
        scores = embed(saved, found) @ wanted[0]
        assert table['score'].tolist() == pytest.approx(scores.tolist(), abs=2e-6)


def test_precision_changes_the_numbers_little(slim, slim_backbone, base, tmp_path):
    """bf16 and a database of float16 round the same embeddings in another way."""
    train(slim, tmp_path, *SHORT, '--precision', 'bf16', '--store', 'fp16')
    database, exact = read(tmp_path, 'data_base'), read(base, 'data_base')
    assert database['embeddings'].dtype == torch.float16
    pair = database['embeddings'].float(), exact['embeddings']
    assert torch.cosine_similarity(*pair).min() > 0.99
    file = tmp_path / f'{RUN}_data_base.pth'
    recall = read_table(tmp_path)['test_recall@1'].iloc[-1]
    assert f'{recall:.2%}' in slim.ask('evaluate.py', file, '--recalls', '1')


@pytest.mark.parametrize(
    ('flags', 'suffix', 'measure'),
    [
        (['--select', 'val'], '_select_val_2019', 'val_recall@1'),
        (['--select', 'test'], '_select_test_2019', 'test_recall@1'),
        (['--protocol', 'published'], '_published', 'test_recall@1'),
    ],
)
def test_the_best_epoch_is_kept_under_its_own_name(
    slim, slim_backbone, tmp_path, flags, suffix, measure
):
    run = f'small_uncropped_resnet18_3_2{suffix}'
    training = ['--num_epochs', 4, '--lr', '3e-3', '--num_workers', 0]
    train(slim, tmp_path, *training, '--meta_class_size', 2, *flags)
    table = pd.read_csv(tmp_path / f'{run}_results.csv')
    provenance = json.loads((tmp_path / f'{run}_run.json').read_text())
    database, saved = read(tmp_path, 'data_base', run), read(tmp_path, 'model', run)
    best = int(table[measure].idxmax())
    assert len(table) == 4
    assert provenance['epoch'] == database['epoch'] == saved['epoch'] == best + 1
    again = evaluate(database['embeddings'], database['labels'], [1])
    recall = provenance['metrics']['recall@1']
    assert table['test_recall@1'][best] == recall == pytest.approx(again['recall@1'])
    held_out = provenance['data']['held_out']
    assert len(held_out) == (2 if 'val' in suffix else 0)
    names = {f'figure_{number:02d}' for number in range(1, 7)}
    assert set(held_out) == names - set(saved['classes'])
    # the threshold is set on the classes held out if there are any
    assert provenance['calibration']['classes'] == (len(held_out) or 5)


def test_queries_search_the_gallery(slim, slim_backbone, tmp_path):
    """A dataset of train, query and gallery; the shop's items are the figures."""
    shop = tmp_path / 'shop'
    for path in sorted((slim.root / 'data/photos').rglob('*.png')):
        part, figure, name = path.relative_to(slim.root / 'data/photos').parts
        number = int(name[-6:-4])
        if part == 'test':
            part = 'query' if number <= 2 else 'gallery'
        (shop / part / figure).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, shop / part / figure)
    root = tmp_path / 'data'
    flags = ['--data_root', root, '--data_name', 'shop', '--image_size', 32]
    slim.ask('data_utils.py', *flags, '--data_path', shop)
    train(slim, tmp_path, *flags, '--num_epochs', 1, '--num_workers', 0)
    run = RUN.replace('small', 'shop')
    database = read(tmp_path, 'data_base', run)
    assert len(database['query_images']) == 10 and len(database['images']) == 20
    names = ('query_embeddings', 'query_labels', 'embeddings', 'labels')
    query, query_labels, gallery, labels = (database[name] for name in names)
    again = evaluate(query, query_labels, [1], gallery, labels)
    recall = read_table(tmp_path, run)['test_recall@1'].iloc[-1]
    assert recall == pytest.approx(again['recall@1'])


# Its name


def test_a_finished_run_is_not_replaced_unasked(slim, slim_backbone, base, tmp_path):
    """Not by another seed; a run of its own name is found as any other."""
    results = tmp_path / 'results'
    shutil.copytree(base, results)
    flags = [*FLAGS, *SHORT, '--results_root', results, '--seed', 1]
    line = slim.refuse('train.py', *flags)
    assert f'--seed 1: {results / RUN}_run.json was begun with 0;' in line
    assert '--run_name' in line and '--overwrite' in line
    assert contents(results) == contents(base)

    slim.ask('train.py', *flags, '--run_name', 'mine')
    kept = contents(results)
    assert sorted(kept) == sorted(
        f'{run}_{name}' for run in (RUN, 'mine') for name in FILES
    )
    assert contents(base).items() <= kept.items()
    assert 'mine is finished' in slim.ask(
        'train.py', *flags, '--run_name', 'mine', '--resume'
    )
    at = ['--results_root', results]
    slim.ask('inference.py', *at, '--data_base', 'mine_data_base.pth', '--report')
    assert (results / 'mine_report.html').exists()
    query = slim.root / 'data/photos/test/figure_07'
    output = slim.ask(
        'inference.py', *at, '--gallery', query, '--query_img_name', query
    )
    assert f'model {results}/mine_model.pth, the newest of 2' in output

    slim.ask('train.py', *flags, '--overwrite')
    tables = read_table(results), read_table(results, 'mine')
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# More heads


def test_heads_are_added_to_a_finished_run(slim, slim_backbone, base, tmp_path):
    flags = ['--ensemble_size', 5, '--extend', base / f'{RUN}_model.pth']
    train(slim, tmp_path, *SHORT, *flags)
    run = 'small_uncropped_resnet18_5_3_2019_from_3'
    old, grown = read(base, 'model'), read(tmp_path, 'model', run)
    assert torch.equal(old['partition'], grown['partition'][:3])
    weights = grown['state_dict']
    for name, value in old['state_dict'].items():  # and the buffers of batch norm
        assert torch.equal(value, weights[name]), name
    fresh = EnsembleModel('resnet18', 5, 3, seed=0).state_dict()
    for name in ('heads.3.fc.weight', 'heads.4.stages.0.0.1.running_mean'):
        assert not torch.equal(weights[name], fresh[name]), name
    first = read(base, 'data_base')['embeddings'] * math.sqrt(3)
    second = read(tmp_path, 'data_base', run)['embeddings'] * math.sqrt(5)
    assert torch.allclose(first, second[:, :9], atol=1e-5)


def test_added_heads_start_from_the_weights(
    slim, slim_backbone, base, weights, tmp_path
):
    flags = ['--ensemble_size', 5, '--extend', base / f'{RUN}_model.pth']
    train(slim, tmp_path, *SHORT, *flags, '--weights', weights, '--lr', 1e-12)
    run = 'small_uncropped_resnet18_5_3_2019_from_3'
    grown = read(tmp_path, 'model', run)['state_dict']
    wanted = torch.load(weights)['layer3.0.weight']
    for number in (3, 4):
        new = grown[f'heads.{number}.stages.1.0.0.weight']
        torch.testing.assert_close(new, wanted)


def test_heads_of_another_partition_are_refused(slim, base):
    model = base / f'{RUN}_model.pth'
    flags = ['--extend', model, '--ensemble_size', 4, '--seed', 1]
    line = slim.refuse('train.py', *FLAGS, *flags)
    assert '--seed' in line and str(model) in line


def test_a_run_does_not_replace_the_model_that_it_extends(slim, slim_backbone, base):
    model = base / f'{RUN}_model.pth'
    flags = ['--ensemble_size', 5, '--extend', model, '--run_name', RUN, '--overwrite']
    line = slim.refuse('train.py', *FLAGS, *SHORT, '--results_root', base, *flags)
    assert '--extend' in line and '--run_name' in line


# Refusals


@pytest.mark.parametrize(
    ('flags', 'text'),
    [
        (['--data_name', 'unknown'], 'small (uncropped)'),
        (['--data_name', '../data/small'], "--data_name '../data/small'"),
        (['--data_name', 'cub', '--crop_type', 'cropped'], 'cub (cropped)'),
        (['--meta_class_size', '7'], 'meta_class_size 7'),
        (['--recalls', '30,40'], '--recalls'),
        (['--protocol', 'published', '--select', 'last'], '--select'),
        (['--select', 'val', '--meta_class_size', '5'], 'meta_class_size 5'),
        (['--seed', str(2**63)], f'--seed: {2**63}'),
        (['--weights', 'nowhere.pth'], 'nowhere.pth'),
        (['--extend', ''], '--extend: empty'),
        (['--weights', '../my project/train.py'], 'train.py is no file of tensors'),
    ],
)
def test_training_refuses_in_one_line(slim, flags, text):
    assert text in slim.refuse('train.py', *FLAGS, *flags)
    results = slim.root / 'results'
    left = os.listdir(results) if results.exists() else []
    assert left == []


def test_an_image_damaged_after_preparation_is_named(slim, slim_backbone, tmp_path):
    shutil.copytree(slim.root / 'data', tmp_path / 'data', symlinks=True)
    damaged = tmp_path / 'data/photos/train/figure_02/figure_02_02.png'
    damaged.write_bytes(damaged.read_bytes()[:300])
    roots = ['--data_root', tmp_path / 'data', '--results_root', tmp_path]
    assert 'figure_02_02.png: ' in slim.refuse('train.py', *FLAGS, *roots)


def test_a_loss_that_is_not_finite_stops_the_run(
    slim, slim_backbone, tmp_path, monkeypatch
):
    """It names the last checkpoint, which is there after every batch here."""
    losses, step = [1, math.nan], Trainer.step
    monkeypatch.setattr(Trainer, 'step', lambda *args: step(*args) * losses.pop(0))
    flags = [*EVERY_BATCH, '--num_workers', 0]
    line = slim.refuse('train.py', *FLAGS, *flags, '--results_root', tmp_path)
    assert 'epoch 1, batch 2' in line and '--lr' in line
    assert f'{tmp_path / RUN}_checkpoint' in line

"""A folder of five products, trained without flags, and the scripts that use it.

The network is slim, and everything happens in this process.
"""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Project
from slim import use_slim_backbone
from train_runs import read

from areir.cli.recipes import FROM_SCRATCH, RECIPES
from areir.data.sample import draw_sample

WANTED = {**RECIPES['current'], **FROM_SCRATCH}
SIDE = 32


def draw_products(folder):
    """Draw 6 photos of each of 5 products: folder/<product>/<photo>."""
    drawn = folder.parent / 'drawn'
    sizes = {'train_classes': 3, 'test_classes': 2, 'images_per_class': 6}
    draw_sample(str(drawn), **sizes, side=48)
    folder.mkdir()
    for product in sorted(drawn.glob('*/*')):
        shutil.move(product, folder)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A project with its only run."""
    project = Project(tmp_path_factory.mktemp('products') / 'my project')
    project.photos = project.root / 'photos'
    project.results = project.root / 'results'
    draw_products(project.photos)
    flags = ['--data_name', 'products']
    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        for script, *more in (
            ('data_utils.py', '--data_path', project.photos),
            ('train.py', '--weights', 'none', '--image_size', 32, '--num_epochs', 2),
        ):
            project.output = project.ask(script, *flags, *more)
    (model,) = project.results.glob('*_model.pth')
    project.run_name = model.name.removesuffix('_model.pth')
    return project


def load(trained, name):
    return read(trained.results, name, trained.run_name)


def table_of(trained):
    return pd.read_csv(trained.results / f'{trained.run_name}_results.csv')


# What the run writes


def test_the_table_begins_before_training(trained):
    table = table_of(trained)
    assert table['epoch'].tolist() == [0, 1, 2]
    # all of train_seconds is in the epochs' seconds, which count embedding, too
    trained_for = table['train_seconds'].diff()[1:]
    assert (trained_for > 0).all() and (trained_for < table['seconds'][1:]).all()
    assert (table['lr'][1:] < WANTED['lr']).all() and (table['lr'][1:] > 0).all()


def test_the_database_holds_whitened_unit_vectors(trained):
    """From 18 training images, embeddings keep all numbers of both heads."""
    database, saved = load(trained, 'data_base'), load(trained, 'model')
    embeddings = database['embeddings']
    length = len(saved['projection']['mean'])
    assert embeddings.shape == (12, length) and length > 18
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(12), atol=1e-5)
    assert database['ensemble_size'] == saved['ensemble_size'] == 1
    assert saved['projection']['matrix'].shape[1] == embeddings.shape[1]
    assert saved['classes'] + database['classes'] == sorted(os.listdir(trained.photos))


def test_the_whole_gallery_is_the_folder(trained, slim_backbone):
    """Its photos, searched one by one; console, CSV, run.json and page agree."""
    folder = trained.root / 'exported'
    trained.ask('inference.py', '--gallery', trained.photos, '--export', folder)
    vectors = np.load(folder / 'vectors.npy')
    classes = pd.read_csv(folder / 'images.csv')['class'].to_numpy()
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    hits = classes[scores.argmax(axis=1)] == classes
    is_trained = np.isin(classes, load(trained, 'model')['classes'])
    assert is_trained.sum() == 18 and (~is_trained).sum() == 12
    names = ['all_recall@1_trained', 'all_recall@1_new']
    wanted = dict(zip(names, (hits[is_trained].mean(), hits[~is_trained].mean())))
    assert table_of(trained)[names].iloc[-1].to_dict() == pytest.approx(wanted)
    run = json.loads((trained.results / f'{trained.run_name}_run.json').read_text())
    assert {name: run['metrics'][name] for name in names} == pytest.approx(wanted)
    database = f'{trained.run_name}_data_base.pth'
    trained.ask('inference.py', '--data_base', database, '--report')
    page = (trained.results / f'{trained.run_name}_report.html').read_text()
    for name, value in wanted.items():
        kind = 'trained' if name == names[0] else 'new'
        line = f'whole gallery, {kind} classes: Recall@1 {value:.2%}, no interval'
        assert line in trained.output
        assert f'{kind} classes</dt><dd class="large">{value:.2%}' in page


# What uses it


def test_the_scripts_take_what_the_run_wrote(trained, slim_backbone):
    """A query in the database and in a folder, evaluation, the page of the run."""
    database = load(trained, 'data_base')
    file = f'{trained.run_name}_data_base.pth'
    image = trained.root / 'data/products' / database['images'][3]
    query = ['--query_img_name', image, '--retrieval_num', 11]
    for flags in (
        ['--data_base', file, *query, '--heat_maps'],
        ['--gallery', trained.photos, *query],
        ['--data_base', file, '--report'],
    ):
        trained.ask('inference.py', *flags)
        if flags[1] == file and query[0] in flags:
            table = pd.read_csv(trained.results / image.stem / 'retrieved.csv')
            scores = database['embeddings'] @ database['embeddings'][3]
            scores[3] = -2  # it does not find itself
            wanted = scores.sort(descending=True).values[:11].tolist()
            assert table['score'].tolist() == pytest.approx(wanted, abs=1e-5)
    page = (trained.results / f'{trained.run_name}_report.html').read_text()
    for name in ('recipe', 'frozen_stages', 'whitening', 'shared_stages'):
        assert name in page
    path = trained.results / file
    output = trained.ask('evaluate.py', path, '--recalls', '1', '--json')
    recall = table_of(trained)['test_recall@1'].iloc[-1]
    assert json.loads(output)['metrics']['recall@1'] == recall


def test_a_second_start_finds_it_finished(trained, slim_backbone):
    flags = ['--data_name', 'products', '--weights', 'none', '--image_size', 32]
    flags += ['--num_epochs', 2, '--resume']
    output = trained.ask('train.py', *flags)
    assert f'{trained.run_name} is finished' in output
    other = RECIPES['2019']['crop_area']
    line = trained.refuse('train.py', *flags, '--crop_area', other)
    assert f'--crop_area {other}' in line

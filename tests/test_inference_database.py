"""inference.py on a database of train.py, with a model of random weights."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import trained
from conftest import REPOSITORY, Project

from areir.data.sample import draw_sample

NAME = 'toy_data_base.pth'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A project whose dataset `toy` has two classes of four images.

    Its images are links to the photos, as data_utils.py makes them.
    """
    project = Project(tmp_path_factory.mktemp('database') / 'my project')
    results = project.root / 'results'
    results.mkdir()
    project.saved = trained.save_model(results / 'toy_model.pth')
    photos = project.root / 'data/photos'
    sizes = {'train_classes': 2, 'test_classes': 2, 'images_per_class': 4}
    draw_sample(str(photos), **sizes, side=trained.SIDE)
    toy = project.root / 'data/toy'
    for path in (photos / 'test').glob('*/*.png'):
        link = toy / 'images/test' / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(path, link.parent))
    trained.save_database(
        results / NAME, toy, project.saved, 'toy_model.pth', data_root='../data'
    )
    project.photos = photos
    return project


@pytest.fixture
def answer(project):
    """Call inference.py; return (folder of the answer, its table, the output)."""

    def called(query, *flags):
        question = ['--data_base', NAME, '--query_img_name', query, *flags]
        output = project.ask('inference.py', *question)
        sheet = output.splitlines()[-1].removeprefix('wrote ')
        folder = os.path.dirname(os.path.join(project.elsewhere, sheet))
        return folder, pd.read_csv(os.path.join(folder, 'retrieved.csv')), output

    return called


def test_a_database_image_is_answered(project, answer, tmp_path):
    query = f'../{project.root.name}/data/toy/images/test/figure_3/figure_3_03.png'
    folder, table, output = answer(query, '--retrieval_num', 7)
    assert os.path.basename(folder) == 'figure_3_03'
    assert table['score'].is_monotonic_decreasing
    names = {os.path.basename(path) for path in table['path']}
    assert len(names) == 7 and 'figure_3_03.png' not in names
    assert (table['class'] == 'figure_3').sum() == 3
    assert 'model' not in output.partition('times: ')[2]  # it is not loaded
    assert (project.root / 'data/toy' / table['path'][0]).is_file()
    link = tmp_path / 'link.png'
    link.symlink_to(project.photos / 'test/figure_3/figure_3_03.png')
    for same in ('toy/images/test/figure_3/figure_3_03.png', link):
        again, by_name, _ = answer(same, '--retrieval_num', 7)
        assert again == folder and by_name['path'].equals(table['path'])


def test_an_image_from_outside_is_embedded(project, answer, tmp_path):
    own = tmp_path / 'meine Schöne.png'
    shutil.copy(project.photos / 'test/figure_3/figure_3_03.png', own)
    folder, table, output = answer(own)
    assert len(table) == 8 and os.path.basename(folder) == 'meine Schöne'
    assert os.path.basename(table['path'][0]) == 'figure_3_03.png'
    assert table['score'][0] == pytest.approx(1, abs=1e-3)
    assert 'model ' in output.partition('times: ')[2]


def test_the_database_alone_answers_for_its_images(project, answer, tmp_path):
    alone = tmp_path / 'alone_data_base.pth'
    shutil.copy(project.root / 'results' / NAME, alone)
    query = project.photos / 'test/figure_3/figure_3_03.png'
    _, table, _ = answer(query, '--data_base', alone)
    assert len(table) == 7
    other = project.photos / 'train/figure_1/figure_1_01.png'
    flags = ['--data_base', alone, '--query_img_name', other]
    assert f'{tmp_path}/toy_model.pth: ' in project.refuse('inference.py', *flags)


@pytest.mark.parametrize(
    ('flags', 'text'),
    [
        (['--data_base', 'other.pth'], f'--data_base other.pth: .*: {NAME}'),
        (['--data_base', 'toy_model.pth'], 'toy_model.pth is not .* database'),
        (['--retrieval_num', '0'], 'argument --retrieval_num: 0'),
        (['--data_root', 'nowhere'], '--data_root'),
    ],
)
def test_what_cannot_be_done_is_one_line(project, flags, text):
    query = project.photos / 'test/figure_3/figure_3_03.png'
    question = ['--data_base', NAME, '--query_img_name', query, *flags]
    line = project.refuse('inference.py', *question)
    for part in text.split('.*'):
        assert part in line


def test_a_run_is_reported_with_and_without_its_images(project, tmp_path):
    output = project.ask('inference.py', '--data_base', NAME, '--report')
    assert output.splitlines()[-1].endswith('my project/results/toy_report.html')
    shutil.copy(project.root / 'results' / NAME, tmp_path)
    flags = ['--results_root', tmp_path, '--data_root', 'nowhere']
    output = project.ask('inference.py', '--data_base', NAME, '--report', *flags)
    assert 'notice: ' in output and (tmp_path / 'toy_report.html').is_file()


def test_libraries_that_take_seconds_are_not_imported():
    """Those of networks and of statistics, before they are needed."""
    code = 'import sys, inference, evaluate; print(*sys.modules)'
    command = [sys.executable, '-c', code]
    modules = subprocess.check_output(command, cwd=REPOSITORY, text=True).split()
    assert {'inference', 'evaluate'} < {*modules}
    assert not {'torchvision', 'scipy', 'matplotlib', 'flask', 'onnx'} & {*modules}

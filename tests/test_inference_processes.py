"""inference.py in processes of its own: file names of any bytes, and torchrun."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import trained
from conftest import Project

from areir.data.sample import draw_sample

pytestmark = pytest.mark.slow

# small tiles, so that each process has tiles of its own
SMALL_TILES = """
import sys
sys.path.insert(0, {root!r})
import inference, utils
from areir.evaluation import ranking
from areir.gallery import vectors
vectors.TILE = ranking.NARROWEST = ranking.WIDEST = 1
utils.run_script(inference.main)
"""


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp('processes') / 'my project')
    (project.root / 'results').mkdir()
    project.model = project.root / 'results/toy_model.pth'
    trained.save_model(project.model)
    return project


@pytest.fixture
def photos(tmp_path):
    """16 photos without class folders."""
    sizes = {'train_classes': 2, 'test_classes': 2, 'images_per_class': 4}
    draw_sample(str(tmp_path / 'figures'), **sizes, side=trained.SIDE)
    (tmp_path / 'photos').mkdir()
    for path in tmp_path.glob('figures/*/*/*.png'):
        shutil.copy(path, tmp_path / 'photos')
    return tmp_path / 'photos'


def test_names_of_any_bytes(photos, tmp_path, project):
    raw = os.path.join(os.fsencode(photos), b'caf\xe9 <b>.png')
    shutil.copy(os.fsencode(photos / 'figure_1_01.png'), raw)
    command = [sys.executable, project.root / 'inference.py']
    command += ['--results_root', tmp_path / 'results', '--model', project.model]
    command += ['--gallery', photos, '--query_img_name', photos / 'figure_1_01.png']
    result = subprocess.run(command, capture_output=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / 'results/figure_1_01/retrieved.csv').read_bytes()
    assert b'caf\xe9 <b>.png' in table  # as the file system has it


def run_torchrun(script, flags, cwd):
    """Run a script in two processes under torchrun and return its stdout."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--master_port', '0']
    command += ['--nproc_per_node', '2', '--rdzv_backend', 'c10d']
    command += ['--rdzv_endpoint', 'localhost:0', script, *flags]
    result = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        timeout=180,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.parametrize(
    ('query', 'index', 'file'),
    [
        ('queries', 'exact', 'queries_answers/retrieved.csv'),
        ('queries', 'faiss', 'queries_answers/retrieved.csv'),
        ('photos', 'exact', 'photos_pairs/pairs.csv'),
        ('photos/figure_1_01.png', 'exact', 'figure_1_01/retrieved.csv'),
    ],
)
def test_two_processes_equal_one(project, photos, tmp_path, query, index, file):
    if index == 'faiss':
        pytest.importorskip('faiss', reason='faiss is optional')
    shutil.copytree(photos, tmp_path / 'queries')
    script = tmp_path / 'small_blocks.py'
    script.write_text(SMALL_TILES.format(root=str(project.root)))
    flags = ['--model', project.model, '--gallery', photos, '--index', index]
    flags += ['--query_img_name', tmp_path / query, '--retrieval_num', 5]
    one, two = tmp_path / 'results 1', tmp_path / 'results 2'
    project.ask('inference.py', *flags, '--results_root', one)
    output = run_torchrun(script, [*flags, '--results_root', two], tmp_path)
    assert output.count('times: ') == 1
    tables = [pd.read_csv(results / file) for results in (one, two)]
    pd.testing.assert_frame_equal(*tables, check_exact=False, atol=1e-5)

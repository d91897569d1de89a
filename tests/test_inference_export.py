"""inference.py --export_model, and the program of docs/search.md that uses its file."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import trained
from conftest import REPOSITORY, Project
from PIL import Image

from areir.data.images import list_files, load_image, normalise, to_pixels
from areir.data.sample import draw_sample
from areir.output.exports import ONNX_PACKAGES
from model import EnsembleModel


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A project with 12 photos in a folder and a model that tells them apart."""
    project = Project(tmp_path_factory.mktemp('own') / 'my project')
    (project.root / 'results').mkdir()
    project.photos = project.root / 'photos'
    sizes = {'train_classes': 2, 'test_classes': 2, 'images_per_class': 3}
    draw_sample(str(project.photos), **sizes, side=90)
    paths = [project.photos / path for path in list_files(str(project.photos))]
    pixels = [to_pixels(load_image(path), trained.SIDE) for path in paths]
    images = normalise(torch.stack(pixels), trained.MEAN, trained.STD)
    model = EnsembleModel(**trained.MODEL_ARGS)
    weights = trained.take_statistics(model, images).state_dict()
    project.model = project.root / 'results/toy_model.pth'
    trained.save_model(project.model, state_dict=weights)
    return project


def call(project, *flags):
    """Call inference.py in this process and return the lines that it prints."""
    return project.ask('inference.py', *flags).splitlines()


def take_section(page, title):
    """Return the (shell commands, Python program) of a section of a page."""
    with open(os.path.join(REPOSITORY, page), encoding='utf-8') as file:
        section = file.read().split(f'\n## {title}\n')[1].split('\n## ')[0]
    return re.findall(r'```\n(.*?)```\n.*?```python\n(.*?)```', section, re.DOTALL)[0]


def test_without_a_gallery_only_the_network_is_written(project, tmp_path):
    path = tmp_path / 'network.pt2'
    model, written = call(project, '--export_model', path)
    assert model.endswith('toy_model.pth') and written.startswith(f'wrote {path} ')
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_the_program_of_the_docs(project, tmp_path):
    """It runs as it is written, without AREIR and torch, and finds the photo itself."""
    for package in ONNX_PACKAGES:
        pytest.importorskip(package, reason=f'{package} is optional')
    commands, program = take_section('docs/search.md', 'Take the network elsewhere')
    (flags,) = re.findall(r'^python inference\.py (.*)', commands, re.MULTILINE)
    photos = shlex.quote(str(project.photos))
    call(project, *shlex.split(flags.replace('~/photos', photos)))
    for name in ('network.onnx', 'vectors'):
        shutil.move(project.elsewhere / name, tmp_path)

    # upright only if EXIF orientation is applied
    table = pd.read_csv(tmp_path / 'vectors/images.csv')
    vectors = np.load(tmp_path / 'vectors/vectors.npy')
    with Image.open(project.photos / table['path'][7]) as photo:
        turned = photo.convert('RGB').transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned back
    turned.save(tmp_path / 'my_photo.jpg', exif=exif, quality=100, subsampling=0)

    more = "\nimport sys\nprint(scores.max(), 'torch' in sys.modules)"
    command = [sys.executable, '-c', program + more]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows, last = result.stdout.splitlines()
    rows, (score, has_torch) = rows.strip('[]').split(), last.split()
    assert rows[0] == '7' and len(rows) == 8
    assert float(score) == pytest.approx(1, abs=0.005) and has_torch == 'False'
    scores = np.sort(vectors @ vectors[7])
    assert scores[-2] < 0.99  # no other photo would do


@pytest.mark.parametrize(
    ('flags', 'text'),
    [
        (['--export_model', 'network.h5'], '--export_model network.h5: '),
        (['--export_model', 'x.pt2', '--model', 'nowhere'], '--model nowhere: '),
    ],
)
def test_what_cannot_be_done_is_one_line(project, flags, text):
    assert text in project.refuse('inference.py', *flags)
    assert not list(project.elsewhere.iterdir())

"""The package as pip installs it, away from the checkout."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from email import message_from_string
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import REPOSITORY

import areir

SCRIPTS = 'data_utils', 'evaluate', 'inference', 'model', 'train', 'utils'
PROGRAM = """
import numpy as np, timm, torch
from areir import Gallery, evaluate, load_model, prepare, search, train
import areir.scripts.utils, model, utils

assert model.MINE and utils.MINE
network = timm.create_model('test_resnet.r160_in1k')
torch.save(network.state_dict(), 'test_resnet.r160_in1k.pth')
(vector,) = load_model('test_resnet.r160_in1k.pth').embed(np.zeros((9, 8, 3), 'uint8'))
print(areir.scripts.utils.__file__, vector @ vector)
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel of this checkout; it is built elsewhere, as a build leaves files."""
    source = tmp_path_factory.mktemp('source')
    for path in Path(REPOSITORY).iterdir():
        if path.is_file():
            shutil.copy(path, source)
        elif path.name in ('areir', 'benchmarks', 'docs', 'tests'):
            ignore = shutil.ignore_patterns('__pycache__')
            shutil.copytree(path, source / path.name, ignore=ignore)
    built = tmp_path_factory.mktemp('wheel')
    words = ['wheel', '-q', '--no-deps', '--no-build-isolation', '-w', built, source]
    subprocess.run([sys.executable, '-m', 'pip', *words], check=True)
    (path,) = built.iterdir()
    with ZipFile(path) as file:
        yield file


def test_the_wheel_holds_the_package_and_the_scripts_in_it(wheel):
    folder = Path(REPOSITORY, 'areir')
    files = {path for path in folder.rglob('*.*') if path.is_file()}
    files = {path.relative_to(REPOSITORY).as_posix() for path in files}
    files = {path for path in files if '__pycache__' not in path}
    files.remove('areir/scripts/__init__.py')  # it points to the scripts of a checkout
    files |= {f'areir/scripts/{name}.py' for name in SCRIPTS}
    metadata = f'areir-{areir.__version__}.dist-info/'
    names = {name for name in wheel.namelist() if not name.startswith(metadata)}
    assert names == files
    about = message_from_string(wheel.read(f'{metadata}METADATA').decode())
    needed = [line for line in about.get_all('Requires-Dist') if 'extra' not in line]
    listed = Path(REPOSITORY, 'requirements.txt').read_text().split()
    assert needed == listed


def test_other_programs_have_their_own_utils_and_model(wheel, tmp_path):
    wheel.extractall(tmp_path / 'site')
    for name in ('utils', 'model'):
        (tmp_path / f'{name}.py').write_text('MINE = True')
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(tmp_path / 'site')},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    path, length = done.stdout.split()
    assert path == str(tmp_path / 'site/areir/scripts/utils.py')
    assert float(length) == pytest.approx(1, abs=1e-5)


def test_the_readme_lists_the_optional_packages():
    project = tomllib.loads(Path(REPOSITORY, 'pyproject.toml').read_text())['project']
    extras = {
        name: {re.match(r'[\w-]+', package)[0] for package in packages}
        for name, packages in project['optional-dependencies'].items()
    }
    readme = Path(REPOSITORY, 'README.md').read_text(encoding='utf-8')
    rows = dict(re.findall(r'^\| `\[(\w+)\]` \| (.*?) \|', readme, re.MULTILINE))
    assert rows.keys() == extras.keys()
    del rows['test']  # it names no packages
    assert {name: set(row.split(', ')) for name, row in rows.items()}.items() <= (
        extras.items()
    )

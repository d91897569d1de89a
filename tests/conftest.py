"""The scripts as a user has them, and the seeds of random tests."""

import contextlib
import importlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, REPOSITORY)
from areir.data.sample import draw_sample
from areir.scripts import utils

TINY = 'test_vit.r160_in1k'  # the smallest transformer of timm with pretrained weights
PROGRESS = ('Downloading', 'epoch', 'embedding', 'ranking', 'indexing')


@pytest.fixture
def seed():
    """A seed of its own for each run of a random test; pytest prints it on failure.

    AREIR_TEST_SEED repeats a run.
    """
    value = int(os.environ.get('AREIR_TEST_SEED', random.randrange(2**31)))
    print(f'AREIR_TEST_SEED={value}')
    return value


@contextlib.contextmanager
def same_handlers():
    """Put the handlers of signals back, which `run_script` sets."""
    numbers = signal.SIGINT, signal.SIGTERM
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def keep_handlers():
    with same_handlers():
        yield


class Project:
    """A copy of the scripts with its own data and results, called from elsewhere."""

    def __init__(self, root):
        self.root = root
        self.elsewhere = root.parent / 'elsewhere'
        self.elsewhere.mkdir()
        root.mkdir()
        shutil.copytree(
            os.path.join(REPOSITORY, 'areir'),
            root / 'areir',
            ignore=shutil.ignore_patterns('__pycache__'),
        )
        for name in os.listdir(REPOSITORY):
            if name.endswith('.py'):
                shutil.copy(os.path.join(REPOSITORY, name), root)

    def roots(self, script):
        """Return the flags that name the project's folders, relative to elsewhere."""
        home = f'../{self.root.name}'
        if script == 'evaluate.py':
            return []
        if script == 'data_utils.py':
            return ['--data_root', f'{home}/data']
        return ['--data_root', f'{home}/data', '--results_root', f'{home}/results']

    def run(self, script, *flags):
        """Run a script in a process of its own and return the CompletedProcess."""
        command = [sys.executable, f'../{self.root.name}/{script}']
        command += [*self.roots(script), *map(str, flags)]
        return subprocess.run(
            command, cwd=self.elsewhere, capture_output=True, text=True
        )

    def succeed(self, script, *flags):
        """Run a script that must succeed and return its stdout."""
        result = self.run(script, *flags)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def call(self, script, *flags):
        """Run a script in this process; return (exit code, stdout, stderr).

        It saves the seconds that a process needs to import torch.
        """
        output, errors = io.StringIO(), io.StringIO()
        code = 0
        with (
            same_handlers(),
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            patch.chdir(self.elsewhere)
            patch.setattr(sys, 'unraisablehook', sys.unraisablehook)
            patch.setenv('TQDM_DISABLE', '')  # --quiet sets it
            arguments = [script, *self.roots(script), *map(str, flags)]
            patch.setattr(sys, 'argv', arguments)
            try:
                module = importlib.import_module(f'areir.scripts.{script[:-3]}')
                utils.run_script(module.main)
            except SystemExit as end:
                code = end.code or 0
        return code, output.getvalue(), errors.getvalue()

    def ask(self, script, *flags):
        """Return the stdout of a call in this process, which must succeed."""
        code, output, errors = self.call(script, *flags)
        assert code == 0, errors
        return output

    def refuse(self, script, *flags):
        """Return the one line that a refused call prints, called in this process."""
        code, _, errors = self.call(script, *flags)
        assert code == 2, errors
        lines = [line for line in errors.splitlines() if line]
        (line,) = [line for line in lines if not line.startswith(PROGRESS)]
        assert line.startswith(f'{script}: error: ')
        return line


def draw_small(project):
    """Prepare the dataset `small`: 36 + 30 images of 32 pixels.

    The photos lie in data, so that they move with it.
    """
    photos = project.root / 'data/photos'
    photos.parent.mkdir()
    draw_sample(
        str(photos), train_classes=6, test_classes=5, images_per_class=6, side=32
    )
    flags = ['--data_name', 'small', '--data_path', photos, '--image_size', 32]
    code, _, errors = project.call('data_utils.py', *flags)
    assert code == 0, errors


@pytest.fixture(scope='session')
def small(tmp_path_factory):
    """A project with the prepared dataset `small`, for tests that leave it as it is."""
    project = Project(tmp_path_factory.mktemp('small') / 'my project')
    draw_small(project)
    return project


@pytest.fixture(scope='session')
def slim(small, tmp_path_factory):
    """The same project with a slim backbone in its model.py: training takes seconds.

    Its scripts are slim in processes of their own. Tests that call them in this
    process take the fixture `slim_backbone`, too.
    """
    from slim import OVERRIDE

    project = Project(tmp_path_factory.mktemp('slim') / 'my project')
    shutil.copytree(small.root / 'data', project.root / 'data', symlinks=True)
    tests = os.path.dirname(os.path.abspath(__file__))
    with open(project.root / 'model.py', 'a') as file:
        file.write(OVERRIDE.format(tests=tests))
    return project


@pytest.fixture
def slim_backbone(monkeypatch):
    """Make the models of this process slim."""
    from slim import use_slim_backbone

    use_slim_backbone(monkeypatch)


@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    """A file of weights for the slim backbone."""
    import torch
    from slim import SlimBackbone

    path = tmp_path_factory.mktemp('weights') / 'slim.pth'
    torch.manual_seed(1)
    torch.save(SlimBackbone().state_dict(), path)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The cache of an offline Hugging Face hub, which holds TINY with random weights.

    Returns the network.
    """
    import timm
    from huggingface_hub import constants
    from safetensors.torch import save_file

    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    network = timm.create_model(TINY).eval()
    folder = tmp_path / 'hub' / f'models--timm--{TINY}'
    snapshot = folder / 'snapshots' / (40 * '0')
    snapshot.mkdir(parents=True)
    (folder / 'refs').mkdir()
    (folder / 'refs/main').write_text(snapshot.name)
    save_file(network.state_dict(), snapshot / 'model.safetensors')
    return network


@pytest.fixture(scope='session')
def trained_sample(tmp_path_factory):
    """A project with the sample dataset, trained for a minute; see trained.SAMPLE_RUN.

    Tests leave it as it is.
    """
    from trained import train_sample

    project = Project(tmp_path_factory.mktemp('sample') / 'my project')
    train_sample(project)
    return project

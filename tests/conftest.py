"""The scripts as a user has them, for all tests."""
import contextlib
import importlib
import io
import os
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, REPOSITORY)
import utils
from sample_data import draw_sample


class Project:
    """A copy of the scripts with its own data and results, called from a folder beside it."""

    def __init__(self, root):
        self.root, self.elsewhere = root, root.parent / 'elsewhere'
        self.elsewhere.mkdir()
        root.mkdir()
        for name in os.listdir(REPOSITORY):
            if name.endswith('.py'):
                shutil.copy(os.path.join(REPOSITORY, name), root)

    def run(self, script, *flags):
        roots = ['--data_root', f'../{self.root.name}/data']
        if script != 'data_utils.py':
            roots += ['--results_root', f'../{self.root.name}/results']
        return subprocess.run([sys.executable, f'../{self.root.name}/{script}', *roots, *map(str, flags)],
                              cwd=self.elsewhere, capture_output=True, text=True)

    def succeed(self, script, *flags):
        result = self.run(script, *flags)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def succeed_plain(self, script, *flags):
        """Of a script that knows no roots."""
        result = subprocess.run([sys.executable, self.root / script, *map(str, flags)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def refuse(self, script, *flags):
        """The one line that a refused call prints. Called in this process, since so many are refused."""
        roots = ['--data_root', f'../{self.root.name}/data', '--results_root', f'../{self.root.name}/results']
        errors = io.StringIO()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end, \
                contextlib.redirect_stderr(errors):
            patch.chdir(self.elsewhere)
            patch.setattr(sys, 'argv', [script, *roots, *map(str, flags)])
            utils.run(importlib.import_module(script.removesuffix('.py')).main)
        for number, handler in handlers.items():  # training has its own
            signal.signal(number, handler)
        assert end.value.code == 2
        line, = [line for line in errors.getvalue().splitlines()  # beside progress bars
                 if line and not line.startswith(('Downloading', 'epoch'))]
        assert line.startswith(f'{script}: error: ')
        return line

    def answer(self, *flags):
        """(stdout, table) of a successful inference, whose contact sheet is its last word."""
        output = self.succeed('inference.py', *flags)
        folder = os.path.dirname(os.path.join(self.elsewhere, output.splitlines()[-1].removeprefix('wrote ')))
        return folder, pd.read_csv(os.path.join(folder, 'retrieved.csv'))


def draw_small(project):
    """Prepare a dataset `small` of 36 + 30 images of 32 pixels; the photos lie in data, so that they move with it."""
    (project.root / 'data').mkdir()
    draw_sample(str(project.root / 'data/photos'), train_classes=6, test_classes=5, images_per_class=6, side=32)
    project.succeed('data_utils.py', '--data_name', 'small', '--data_path', project.root / 'data/photos',
                    '--image_size', 32)

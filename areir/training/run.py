"""One training run: its name, its settings, its progress, and its files.

results/<run>_{results.csv,model.pth,data_base.pth,run.json,curves.svg}
results/<run>_checkpoint/     while it is not finished, see checkpoints.py
results/<run>_copies/         while it is not finished, see data/copies.py
results/<run>_tensorboard/    with --log tensorboard, see output/loggers.py
results/<run>.lock            while a process trains, which locks it
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field

import filelock
import pandas as pd

from areir import processes
from areir.bars import say
from areir.cli.recipes import RECIPES, default_recipe, default_values
from areir.errors import UserError
from areir.files import (
    remove,
    remove_leftovers,
    write_json,
    write_table,
    write_tensors,
)
from areir.training import checkpoints

# flags that may differ when a run is resumed
FREE = (
    *('data_root', 'results_root', 'num_workers', 'gpu_ids', 'parallel'),
    *('copies', 'device', 'quiet', 'log'),
    *('resume', 'checkpoint_minutes', 'test_every', 'run_name', 'overwrite'),
)
# flags that a threshold depends on
CALIBRATED = (
    *('model_type', 'with_se', 'weights', 'crop_type', 'image_size', 'protocol'),
    *('recipe', 'num_epochs', 'meta_class_size', *RECIPES['2019']),
    *('whole_gallery', 'false_match_rate'),
)
WRITTEN = 'run.json', 'results.csv', 'model.pth', 'data_base.pth', 'curves.svg'
KEEP = '--run_name NAME keeps that run, --overwrite without --resume replaces it'


def run_name(args, old_heads, transformer=False):
    """Return the name of a run.

    old_heads: how many are those of --extend, or 0; transformer: whether the network is
    one, which decides the default recipe.
    """
    if args.run_name:
        return args.run_name
    backbone = args.model_type + ('' if args.with_se == 'yes' else '_no_se')
    sizes = f'{args.ensemble_size}_{args.meta_class_size}'
    name = f'{args.data_name}_{args.crop_type}_{backbone}_{sizes}'
    if args.protocol != 'strict':
        name += f'_{args.protocol}'
    elif args.select != 'last':
        name += f'_select_{args.select}'
    if args.recipe != default_recipe(args, transformer):
        name += f'_{args.recipe}'
    return name + (f'_from_{old_heads}' if old_heads else '')


def run_settings(args, precision, split_sha256):
    """Return what may not change when a run is resumed, as plain values."""
    settings = {name: value for name, value in vars(args).items() if name not in FREE}
    return {**settings, 'precision': precision, 'split_sha256': split_sha256}


def model_args(args):
    """Return the arguments of EnsembleModel that the flags give."""
    return {
        'model_type': args.model_type,
        'ensemble_size': args.ensemble_size,
        'meta_class_size': args.meta_class_size,
        'with_se': args.with_se == 'yes',
        'shared_stages': args.shared_stages,
        'embedding': args.embedding,
        'mirror': args.mirror == 'yes',
        'neutral_se': args.recipe != '2019',
        'image_size': args.image_size,
    }


@dataclass
class Progress:
    """What a run has done: all of a checkpoint except weights and optimizers."""

    epoch: int = 1
    batches: int = 0  # of this epoch
    loss: float = 0.0  # sum over them, as the accuracy is
    accuracy: float = 0.0
    seconds: float = 0.0  # of training in this epoch
    waited: float = 0.0  # of these, spent waiting for images
    seconds_before: float = 0.0  # of training in the epochs before
    tested: float = 0.0  # seconds of tests so far
    rows: list = field(default_factory=list)  # of the CSV
    best: float = -1  # score of the epoch that is kept

    def begin_epoch(self, epoch):
        """Start an epoch, unless a checkpoint within it was restored."""
        if epoch > self.epoch:
            self.seconds_before += self.seconds
            self.epoch, self.batches = epoch, 0
            self.loss = self.accuracy = self.seconds = self.waited = 0.0


class OtherSettings(UserError):
    """A run is continued with other settings than it was begun with."""


class Run:
    """A run's name, with which its files begin, and its settings of `run_settings`."""

    def __init__(self, name, results_root, settings):
        self.name, self.settings = name, settings
        self.prefix = os.path.join(results_root, name)

    def path(self, ending):
        """Return the path of one of the run's files."""
        return f'{self.prefix}_{ending}'

    def checkpoints(self):
        """Return the run's checkpoints, the newest first."""
        return checkpoints.list_checkpoints(self.path('checkpoint'))

    def check_start(self, resume, overwrite=False):
        """Return whether there is anything to train; the run is locked.

        A checkpoint that is not resumed is removed if `overwrite` is true. Raises
        UserError, unless `overwrite` is true, if the run was interrupted and is not
        resumed, or if it is finished and was run with other settings.
        """
        if self.checkpoints() and not resume:
            if not overwrite:
                raise UserError(
                    f'{self.name} was interrupted: continue with --resume, or start '
                    'again with --overwrite'
                )
            processes.wait_for_all()  # until all have seen them
            if processes.is_first():
                remove(self.path('checkpoint'))
            processes.wait_for_all()
        elif not self.checkpoints():
            finished = self.is_finished(overwrite)
            if resume and finished:
                print(f'{self.name} is finished: nothing to do')
                return False
            if resume:
                line = f'{self.name} has no checkpoint: training begins'
                print(f'notice: --resume: {line}')
        if processes.is_first():  # it holds the lock, so nothing else writes them
            if not self.checkpoints():
                remove(self.path('copies'))
                remove(self.path('tensorboard'))
            for path in map(self.path, WRITTEN):
                remove_leftovers(*os.path.split(path), older_than=0)
        return True

    def is_finished(self, overwrite):
        """Whether a run of this name and with these settings is finished.

        Raises UserError, unless `overwrite` is true, if the finished run had other
        settings, or if its run.json is damaged.
        """
        path = self.path('run.json')
        if not os.path.isfile(path):
            return False
        try:
            run = read_run_json(path)
            if run.get('finished'):
                settings = {**run['arguments'], 'precision': run['precision']}
                settings['split_sha256'] = run['data']['split_sha256']
                self.refuse_other_settings(settings, path)
        except UserError as error:
            if overwrite:
                return False
            raise UserError(f'{error}; {KEEP}') from None
        return bool(run.get('finished'))

    @contextlib.contextmanager
    def locked(self):
        """Lock the run. Raises UserError if another process or thread trains it.

        The system releases the lock when the process ends, however it ends.
        """
        if not processes.is_first():
            yield
            return
        path = os.path.abspath(f'{self.prefix}.lock')
        os.makedirs(os.path.dirname(path), exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f'{self.name} is going on in another process, which locks {path}: '
                'wait for it or stop it'
            ) from None
        except (NotImplementedError, OSError):  # some network disks
            line = f'notice: {path} cannot be locked: start this run only once'
            print(line, file=sys.stderr)
        try:
            yield
        finally:
            with contextlib.suppress(PermissionError):  # Windows removes it later
                remove(path)
            lock.release()

    def refuse_other_settings(self, saved, source):
        """Raise OtherSettings naming the flag if the run began with other settings."""
        for name, value in self.settings.items():
            if saved.get(name) == value:
                continue
            if name == 'split_sha256':
                raise OtherSettings(
                    f'the dataset has changed since {source} was written'
                )
            raise OtherSettings(
                f'--{name} {value}: {source} was begun with {saved.get(name)}'
            )

    def begin(self, trainer):
        """Load the newest checkpoint that every process can read; return its Progress.

        Without checkpoints, the Progress is new. Newer ones that are damaged are
        removed. Raises UserError if the settings differ, or if none can be read.
        """
        folders = self.checkpoints()
        for number, folder in enumerate(folders):
            problem = None
            try:
                progress = self.load(trainer, folder)
            except OtherSettings as error:
                raise UserError(f'{error}; {KEEP}') from None
            except (UserError, OSError) as error:
                problem = error
            if processes.any_process(problem):
                problem = problem or f'another process cannot read {folder}'
                print(f'notice: {problem}; this checkpoint is left out')
                continue
            if processes.is_first():
                for damaged in folders[:number]:  # they will be written again
                    remove(damaged)
            done = f'epoch {progress.epoch}, after {progress.batches:,} batches'
            print(f'resumed    {done}')
            return progress
        if folders:
            raise UserError(
                f'no checkpoint in {self.path("checkpoint")} can be read: remove it to '
                'start again'
            )
        return Progress()

    def load(self, trainer, folder):
        """Load a checkpoint into the trainer; return its Progress."""
        state = checkpoints.read(folder, 'state', ('settings', 'progress', 'noise'))
        self.refuse_other_settings(state['settings'], folder)
        trainer.restore(folder)
        if trainer.noise:
            trainer.noise.set_state(state['noise'])
        return Progress(**state['progress'])

    def save_checkpoint(self, trainer, progress):
        """Write a checkpoint, all processes together; return its folder."""
        files = trainer.checkpoint()
        if processes.is_first():
            noise = trainer.noise.get_state() if trainer.noise else None
            state = {'settings': self.settings, 'progress': asdict(progress)}
            files['state'] = {**state, 'noise': noise}
        root = self.path('checkpoint')
        return checkpoints.write(root, progress.epoch, progress.batches, files)

    def try_checkpoint(self, trainer, progress):
        """Write a checkpoint; if that fails, warn and train on."""
        try:
            self.save_checkpoint(trainer, progress)
        except ConnectionError:
            raise
        except OSError as error:
            line = f'warning: {error}; the checkpoint before it is kept'
            say(line, sys.stderr)

    def write_csv(self, progress):
        """Write a row for each epoch so far."""
        write_table(self.path('results.csv'), pd.DataFrame(progress.rows))

    def keep(self, model, database, provenance):
        """Write the model, its database and run.json of the epoch that is kept."""
        write_tensors(
            {self.path('model.pth'): model, self.path('data_base.pth'): database}
        )
        write_json(self.path('run.json'), provenance)

    def end(self, progress):
        """Note in run.json that the run is finished; remove checkpoints and copies."""
        path = self.path('run.json')
        trained = progress.seconds_before + progress.seconds
        seconds = {'train_seconds': trained, 'seconds': trained + progress.tested}
        write_json(path, {**read_run_json(path), **seconds, 'finished': True})
        shutil.rmtree(self.path('checkpoint'))
        remove(self.path('copies'))

    def outcome(self):
        """Return the figures of a finished run, and where its files are."""
        run = read_run_json(self.path('run.json'))
        paths = {name.partition('.')[0]: self.path(name) for name in WRITTEN}
        figures = {'figures': run['metrics'], 'intervals': run['intervals']}
        return {'run': self.name, **figures, 'paths': paths}


def read_run_json(path):
    """Return the dict of a run.json. Raises UserError if it is damaged."""
    try:
        # it holds names of files, which need not be valid UTF-8
        with open(path, encoding='utf-8', errors='surrogateescape') as file:
            run = json.load(file)
        if {'arguments', 'precision', 'data'} <= run.keys():
            return run
    except (ValueError, AttributeError):
        pass
    raise UserError(f'{path} is damaged or no run.json of train.py')


def earlier_calibration(args, images, classes, transformer=False):
    """Return the calibration of the run of --threshold_from, or None without it.

    images, classes: how many there are to train; transformer: whether the network is
    one. Raises UserError if that run is not finished, has no calibration, or was
    trained with other flags of CALIBRATED. A flag may differ if it follows from these
    numbers in both runs.
    """
    if not args.threshold_from:
        return None
    flag = f'--threshold_from {args.threshold_from}'
    names = args.threshold_from, os.path.join(args.results_root, args.threshold_from)
    paths = [f'{name}_run.json' for name in names if os.path.isfile(f'{name}_run.json')]
    if not paths:
        raise UserError(f'{flag}: neither {names[0]}_run.json nor {names[1]}_run.json')
    run = read_run_json(paths[0])
    if not run.get('finished') or not run['calibration']:
        lacks = 'no threshold' if run.get('finished') else 'not been finished'
        raise UserError(f'{flag}: that run has {lacks}')
    other, data = argparse.Namespace(**run['arguments']), run['data']
    other_images, other_classes = data['counts']['train']
    other_classes -= len(data['held_out'])
    usual = default_values(args, images, classes, args.weights == 'none', transformer)
    counts = other_images, other_classes
    others = default_values(other, *counts, other.weights == 'none', transformer)
    for name in CALIBRATED:
        values = getattr(args, name), getattr(other, name)
        follow = values == (usual.get(name), others.get(name))
        if values[0] != values[1] and not follow:
            raise UserError(
                f'{flag}: --{name} is {values[0]}, but that run has {values[1]}'
            )
    return run['calibration']


def read_results(path):
    """Return the table of a run's CSV; what is not a number becomes NaN.

    Raises UserError if it is damaged.
    """
    try:
        table = pd.read_csv(path).apply(pd.to_numeric, errors='coerce')
        return table.dropna(subset=['epoch'])
    except (ValueError, LookupError):
        raise UserError(f'{path} is damaged') from None

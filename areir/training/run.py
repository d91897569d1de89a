"""One training run: its name, its settings, its progress, and the files it writes."""

import os
import shutil
import sys
from dataclasses import asdict, dataclass, field

import pandas as pd
from tqdm import tqdm

from areir import processes
from areir.cli.recipes import BEFORE_RECIPES, default_recipe
from areir.errors import UserError
from areir.files import (
    file_checksum,
    refuse_folder,
    remove_leftovers,
    write_json,
    write_table,
    write_tensors,
)
from areir.training import checkpoints
from areir.training.finished import (
    AGAIN,
    csv_problem,
    read_run_json,
    saved_settings,
    tested_epochs,
    with_checksum,
)
from areir.training.run_lock import RunLock

CHECKPOINTS_KEPT = 'the checkpoints of the run are kept'

# flags that may differ when a run is resumed
FREE = (
    *('data_root', 'results_root', 'num_workers', 'gpu_ids'),
    *('resume', 'checkpoint_minutes', 'test_every'),
)
MOST_CLASSES = 23  # per meta-class in the published runs
WRITTEN = 'results.csv', 'model.pth', 'data_base.pth', 'run.json', 'curves.svg'


def run_name(args, old_heads):
    """Return the name of a run; old_heads: how many are those of --extend, or 0."""
    backbone = args.model_type + ('' if args.with_se == 'yes' else '_no_se')
    sizes = f'{args.ensemble_size}_{args.meta_class_size}'
    name = f'{args.data_name}_{args.crop_type}_{backbone}_{sizes}'
    if args.protocol != 'strict':
        name += f'_{args.protocol}'
    elif args.select != 'last':
        name += f'_select_{args.select}'
    if args.recipe != default_recipe(args):
        name += f'_{args.recipe}'
    return name + (f'_from_{old_heads}' if old_heads else '')


# what models had before there were these arguments
MODEL_ARGS_BEFORE = {
    'shared_stages': 1,
    'embedding': 'logits',
    'mirror': False,
    'neutral_se': False,
}


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
    }


def run_settings(args, precision, split_sha256):
    """Return what may not change when a run is resumed, as plain values."""
    settings = {name: value for name, value in vars(args).items() if name not in FREE}
    return {**settings, 'precision': precision, 'split_sha256': split_sha256}


def warn_about_meta_classes(meta_class_size, classes):
    """Print a notice if meta-classes are fewer than half of the usual number."""
    if meta_class_size < classes / MOST_CLASSES / 2:
        print(
            f'notice: --meta_class_size {meta_class_size} is low for {classes:,} '
            f'training classes: {classes // MOST_CLASSES} to {classes:,} are usual'
        )


def refuse_idle_processes(heads, world):
    """Raise UserError if torchrun started more processes than heads are trained."""
    if world > heads:
        raise UserError(
            f'--ensemble_size: torchrun started {world} processes, and each needs one '
            f'of the {heads} heads to train'
        )


@dataclass
class EpochProgress:
    """What an epoch has done: sums over its batches, and seconds."""

    batches: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0  # of these, spent waiting for images

    def add(self, loss, accuracy):
        """Count one batch."""
        self.batches += 1
        self.loss += loss
        self.accuracy += accuracy


@dataclass
class Progress:
    """What a run has done: all of a checkpoint except weights and optimizers."""

    epoch: int = 1
    done: EpochProgress = field(default_factory=EpochProgress)
    seconds: float = 0.0  # of training in the epochs before
    rows: list = field(default_factory=list)  # of the CSV
    best: float = -1  # score of the epoch that is kept
    kept: str = ''  # the line about that epoch

    def to_state(self, settings):
        """Return the plain values that a checkpoint stores."""
        return {
            'settings': settings,
            'epoch': self.epoch,
            'done': asdict(self.done),
            'seconds': self.seconds,
            'rows': self.rows,
            'best': self.best,
            'kept': self.kept,
        }

    @classmethod
    def from_state(cls, state):
        """Return the Progress that a checkpoint stores."""
        return cls(
            epoch=state['epoch'],
            done=EpochProgress(**state['done']),
            seconds=state.get('seconds', 0.0),  # older files lack it
            rows=state['rows'],
            best=state['best'],
            kept=state['kept'],
        )

    def begin_epoch(self, epoch):
        """Start an epoch, unless a checkpoint within it was restored."""
        if epoch > self.epoch:
            self.epoch = epoch
            self.seconds += self.done.seconds
            self.done = EpochProgress()


class Run:
    """Where a run writes, with which settings, and what it has written so far.

    name: what its files below results_root begin with; settings: as `run_settings`
    returns them.
    """

    def __init__(self, name, results_root, settings):
        self.name, self.settings = name, settings
        self.prefix = os.path.join(results_root, name)
        self.lock = RunLock(self.prefix)

    def path(self, ending):
        """Return the path of one of the run's files."""
        return f'{self.prefix}_{ending}'

    def checkpoints(self):
        """Return the run's checkpoints, the newest first."""
        return checkpoints.list_checkpoints(self.path('checkpoint'))

    def check_start(self, resume, num_epochs):
        """Return whether there is anything to train; if so, lock the run.

        All processes call it together. Raises UserError if another process trains the
        run, if it was interrupted and is not resumed, or if it is finished and was run
        with other settings.
        """
        self.take_lock()
        starts = False
        try:
            if self.needs_training(resume, num_epochs):
                self.clear_the_way()
                starts = True
        finally:
            if not starts:
                self.lock.release()
        return starts

    def take_lock(self):
        """Lock the run in rank 0. Raises what that raises, in every process."""
        problem = None
        if processes.is_first():
            try:
                self.lock.take()
            except (UserError, OSError) as error:
                problem = error
        problem = processes.from_first(problem)
        if problem:
            raise problem

    def clear_the_way(self):
        """Remove what a killed process left of the files to write.

        Raises UserError if a folder has the name of one.
        """
        for path in map(self.path, WRITTEN):
            refuse_folder(path)
            if processes.is_first():  # it holds the lock, so nothing else writes them
                remove_leftovers(*os.path.split(path), older_than=0)

    def needs_training(self, resume, num_epochs):
        """Return whether there is anything to train, with a notice why not or how."""
        if self.checkpoints():
            if not resume:
                raise UserError(
                    f'{self.name} was interrupted: continue with --resume, or remove '
                    f'{self.path("checkpoint")} to start again'
                )
            return True
        if not resume:
            return True
        if self.is_finished(num_epochs):
            return False
        print(f'notice: --resume: {self.name} has no checkpoint: training begins')
        return True

    def is_finished(self, num_epochs):
        """Return whether a run without checkpoints is finished; if so, print it.

        A damaged CSV is named, too. Raises UserError if the run had other settings. So
        that nothing is overwritten unasked, also raises it if there are results, but
        it is not certain that the run is finished.
        """
        json_path, csv_path = self.path('run.json'), self.path('results.csv')
        others = [csv_path, self.path('model.pth'), self.path('data_base.pth')]
        present = [path for path in others if os.path.isfile(path)]
        if not os.path.isfile(json_path):
            if present:
                raise UserError(
                    f'{json_path} is missing, but {present[0]} is there; {AGAIN}'
                )
            return False
        run = read_run_json(json_path)
        self.refuse_other_settings(saved_settings(run, json_path), json_path)
        tested = tested_epochs(run, json_path)
        csv_checksum = run.get('csv_checksum')
        problem = csv_problem(csv_path, tested, num_epochs, csv_checksum)
        if tested is None and problem:
            raise UserError(f'{problem}; {AGAIN}')
        print(f'{self.name} is finished: nothing to do')
        if problem:
            print(f'notice: {problem}; {AGAIN}')
        return True

    def refuse_other_settings(self, saved, source):
        """Raise UserError naming the flag if the run began with other settings."""
        for name, value in self.settings.items():
            saved_value = saved.get(name, BEFORE_RECIPES.get(name))
            if saved_value == value:
                continue
            if name == 'split_sha256':
                raise UserError(
                    f'the dataset has changed since {source} was written: undo that, '
                    'or train with another --results_root'
                )
            raise UserError(f'--{name} {value}: {source} was begun with {saved_value}')

    def begin(self, trainer):
        """Load the newest checkpoint, if any; return its Progress, or a new one."""
        if not self.checkpoints():
            return Progress()
        progress = self.restore(trainer)
        done = progress.done.batches
        print(f'resumed    epoch {progress.epoch}, after {done:,} batches')
        return progress

    def restore(self, trainer):
        """Load the newest checkpoint that every process can read; return its Progress.

        Newer ones that are damaged are removed. Raises UserError if its settings
        differ, or if none can be read.
        """
        damaged = []
        for folder in self.checkpoints():
            state, problem = self.read_state(folder)
            if state:
                problem = try_restore(trainer, folder, state)
            if not processes.any_process(problem):
                checkpoints.remove_damaged(damaged)
                return Progress.from_state(state)
            problem = problem or f'another process cannot read {folder}'
            print(f'notice: {problem}; this checkpoint is left out')
            damaged.append(folder)
        raise UserError(
            f'no checkpoint in {self.path("checkpoint")} can be read: remove it to '
            'start again'
        )

    def read_state(self, folder):
        """Return (state of a checkpoint, None) or (None, why it cannot be read).

        Raises UserError if it was made with other settings.
        """
        try:
            state = checkpoints.read_state(folder)
        except (UserError, OSError) as error:
            return None, error
        self.refuse_other_settings(state['settings'], folder)
        return state, None

    def save_checkpoint(self, trainer, progress):
        """Write a checkpoint, all processes together; return its folder."""
        files = trainer.checkpoint()
        if processes.is_first():
            files['state'] = progress.to_state(self.settings)
            if trainer.noise:
                files['state']['noise'] = trainer.noise.get_state()
        else:
            del files['trunk']
        root, batch = self.path('checkpoint'), progress.done.batches
        return checkpoints.write(root, progress.epoch, batch, files)

    def try_checkpoint(self, trainer, progress):
        """Write a checkpoint; if that fails, warn and train on."""
        try:
            self.save_checkpoint(trainer, progress)
        except ConnectionError:
            raise
        except OSError as error:
            line = f'warning: {error}; the checkpoint before it is kept'
            tqdm.write(line, file=sys.stderr)

    def write_csv(self, progress):
        """Write the CSV: a row for each epoch so far."""
        write_table(self.path('results.csv'), pd.DataFrame(progress.rows))

    def keep(self, model, database, provenance):
        """Write the model, its database and run.json of the epoch that is kept."""
        write_tensors(
            {self.path('model.pth'): model, self.path('data_base.pth'): database}
        )
        write_json(self.path('run.json'), with_checksum(provenance))

    def calibration(self):
        """Return the threshold of the epoch that was kept, or None."""
        run = read_run_json(self.path('run.json'), CHECKPOINTS_KEPT)
        return run.get('calibration')

    def end(self, progress):
        """Note in run.json that the run is finished, remove its checkpoints, unlock."""
        run = read_run_json(self.path('run.json'), CHECKPOINTS_KEPT)
        tested = [row['epoch'] for row in progress.rows]
        with open(self.path('results.csv'), 'rb') as file:
            csv_checksum = file_checksum(file)
        finished = {
            'finished': True,
            'tested_epochs': tested,
            'csv_checksum': csv_checksum,
        }
        write_json(self.path('run.json'), with_checksum({**run, **finished}))
        shutil.rmtree(self.path('checkpoint'))
        self.lock.release()


def try_restore(trainer, folder, state):
    """Load a checkpoint into the trainer; return why it cannot be read, or None."""
    try:
        trainer.restore(folder)
        if trainer.noise:
            trainer.noise.set_state(state['noise'])
    except (UserError, OSError) as error:
        return error
    except (LookupError, TypeError, RuntimeError):  # of set_state
        return (
            f'{os.path.join(folder, "state.pth")} is damaged: noise is missing or is '
            'not the state of a random generator'
        )
    return None

"""A run in TensorBoard, Weights & Biases or MLflow, for train.py --log.

Each of LOGS starts a log of a Run and its {flag: value}, and returns three functions:
(name, number, epoch) -> None, (name, picture) -> None, and (whether the run has failed)
-> None, which ends the log.
"""

import contextlib
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch

from areir.bars import say
from areir.errors import UserError
from areir.files import load_tensors, remove
from areir.gallery.collection import DatabaseCollection
from areir.gallery.queries import stored_query
from areir.output.answers import draw_answer, make_answer
from areir.output.run_statistics import SearchedImages, pick
from areir.output.sheets import THUMBNAIL
from areir.processes import is_first

NEIGHBOURS = 8  # nearest images shown of a query


def to_tensorboard(run, flags):
    """Write results/<run>_tensorboard; replace an earlier one."""
    from torch.utils.tensorboard import SummaryWriter

    remove(run.path('tensorboard'))
    log = SummaryWriter(run.path('tensorboard'), flush_secs=10)
    log.add_text('flags', '\n'.join(f'    {flag}: {flags[flag]}' for flag in flags))
    return (
        log.add_scalar,
        lambda name, picture: log.add_image(
            name, np.asarray(picture), dataformats='HWC'
        ),
        lambda failed: log.close(),
    )


def to_wandb(run, flags):
    """Send a run to where the variables WANDB_* say."""
    import wandb

    log = wandb.init(dir=os.path.dirname(run.prefix), name=run.name, config=flags)
    return (
        lambda name, value, epoch: log.log({name: value}, step=epoch),
        lambda name, picture: log.log({name: wandb.Image(picture)}),
        lambda failed: log.finish(exit_code=int(failed)),
    )


def to_mlflow(run, flags):
    """Write to the store and the experiment that mlflow is set to.

    By default they are results/mlflow.db and areir.
    """
    import mlflow

    folder, uri, options = Path(run.prefix).absolute().parent, None, {}
    if not mlflow.is_tracking_uri_set():
        uri = f'sqlite:///{folder.as_posix()}/mlflow.db'
        options = {'artifact_location': (folder / 'mlflow_artifacts').as_uri()}
    client = mlflow.MlflowClient(uri)
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'areir')
    found = client.get_experiment_by_name(name)
    number = found.experiment_id if found else client.create_experiment(name, **options)
    log = client.create_run(number, run_name=run.name).info.run_id
    for flag, value in flags.items():
        client.log_param(log, flag, value)

    return (
        lambda name, value, epoch: client.log_metric(  # it refuses @
            log, name.replace('@', '_at_'), value, step=epoch
        ),
        lambda name, picture: client.log_image(log, picture, f'{name}.png'),
        lambda failed: client.set_terminated(log, 'FAILED' if failed else 'FINISHED'),
    )


LOGS = {'tensorboard': to_tensorboard, 'wandb': to_wandb, 'mlflow': to_mlflow}


def attempt(method):
    """Make a method of RunLog warn if it fails, and do nothing from then on."""

    def run(log, *arguments):
        try:
            if log.name:
                method(log, *arguments)
        except Exception as error:
            line = f'warning: --log {log.name}: {error}; nothing more is sent there'
            say(line, sys.stderr)
            log.name = None

    return run


class RunLog(contextlib.AbstractContextManager):
    """Sends a run from rank 0 to one of LOGS, or nowhere if its name is None.

    As a context manager it ends that log. Raises UserError if the log cannot begin.
    """

    def __init__(self, name, run, flags):
        self.name, self.sent = name if is_first() else None, 0
        try:
            if self.name:
                self.add_number, self.add_picture, self.end = LOGS[name](run, flags)
        except Exception as error:
            raise UserError(f'--log {name}: {error}') from error

    @attempt
    def __exit__(self, kind, error, traceback):
        self.end(kind is not None)

    @attempt
    def send_rows(self, rows):
        """Send the rows of the CSV that were not sent: all that a resumed run has."""
        for row in rows[self.sent :]:
            for name, value in row.items():
                if isinstance(value, float) and math.isfinite(value):
                    self.add_number(name, value, row['epoch'])
        self.sent = len(rows)

    @attempt
    def send_worst_queries(self, path, folder):
        """Send contact sheets of queries whose first right images come latest.

        path: the run's database; folder: that the names of its images are relative to.
        """
        database = load_tensors(path)
        collection = DatabaseCollection(database, path, folder, None, None)
        images = SearchedImages(database)
        ranks = images.rank(slice(None))['rank']
        scores, nearest = images.nearest(min(NEIGHBOURS, images.available))
        nearest[scores == -torch.inf] = -1  # ignored
        for number, row in enumerate(pick(ranks, images.query_labels, ranks > 1), 1):
            place = collection.names.index(images.query_images[row])
            query = stored_query(place, collection)
            found = scores[row].tolist(), nearest[row].tolist()
            answer = make_answer(query, *found, collection, NEIGHBOURS)
            sheet, _ = draw_answer(answer, THUMBNAIL)
            name = os.path.basename(query.name)
            self.add_picture(f'worst queries/{number} {name}', sheet)

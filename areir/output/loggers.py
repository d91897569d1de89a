"""A run in TensorBoard, Weights & Biases or MLflow, for train.py --log.

`to_tensorboard` and so on start a log of a Run and its {flag: value}. They return three
functions: (name, number, epoch) -> None, (number, name, picture) -> None, and
(whether the run has failed) -> None, which ends the log.
"""

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
from areir.gallery.queries import Query
from areir.output.answers import draw_answer, make_answer
from areir.output.run_statistics import SearchedImages, pick
from areir.output.sheets import THUMBNAIL

NEIGHBOURS = 8  # nearest images shown of a query


def to_tensorboard(run, flags):
    """Write results/<run>_tensorboard anew."""
    from torch.utils.tensorboard import SummaryWriter

    remove(run.path('tensorboard'))
    writer = SummaryWriter(run.path('tensorboard'), flush_secs=10)
    writer.add_text('flags', '\n'.join(f'    {key}: {flags[key]}' for key in flags))
    return (
        writer.add_scalar,
        lambda number, name, picture: writer.add_image(
            f'worst queries/{number} {name}', np.asarray(picture), dataformats='HWC'
        ),
        lambda failed: writer.close(),
    )


def to_wandb(run, flags):
    """Send a run to where the variables WANDB_* say."""
    import wandb

    log = wandb.init(dir=os.path.dirname(run.prefix), name=run.name, config=flags)
    return (
        lambda name, value, epoch: log.log({name: value}, step=epoch),
        lambda number, name, picture: log.log(
            {f'worst queries/{number}': wandb.Image(picture, caption=name)}
        ),
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
        lambda number, name, picture: client.log_image(
            log, picture, f'worst_queries/{number}_{name}.png'
        ),
        lambda failed: client.set_terminated(log, 'FAILED' if failed else 'FINISHED'),
    )


LOGS = {'tensorboard': to_tensorboard, 'wandb': to_wandb, 'mlflow': to_mlflow}


class Log:
    """Sends a run to one of LOGS, and ends that log as a context manager.

    Raises UserError if the log cannot begin. If sending fails later, there is one
    warning, and nothing more is sent.
    """

    def __init__(self, name, run, flags):
        self.name, self.sent, self.works = name, 0, True
        try:
            self.add_number, self.add_picture, self.end = LOGS[name](run, flags)
        except Exception as error:
            raise UserError(f'--log {name}: {error}') from error

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.attempt(self.end, kind is not None)

    def attempt(self, function, *arguments):
        """Call a function unless another call has failed."""
        try:
            if self.works:
                function(*arguments)
        except Exception as error:
            self.works = False
            line = f'warning: --log {self.name}: {error}; nothing more is sent there'
            say(line, sys.stderr)

    def send_rows(self, rows):
        """Send the rows of the CSV that were not sent: all that a resumed run has."""
        for row in rows[self.sent :]:
            for name, value in row.items():
                if isinstance(value, float) and math.isfinite(value):
                    self.attempt(self.add_number, name, value, row['epoch'])
        self.sent = len(rows)

    def send_worst_queries(self, path, folder):
        """Send contact sheets of queries whose first right images come latest.

        path: the run's database; folder: that the names of its images are relative to.
        """
        self.attempt(draw_worst_queries, path, folder, self.add_picture)


def draw_worst_queries(path, folder, add_picture):
    """Call add_picture(number, name of the query, contact sheet) for each of them."""
    database = load_tensors(path)
    collection = DatabaseCollection(database, path, folder, None, None)
    images, classes = SearchedImages(database), database['classes']
    ranks = images.rank(slice(None))['rank']
    scores, nearest = images.nearest(min(NEIGHBOURS, images.available))
    nearest[scores == -torch.inf] = -1  # ignored
    worst = pick(ranks.double(), images.query_labels, ranks > 1)
    for number, row in enumerate(worst, 1):
        name, label = images.query_images[row], classes[images.query_labels[row]]
        query = Query(os.path.join(folder, name), name, label)
        found = scores[row].tolist(), nearest[row].tolist()
        answer = make_answer(query, *found, collection, NEIGHBOURS)
        sheet, _ = draw_answer(answer, THUMBNAIL)
        add_picture(number, os.path.basename(name), sheet)

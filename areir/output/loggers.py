"""A run in TensorBoard, Weights & Biases or MLflow, for train.py --log.

Each logger has log_row({name: number}, epoch), log_pictures([(caption, image)]) and
end(failed).
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


class TensorBoard:
    """Writes results/<run>_tensorboard anew."""

    def __init__(self, run, flags):
        from torch.utils.tensorboard import SummaryWriter

        remove(run.path('tensorboard'))
        self.writer = SummaryWriter(run.path('tensorboard'))
        lines = [f'    {name}: {value}' for name, value in flags.items()]
        self.writer.add_text('flags', '\n'.join(lines))

    def log_row(self, row, epoch):
        for name, value in row.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def log_pictures(self, pictures):
        for number, (caption, image) in enumerate(pictures, 1):
            name = f'worst queries/{number} {caption}'
            self.writer.add_image(name, np.asarray(image), dataformats='HWC')

    def end(self, failed):
        self.writer.close()


class WeightsAndBiases:
    """Sends a run to where the variables WANDB_* say."""

    def __init__(self, run, flags):
        import wandb

        self.make_image, folder = wandb.Image, os.path.dirname(run.prefix)
        self.run = wandb.init(dir=folder, name=run.name, config=flags)

    def log_row(self, row, epoch):
        self.run.log(row, step=epoch)

    def log_pictures(self, pictures):
        images = [self.make_image(image, caption=text) for text, image in pictures]
        self.run.log({'worst queries': images})

    def end(self, failed):
        self.run.finish(exit_code=int(failed))


class MLflow:
    """Writes to the store and the experiment that mlflow is set to.

    By default they are results/mlflow.db and areir.
    """

    def __init__(self, run, flags):
        import mlflow

        folder, uri, options = Path(run.prefix).absolute().parent, None, {}
        if not mlflow.is_tracking_uri_set():
            uri = f'sqlite:///{folder.as_posix()}/mlflow.db'
            options = {'artifact_location': (folder / 'mlflow_artifacts').as_uri()}
        self.client = mlflow.MlflowClient(uri)
        name = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'areir')
        found = self.client.get_experiment_by_name(name)
        number = found and found.experiment_id
        number = number or self.client.create_experiment(name, **options)
        self.run = self.client.create_run(number, run_name=run.name).info.run_id
        for flag, value in flags.items():
            self.client.log_param(self.run, flag, value)

    def log_row(self, row, epoch):
        for name, value in row.items():
            name = name.replace('@', '_at_')  # mlflow refuses @
            self.client.log_metric(self.run, name, value, step=epoch)

    def log_pictures(self, pictures):
        for number, (caption, image) in enumerate(pictures, 1):
            self.client.log_image(self.run, image, f'worst_queries/{number}.png')
            self.client.log_text(self.run, caption, f'worst_queries/{number}.txt')

    def end(self, failed):
        self.client.set_terminated(self.run, 'FAILED' if failed else 'FINISHED')


LOGGERS = {'tensorboard': TensorBoard, 'wandb': WeightsAndBiases, 'mlflow': MLflow}


class Log:
    """Sends a run's rows and pictures to the loggers of --log; a context manager.

    names: of LOGGERS; run: a Run; flags: {flag: value}. Raises UserError if a logger
    cannot begin. One that fails later is left out, with a warning.
    """

    def __init__(self, names, run, flags):
        self.sent, self.loggers = 0, {}
        for name in names:
            try:
                self.loggers[name] = LOGGERS[name](run, flags)
            except Exception as error:
                raise UserError(f'--log {name}: {error}') from error

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        self.each('end', kind is not None)

    def each(self, method, *arguments):
        """Call a method of each logger."""
        for name, logger in list(self.loggers.items()):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:
                text = f'warning: --log {name}: {error}; nothing more is sent there'
                say(text, sys.stderr)
                del self.loggers[name]

    def send_rows(self, rows):
        """Send the rows of the CSV that were not sent: all that a resumed run has."""
        for row in rows[self.sent :]:
            numbers = {key: value for key, value in row.items() if is_figure(value)}
            self.each('log_row', numbers, row['epoch'])
        self.sent = len(rows)

    def send_pictures(self, path, folder):
        """Send sheets of the worst queries of a database (see `worst_queries`)."""
        try:
            self.each('log_pictures', worst_queries(path, folder))
        except (UserError, OSError) as error:
            say(f'warning: --log: no pictures: {error}', sys.stderr)


def is_figure(value):
    """Whether a value of a row is a finite float."""
    return isinstance(value, float) and math.isfinite(value)


def worst_queries(path, folder):
    """Return [(caption, contact sheet)] of queries whose right images come latest.

    path: a database of train.py; folder: that its images' names are relative to.
    Raises UserError if one of them cannot be read.
    """
    database, pictures = load_tensors(path), []
    collection = DatabaseCollection(database, path, folder, None, None)
    images, classes = SearchedImages(database), database['classes']
    ranks = images.rank(slice(None))['rank']
    scores, nearest = images.nearest(min(NEIGHBOURS, images.available))
    nearest[scores == -torch.inf] = -1  # ignored
    for query in pick(ranks.double(), images.query_labels, ranks > 1):
        name = images.query_images[query]
        label = classes[images.query_labels[query]]
        asked = Query(os.path.join(folder, name), name, label)
        found = scores[query].tolist(), nearest[query].tolist()
        answer = make_answer(asked, *found, collection, NEIGHBOURS)
        caption = f'{name}: the first right image has rank {ranks[query]:,}'
        pictures.append((caption, draw_answer(answer, THUMBNAIL)[0]))
    return pictures

"""--log: what TensorBoard and MLflow hold afterwards, and what wandb is told."""

import io
import sys

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image
from slim import use_slim_backbone
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train_runs import FLAGS, RUN

from areir import train
from areir.errors import UserError
from areir.output import loggers
from areir.scripts.train import get_args
from areir.training import result as result_module
from areir.training.run import FREE, Run

SETTINGS = dict(zip([flag[2:] for flag in FLAGS[::2]], FLAGS[1::2]))
SETTINGS |= {'recalls': [1, 2, 4], 'num_epochs': 2, 'num_workers': 0, 'quiet': True}
STAND_IN = """
calls = []

class Image:
    def __init__(self, image):
        self.size = image.size

class Run:
    def log(self, values, step=None):
        calls.append((step, values))

    def finish(self, exit_code):
        calls.append(exit_code)

def init(**options):
    calls.append(options)
    return Run()
"""


def train_small(slim, results, **flags):
    roots = {'data_root': slim.root / 'data', 'results_root': results}
    return train({**SETTINGS, **roots, **flags})


@pytest.fixture(scope='module')
def logged(slim, tmp_path_factory):
    """A run that is sent to TensorBoard: (its numbers by epoch, its folder)."""
    folder = tmp_path_factory.mktemp('logged') / 'my results'
    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        outcome = train_small(slim, folder, log='tensorboard')
    table = pd.read_csv(outcome['paths']['results']).set_index('epoch')
    numbers = table.select_dtypes('number').dropna(axis=1)
    assert {'train_loss', 'test_recall@1', 'lr'} <= set(numbers) and len(numbers) == 2
    return numbers, folder


def send(name, slim, logged):
    """Send the same run to another log."""
    numbers, folder = logged
    run = Run(RUN, str(folder), {})
    with loggers.RunLog(name, run, {'recalls': [1, 2, 4], 'num_epochs': 2}) as log:
        log.send_rows(numbers.reset_index().to_dict('records'))
        log.send_worst_queries(run.path('data_base.pth'), slim.root / 'data/small')


def scalars(folder):
    """Return {name: [(step, value)]} of a folder of TensorBoard."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()['scalars']
    }


def size_of(content):
    with Image.open(io.BytesIO(content)) as image:
        assert len(image.getcolors(2**20)) > 10
        return image.size


def test_tensorboard_holds_rows_flags_and_pictures(logged):
    numbers, folder = logged
    found = scalars(folder / f'{RUN}_tensorboard')
    assert set(found) == set(numbers)
    for name, column in numbers.items():
        assert found[name] == [
            (epoch, pytest.approx(value)) for epoch, value in column.items()
        ]
    events = EventAccumulator(str(folder / f'{RUN}_tensorboard')).Reload()
    (text,) = events.Tensors('flags/text_summary')
    assert b'num_epochs: 2\n' in text.tensor_proto.string_val[0]
    tags = events.Tags()['images']
    assert 1 <= len(tags) <= 8 and tags[0].startswith('worst queries/1 figure_')
    (event,) = events.Images(tags[0])
    assert size_of(event.encoded_image_string) == (event.width, event.height)
    assert event.width > 8 * 192 and event.height > 192  # a query and 8 images


def test_mlflow_holds_rows_flags_and_pictures(slim, logged, tmp_path, monkeypatch):
    numbers, folder = logged
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    monkeypatch.delenv('MLFLOW_EXPERIMENT_NAME', raising=False)
    send('mlflow', slim, logged)
    client = MlflowClient(f'sqlite:///{folder}/mlflow.db')
    experiment = client.get_experiment_by_name('areir')
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (RUN, 'FINISHED')
    for name, column in numbers.items():
        name = name.replace('@', '_at_')
        history = client.get_metric_history(run.info.run_id, name)
        steps = [(metric.step, metric.value) for metric in history]
        assert steps == list(column.items())
    assert run.data.params['recalls'] == '[1, 2, 4]'
    first, *_ = client.list_artifacts(run.info.run_id, 'worst queries')
    path = client.download_artifacts(run.info.run_id, first.path, str(tmp_path))
    assert first.path.startswith('worst queries/1 figure_')
    with open(path, 'rb') as file:
        assert min(size_of(file.read())) > 192
    assert mlflow.active_run() is None and not mlflow.is_tracking_uri_set()


def test_wandb_is_told_rows_flags_and_pictures(slim, logged, tmp_path, monkeypatch):
    numbers, folder = logged
    (tmp_path / 'wandb').mkdir()
    (tmp_path / 'wandb/__init__.py').write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'wandb', raising=False)
    send('wandb', slim, logged)
    first, *calls, code = sys.modules.pop('wandb').calls
    assert first['dir'] == str(folder) and first['name'] == RUN and code == 0
    assert first['config']['num_epochs'] == 2
    for epoch in (1, 2):
        pairs = [values.items() for step, values in calls if step == epoch]
        assert dict(pair for (pair,) in pairs) == dict(numbers.loc[epoch])
    pictures = [values for step, values in calls if step is None]
    ((name, image),) = pictures[0].items()
    assert name.startswith('worst queries/1 figure_') and min(image.size) > 192


def test_the_log_of_a_resumed_run_is_whole(slim, slim_backbone, logged, tmp_path):
    """It equals that of an uninterrupted run; --overwrite removes it."""
    embed_part, calls = result_module.embed_part, []

    def embed_and_fail(*arguments):
        calls.append(1)
        if len(calls) == 4:  # in the second epoch
            raise UserError('full')
        return embed_part(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result_module, 'embed_part', embed_and_fail)
        with pytest.raises(UserError, match='full'):
            train_small(slim, tmp_path, log='tensorboard')
    folder = tmp_path / f'{RUN}_tensorboard'
    assert scalars(folder)['lr'] == [(1, pytest.approx(1e-4))]
    train_small(slim, tmp_path, log='tensorboard', resume=True)
    numbers, whole = logged
    found, wanted = scalars(folder), scalars(whole / f'{RUN}_tensorboard')
    timed = {'seconds', 'train_seconds', 'data_wait'}
    assert set(found) == set(numbers)
    for name in set(found) - timed:
        assert found[name] == wanted[name]
    train_small(slim, tmp_path, overwrite=True)
    assert not folder.exists()


def test_a_log_that_fails_ends_with_one_warning(monkeypatch, capsys):
    sent = []

    def start(run, flags):
        return (
            lambda *numbers: sent.append(numbers),
            lambda *picture: sent.append(picture),
            sent.append,
        )

    def start_and_fail(run, flags):
        def fail(*arguments):
            raise ConnectionError('no network')

        return fail, fail, sent.append

    def refuse(run, flags):
        raise PermissionError('log in first')

    monkeypatch.setattr(loggers, 'LOGS', {'a': start, 'b': start_and_fail, 'c': refuse})
    rows = [
        {'epoch': epoch, 'lr': 0.5, 'a': 'b', 'c': float('nan')} for epoch in (0, 1)
    ]
    with pytest.raises(KeyError), loggers.RunLog('a', None, {}) as log:
        log.send_rows(rows[:1])
        log.send_rows(rows)
        raise KeyError
    assert sent == [('lr', 0.5, 0), ('lr', 0.5, 1), True]
    with loggers.RunLog('b', None, {}) as log:
        log.send_rows(rows)
    with loggers.RunLog('a', None, {}) as log:  # a file that is gone
        log.send_worst_queries('nowhere.pth', 'data')
    lost, pictures = capsys.readouterr().err.splitlines()
    assert '--log b: no network' in lost and 'nowhere.pth' in pictures
    assert len(sent) == 3
    with pytest.raises(UserError, match='--log c: log in first'):
        loggers.RunLog('c', None, {})


def test_an_absent_package_is_named_at_once(tmp_path, monkeypatch):
    """A folder of its name, as wandb leaves one, is no package."""
    with pytest.raises(UserError, match=r'argument --log: .*choose from .*tensorboard'):
        get_args(['--log', 'tensorflow'])
    (tmp_path / 'wandb').mkdir()
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    with pytest.raises(UserError, match=r'--log wandb: first pip install wandb$'):
        get_args(['--log', 'wandb'])
    assert 'log' in FREE  # a resumed run may have another

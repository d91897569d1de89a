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
from areir.training.run import FREE

SETTINGS = dict(zip([flag[2:] for flag in FLAGS[::2]], FLAGS[1::2]))
SETTINGS |= {'recalls': [1, 2, 4], 'num_epochs': 2, 'num_workers': 0, 'quiet': True}
STAND_IN = """
calls = []

class Image:
    def __init__(self, image, caption):
        self.size, self.caption = image.size, caption

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
    """A run that is sent to all three: (its rows by epoch, folder, calls of wandb)."""
    folder = tmp_path_factory.mktemp('logged') / 'my results'
    modules = tmp_path_factory.mktemp('modules')
    (modules / 'wandb').mkdir()
    (modules / 'wandb/__init__.py').write_text(STAND_IN)
    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        patch.syspath_prepend(modules)
        patch.delenv('MLFLOW_TRACKING_URI', raising=False)
        patch.delenv('MLFLOW_EXPERIMENT_NAME', raising=False)
        outcome = train_small(slim, folder, log='tensorboard, mlflow,wandb')
        calls = sys.modules.pop('wandb').calls
    table = pd.read_csv(outcome['paths']['results']).set_index('epoch')
    numbers = table.select_dtypes('number').dropna(axis=1)
    assert {'train_loss', 'test_recall@1', 'lr'} <= set(numbers) and len(numbers) == 2
    return numbers, folder, calls


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
    numbers, folder, _ = logged
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
    assert 1 <= len(tags) <= 8 and all('first right image has rank' in t for t in tags)
    (event,) = events.Images(tags[0])
    assert size_of(event.encoded_image_string) == (event.width, event.height)
    assert event.width > 8 * 192 and event.height > 192  # a query and 8 images


def test_mlflow_holds_rows_flags_and_pictures(logged, tmp_path):
    numbers, folder, _ = logged
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
    path = client.download_artifacts(
        run.info.run_id, 'worst_queries/1.png', str(tmp_path)
    )
    with open(path, 'rb') as file:
        assert min(size_of(file.read())) > 192
    assert mlflow.active_run() is None and not mlflow.is_tracking_uri_set()


def test_wandb_is_told_rows_flags_and_pictures(logged):
    numbers, folder, calls = logged
    first, *rows, (_, pictures), code = calls
    assert first['dir'] == str(folder) and first['name'] == RUN
    assert first['config']['num_epochs'] == 2
    assert [epoch for epoch, _ in rows] == [1, 2] and code == 0
    for epoch, row in rows:
        assert row == pytest.approx(dict(numbers.loc[epoch]))
    sizes = [image.size for image in pictures['worst queries']]
    assert min(sizes[0]) > 192


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
    train_small(slim, tmp_path, log=['tensorboard'], resume=True)
    numbers, whole, _ = logged
    found, wanted = scalars(folder), scalars(whole / f'{RUN}_tensorboard')
    timed = {'seconds', 'train_seconds', 'data_wait'}
    assert set(found) == set(numbers)
    for name in set(found) - timed:
        assert found[name] == wanted[name]
    train_small(slim, tmp_path, overwrite=True)
    assert not folder.exists()


def test_a_log_that_fails_ends_with_one_warning(monkeypatch, capsys):
    sent = []

    class Works:
        def __init__(self, run, flags):
            sent.append(flags)

        def log_row(self, row, epoch):
            sent.append((epoch, row))

        def end(self, failed):
            sent.append(failed)

    class Fails(Works):
        def log_row(self, row, epoch):
            raise ConnectionError('no network')

    class Refuses:
        def __init__(self, run, flags):
            raise PermissionError('log in first')

    classes = {'tensorboard': Works, 'mlflow': Fails, 'wandb': Refuses}
    monkeypatch.setattr(loggers, 'LOGGERS', classes)
    rows = [
        {'epoch': epoch, 'lr': 0.5, 'a': 'b', 'c': float('nan')} for epoch in (0, 1)
    ]
    with (
        pytest.raises(KeyError),
        loggers.Log(['mlflow', 'tensorboard'], None, {}) as log,
    ):
        log.send_rows(rows[:1])
        log.send_rows(rows)
        log.send_pictures('nowhere.pth', 'data')
        raise KeyError
    assert sent == [{}, {}, (0, {'lr': 0.5}), (1, {'lr': 0.5}), True]
    lost, pictures = capsys.readouterr().err.splitlines()
    assert '--log mlflow: no network' in lost and 'nowhere.pth' in pictures
    with pytest.raises(UserError, match='--log wandb: log in first'):
        loggers.Log(['wandb'], None, {})


def test_an_absent_package_is_named_at_once(tmp_path, monkeypatch):
    """A folder of its name, as wandb leaves one, is no package."""
    with pytest.raises(UserError, match=r'argument --log: .*choose from tensorboard'):
        get_args(['--log', 'tensorflow'])
    (tmp_path / 'wandb').mkdir()
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    with pytest.raises(UserError, match=r'--log wandb: first pip install wandb$'):
        get_args(['--log', 'wandb'])
    assert 'log' in FREE  # a resumed run may have another

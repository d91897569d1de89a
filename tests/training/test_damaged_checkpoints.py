"""Checkpoints with missing or odd fields: the one before them is used."""

import math
import os

import pytest
import torch
from small import (
    equal_weights,
    interrupt,
    make_run,
    make_trainer,
    train,
)

from areir.errors import UserError
from areir.training.run import Progress


def without(name):
    def change(value):
        return {key: value[key] for key in value if key != name}

    return change


def changed(**fields):
    return lambda value: {**value, **fields}


def with_optimizer(change):
    return lambda value: {**value, 'optimizer': change(value['optimizer'])}


def shorter_moments(optimizer):
    state = {**optimizer['state'][0], 'exp_avg': torch.zeros(1)}
    return {**optimizer, 'state': {**optimizer['state'], 0: state}}


DAMAGED_STATES = [
    *map(without, ('settings', 'epoch', 'done', 'rows', 'best', 'kept')),
    *(changed(**{name: []}) for name in ('settings', 'epoch', 'done', 'seconds')),
    *(changed(**{name: 5}) for name in ('rows', 'kept')),
    changed(settings={}),
    changed(epoch=99),
    changed(best=math.nan),
    changed(rows=[5]),
    changed(rows=[{}]),
    changed(rows=[{'epoch': 99}]),
    changed(done={'batches': 2}),
    lambda state: changed(done={**state['done'], 'batches': 9})(state),
    lambda state: changed(done={**state['done'], 'loss': 'low'})(state),
    lambda state: list(state),
    lambda state: None,
]
DAMAGED_PARTS = [
    without('weights'),
    without('optimizer'),
    changed(weights={}),
    changed(weights=5),
    with_optimizer(lambda optimizer: {}),
    with_optimizer(changed(state={})),
    with_optimizer(changed(state=[])),
    with_optimizer(changed(param_groups=[])),
    with_optimizer(changed(param_groups=[5])),
    with_optimizer(shorter_moments),
    lambda part: list(part),
    lambda part: torch.ones(3),
]
DAMAGES = [('state', change) for change in DAMAGED_STATES]
DAMAGES += [('trunk', change) for change in DAMAGED_PARTS]


def change_file(folder, name, change):
    path = os.path.join(folder, f'{name}.pth')
    torch.save(change(torch.load(path, weights_only=True)), path)
    return path


@pytest.fixture
def interrupted(tmp_path):
    return interrupt(tmp_path)


@pytest.mark.parametrize(('name', 'change'), DAMAGES, ids=range(len(DAMAGES)))
def test_a_checkpoint_with_odd_fields_is_damaged(interrupted, capsys, name, change):
    run, batches = interrupted
    newest, older = run.checkpoints()
    path = change_file(newest, name, change)
    whole, resumed = make_trainer(), make_trainer()
    train(whole, batches)
    assert run.restore(resumed).done.batches == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith('notice: ') and path in line
    assert run.checkpoints() == [older]  # it can be written again
    train(resumed, batches[1:])
    assert equal_weights(whole.model, resumed.model)
    change_file(older, name, change)
    with pytest.raises(UserError, match='small_checkpoint'):
        run.restore(make_trainer())
    assert run.checkpoints() == [older]


def test_without_its_noise_the_published_protocol_does_not_go_on(tmp_path, capsys):
    run, trainer = make_run(tmp_path), make_trainer()
    trainer.noise = torch.Generator().manual_seed(7)
    run.save_checkpoint(trainer, Progress())
    assert run.restore(trainer) == Progress()  # before the first step
    for change in (without('noise'), changed(noise=5), changed(noise=torch.ones(3))):
        path = change_file(run.checkpoints()[0], 'state', change)
        with pytest.raises(UserError, match='small_checkpoint'):
            run.restore(trainer)
        assert path in capsys.readouterr().out

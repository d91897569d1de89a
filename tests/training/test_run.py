"""A run: its name, its settings, how it resumes, and what it refuses."""

import argparse
import json
import os

import pandas as pd
import pytest
import torch
from small import (
    SETTINGS,
    equal_weights,
    interrupt,
    make_run,
    make_trainer,
    train,
)

from areir.errors import UserError
from areir.files import temporary_name
from areir.training.run import (
    Progress,
    refuse_idle_processes,
    run_name,
    run_settings,
    warn_about_meta_classes,
)


def arguments(**changes):
    args = argparse.Namespace(
        recipe='2019',
        data_name='car',
        crop_type='uncropped',
        model_type='resnet18',
        with_se='yes',
        ensemble_size=48,
        meta_class_size=12,
        protocol='strict',
        select='last',
        resume=False,
        data_root='data',
        lr=1e-3,
    )
    vars(args).update(changes)
    return args


@pytest.mark.parametrize(
    ('changes', 'extended', 'name'),
    [
        ({}, 0, 'car_uncropped_resnet18_48_12'),
        ({'with_se': 'no'}, 0, 'car_uncropped_resnet18_no_se_48_12'),
        ({'select': 'val'}, 0, 'car_uncropped_resnet18_48_12_select_val'),
        ({'select': 'test'}, 0, 'car_uncropped_resnet18_48_12_select_test'),
        (
            {'select': 'test', 'protocol': 'published'},
            0,
            'car_uncropped_resnet18_48_12_published',
        ),
        ({}, 8, 'car_uncropped_resnet18_48_12_from_8'),
        ({'recipe': 'current'}, 0, 'car_uncropped_resnet18_48_12_current'),
        ({'data_name': 'shop'}, 0, 'shop_uncropped_resnet18_48_12_2019'),
        (
            {'data_name': 'shop', 'recipe': 'current'},
            0,
            'shop_uncropped_resnet18_48_12',
        ),
    ],
)
def test_names(changes, extended, name):
    assert run_name(arguments(**changes), extended) == name


def test_settings_leave_out_what_may_change():
    settings = run_settings(arguments(), 'fp32', 'abc')
    assert settings['lr'] == 1e-3 and settings['precision'] == 'fp32'
    assert settings['split_sha256'] == 'abc'
    assert not {'resume', 'data_root'} & settings.keys()


def test_too_many_processes_are_refused():
    refuse_idle_processes(2, 2)
    with pytest.raises(UserError, match='--ensemble_size'):
        refuse_idle_processes(1, 2)


@pytest.mark.parametrize(('size', 'noticed'), [(12, False), (98, False), (1, True)])
def test_an_unusual_number_of_meta_classes_is_noticed(capsys, size, noticed):
    warn_about_meta_classes(size, 98)
    assert ('--meta_class_size' in capsys.readouterr().out) == noticed


def test_progress_survives_a_checkpoint():
    progress = Progress()
    progress.done.add(0.5, 0.25)
    progress.rows.append({'epoch': 1})
    again = Progress.from_state(progress.to_state(SETTINGS))
    assert again == progress
    again.begin_epoch(1)
    assert again.done.batches == 1
    again.begin_epoch(2)
    assert again.done.batches == 0 and again.epoch == 2


@pytest.fixture
def interrupted(tmp_path):
    return interrupt(tmp_path)


def test_resumed_equals_uninterrupted(interrupted):
    run, batches = interrupted
    whole, resumed = make_trainer(), make_trainer()
    train(whole, batches)
    progress = run.restore(resumed)
    assert progress.done.batches == 2 and progress.done.loss == 2
    train(resumed, batches[2:])
    assert equal_weights(whole.model, resumed.model)


@pytest.mark.parametrize('name', ['head_001', 'state', 'trunk'])
def test_the_checkpoint_before_a_damaged_one_is_used(interrupted, capsys, name):
    run, batches = interrupted
    newest, _ = run.checkpoints()
    damaged = os.path.join(newest, f'{name}.pth')
    os.truncate(damaged, os.path.getsize(damaged) // 2)
    whole, resumed = make_trainer(), make_trainer()
    train(whole, batches)
    assert run.restore(resumed).done.batches == 1
    assert damaged in capsys.readouterr().out
    train(resumed, batches[1:])
    assert equal_weights(whole.model, resumed.model)


def test_no_readable_checkpoint_is_refused(interrupted):
    run, _ = interrupted
    for folder in run.checkpoints():
        os.truncate(os.path.join(folder, 'trunk.pth'), 1000)
    with pytest.raises(UserError, match='small_checkpoint'):
        run.restore(make_trainer())
    assert len(run.checkpoints()) == 2


@pytest.mark.parametrize('ending', ['run.json', 'results.csv', 'data_base.pth'])
def test_a_folder_in_the_place_of_a_file_is_refused_at_once(interrupted, ending):
    run, _ = interrupted
    os.mkdir(run.path(ending))
    with pytest.raises(UserError, match=f'{ending} is a folder'):
        run.check_start(True, 3)


@pytest.mark.parametrize('ending', ['results.csv', 'model.pth'])
def test_a_start_removes_what_a_killed_process_left(interrupted, ending):
    run, _ = interrupted
    of_this_run = temporary_name(run.path(ending))
    of_another = temporary_name(run.path(ending).replace('small', 'smaller'))
    for path in (of_this_run, of_another):
        open(path, 'w').close()
    assert run.check_start(True, 3)
    assert not os.path.exists(of_this_run) and os.path.exists(of_another)


def test_other_settings_are_refused(interrupted, tmp_path):
    for name, value in (('lr', 3e-4), ('seed', 2)):
        with pytest.raises(UserError, match=f'--{name} {value}'):
            make_run(tmp_path, **{name: value}).restore(make_trainer())
    with pytest.raises(UserError, match='dataset has changed'):
        make_run(tmp_path, split_sha256='other').restore(make_trainer())


def test_checkpoints_load_as_plain_tensors(interrupted):
    run, _ = interrupted
    for folder in run.checkpoints():
        for name in os.listdir(folder):
            saved = torch.load(os.path.join(folder, name), weights_only=True)
            assert isinstance(saved, dict)


def test_an_interrupted_run_must_be_resumed(interrupted):
    run, _ = interrupted
    with pytest.raises(UserError, match='--resume'):
        run.check_start(resume=False, num_epochs=3)
    assert run.check_start(resume=True, num_epochs=3)


def finish(run, epochs, **settings):
    """Write what a finished run leaves."""
    saved = {**run.settings, **settings}
    record = {'arguments': saved, 'precision': 'fp32'}
    record['data'] = {'split_sha256': saved['split_sha256']}
    with open(run.path('run.json'), 'w') as file:
        json.dump(record, file)
    table = pd.DataFrame({'epoch': range(1, epochs + 1)})
    table.to_csv(run.path('results.csv'), index=False)


def test_a_finished_run_is_not_run_again(tmp_path, capsys):
    run = make_run(tmp_path)
    assert run.check_start(resume=True, num_epochs=3)  # nothing there yet
    nothing = f'notice: --resume: {run.name} has no checkpoint: training begins\n'
    assert capsys.readouterr().out == nothing
    finish(run, 3)
    assert not run.check_start(resume=True, num_epochs=3)
    assert run.name in capsys.readouterr().out
    assert run.check_start(resume=False, num_epochs=3)  # trained again
    finish(run, 3, seed=5)
    with pytest.raises(UserError, match='--seed 1'):
        run.check_start(resume=True, num_epochs=3)


def test_a_checkpoint_that_cannot_be_written_is_only_warned_of(
    interrupted, monkeypatch, capsys
):
    run, _ = interrupted
    before = run.checkpoints()
    progress = Progress(epoch=2)

    def full_disk(value, path):
        raise RuntimeError('PytorchStreamWriter failed writing file')

    monkeypatch.setattr(torch, 'save', full_disk)
    run.try_checkpoint(make_trainer(), progress)
    assert 'epoch_0002_batch_000000' in capsys.readouterr().err
    assert run.checkpoints()[0] == before[0]
    with pytest.raises(OSError, match='epoch_0002_batch_000000'):
        run.save_checkpoint(make_trainer(), progress)


def test_the_noise_of_the_published_protocol_is_restored(tmp_path):
    run, trainer = make_run(tmp_path), make_trainer()
    trainer.noise = torch.Generator().manual_seed(7)
    torch.rand(5, generator=trainer.noise)
    run.save_checkpoint(trainer, Progress())
    resumed = make_trainer()
    resumed.noise = torch.Generator().manual_seed(7)
    run.restore(resumed)
    assert torch.equal(resumed.noise.get_state(), trainer.noise.get_state())


def test_a_checkpoint_that_cannot_be_opened_is_passed_over(
    interrupted, monkeypatch, capsys
):
    run, _ = interrupted
    newest, _ = run.checkpoints()
    load = torch.load

    def load_or_fail(path, **options):
        if str(path).startswith(newest):
            raise PermissionError(13, 'Permission denied', path)
        return load(path, **options)

    monkeypatch.setattr(torch, 'load', load_or_fail)
    assert run.restore(make_trainer()).done.batches == 1
    assert newest in capsys.readouterr().out


def test_the_epoch_that_is_kept_is_written_together(tmp_path):
    run = make_run(tmp_path)
    run.keep({'epoch': 2}, {'epoch': 2}, {'calibration': {'threshold': 0.5}})
    assert run.calibration() == {'threshold': 0.5}
    run.write_csv(
        Progress(rows=[{'epoch': 1, 'loss': 0.5}, {'epoch': 2, 'loss': 0.25}])
    )
    assert pd.read_csv(run.path('results.csv'))['loss'].tolist() == [0.5, 0.25]
    names = ['data_base.pth', 'model.pth', 'results.csv', 'run.json']
    assert sorted(os.listdir(tmp_path)) == [f'small_{name}' for name in names]


def test_checkpoints_of_a_finished_run_are_removed(interrupted, tmp_path):
    run, _ = interrupted
    assert run.check_start(resume=True, num_epochs=3)
    finish(run, 2)
    run.end(Progress(rows=[{'epoch': 1}, {'epoch': 2}]))
    assert run.checkpoints() == []
    assert sorted(os.listdir(tmp_path)) == ['small_results.csv', 'small_run.json']

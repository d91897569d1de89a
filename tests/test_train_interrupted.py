"""Runs that are killed, stopped or out of disk space, and go on as if nothing happened.

The network is slim, so that a batch and a checkpoint take milliseconds.
"""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from slim import use_slim_backbone
from train_runs import (
    EVERY_BATCH,
    FLAGS,
    RUN,
    assert_same_run,
    checkpoints,
    command,
    dying,
    kill_run,
    start,
    train,
)

from areir import processes
from areir.training import result as result_module
from areir.training.trainer import Trainer


@pytest.fixture(scope='module')
def uninterrupted(slim, tmp_path_factory):
    """Results of a run that nothing disturbs."""
    results = tmp_path_factory.mktemp('uninterrupted')
    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        train(slim, results)
    return results


@pytest.fixture(scope='module')
def interrupted(slim, tmp_path_factory):
    """Results of a run that died in its second epoch, with two checkpoints written."""
    results = tmp_path_factory.mktemp('interrupted')
    flags = [*FLAGS, '--results_root', results, '--num_workers', 0, *EVERY_BATCH]
    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        patch.setattr(Trainer, 'step', dying(Trainer.step, 7))
        code, _, errors = slim.call('train.py', *flags)
    assert code == 1 and 'Killed' in errors
    return results


# Killed


@pytest.mark.slow
def test_killed_at_any_moment(slim, slim_backbone, uninterrupted, tmp_path, seed):
    """SIGKILL in a batch, then wherever the run happens to be."""
    moments = random.Random(seed)
    flags = ['--resume', *EVERY_BATCH]
    process = start(slim, tmp_path, *flags, pause_at=moments.randint(1, 8))
    kill_run(process)
    process = start(slim, tmp_path, *flags, pause_at=1)
    process.send_signal(signal.SIGCONT)
    time.sleep(moments.uniform(0, 1))
    kill_run(process)
    train(slim, tmp_path, '--resume', *EVERY_BATCH)
    assert_same_run(uninterrupted, tmp_path)


@pytest.mark.slow
def test_signals_save_first(slim, slim_backbone, uninterrupted, tmp_path):
    """SIGTERM and Ctrl-C; the workers that decode images get them, too."""
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start(slim, tmp_path, '--resume', pause_at=3)
        os.killpg(process.pid, number)
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 130, errors
        last = errors.splitlines()[-1]
        assert checkpoints(tmp_path)[0] in last and '--resume' in last
    assert 'resumed    epoch' in train(slim, tmp_path, '--resume', '--num_workers', 0)
    assert_same_run(uninterrupted, tmp_path)


def stop_at(patch, batches):
    """Let a signal arrive while the run trains on batch number `batches`."""
    signals, steps, step = [], [], Trainer.step

    def step_and_stop(*arguments):
        steps.append(1)
        if len(steps) == batches:
            signals.append(signal.SIGTERM)
        return step(*arguments)

    patch.setattr(Trainer, 'step', step_and_stop)
    patch.setattr(processes, 'catch_signals', lambda: signals)


def test_a_signal_while_embedding_keeps_the_trained_epoch(
    slim, slim_backbone, uninterrupted, tmp_path
):
    signals = []

    def embed_and_stop(*arguments):
        signals.append(signal.SIGINT)
        return embed_part(*arguments)

    embed_part = result_module.embed_part
    flags = [*FLAGS, '--results_root', tmp_path, '--num_workers', 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, 'catch_signals', lambda: signals)
        patch.setattr(result_module, 'embed_part', embed_and_stop)
        code, _, errors = slim.call('train.py', *flags)
    assert code == 130 and '--resume' in errors.splitlines()[-1]
    (folder,) = checkpoints(tmp_path)
    assert os.path.basename(folder) == 'epoch_0001_batch_000004'
    train(slim, tmp_path, '--resume', '--num_workers', 0)
    assert_same_run(uninterrupted, tmp_path)


# Two runs of one name


@pytest.mark.slow
def test_a_run_that_is_going_on_is_not_started_again(
    slim, slim_backbone, uninterrupted, tmp_path
):
    """Killed, it is resumed."""
    process = start(slim, tmp_path, *EVERY_BATCH, pause_at=2)
    flags = [*FLAGS, '--results_root', tmp_path]
    assert f'{RUN} is going on' in slim.refuse('train.py', *flags, '--resume')
    kill_run(process)
    assert '--resume' in slim.refuse('train.py', *flags)
    train(slim, tmp_path, '--num_workers', 0, '--resume')
    assert_same_run(uninterrupted, tmp_path)


# A full disk


@pytest.mark.slow
def test_a_full_disk_loses_nothing(slim, interrupted, tmp_path):
    """No file may be larger than 50 kB.

    Checkpoints within the epoch are warned of; that of its end is needed.
    """
    results = shutil.copytree(interrupted, tmp_path / 'results')
    before = checkpoints(results)
    words = command(slim, results, *EVERY_BATCH, '--resume')
    limit = ['bash', '-c', 'ulimit -f 50; exec "$@"', 'bash']
    limited = subprocess.run([*limit, *words], capture_output=True, text=True)
    last = limited.stderr.splitlines()[-1]
    assert limited.returncode == 2 and last.startswith('train.py: error: ')
    assert 'epoch_0002_batch_000004' in last and 'disk' in last
    assert 'warning: ' in limited.stderr
    assert checkpoints(results)[0] == before[0]


# The epoch that is kept, and the noise


@pytest.mark.slow
@pytest.mark.parametrize(
    ('flags', 'run'),
    [
        (['--select', 'val'], 'small_uncropped_resnet18_3_2_select_val_2019'),
        (['--protocol', 'published'], 'small_uncropped_resnet18_3_2_published'),
    ],
)
def test_the_best_epoch_and_the_noise_survive(
    slim, slim_backbone, tmp_path, flags, run
):
    """The run is stopped in its second epoch; the best one may be the first."""
    flags = [*flags, '--lr', '3e-3', '--meta_class_size', 2, '--num_workers', 0]
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    train(slim, whole, *flags)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 6)
        roots = ['--results_root', stopped]
        assert slim.call('train.py', *FLAGS, *flags, *roots)[0] == 130
    train(slim, stopped, *flags, '--resume')
    assert_same_run(whole, stopped, run)

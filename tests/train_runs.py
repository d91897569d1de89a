"""Runs of train.py in processes of their own, and the comparison of two runs."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from functools import partial

import pandas as pd
import pytest
import torch
from slim import use_slim_backbone
from torch.nn import functional as F

from areir.files import load_tensors
from areir.training.checkpoints import list_checkpoints

FLAGS = [
    *('--data_name', 'small', '--weights', 'none', '--image_size', '32'),
    *('--ensemble_size', '3', '--meta_class_size', '3', '--batch_size', '8'),
    *('--num_epochs', '3', '--num_workers', '1', '--recalls', '1,2,4,1000'),
    *('--precision', 'fp32', '--recipe', '2019'),
]
RUN = 'small_uncropped_resnet18_3_3_2019'
EVERY_BATCH = ['--checkpoint_minutes', '1e-9']
TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node']


def command(project, results, *flags, processes=1):
    """Return the command of a run that writes to the folder `results`."""
    python = [sys.executable]
    if processes > 1:
        python += [*TORCHRUN, str(processes)]
    roots = ['--data_root', project.root / 'data', '--results_root', results]
    words = [*python, project.root / 'train.py', *FLAGS, *roots, *flags]
    return [str(word) for word in words]


def start(project, results, *flags, processes=1, pause_at=None):
    """Start a run in a group of processes of its own.

    pause_at: the number of the batch before which each process waits for a signal. The
    project is slim, and this returns when all wait.
    """
    environment = {**os.environ, 'PAUSE_AT': str(pause_at)} if pause_at else None
    process = subprocess.Popen(
        command(project, results, *flags, processes=processes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    text = ''
    while pause_at and text.count('paused') < processes:
        piece = os.read(process.stderr.fileno(), 10_000).decode()
        assert piece, text
        text += piece
    return process


def finish(process):
    """Return the stdout of a run that must succeed."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def train(project, results, *flags):
    """Run train.py to its end in this process; return its stdout."""
    flags = [*FLAGS, '--results_root', results, *flags]
    code, output, errors = project.call('train.py', *flags)
    assert code == 0, errors
    return output


def train_slim(project, results, *flags):
    """As `train`, by the slim backbone."""
    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        return train(project, results, *flags)


def train_together(train, project, results, *flags, processes):
    """Call `train` or `train_slim` in several processes; return the first's stdout."""
    flags = [*flags, '--num_workers', 0]
    return together(partial(train, project, results, *flags), processes)


def together(call, processes):
    """Call a function in new processes, numbered as torchrun's; return one value.

    It is that of rank 0. The processes come from one that has imported torch, which
    saves torchrun's seconds.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch', 'torchvision', 'pandas'])
    outputs = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        place = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free.getsockname()[1])}
    place |= {'WORLD_SIZE': str(processes), 'LOCAL_WORLD_SIZE': str(processes)}
    ranks = []
    for rank in range(processes):
        place |= {'RANK': str(rank), 'LOCAL_RANK': str(rank)}
        arguments = call, dict(place), outputs if rank == 0 else None
        ranks.append(context.Process(target=call_as_rank, args=arguments))
        ranks[-1].start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * processes
    return outputs.get()


def call_as_rank(call, environment, outputs):
    """Call a function as one of torchrun's processes; put its value into `outputs`."""
    os.environ.update(environment)
    output = call()
    if outputs:
        outputs.put(output)


class Killed(Exception):
    """Ends a run in this process where SIGKILL would."""


def dying(function, number):
    """Return a function that calls another one and kills the run at a call."""
    calls = []

    def call_or_die(*arguments):
        calls.append(1)
        if len(calls) == number:
            raise Killed
        return function(*arguments)

    return call_or_die


def checkpoints(results, run=RUN):
    """Return the checkpoints of a run, the newest first."""
    return list_checkpoints(str(results / f'{run}_checkpoint'))


def children(process):
    """Return the process ids of a process's children."""
    listing = subprocess.run(
        ['pgrep', '-P', str(process.pid)], capture_output=True, text=True
    )
    return [int(pid) for pid in listing.stdout.split()]


def kill_run(process):
    """Kill a run and all its processes with SIGKILL; those of torchrun too."""
    workers = children(process)
    os.killpg(process.pid, signal.SIGKILL)
    for worker in workers:
        try:
            os.killpg(worker, signal.SIGKILL)  # torchrun's have groups of their own
        except ProcessLookupError:
            continue
    process.communicate()


def read_table(results, run=RUN):
    """Return the CSV of a run without what depends on the time."""
    table = pd.read_csv(results / f'{run}_results.csv')
    return table.drop(columns=['seconds', 'train_seconds', 'data_wait'])


def read(results, name, run=RUN):
    """Return the contents of a run's model or data_base."""
    return load_tensors(results / f'{run}_{name}.pth')


def assert_same_run(first, second, run=RUN):
    """Check that CSV, weights, partition and embeddings of two runs are equal."""
    tables = read_table(first, run), read_table(second, run)
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    models = read(first, 'model', run), read(second, 'model', run)
    assert models[0]['epoch'] == models[1]['epoch']
    assert torch.equal(models[0]['partition'], models[1]['partition'])
    weights = [model['state_dict'] for model in models]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    databases = read(first, 'data_base', run), read(second, 'data_base', run)
    assert torch.equal(databases[0]['embeddings'], databases[1]['embeddings'])
    assert not os.path.exists(second / f'{run}_checkpoint')


def assert_almost_same_run(first, second, run=RUN):
    """Check that two runs are equal to the rounding of float32."""
    tables = read_table(first, run), read_table(second, run)
    pd.testing.assert_frame_equal(*tables, check_exact=False, rtol=1e-5)
    models = read(first, 'model', run), read(second, 'model', run)
    weights = [model['state_dict'] for model in models]
    for name, value in weights[0].items():
        # where a gradient is nothing but rounding, Adam makes a whole step of it
        close = torch.allclose(value, weights[1][name], rtol=1e-3, atol=1e-4)
        assert close, name
    embeddings = [
        read(results, 'data_base', run)['embeddings'] for results in (first, second)
    ]
    assert F.cosine_similarity(*embeddings).min() > 0.99999
    assert not os.path.exists(second / f'{run}_checkpoint')

"""The processes of torchrun: one that is alone, and two of them."""

import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import REPOSITORY
from torch import distributed

from areir import processes
from areir.errors import UserError


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    assert processes.join() == (0, 1)
    assert not distributed.is_initialized()
    assert processes.rank_and_count() == (0, 1) and processes.is_first()
    numbers = torch.tensor([1.0, 2.0])
    assert processes.sum_over_all(numbers) is numbers
    assert numbers.tolist() == [1, 2]
    (gathered,) = processes.gather(numbers)
    assert torch.equal(gathered, numbers)
    assert processes.gather_objects({'a': 1}) == [{'a': 1}]
    assert processes.from_first('text') == 'text'
    assert processes.any_process(True) and not processes.any_process(None)
    assert processes.any_process(OSError()) and not processes.any_process(0)
    processes.wait_for_all()
    processes.leave()


def test_a_folder_to_write_to_is_made(tmp_path):
    processes.check_shared_folder(str(tmp_path / 'deep/results'))
    assert os.listdir(tmp_path / 'deep/results') == []
    (tmp_path / 'file').write_text('x')
    with pytest.raises(UserError, match='--results_root'):
        processes.check_shared_folder(str(tmp_path / 'file'))


def test_signals_are_noted_and_announced_once(capfd):
    numbers = [signal.SIGTERM, signal.SIGINT]
    before = [signal.getsignal(number) for number in numbers]
    signals = processes.catch_signals()
    for number in numbers:
        os.kill(os.getpid(), number)
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)
    assert signals == numbers
    assert capfd.readouterr().err.count('checkpoint') == 1


PAIR = """
    import os
    import sys
    sys.path.insert(0, {repository!r})
    import torch
    from areir import hardware, processes
    from areir.files import WriteError
    from areir.training import checkpoints

    rank, world = processes.join()
    print('only rank 0 prints')
    assert (rank, world) == (int(os.environ['RANK']), 2)
    assert processes.rank_and_count() == (rank, 2)
    assert processes.is_first() == (rank == 0)
    summed = processes.sum_over_all(torch.tensor([1.0, rank]))
    assert summed.tolist() == [2, 1]
    shares = processes.gather(torch.tensor([rank]))
    assert torch.cat(shares).tolist() == [0, 1]
    assert processes.gather_objects(('rank', rank)) == [('rank', 0), ('rank', 1)]
    assert processes.from_first('first' if rank == 0 else None) == 'first'
    assert processes.any_process(rank == 1)
    assert not processes.any_process(False)
    processes.check_shared_folder('shared')
    try:
        processes.check_shared_folder(f'own_{{rank}}')
        raise AssertionError
    except OSError as error:
        assert 'own_' in str(error)

    # a checkpoint of both processes, and one that rank 1 cannot write
    names = [['state', 'trunk', 'head_000'], ['head_001']]
    files = {{name: {{'rank': rank}} for name in names[rank]}}
    folder = checkpoints.write('shared/run', 1, 1, files)
    assert len(os.listdir(folder)) == 4
    if rank == 1:
        files = {{'absent/head_001': {{}}}}
    try:
        checkpoints.write('shared/run', 1, 2, files)
        raise AssertionError
    except WriteError as error:
        assert 'epoch_0001_batch_000002' in str(error)
    processes.wait_for_all()  # rank 0 removes what is left
    assert os.listdir('shared/run') == ['epoch_0001_batch_000001']

    if sys.argv[1] == 'leave':
        processes.leave()
        assert not torch.distributed.is_initialized()
    elif rank == 0:
        try:
            processes.wait_for_all()
            raise AssertionError
        except ConnectionError as error:
            print('rank 1 has ended', error)
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize('end', ['leave', 'die'])
def test_two_processes(tmp_path, end):
    script = tmp_path / 'pair.py'
    script.write_text(textwrap.dedent(PAIR.format(repository=REPOSITORY)))
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    place = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'WORLD_SIZE': '2'}
    running = []
    for rank in ('0', '1'):
        local = {'RANK': rank, 'LOCAL_RANK': rank, 'LOCAL_WORLD_SIZE': '2'}
        running.append(
            subprocess.Popen(
                [sys.executable, script, end],
                cwd=tmp_path,
                env={**os.environ, **place, **local},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=300) for process in running]
    for process, (_, errors) in zip(running, outputs):
        assert process.returncode == 0, errors
    assert outputs[0][0].startswith('only rank 0 prints')
    assert ('rank 1 has ended' in outputs[0][0]) == (end == 'die')
    assert outputs[1][0] == ''

"""Errors as one line, and the choice of devices."""

import argparse
import os
import signal
import sys
import time

import pytest
import torch

import utils
from areir import hardware
from areir.errors import UserError
from areir.files import WriteError


@pytest.fixture
def run(monkeypatch, capsys):
    """A call of run_script: (error that main raises) -> (exit code, stderr)."""
    monkeypatch.setattr(sys, 'argv', ['/some/where/train.py'])
    monkeypatch.delenv('AREIR_DEBUG', raising=False)
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.setattr(utils.atexit, 'register', lambda function: None)
    monkeypatch.setattr(utils.signal, 'signal', lambda number, handler: None)
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)

    def run_script(error):
        def main():
            raise error

        with pytest.raises(SystemExit) as end:
            utils.run_script(main)
        return end.value.code, capsys.readouterr().err

    return run_script


# Errors


def test_a_main_that_returns_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(utils.atexit, 'register', lambda function: None)
    assert utils.run_script(lambda: print('done')) is None
    assert capsys.readouterr() == ('done\n', '')


@pytest.mark.parametrize(
    'error',
    [
        UserError('a.pth: no such file'),
        FileNotFoundError(2, 'No such file or directory', 'a.pth'),
        PermissionError(13, 'Permission denied', 'a.pth'),
        WriteError('a.pth', OSError(28, 'No space left on device')),
        ConnectionError('a.pth'),
    ],
)
def test_errors_that_a_user_can_mend_are_one_line(run, error):
    code, text = run(error)
    assert code == 2 and text.count('\n') == 1
    assert text.startswith('train.py: error: ') and 'a.pth' in text


@pytest.mark.parametrize('kind', [UserError, OSError])
def test_names_with_control_characters_stay_in_their_line(run, kind):
    """Only the lines of a listing are lines; letters of any script are kept."""
    code, text = run(kind('a\nb.png, c\x1b[2J.png, d\u2028é中.png: odd:\n  1\n  2'))
    names = r'a\nb.png, c\x1b[2J.png, d\u2028é中.png'
    assert (code, text) == (2, f'train.py: error: {names}: odd:\n  1\n  2\n')


@pytest.mark.parametrize(
    'error', [ValueError('odd'), KeyError('odd'), TypeError('odd')]
)
def test_a_bug_keeps_its_traceback_and_asks_for_a_report(run, error):
    code, text = run(error)
    assert code == 1
    assert text.startswith('Traceback') and 'in main' in text and 'odd' in text
    last = text.splitlines()[-1]
    assert last.startswith('train.py: error: ') and 'report' in last


def test_memory_of_the_gpu_names_the_flag(run):
    code, text = run(torch.OutOfMemoryError('CUDA out of memory. Tried to ...'))
    assert code == 2 and text.count('\n') == 1 and '--batch_size' in text


@pytest.mark.parametrize(
    'error',
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
            'allocate memory: you tried to allocate 9 bytes.\nmore'
        ),
    ],
)
def test_memory_of_the_computer_names_the_flags(run, error):
    code, text = run(error)
    assert code == 2 and text.count('\n') == 1 and '--batch_size' in text


def test_a_killed_worker_is_one_line(run):
    reason = 'DataLoader worker (pid(s) 7) exited unexpectedly'
    code, text = run(RuntimeError(f'{reason}\nand more'))
    assert code == 2 and text.count('\n') == 1 and reason in text


@pytest.mark.parametrize('reason', ['', 'saved in here'])
def test_ctrl_c_exits_with_130(run, reason):
    code, text = run(KeyboardInterrupt(reason) if reason else KeyboardInterrupt())
    assert code == 130 and text.count('\n') == 1
    assert text.startswith('train.py: interrupted; ') and reason in text
    assert len(text) > len('train.py: interrupted; \n')


def test_what_argparse_refuses_keeps_its_code(run):
    assert run(SystemExit(2)) == (2, '')


@pytest.mark.parametrize(
    'error', [UserError('a'), OSError('a'), KeyError('a'), KeyboardInterrupt()]
)
def test_the_debug_variable_keeps_every_traceback(run, monkeypatch, error):
    monkeypatch.setenv('AREIR_DEBUG', '1')

    def main():
        raise error

    with pytest.raises(type(error)) as raised:
        utils.run_script(main)
    assert raised.value is error


def test_other_processes_wait_before_they_speak(run, monkeypatch):
    """torchrun ends them meanwhile if rank 0 failed too."""
    monkeypatch.setenv('RANK', '1')
    waited = []
    monkeypatch.setattr(time, 'sleep', waited.append)
    code, text = run(UserError('only here'))
    assert code == 2 and text == 'train.py: error: only here\n'
    assert sum(waited) >= 1


def test_argparse_of_other_processes_waits_too(run, monkeypatch, capsys):
    monkeypatch.setenv('RANK', '1')
    parser = argparse.ArgumentParser(prog='train.py', usage=argparse.SUPPRESS)
    with pytest.raises(SystemExit) as end:
        utils.run_script(lambda: parser.parse_args(['--unknown']))
    assert end.value.code == 2
    assert '--unknown' in capsys.readouterr().err


def test_workers_that_ignore_signals_are_ended(monkeypatch):
    """They are killed, because they ignore SIGTERM and would be waited for."""
    killed = []

    class Worker:
        def kill(self):
            killed.append(self)

    workers = [Worker(), Worker()]
    monkeypatch.setattr(utils.multiprocessing, 'active_children', lambda: workers)
    handler = signal.getsignal(signal.SIGCHLD)
    utils.end_workers()
    signal.signal(signal.SIGCHLD, handler)
    assert killed == workers


# Devices


@pytest.fixture
def machine(monkeypatch):
    """A function that makes this machine one of several GPUs and processes."""

    def pretend(gpus, processes=1, rank=0, capability=(8, 0)):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
        monkeypatch.setattr(
            torch.cuda, 'get_device_capability', lambda device: capability
        )
        monkeypatch.setenv('LOCAL_WORLD_SIZE', str(processes))
        monkeypatch.setenv('LOCAL_RANK', str(rank))

    return pretend


@pytest.mark.parametrize(
    ('gpus', 'gpu_ids', 'chosen'),
    [
        (0, [0, 1], []),
        (0, [], []),
        (1, [0, 1], [0]),
        (2, [0, 1], [0, 1]),
        (4, [3, 1], [3, 1]),
        (2, [5], []),
        (2, [-1, 1], [1]),
    ],
)
def test_gpus_that_are_there_are_used(machine, capsys, gpus, gpu_ids, chosen):
    machine(gpus)
    device, present = hardware.choose_devices(gpu_ids)
    assert present == chosen
    assert device == torch.device(f'cuda:{chosen[0]}' if chosen else 'cpu')
    notice = capsys.readouterr().out
    assert ('--gpu_ids' in notice) == (chosen != gpu_ids)


@pytest.mark.parametrize(
    ('gpu_ids', 'rank', 'gpu'),
    [([0, 1], 1, 1), ([2, 3], 1, 3), ([3], 1, 1), ([0, 1, 2], 0, 0)],
)
def test_each_process_takes_one_gpu(machine, gpu_ids, rank, gpu):
    machine(gpus=4, processes=2, rank=rank)
    assert hardware.choose_devices(gpu_ids) == (torch.device('cuda', gpu), [gpu])


@pytest.mark.parametrize(('gpus', 'processes'), [(1, 2), (2, 4)])
def test_more_processes_than_gpus_are_refused(machine, gpus, processes):
    machine(gpus, processes)
    with pytest.raises(UserError, match='torchrun'):
        hardware.choose_devices([0, 1])


def test_processes_without_gpus_run_on_the_cpu(machine):
    machine(gpus=0, processes=2, rank=1)
    assert hardware.choose_devices([0, 1]) == (torch.device('cpu'), [])


@pytest.mark.parametrize(
    ('precision', 'capability', 'chosen'),
    [
        ('auto', (8, 0), 'bf16'),
        ('auto', (7, 5), 'fp32'),
        ('fp32', (8, 0), 'fp32'),
        ('bf16', (7, 5), 'bf16'),
    ],
)
def test_precision_follows_the_hardware(machine, precision, capability, chosen):
    machine(gpus=1, capability=capability)
    found = hardware.choose_hardware([0], precision)
    assert found.precision == chosen
    assert found.native_bf16 == (capability >= (8, 0))


@pytest.mark.parametrize('native', [True, False])
@pytest.mark.parametrize('precision', ['auto', 'fp32', 'bf16'])
def test_a_machine_without_gpus(machine, monkeypatch, capsys, precision, native):
    machine(gpus=0)
    capabilities = {'avx512_bf16': native}
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities)
    found = hardware.choose_hardware([0], precision)
    assert (found.device, found.gpus) == (torch.device('cpu'), [])
    by_default = 'bf16' if native else 'fp32'
    assert found.precision == (by_default if precision == 'auto' else precision)
    assert bool(found.native_bf16) is native
    notice = capsys.readouterr().out
    assert '--gpu_ids' in notice and notice.count('\n') == 1


def test_data_parallel_is_announced(machine, capsys):
    machine(gpus=2)
    assert hardware.choose_hardware([0, 1], 'auto').gpus == [0, 1]
    assert 'torchrun' in capsys.readouterr().out
    hardware.choose_hardware([1], 'auto')
    assert 'torchrun' not in capsys.readouterr().out


def test_hardware_has_a_name(machine, monkeypatch):
    cpu = hardware.Hardware(torch.device('cpu'), [], 'fp32', False)
    assert cpu.name == f'CPU, {torch.get_num_threads()} threads'
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'H100')
    gpu = hardware.Hardware(torch.device('cuda', 0), [0], 'bf16', True)
    assert gpu.name == 'H100'


@pytest.mark.parametrize(
    ('capabilities', 'native'),
    [({}, False), ({'avx512_bf16': True}, True), ({'amx_bf16': False}, False)],
)
def test_native_bf16_of_a_cpu(monkeypatch, capabilities, native):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities)
    assert bool(hardware.has_native_bf16(torch.device('cpu'))) is native


def test_the_local_device(machine):
    machine(gpus=0, processes=2, rank=1)
    assert hardware.local_device() == torch.device('cpu')
    machine(gpus=2, processes=4, rank=3)
    assert hardware.local_device() == torch.device('cuda', 1)


def test_memory_is_kept_where_there_is_glibc_and_nothing_fails_elsewhere(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, parameter, value):
            calls.append((parameter, value))

    monkeypatch.setattr(hardware.ctypes, 'CDLL', lambda name: Library())
    hardware.keep_freed_memory()
    assert sorted(calls) == [(-4, 0), (-2, 2**26), (-1, 2**31 - 1)]

    def absent(name):
        raise OSError(f'{name}: cannot open shared object file')

    monkeypatch.setattr(hardware.ctypes, 'CDLL', absent)
    hardware.keep_freed_memory()
    assert os.getpid()  # the process goes on

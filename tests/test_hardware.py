"""Devices and precision: what runs where."""

import pytest
import torch

from areir import hardware
from areir.errors import UserError


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
    ('gpu_ids', 'rank', 'gpu'), [([0, 1], 1, 1), ([2, 3], 1, 3), ([3], 1, 1)]
)
def test_each_process_takes_one_gpu(machine, gpu_ids, rank, gpu):
    machine(gpus=4, processes=2, rank=rank)
    assert hardware.choose_devices(gpu_ids) == (torch.device('cuda', gpu), [gpu])


def test_more_processes_than_gpus_are_refused(machine):
    machine(gpus=2, processes=4)
    with pytest.raises(UserError, match='torchrun'):
        hardware.choose_devices([0, 1])


@pytest.mark.parametrize(
    ('precision', 'capability', 'chosen'),
    [
        ('auto', (8, 0), 'bf16'),
        ('auto', (7, 5), 'fp32'),
        ('fp32', (8, 0), 'fp32'),
        ('bf16', (7, 5), 'bf16'),
    ],
)
def test_precision_follows_the_gpu(machine, precision, capability, chosen):
    machine(gpus=1, capability=capability)
    found = hardware.choose_hardware([0], precision)
    assert found.precision == chosen
    assert found.native_bf16 == (capability >= (8, 0))


@pytest.mark.parametrize(
    ('instructions', 'depthwise', 'chosen'),
    [
        ({}, False, 'fp32'),
        ({'avx512_bf16': True}, False, 'bf16'),
        ({'avx512_bf16': True}, True, 'fp32'),
    ],
)
def test_precision_follows_the_cpu(
    machine, monkeypatch, instructions, depthwise, chosen
):
    machine(gpus=0)
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: instructions)
    found = hardware.choose_hardware([0], 'auto', depthwise)
    assert (found.device, found.precision) == (torch.device('cpu'), chosen)
    assert str(torch.get_num_threads()) in found.name


def test_the_device_that_is_named_is_taken(machine, monkeypatch, capsys):
    machine(gpus=2)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    for kind, device in [('cpu', 'cpu'), ('mps', 'mps'), ('cuda', 'cuda:0')]:
        hardware.check_device(kind)
        found = hardware.choose_hardware([0], 'auto', kind=kind)
        assert found.device == hardware.local_device(kind) == torch.device(device)
        assert bool(found.gpus) == (kind == 'cuda')
    assert hardware.local_device() == torch.device('cuda:0')
    assert not capsys.readouterr().out


def test_mps_is_used_for_what_it_can_do(machine):
    """It lacks float64, and computes batch norms wrongly with channels last."""
    machine(gpus=0)
    found = hardware.choose_hardware([0], 'auto', kind='mps')
    assert (found.precision, found.native_bf16) == ('fp32', False)
    assert found.exact_device == torch.device('cpu')
    assert hardware.memory_format(found.device) == torch.contiguous_format
    assert 'mps' in found.name


@pytest.mark.parametrize('kind', ['cuda', 'mps'])
def test_a_device_that_is_not_here_is_refused_by_name(machine, monkeypatch, kind):
    machine(gpus=0)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    with pytest.raises(UserError, match=f'--device {kind}: '):
        hardware.check_device(kind)


def test_cuda_is_not_replaced_by_the_cpu(machine):
    machine(gpus=2)
    with pytest.raises(UserError, match='--gpu_ids 5'):
        hardware.choose_devices([5], 'cuda')


def test_several_processes_cannot_share_mps(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(UserError, match='--device mps: takes one process'):
        hardware.check_device('mps')


@pytest.mark.parametrize(
    ('processes', 'before', 'after'), [(1, 8, 4), (1, 3, 3), (2, 1, 2)]
)
def test_no_more_threads_than_cores(monkeypatch, processes, before, after):
    threads = []
    monkeypatch.setattr(hardware, 'available_cores', lambda: 4)
    monkeypatch.setattr(hardware, 'local_processes', lambda: processes)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: before)
    monkeypatch.setattr(torch, 'set_num_threads', threads.append)
    hardware.limit_threads()
    assert threads == [after]

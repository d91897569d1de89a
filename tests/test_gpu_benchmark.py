"""benchmarks/gpu.py with its smallest sizes: on a CPU, and its ways for a GPU."""

import functools
import os
import sys
import types

import pytest
import torch
from conftest import REPOSITORY
from test_benchmarks import call, in_process, numbers  # noqa: F401

sys.path.insert(0, os.path.join(REPOSITORY, 'benchmarks'))
import gpu

from areir import hardware
from areir.errors import UserError

TINY = types.SimpleNamespace(model_type='resnet18', ensemble_size=2, **gpu.TINY)
ON_A_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is here')


def table(lines, title):
    """Return the rows below a title."""
    (start,) = [i for i, line in enumerate(lines) if line.startswith(title)]
    rows = lines[start + 2 :]
    return rows[: rows.index('')] if '' in rows else rows


@ON_A_CPU
def test_on_a_cpu(in_process):  # noqa: F811
    lines = call(gpu, '--tiny', '--parts', 'steps,embedding,evaluation')
    joint_fp32, joint, parallel, ours, graphs, compiled = table(lines, 'steps')
    assert parallel.endswith('not measured: needs 2 GPUs')
    for row in (graphs, compiled):
        assert row.endswith('not measured: needs a GPU')
    for row in (joint_fp32, joint, ours):
        milliseconds, faster, megabytes, loss = numbers(row)
        assert min(milliseconds, faster, megabytes) > 0 and 1.5 < loss < 3.5
    for row in table(lines, 'embedding'):
        assert numbers(row)[-1] == pytest.approx(1, abs=1e-3)
    ours, product, on_cpu, _ = table(lines, 'evaluation')[:4]
    for row in (ours, product, on_cpu):
        assert numbers(row)[0] > 0
    (agreement,) = [line for line in lines if line.startswith('metrics on both')]
    assert agreement.endswith('0.00e+00')  # both are the CPU


def eager_graphs(monkeypatch):
    """Let the ways for a GPU run on a CPU: graphs that capture nothing."""
    monkeypatch.setattr(torch.cuda, 'graph_pool_handle', lambda: None)
    monkeypatch.setattr(
        torch.cuda, 'make_graphed_callables', lambda head, sample, pool: head
    )
    eager = functools.partial(torch.compile, backend='eager')
    monkeypatch.setattr(torch, 'compile', eager)


@pytest.mark.parametrize('way', ['joint', 'data_parallel', 'graphs', 'compiled'])
def test_all_ways_begin_with_the_same_loss(monkeypatch, way):
    eager_graphs(monkeypatch)
    cpu = hardware.Hardware(torch.device('cpu'), [], 'fp32', False)
    monkeypatch.setattr(gpu, 'hardware', lambda: cpu)
    losses = gpu.measure_steps(TINY, way)['losses']
    wanted = gpu.measure_steps(TINY, 'ours')['losses']
    assert losses[0] == pytest.approx(wanted[0], rel=2e-2)  # bf16 against fp32
    if way in ('graphs', 'compiled'):
        assert losses == pytest.approx(wanted, rel=1e-4)


def test_a_way_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    def measure(script, flags):
        if flags[0].endswith('joint'):
            raise UserError('out of memory')
        return {'seconds': 2.0, 'megabytes': 100}

    monkeypatch.setattr(gpu.common, 'measure_apart', measure)
    ways = {'ours': 'ours', 'joint': 'joint'}
    runs = gpu.compare(TINY, 'steps', ways)
    assert len(runs['ours']) == TINY.rounds and runs['joint'] == 'out of memory'
    gpu.print_part('steps', runs, ways, 'ms a step', 1)
    ours, joint = capsys.readouterr().out.splitlines()[-2:]
    assert numbers(ours) == [2000, 1, 100]
    assert joint.split() == ['joint', 'not', 'measured:', 'out', 'of', 'memory']


def test_unknown_parts_are_refused(capsys):
    with pytest.raises(SystemExit):
        call(gpu, '--parts', 'steps,speed')
    assert '--parts: choose from' in capsys.readouterr().err


def test_precisions_on_the_sample():
    title, seed, mean = call(gpu, '--tiny', '--parts', 'precision')[-3:]
    assert 'Recall@1 on the sample' in title and seed.startswith('seed 0: bf16 ')
    assert mean.startswith('mean difference of 1 seeds: ')

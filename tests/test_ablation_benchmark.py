"""benchmarks/ablation.py: what it changes, and the table."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY
from test_benchmarks import call

sys.path.insert(0, os.path.join(REPOSITORY, 'benchmarks'))
import ablation
import quality_runs

import utils
from areir.cli.recipes import FROM_SCRATCH, RECIPES
from areir.data.sample import draw_sample


@pytest.mark.parametrize('from_scratch', [True, False])
def test_every_change_differs_from_the_recipe(from_scratch):
    recipe = {**RECIPES['current'], 'meta_class_size': 40, 'with_se': 'yes'}
    if from_scratch:
        recipe |= FROM_SCRATCH
    changes = ablation.get_changes(40, from_scratch)
    assert changes.pop(ablation.RECIPE) == {}
    for flags in changes.values():
        assert all(recipe[name] != value for name, value in flags.items())


def test_changes_reach_the_training():
    split = SimpleNamespace(train=SimpleNamespace(classes=[1, 2]))
    dataset = SimpleNamespace(name='small', root='d', image_size=32, split=split)
    ours = quality_runs.Ours('current', 'none', {'lr': 2e-4, 'mirror': 'no'})
    args = ours.arguments(dataset, 'r', lr=1e-3, seed=0, epochs=1)
    assert (args.lr, args.mirror) == (2e-4, 'no')
    ours = quality_runs.Ours('2019', 'none', {'ensemble_size': 3})
    args = ours.arguments(dataset, 'r', lr=1e-3, seed=0, epochs=1)
    assert (args.lr, args.ensemble_size, args.batch_size) == (1e-3, 3, 32)


def test_difference_is_paired(capsys):
    labels = torch.arange(12).repeat_interleave(2)
    right = (torch.arange(24) % 3 > 0).double()
    better = right.clone()
    better[:12] = 1
    results = {
        ablation.RECIPE: [(10, {'recall@1': right, 'map@r': right})] * 2,
        'other': [
            (20, {'recall@1': better, 'map@r': right}),
            (30, {'recall@1': right, 'map@r': right}),
        ],
    }
    ablation.print_table(results, labels)
    _, recipe, other = capsys.readouterr().out.splitlines()
    assert recipe.split() == ['the', 'recipe', '10', '66.67', '66.67']
    # 4 of the 24 queries are right in one of two seeds
    assert other.startswith(f'{"other":<32}      25     75.00  66.67   Recall@1 +8.3 (')
    assert other.endswith('MAP@R +0.0 (0.0 to 0.0)')


@pytest.mark.slow
def test_table_of_real_runs(tmp_path, monkeypatch):
    # it would change how the whole test process allocates
    monkeypatch.setattr(utils, 'keep_freed_memory', lambda: None)
    folder = str(tmp_path / 'small')
    draw_sample(folder, train_classes=6, test_classes=6, images_per_class=4, side=32)
    changes = {ablation.RECIPE: {}, '1 head': {'ensemble_size': 1}}
    monkeypatch.setattr(ablation, 'get_changes', lambda *_: changes)
    sizes = {'image_size': 32, 'epochs': 1, 'seeds': 2}
    flags = [f'--{name}={value}' for name, value in sizes.items()]
    lines = call(ablation, '--data', folder, *flags)
    assert ', 1 epochs, 2 seeds' in lines[0]
    assert [line[:32].strip() for line in lines[2:]] == list(changes)
    recalls = [float(line[40:50]) for line in lines[2:]]
    assert all(0 < recall <= 100 for recall in recalls)
    assert 'Recall@1' in lines[3] and 'Recall@1' not in lines[2]

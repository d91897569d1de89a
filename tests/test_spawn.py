"""The scripts where worker processes are spawned, not forked: macOS and Windows."""

import pytest
from train_runs import FLAGS, RUN


@pytest.fixture
def spawning(monkeypatch, tmp_path):
    """Let scripts in processes of their own spawn their workers; forking fails."""
    lines = [
        'import multiprocessing, os',
        "multiprocessing.set_start_method('spawn')",
        'del os.fork',
    ]
    (tmp_path / 'sitecustomize.py').write_text('\n'.join(lines))
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))


@pytest.mark.slow
def test_workers_can_be_spawned(slim, spawning, tmp_path):
    photos, results = slim.root / 'data/photos', ['--results_root', tmp_path]
    flags = ['--data_path', photos, '--image_size', 32, '--num_workers', 2]
    output = slim.succeed('data_utils.py', '--data_name', 'spawned', *flags)
    assert 'wrote ' in output
    flags = [*FLAGS, '--num_epochs', 1, '--num_workers', 2]
    assert 'epoch 1/1: ' in slim.succeed('train.py', *flags, *results)
    model = ['--model', f'{RUN}_model.pth']
    output = slim.succeed('inference.py', *results, *model, '--gallery', photos)
    assert '66 embedded now' in output

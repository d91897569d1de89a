"""benchmarks/dimensions.py: other projections from stored embeddings."""

import json
import os
import sys

import pytest
import torch
from conftest import REPOSITORY

sys.path.insert(0, os.path.join(REPOSITORY, 'benchmarks'))
import dimensions

from areir.errors import UserError
from areir.networks.projection import fit_projection
from areir.retrieval import evaluate


def write_run(root, whitening=0.75):
    """Write the files of a run; return (its name, fitted and test vectors, labels)."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(3, 0.1, 40)
    fitted, vectors = spread * torch.randn(2, 120, 40, generator=generator) + 0.5
    labels = torch.arange(120) % 5
    vectors[:, 30:] += 0.2 * torch.randn(5, 10, generator=generator)[labels]
    projection = fit_projection(fitted, 4096, whitening)
    run = str(root / 'small')
    torch.save({'projection': projection.to_state()}, f'{run}_model.pth')
    database = {'embeddings': projection(vectors), 'labels': labels}
    torch.save(database, f'{run}_data_base.pth')
    with open(f'{run}_run.json', 'w') as file:
        json.dump({'arguments': {'whitening': whitening}}, file)
    return run, fitted, vectors, labels


def test_metrics_are_those_of_projections_that_were_fitted(tmp_path):
    run, fitted, vectors, labels = write_run(tmp_path)
    table = dimensions.measure(run)
    assert list(table) == [16, 32, 40]
    recalls = set()
    for length, metrics in table.items():
        assert list(metrics) == [0, 0.25, 0.5, 0.75, 1]
        for whitening, found in metrics.items():
            projection = fit_projection(fitted, length, whitening)
            assert found == evaluate(projection(vectors), labels, [1])
            recalls.add(found['recall@1'])
    assert len(recalls) > 5  # dimensions and whitening matter here


def test_table(tmp_path, monkeypatch, capsys):
    run, *_ = write_run(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['dimensions.py', run])
    dimensions.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ['0', '0.25', '0.5', '0.75', '1']
    assert [line.split()[0] for line in lines[2:]] == ['16', '32', '40']
    assert all(line.count('%') == 10 for line in lines[2:])


def test_deviations_are_lost_without_whitening(tmp_path):
    run, *_ = write_run(tmp_path, whitening=0)
    with pytest.raises(UserError, match='--whitening above 0'):
        dimensions.measure(run)


def test_queries_of_a_separate_gallery_do_not_query_each_other(tmp_path):
    run, fitted, vectors, labels = write_run(tmp_path)
    path = f'{run}_data_base.pth'
    database = torch.load(path)
    for name in ('embeddings', 'labels'):
        query, gallery = database[name].split([20, 100])
        database |= {f'query_{name}': query, name: gallery}
    torch.save(database, path)
    vectors = fit_projection(fitted, 16, 0.25)(vectors)
    expected = evaluate(vectors[:20], labels[:20], [1], vectors[20:], labels[20:])
    assert dimensions.measure(run)[16][0.25] == expected


def test_embeddings_of_another_length_are_refused(tmp_path):
    run, *_ = write_run(tmp_path)
    path = f'{run}_data_base.pth'
    database = torch.load(path)
    database['embeddings'] = database['embeddings'][:, :30]
    torch.save(database, path)
    with pytest.raises(UserError, match=r'small_data_base\.pth'):
        dimensions.measure(run)


@pytest.mark.parametrize('model', [[1], {'projection': {'mean': torch.zeros(3)}}])
def test_a_damaged_model_is_named(tmp_path, model):
    run, *_ = write_run(tmp_path)
    torch.save(model, f'{run}_model.pth')
    with pytest.raises(UserError, match=r'small_model\.pth'):
        dimensions.measure(run)

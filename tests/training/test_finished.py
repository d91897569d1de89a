"""A finished run is never trained over unasked, whatever of its files is damaged."""

import json
import os

import pytest
from small import make_run
from test_run import finish

from areir.errors import UserError
from areir.training.run import Progress

CSV = 'epoch,loss\n1,0.5\n2,0.25\n3,0.125\n'
DAMAGED_CSVS = {
    'missing': None,
    'empty': '',
    'a row short': CSV.removesuffix('3,0.125\n'),
    'a row short in the middle': CSV.replace('2,0.25\n', ''),
    'cut off': CSV[:-3],
    'other columns': CSV.replace('epoch', 'era'),
    'text': CSV.replace('3,', 'three,'),
    'binary': b'PK\x03\x04\x00\xff\xfe' * 20,
}
DAMAGED_RECORDS = {
    'empty': '',
    'dict': '{}',
    'list': '[]',
    'number': '5',
    'null': 'null',
    'nested': '[' * 100_000,
    'truncated': '{"arguments": ',
    'binary': b'PK\x03\x04\x00\xff\xfe' * 20,
    'arguments': '{"arguments": [1], "precision": "fp32", "data": {}}',
    'data': '{"arguments": {}, "precision": "fp32", "data": null}',
}


def damage(path, text):
    os.remove(path)
    if text is not None:
        with open(path, 'wb') as file:
            file.write(text if isinstance(text, bytes) else text.encode())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def finished(tmp_path):
    """A run of 3 epochs that is finished."""
    run = make_run(tmp_path)
    finish(run, 3)
    os.mkdir(run.path('checkpoint'))
    run.end(Progress(rows=[{'epoch': epoch} for epoch in (1, 2, 3)]))
    damage(run.path('results.csv'), CSV)
    return run


@pytest.mark.parametrize('kind', DAMAGED_CSVS)
def test_a_finished_run_with_a_damaged_csv_is_finished(
    finished, tmp_path, capsys, kind
):
    assert not finished.check_start(resume=True, num_epochs=3)
    assert 'notice' not in capsys.readouterr().out
    damage(finished.path('results.csv'), DAMAGED_CSVS[kind])
    before = contents(tmp_path)
    assert not finished.check_start(resume=True, num_epochs=3)
    first, second = capsys.readouterr().out.splitlines()
    assert 'is finished' in first and finished.path('results.csv') in second
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    'kind', sorted({*DAMAGED_CSVS} - {'a row short in the middle'})
)
def test_a_damaged_csv_of_an_older_version_is_refused(tmp_path, kind):
    """Its run.json does not say that the run is finished."""
    run = make_run(tmp_path)
    finish(run, 3)
    damage(run.path('results.csv'), DAMAGED_CSVS[kind])
    with pytest.raises(UserError, match=r'results\.csv.*--resume'):
        run.check_start(resume=True, num_epochs=3)


@pytest.mark.parametrize('kind', DAMAGED_RECORDS)
def test_a_damaged_run_json_is_named(finished, tmp_path, kind):
    damage(finished.path('run.json'), DAMAGED_RECORDS[kind])
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r'run\.json.*--resume') as refused:
        finished.check_start(resume=True, num_epochs=3)
    assert '\n' not in str(refused.value) and contents(tmp_path) == before


@pytest.mark.parametrize('tested', [None, 5, {}])
def test_odd_epochs_in_a_run_json_are_damage(finished, tested):
    with open(finished.path('run.json')) as file:
        record = json.load(file)
    damage(finished.path('run.json'), json.dumps({**record, 'tested_epochs': tested}))
    with pytest.raises(UserError, match=r'run\.json'):
        finished.check_start(resume=True, num_epochs=3)


@pytest.mark.parametrize('name', ['results.csv', 'model.pth', 'data_base.pth'])
def test_results_without_a_run_json_are_not_overwritten(tmp_path, name):
    run = make_run(tmp_path)
    with open(run.path(name), 'w') as file:
        file.write('a')
    with pytest.raises(UserError, match=name):
        run.check_start(resume=True, num_epochs=3)
    assert run.check_start(resume=False, num_epochs=3)

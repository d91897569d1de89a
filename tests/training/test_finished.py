"""A finished run is never trained over unasked, whatever of its files is damaged."""

import json
import os

import pytest
from small import make_run
from special import KINDS, in_time, make_special
from test_run import finish

from areir.errors import UserError
from areir.files import write_json
from areir.training.finished import read_run_json, with_checksum
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
    'another number': CSV.replace('0.25', '0.75'),
}
UNKNOWN_BEFORE = {'a row short in the middle', 'another number'}
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
    rows = [{'epoch': epoch, 'loss': 2.0**-epoch} for epoch in (1, 2, 3)]
    progress = Progress(rows=rows)
    run.write_csv(progress)
    run.end(progress)
    with open(run.path('results.csv')) as file:
        assert file.read() == CSV
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


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.usefixtures(in_time.__name__)
def test_a_csv_that_is_no_regular_file_is_named(finished, tmp_path, capsys, kind):
    path = tmp_path / os.path.basename(finished.path('results.csv'))
    make_special(path, kind)
    assert not finished.check_start(resume=True, num_epochs=3)
    assert f'{path} is not a regular file' in capsys.readouterr().out


def test_a_folder_in_the_place_of_the_csv_is_named(finished, capsys):
    os.remove(finished.path('results.csv'))
    os.mkdir(finished.path('results.csv'))
    assert not finished.check_start(resume=True, num_epochs=3)
    assert 'results.csv cannot be read' in capsys.readouterr().out


@pytest.mark.parametrize('kind', sorted({*DAMAGED_CSVS} - UNKNOWN_BEFORE))
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


def test_no_byte_of_a_run_json_can_change_unseen(finished):
    path = finished.path('run.json')
    with open(path, 'rb') as file:
        content = file.read()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        damage(path, bytes(changed))
        with pytest.raises(UserError, match=r'run\.json is damaged'):
            finished.check_start(resume=True, num_epochs=3)


def test_a_run_json_may_hold_names_that_are_not_unicode(finished):
    path = finished.path('run.json')
    write_json(path, with_checksum({'arguments': {'data_root': 'd\udcffta'}}))
    assert read_run_json(path)['arguments'] == {'data_root': 'd\udcffta'}


def test_what_is_kept_of_a_run_has_a_checksum(finished):
    finished.keep({}, {}, {'arguments': {'seed': 1}})
    path = finished.path('run.json')
    with open(path) as file:
        text = file.read()
    assert read_run_json(path)['arguments'] == {'seed': 1}
    damage(path, text.replace('"seed": 1', '"seed": 2'))
    with pytest.raises(UserError, match=r'run\.json is damaged'):
        finished.calibration()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.usefixtures(in_time.__name__)
def test_a_run_json_that_is_no_regular_file_is_refused(tmp_path, kind):
    path = tmp_path / 'run.json'
    make_special(path, kind)
    with pytest.raises(UserError, match=r'run\.json'):
        read_run_json(str(path))


@pytest.mark.parametrize('tested', [None, 5, {}])
def test_odd_epochs_in_a_run_json_are_damage(finished, tested):
    with open(finished.path('run.json')) as file:
        record = json.load(file)
    record = with_checksum({**record, 'tested_epochs': tested})
    damage(finished.path('run.json'), json.dumps(record))
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

"""The notebook: it runs in any folder, and its outputs are those of the code."""

import os
import re
import sys

import nbformat
import pytest
from conftest import REPOSITORY

sys.path.insert(0, os.path.join(REPOSITORY, 'docs'))
from make_tour import TOUR, run_tour

NUMBER = re.compile(r'\d+(?:\.\d+)?')


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def results(notebook):
    """Return (kinds, text) of what cells show; what they print tells of the machine."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    shown = [output.data for output in outputs if 'data' in output]
    return [(sorted(data), data['text/plain']) for data in shown]


def words(text):
    """Return a text without its numbers, blanks, and whether a score is a match."""
    return re.sub(r'\s+|\bTrue\b|\bFalse\b', '', NUMBER.sub('#', text))


def test_committed_outputs_are_clean():
    notebook = nbformat.read(TOUR, as_version=4)
    assert os.path.getsize(TOUR) < 2**20
    cells = code_cells(notebook)
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert 'error' not in {output.output_type for output in outputs}
    assert 'stderr' not in {output.get('name') for output in outputs}
    printed = [output.get('text', '') for output in outputs]
    for text in [*printed, *(text for _, text in results(notebook))]:
        assert not re.search(
            r'(?<!\w)/\w|\r|\b[Ww]arning', text
        )  # a path from the root


@pytest.mark.slow
def test_committed_outputs_are_those_of_the_code(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', REPOSITORY)
    committed = results(nbformat.read(TOUR, as_version=4))
    found = results(run_tour(str(tmp_path)))
    assert len(found) == len(committed) > 5
    for (kinds, text), (old_kinds, old_text) in zip(found, committed):
        assert kinds == old_kinds and words(text) == words(old_text), 'run `make tour`'
        shares = re.compile(r'([\d.]+)%')
        numbers, old = (shares.findall(each) for each in (text, old_text))
        assert [*map(float, numbers)] == pytest.approx([*map(float, old)], abs=10)
    (table,) = (text for _, text in found if 'by hand' in text)
    for row in table.splitlines()[1:]:
        by_hand, exact = NUMBER.findall(row)[-2:]
        assert by_hand == exact
    assert {path.name for path in tmp_path.iterdir()} == {'data', 'results'}

"""docs/python.md runs as written."""

import os
import re

import pytest
from conftest import REPOSITORY


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    with open(os.path.join(REPOSITORY, 'docs/python.md'), encoding='utf-8') as file:
        blocks = re.findall(r'```python\n(.*?)```', file.read(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(compile(block, 'docs/python.md', 'exec'), names)
    assert '0.5\n1.0\n' in capsys.readouterr().out

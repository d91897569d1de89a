"""Search from a file: as search in memory, in bounded memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from photos import random_vectors
from torch.nn import functional as F

from areir.evaluation.ranking import has_fast_codes
from areir.gallery import vectors as vectors_file
from areir.gallery.vectors import VectorsFile, write_codes
from areir.retrieval import search


@pytest.mark.parametrize(
    ('count', 'tile', 'k', 'distinct'),
    [
        (50, 7, 5, None),
        (50, 7, 50, None),
        (50, 1, 3, 10),
        (23, 100, 22, 4),
        (1, 1, 1, None),
        (64, 8, 8, 3),
    ],
)
@pytest.mark.parametrize('codes', [True, False])
def test_search_in_a_file_equals_search_in_memory(
    tmp_path, monkeypatch, seed, count, tile, k, distinct, codes
):
    """Without the instructions for codes they are used slowly."""
    monkeypatch.setattr(vectors_file, 'TILE', tile)
    stored, vectors = random_vectors(tmp_path, count, distinct=distinct)
    if codes:
        monkeypatch.setattr(vectors_file, 'has_fast_codes', lambda _: True)
        write_codes(stored)
        assert stored.codes is not None
    generator = torch.Generator().manual_seed(seed)
    others = F.normalize(torch.randn(5, 6, generator=generator))
    query = torch.cat([vectors[:9], others])
    own = torch.arange(len(query))
    own[-5:] = -1
    for exclude in (None, own) if k < count else (None,):
        scores, indices = stored.search(query, k, exclude)
        expected = search(query, vectors, k, exclude)
        assert torch.equal(scores, expected[0]) and torch.equal(indices, expected[1])


SEARCH = """
import sys, threading, time
sys.path.insert(0, {root!r})
import torch
def watch():
    while True:
        with open('/proc/self/status') as file:
            anonymous = next(line for line in file if line.startswith('RssAnon'))
        peak.append(int(anonymous.split()[1]))
        time.sleep(0.002)
peak = []
threading.Thread(target=watch, daemon=True).start()
time.sleep(0.1)
from areir.gallery.vectors import VectorsFile
if {path!r}:
    stored = VectorsFile({path!r}, 256)
    query = torch.tensor(stored.array[:4])
    assert stored.codes
    print(stored.search(query, 5)[1][:, 0].tolist(), end=' ')
print(max(peak))
"""


def run_search(path):
    """Search a file in a process of its own; '' only imports. Return its output."""
    code = SEARCH.format(root=REPOSITORY, path=path)
    command = [sys.executable, '-c', code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(not has_fast_codes(256), reason='needs 8-bit products')
def test_memory_is_bounded(tmp_path):
    """Beyond mapped pages, a search takes a fraction of the memory of the vectors."""
    count, dimensions = 300_000, 256
    path = str(tmp_path / 'vectors.f32')
    stored = np.memmap(path, np.float32, 'w+', shape=(count, dimensions))
    rng = np.random.default_rng(0)
    for start in range(0, count, 30_000):
        block = rng.standard_normal((30_000, dimensions), np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        stored[start : start + 30_000] = block
    stored.flush()
    write_codes(VectorsFile(path, dimensions))
    output = run_search(path)
    assert output.startswith('[0, 1, 2, 3] ')
    used = int(output.split()[-1]) - int(run_search(''))
    assert used * 1024 < count * dimensions * 4 / 6  # the vectors are 300 MB

"""The journal of an index: an interrupted build continues where it ended."""

import json
import shutil

import pytest
from photos import (
    SETTINGS,
    SIDE,
    Counting,
    assert_same,
    draw_photos,
    embed,
    embed_in_steps,
    update,
)

from areir.files import WriteError
from areir.retrieval import journal
from areir.retrieval.folders import scan


@pytest.fixture
def photos(tmp_path):
    return draw_photos(tmp_path / 'photos')


def write(photos, folder):
    """Write a journal of all images to a new folder."""
    folder.mkdir()
    images, _, _ = scan(str(photos))
    journal.write_journal(str(folder), SETTINGS, str(photos), images, SIDE, embed)


def test_an_interrupted_build_continues(photos, tmp_path, monkeypatch, capsys):
    embed_in_steps(monkeypatch)
    counting = Counting()

    def failing(pixels):
        if counting.images == 4:
            raise KeyboardInterrupt
        return counting(pixels)

    with pytest.raises(KeyboardInterrupt):
        update(photos, tmp_path / 'index', embed=failing)
    assert not (tmp_path / 'index/index.pth').exists()
    index = update(photos, tmp_path / 'index')
    assert '4 images of an interrupted build' in capsys.readouterr().out
    assert index.embedded == 3
    assert_same(index, update(photos, tmp_path / 'new'))


def test_a_journal_cut_anywhere_is_used_as_far_as_it_is_whole(
    photos, tmp_path, monkeypatch
):
    embed_in_steps(monkeypatch)
    new = update(photos, tmp_path / 'new')
    write(photos, tmp_path / 'whole')
    cuts = {'jsonl': (1, 90, 201), 'f32': (0, 30, 100)}
    for suffix, lengths in cuts.items():
        for length in lengths:
            cut = tmp_path / f'cut {length} {suffix}'
            shutil.copytree(tmp_path / 'whole', cut)
            (path,) = cut.glob(f'*.{suffix}')
            path.write_bytes(path.read_bytes()[:length])
            counting = Counting()
            assert_same(update(photos, cut, embed=counting), new)
            if length == 100:
                assert counting.images == 3  # 4 vectors of 24 bytes are whole


@pytest.mark.parametrize(
    'line',
    [
        '5',
        '["a", [1, 2], null]',
        '[["a"], [1, 2], 64]',
        '["a/0.png", [1, 2], -4]',
        '{}',
    ],
)
def test_a_line_that_makes_no_sense_ends_a_journal(photos, tmp_path, line):
    write(photos, tmp_path / 'index')
    (path,) = (tmp_path / 'index').glob('*.jsonl')
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([*lines[:3], line, *lines[3:]]) + '\n')
    counting = Counting()
    index = update(photos, tmp_path / 'index', embed=counting)
    assert counting.images == 5
    assert_same(index, update(photos, tmp_path / 'new'))


def test_a_journal_of_other_settings_is_not_used(photos, tmp_path):
    write(photos, tmp_path / 'index')
    other = {**SETTINGS, 'model': 'b'}
    assert journal.read_journals(str(tmp_path / 'index'), other) == journal.Journal()
    assert update(photos, tmp_path / 'index', other).embedded == 7


def test_the_format_of_a_journal(photos, tmp_path):
    """Journals of earlier versions are read, so the format must stay."""
    (photos / 'broken.png').write_bytes(b'no image')
    write(photos, tmp_path / 'index')
    (path,) = (tmp_path / 'index').glob('journal_*.jsonl')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    images, _, _ = scan(str(photos))
    assert lines[0] == SETTINGS
    assert lines[1] == ['a/0.png', images['a/0.png'], 6]
    assert lines[-1][:2] == ['broken.png', images['broken.png']]
    assert 'cannot identify' in lines[-1][2]
    assert path.with_suffix('.f32').stat().st_size == 7 * 6 * 4


def test_a_full_disk_is_an_error_that_names_the_file(photos, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(journal, 'embed_files', full)
    with pytest.raises(WriteError, match=r'journal_.*\.f32'):
        update(photos, tmp_path / 'index')

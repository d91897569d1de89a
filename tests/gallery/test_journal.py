"""The journal of an index: an interrupted build continues where it ended."""

import json
import shutil
import zlib

import numpy as np
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
from areir.gallery import journal
from areir.gallery.folders import scan


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
        '["a/0.png", [1, 2], true]',
        '["a/0.png", [1, 2], 7]',  # the others have 6 dimensions
        '["a/0.png", null, 6, 0, 0]',
        '["a/0.png", [1, 2], 6, -1, 0]',
        '["a/0.png", [1, 2], 6, 0, 0]',
        '["a/0.png", [1, 2], 6, 0]',
        '[' * 100_000,
    ],
    ids=lambda line: line[:40],
)
def test_a_line_that_makes_no_sense_ends_a_journal(photos, tmp_path, line, capsys):
    write(photos, tmp_path / 'index')
    (path,) = (tmp_path / 'index').glob('*.jsonl')
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([*lines[:3], line, *lines[3:]]) + '\n')
    counting = Counting()
    index = update(photos, tmp_path / 'index', embed=counting)
    assert counting.images == 5
    assert f'{path} is damaged' in capsys.readouterr().out
    assert_same(index, update(photos, tmp_path / 'new'))


def as_earlier_versions(folder):
    """Rewrite a journal without rows and checksums; return the paths of its files."""
    (path,) = folder.glob('*.jsonl')
    settings, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [settings, *(line[:3] for line in lines)])
    return path, path.with_suffix('.f32')


def write_lines(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_a_lost_line_does_not_shift_the_others(photos, tmp_path):
    write(photos, tmp_path / 'index')
    (path,) = (tmp_path / 'index').glob('*.jsonl')
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(''.join(lines[:3] + lines[4:]))
    counting = Counting()
    index = update(photos, tmp_path / 'index', embed=counting)
    assert counting.images == 1
    assert_same(index, update(photos, tmp_path / 'new'))


def test_a_damaged_vector_is_embedded_again(photos, tmp_path, capsys):
    write(photos, tmp_path / 'index')
    (path,) = (tmp_path / 'index').glob('*.f32')
    content = bytearray(path.read_bytes())
    content[4 * 24 + 2] ^= 1  # in the fifth vector
    path.write_bytes(content)
    counting = Counting()
    index = update(photos, tmp_path / 'index', embed=counting)
    assert counting.images == 3
    assert f'{path.with_suffix(".jsonl")} is damaged' in capsys.readouterr().out
    assert_same(index, update(photos, tmp_path / 'new'))


def test_a_journal_of_earlier_versions_is_continued(photos, tmp_path, capsys):
    write(photos, tmp_path / 'index')
    as_earlier_versions(tmp_path / 'index')
    counting = Counting()
    index = update(photos, tmp_path / 'index', embed=counting)
    assert counting.images == 0 and 'damaged' not in capsys.readouterr().out
    assert_same(index, update(photos, tmp_path / 'new'))


@pytest.mark.parametrize('damage', ['lost line', 'NaN', 'cut', 'dimensions'])
def test_a_damaged_journal_of_earlier_versions_is_not_used(
    photos, tmp_path, damage, capsys
):
    write(photos, tmp_path / 'index')
    path, vectors_path = as_earlier_versions(tmp_path / 'index')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    vectors = np.fromfile(vectors_path, np.float32)
    if damage == 'lost line':
        del lines[3]
    elif damage == 'NaN':
        vectors[8] = np.nan
    elif damage == 'cut':
        vectors = vectors[:-1]
    else:
        for line in lines[1:]:
            line[2] = 7
    write_lines(path, lines)
    vectors.tofile(vectors_path)
    counting = Counting()
    index = update(photos, tmp_path / 'index', embed=counting)
    assert counting.images == 7
    assert f'{path} is damaged' in capsys.readouterr().out
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
    vectors = path.with_suffix('.f32').read_bytes()
    for row in range(7):
        image = lines[1 + row][0]
        checksum = zlib.crc32(vectors[24 * row : 24 * row + 24])
        assert lines[1 + row] == [image, images[image], 6, row, checksum]
    assert lines[1][0] == 'a/0.png'
    assert lines[-1][:2] == ['broken.png', images['broken.png']]
    assert 'cannot identify' in lines[-1][2]
    assert len(vectors) == 7 * 6 * 4


def test_a_full_disk_is_an_error_that_names_the_file(photos, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(journal, 'embed_files', full)
    with pytest.raises(WriteError, match=r'journal_.*\.f32'):
        update(photos, tmp_path / 'index')

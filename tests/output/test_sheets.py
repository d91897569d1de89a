"""Thumbnails and sheets."""

import shutil
import unicodedata

import pytest
from PIL import Image

from areir.output import sheets
from areir.output.sheets import (
    CAPTION,
    COLOURS,
    COLUMNS,
    GAP,
    THUMBNAIL,
    contact_sheet,
    find_font,
    sheet,
    thumbnail,
)

STEP_X, STEP_Y = THUMBNAIL + GAP, THUMBNAIL + CAPTION + GAP


@pytest.mark.parametrize('size', [(700, 9), (9, 700), (1, 1), (300, 200)])
def test_images_of_any_shape_fit_into_a_thumbnail(size):
    image = thumbnail(Image.new('RGB', size, 'blue'), COLOURS[True], 5)
    assert image.size == (THUMBNAIL, THUMBNAIL)
    assert image.getpixel((1, 1)) == COLOURS[True]
    colours = {colour for _, colour in image.getcolors()}
    assert (0, 0, 255) in colours


@pytest.mark.parametrize('count', [1, 8, 9, 17])
def test_the_query_of_a_contact_sheet_is_beside_the_rows(count):
    """The query is red, retrieved images are blue, and below the query is nothing."""
    red = Image.new('RGB', (THUMBNAIL, THUMBNAIL), 'red')
    blue = Image.new('RGB', (THUMBNAIL, THUMBNAIL), 'blue')
    captions = [(f'{number}: a', 'b') for number in range(count + 1)]
    picture = contact_sheet([red] + [blue] * count, captions)
    columns = min(count, COLUMNS)
    rows = -(-count // COLUMNS)
    assert picture.size == (2 * GAP + (columns + 1) * STEP_X, GAP + rows * STEP_Y)
    for row in range(rows):
        y = GAP + row * STEP_Y + 10
        first = picture.getpixel((GAP + 10, y))
        assert first == ((255, 0, 0) if row == 0 else (255, 255, 255))
        for column in range(columns):
            x = 2 * GAP + (column + 1) * STEP_X + 10
            there = row * COLUMNS + column < count
            colour = (0, 0, 255) if there else (255, 255, 255)
            assert picture.getpixel((x, y)) == colour


@pytest.mark.parametrize('text', ['x' * 400, 'a\nb\tc', 'caf\udce9', '写真' * 60, ''])
def test_captions_of_any_text_are_drawn(text):
    picture = sheet([Image.new('RGB', (9, 9))], [(text, text)], 1)
    assert picture.size == (GAP + STEP_X, GAP + STEP_Y)
    margin = picture.crop((0, GAP + THUMBNAIL, GAP - 1, picture.height))
    assert margin.getextrema() == ((255, 255),) * 3  # nothing beside the thumbnail


def draw_caption(text):
    return sheet([None], [(text, '')], 1)


def test_letters_of_european_names_are_drawn():
    """Composed or, as macOS writes them, decomposed; not as empty boxes."""
    box = draw_caption('\uffff').tobytes()
    for text in ('é', 'ü', 'ø', 'ß', 'ő', 'ж', 'Ω', '…'):
        assert draw_caption(text).tobytes() != box
        decomposed = unicodedata.normalize('NFD', text)
        assert draw_caption(decomposed) == draw_caption(text)
    assert draw_caption('é') != draw_caption('e')


def test_chinese_japanese_and_korean_take_a_font_of_the_system(tmp_path, monkeypatch):
    system = tmp_path / 'system.ttc'
    shutil.copy(find_font().path, system)
    monkeypatch.setattr(sheets, 'CJK_FONTS', ('nowhere.ttc', str(system)))
    monkeypatch.setattr(sheets, 'find_font', find_font.__wrapped__)
    used = []
    draw = sheets.fit_caption
    monkeypatch.setattr(
        sheets, 'fit_caption', lambda *args: used.append(args[2].path) or draw(*args)
    )
    sheet([None] * 3, [('日本', 'é'), ('カメラ', 'a'), ('한국', '中')], 3)
    dejavu, wide = find_font().path, str(system)
    assert used == [wide, dejavu, wide, dejavu, wide, wide]
    monkeypatch.setattr(sheets, 'CJK_FONTS', ('nowhere.ttc',))
    assert sheets.find_font(wide=True).path == dejavu

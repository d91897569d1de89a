"""The page of a run in a browser: widths, contrast, keyboard."""

import pytest
from browser import Session, need_browser
from pages import HOSTILE, RUN, make_database, write
from trained import CALIBRATION

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def session(tmp_path_factory):
    """A browser that shows a page with long names and a missing image."""
    need_browser()
    folder = tmp_path_factory.mktemp('page')
    words = 'a name of several words that is as long as those of cars are, and longer'
    database = make_database(folder, ('W' * 90, words, HOSTILE, 'cog'))
    (folder / database['images'][0]).unlink()
    write(folder, {**database, 'calibration': CALIBRATION, 'protocol': 'published'})
    with Session(folder / 'profile') as browser:
        browser.call('/url', url=(folder / f'{RUN}_report.html').as_uri())
        yield browser


def test_keyboard_and_pictures(session):
    steps = [session.press_tab() for _ in range(3)]
    assert steps == [(text, 'solid') for text in ('To the results', 'Curves', 'Heads')]
    assert session.run('return [...document.images].every(image => image.naturalWidth)')
    assert session.log('browser') == []


@pytest.mark.parametrize('width', [360, 1440])
def test_width_and_contrast(session, width):
    session.run('document.querySelectorAll("details").forEach(it => it.open = true)')
    session.check_themes(width)
    table = "document.querySelector('.classes').closest('.scroll')"
    assert session.run(f'return {table}.scrollWidth <= {table}.clientWidth')

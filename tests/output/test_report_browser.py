"""The page in a browser: the tree it builds, widths, contrast, keyboard.

These tests are skipped where there is no Chromium or no chromedriver.
"""

import subprocess

import pytest
from browser import BROWSERS, CHROMIUM, CONTRAST, FLAGS, Session, need_browser
from pages import CALIBRATION, HOSTILE, RUN, Outline, check_page, make_database, write

OPEN_DETAILS = """
for (const details of document.querySelectorAll("details")) details.open = true
"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason=f'none of {", ".join(BROWSERS)}')
def test_browser_builds_the_tree_that_is_written(tmp_path):
    page = write(tmp_path, {**make_database(tmp_path), 'calibration': CALIBRATION})
    url = (tmp_path / f'{RUN}_report.html').as_uri()
    profile = f'--user-data-dir={tmp_path / "profile"}'
    result = subprocess.run(
        [CHROMIUM, *FLAGS, profile, '--dump-dom', url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.rstrip().endswith('</html>')
    built, written = check_page(result.stdout), Outline(page)
    assert [name for name, _ in built.tags] == [name for name, _ in written.tags]


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


@pytest.mark.slow
def test_keyboard(session):
    steps = [session.press_tab() for _ in range(4)]
    texts = ['To the results', 'Curves', 'Heads', 'Classes']
    assert steps == [(text, 'solid') for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize('width', [360, 800, 1440])
def test_width_and_contrast(session, width):
    session.run(OPEN_DETAILS)
    backgrounds = set()
    for theme in ('light', 'dark'):
        session.resize(width, theme)
        assert session.run('return innerWidth') == width
        assert session.run('return document.documentElement.scrollWidth') <= width
        assert session.run(CONTRAST) >= 4.5
        background = 'return getComputedStyle(document.body).backgroundColor'
        backgrounds.add(session.run(background))
    assert len(backgrounds) == 2

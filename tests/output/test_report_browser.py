"""The page in a browser: the tree it builds, widths, contrast, keyboard.

These tests are skipped where there is no Chromium or no chromedriver.
"""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.request

import pytest
from pages import CALIBRATION, HOSTILE, RUN, Outline, check_page, make_database, write

BROWSERS = 'chromium', 'chromium-browser', 'google-chrome'
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
DRIVER = shutil.which('chromedriver')
FLAGS = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
]
OPEN_DETAILS = """
for (const details of document.querySelectorAll("details")) details.open = true
"""
# the least contrast between a text and what is behind it, as WCAG 2.1 defines it
CONTRAST = """
const luminance = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
  .map(part => part <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
  .reduce((sum, part, place) => sum + part * [.2126, .7152, .0722][place], 0)
const clear = 'rgba(0, 0, 0, 0)'
let least = 99
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes]
  if (!own.some(node => node.nodeType == 3 && node.data.trim())) continue
  if (element.closest('title, desc')) continue
  const style = getComputedStyle(element)
  let behind = element, back
  do {
    back = getComputedStyle(behind).backgroundColor
    behind = behind.parentElement
  } while (behind && back == clear)
  const colour = element instanceof SVGElement ? style.fill : style.color
  const pair = [luminance(colour), luminance(back)].sort((a, b) => a - b)
  least = Math.min(least, (pair[1] + .05) / (pair[0] + .05))
}
return least
"""
FOCUS = """
const element = document.activeElement, box = element.getBoundingClientRect()
const visible = box.left >= 0 && box.top >= 0
return [element.textContent, visible && getComputedStyle(element).outlineStyle]
"""


class Session:
    """A headless Chromium, driven through WebDriver; use it as a context."""

    def __init__(self, folder):
        self.folder = folder
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self):
        self.driver = subprocess.Popen(
            [DRIVER, '--port=0'],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        ports = (re.search(r'on port (\d+)', line) for line in self.driver.stdout)
        port = next(port[1] for port in ports if port and port[1] != '0')
        self.url = f'http://127.0.0.1:{port}/session'
        flags = [*FLAGS, f'--user-data-dir={self.folder}']
        options = {'goog:chromeOptions': {'binary': CHROMIUM, 'args': flags}}
        answer = self.call('', capabilities={'alwaysMatch': options})
        self.url += '/' + answer['sessionId']
        return self

    def __exit__(self, *error):
        with contextlib.suppress(OSError):
            self.call('', 'DELETE')
        self.driver.terminate()
        self.driver.wait(10)
        self.driver.stdout.close()

    def call(self, path, method='POST', **parameters):
        """Call a WebDriver command and return its value."""
        request = urllib.request.Request(
            self.url + path,
            json.dumps(parameters).encode(),
            {'Content-Type': 'application/json'},
            method=method,
        )
        with self.opener.open(request, timeout=60) as answer:
            return json.load(answer)['value']

    def emulate(self, command, **parameters):
        command = f'Emulation.{command}'
        self.call('/goog/cdp/execute', cmd=command, params=parameters)

    def run(self, script):
        """Return what a script returns that runs in the page."""
        return self.call('/execute/sync', script=script, args=[])

    def press_tab(self):
        """Return the text of the element that gets the focus, and its outline."""
        keys = [{'type': kind, 'value': '\ue004'} for kind in ('keyDown', 'keyUp')]
        keyboard = {'type': 'key', 'id': 'keyboard', 'actions': keys}
        self.call('/actions', actions=[keyboard])
        return tuple(self.run(FOCUS))


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
    if not CHROMIUM or not DRIVER:
        pytest.skip(f'no chromedriver, or none of {", ".join(BROWSERS)}')
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
    session.emulate(
        'setDeviceMetricsOverride',
        width=width,
        height=800,
        deviceScaleFactor=1,
        mobile=width == 360,
    )
    session.run(OPEN_DETAILS)
    backgrounds = set()
    for theme in ('light', 'dark'):
        feature = {'name': 'prefers-color-scheme', 'value': theme}
        session.emulate('setEmulatedMedia', features=[feature])
        assert session.run('return innerWidth') == width
        assert session.run('return document.documentElement.scrollWidth') <= width
        assert session.run(CONTRAST) >= 4.5
        background = 'return getComputedStyle(document.body).backgroundColor'
        backgrounds.add(session.run(background))
    assert len(backgrounds) == 2

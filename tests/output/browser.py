"""A headless Chromium that tests drive through WebDriver."""

import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.request

import pytest

BROWSERS = 'chromium', 'chromium-browser', 'google-chrome'
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
TAB, ENTER, SPACE, ESCAPE = '\ue004', '\ue007', ' ', '\ue00c'
DRIVER = shutil.which('chromedriver')
FLAGS = '--headless', '--no-sandbox', '--disable-background-networking'
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
        options = {
            'goog:chromeOptions': {'binary': CHROMIUM, 'args': flags},
            'goog:loggingPrefs': {'browser': 'ALL', 'performance': 'ALL'},
        }
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

    def command(self, name, **parameters):
        """Give a command of the DevTools protocol."""
        self.call('/goog/cdp/execute', cmd=name, params=parameters)

    def run(self, script):
        """Return what a script returns that runs in the page."""
        return self.call('/execute/sync', script=script, args=[])

    def press(self, key):
        """Press and release a key; WebDriver has characters for special ones."""
        keys = [{'type': kind, 'value': key} for kind in ('keyDown', 'keyUp')]
        keyboard = {'type': 'key', 'id': 'keyboard', 'actions': keys}
        self.call('/actions', actions=[keyboard])

    def press_tab(self):
        """Return the text of the element that gets the focus, and its outline."""
        self.press(TAB)
        return tuple(self.run(FOCUS))

    def resize(self, width, theme='light'):
        """Set the width of the screen, and light or dark."""
        screen = {'width': width, 'height': 800, 'deviceScaleFactor': 1}
        screen['mobile'] = width == 360
        self.command('Emulation.setDeviceMetricsOverride', **screen)
        feature = {'name': 'prefers-color-scheme', 'value': theme}
        self.command('Emulation.setEmulatedMedia', features=[feature])

    def check_themes(self, width):
        """Check that the page fits the width, and its contrast, in light and dark."""
        backgrounds = set()
        for theme in ('light', 'dark'):
            self.resize(width, theme)
            assert self.run('return innerWidth') == width
            assert self.run('return document.documentElement.scrollWidth') <= width
            assert self.run(CONTRAST) >= 4.5
            background = 'return getComputedStyle(document.body).backgroundColor'
            backgrounds.add(self.run(background))
        assert len(backgrounds) == 2

    def wait_for(self, condition, seconds=120):
        """Wait until an expression of the page is true and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(f'return {condition}')):
            assert time.monotonic() < end, condition
            time.sleep(0.05)
        return value

    def choose(self, selector, *paths):
        """Put files into a file input as a user does."""
        element = self.call('/element', using='css selector', value=selector)
        (key,) = element.values()
        self.call(f'/element/{key}/value', text='\n'.join(map(str, paths)))

    def log(self, kind):
        """Return what has been logged since the last call: browser or performance."""
        return [entry['message'] for entry in self.call('/se/log', type=kind)]

    def requests(self):
        """Return the URLs that have been requested since the last call."""
        events = [json.loads(text)['message'] for text in self.log('performance')]
        return [
            event['params']['request']['url']
            for event in events
            if event['method'] == 'Network.requestWillBeSent'
        ]


def need_browser():
    """Skip a test where there is no Chromium or no chromedriver."""
    if not CHROMIUM or not DRIVER:
        pytest.skip(f'no chromedriver, or none of {", ".join(BROWSERS)}')

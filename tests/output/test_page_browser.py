"""The search page in a browser: pictures that come in, keyboard, widths, themes.

These tests are skipped where there is no Chromium or no chromedriver.
"""

import base64
import shutil
import threading

import pytest

pytest.importorskip('flask', reason='flask is optional')
from browser import ENTER, ESCAPE, SPACE, TAB, Session, need_browser
from page_cases import make_page, write_noise
from werkzeug.serving import make_server

pytestmark = pytest.mark.slow
# a picture of the page's own, as a paste carries it
CARRY = """
const bytes = Uint8Array.from(atob('{data}'), letter => letter.charCodeAt(0))
const carried = new DataTransfer()
carried.items.add(new File([bytes], '{name}', {{type: 'image/png'}}))
"""
PASTE = "dispatchEvent(new ClipboardEvent('paste', {clipboardData: carried}))"
NAMES = "[...document.querySelectorAll('.ask')].map(tile => tile.dataset.name)"
IDLE = """(
  !document.querySelector('[aria-busy]')
  && [...document.images].every(image => image.complete)
)"""
BROKEN = """
return [...document.querySelectorAll('.ask img')].some(image => !image.naturalWidth)
"""
HEAT_MAPS = """[...document.querySelectorAll('.ask img')].filter(
  image => image.src.startsWith('blob:') && image.naturalWidth == 648
).length"""
ACTIVE = """
const element = document.activeElement
return element.getAttribute('aria-label') || element.id || element.textContent
"""


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """A page that is served; its folder stays as it is."""
    need_browser()
    page = make_page(tmp_path_factory.mktemp('page'))
    server = make_server('127.0.0.1', 0, page.app, threaded=True)
    page.url = f'http://127.0.0.1:{server.port}/'
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield page
    server.shutdown()
    thread.join()


@pytest.fixture(scope='module')
def browser(page, tmp_path_factory):
    with Session(tmp_path_factory.mktemp('browser') / 'profile') as browser:
        yield browser


@pytest.fixture
def opened(page, browser):
    """The browser with the page, fresh; a test may log no error and no other host."""
    browser.resize(1280)
    browser.call('/url', url=page.url)
    browser.log('browser'), browser.requests()
    yield browser
    assert browser.log('browser') == []
    allowed = page.url, f'blob:{page.url}'
    assert [url for url in browser.requests() if not url.startswith(allowed)] == []


def photo(page, name='figure_1_01.png'):
    return next(page.photos.glob(f'*/{name}'))


def text(browser, name):
    return browser.run(f"return document.getElementById('{name}').textContent")


def names(browser):
    """Return the names of the images that are shown, once they are."""
    browser.wait_for(f'{NAMES}.length && {IDLE}')
    assert not browser.run(BROKEN)
    return browser.run(f'return {NAMES}')


def search_with(browser, place):
    """Click an image that is shown; return the names of the images nearest to it."""
    name = names(browser)[place]
    browser.run(f"document.querySelectorAll('.ask')[{place}].click()")
    browser.wait_for(f"document.getElementById('asked').textContent == '{name}'")
    return names(browser)


def test_a_chosen_picture(page, opened):
    opened.choose('#file', photo(page))
    shown = names(opened)
    assert shown == [name for _, name, _ in page.search(picture=photo(page))]
    assert text(opened, 'status').startswith('8 nearest images. ✓ Match')
    assert text(opened, 'asked') == 'figure_1_01.png' and not text(opened, 'error')
    assert opened.run("return document.getElementById('preview').naturalWidth") == 32


def test_an_address_with_a_password(page, opened):
    opened.call('/url', url=page.url.replace('//', '//name:secret@'))
    opened.choose('#file', photo(page))
    assert len(names(opened)) == 8
    opened.requests()  # their addresses have the password, too


def test_a_pasted_and_a_dropped_picture(page, opened):
    path = photo(page, 'figure_2_01.png')
    data = base64.b64encode(path.read_bytes()).decode()
    opened.run(CARRY.format(data=data, name=path.name) + PASTE)
    assert names(opened)[0] == 'figure_2/figure_2_01.png'

    two = [str(photo(page)), str(path)]
    carried = {'items': [], 'files': two, 'dragOperationsMask': 1}
    for kind in ('dragEnter', 'dragOver', 'drop'):
        event = {'type': kind, 'x': 150, 'y': 200, 'data': carried}
        opened.command('Input.dispatchDragEvent', **event)
    asked = 'figure_1_01.png, the first of 2 files'
    opened.wait_for(f"document.getElementById('asked').textContent == '{asked}'")
    assert names(opened)[0] == 'figure_1/figure_1_01.png'
    assert not opened.run("return document.body.classList.contains('dragging')")


def test_a_click_searches_and_back_returns(page, opened):
    opened.choose('#file', photo(page))
    first = names(opened)
    assert first[1] not in search_with(opened, 1)
    assert opened.run(ACTIVE) == 'answer'
    opened.call('/back')
    opened.wait_for(f"{NAMES}.join() == '{','.join(first)}'")
    field = "document.getElementById('number')"
    for typed, shown in ((5, 5), (0, 1), (2.5, 3), (-3, 1), ("''", 8), (200, 16)):
        change = "dispatchEvent(new Event('change'))"
        opened.run(f'{field}.value = {typed}; {field}.{change}')
        opened.wait_for(f'{NAMES}.length == Math.min({field}.value, 16)')
        wanted = 100 if typed == 200 else shown
        assert opened.run(f'return +{field}.value') == wanted


def test_heat_maps_are_switched_on_and_off(page, opened):
    opened.choose('#file', photo(page))
    names(opened)
    opened.run("document.getElementById('heat').click()")
    opened.wait_for(f'{HEAT_MAPS} == 8')
    opened.run("document.getElementById('heat').click()")
    opened.wait_for(f'{HEAT_MAPS} == 0')
    assert len(names(opened)) == 8


def test_by_keyboard_alone(page, opened):
    """Tab goes through the page; Enter and space press what has the focus."""
    focused = [opened.press_tab() and opened.run(ACTIVE) for _ in range(5)]
    assert focused == ['To the results', 'file', 'number', 'heat', 'again']
    outline = "getComputedStyle(document.querySelector('.drop')).outlineStyle"
    opened.run("document.getElementById('file').focus()")
    assert opened.run(f'return {outline}') == 'solid'
    opened.choose('#file', photo(page))
    first = names(opened)

    opened.run("document.getElementById('again').focus()")
    assert opened.press_tab()[1] == 'solid'
    assert opened.run(ACTIVE).startswith('Search with image 1, figure_1, ')
    opened.press(TAB)
    opened.press(ENTER)
    opened.wait_for("document.querySelector('dialog').open")
    assert opened.run(ACTIVE) == 'Close'
    opened.press(ESCAPE)
    opened.wait_for("!document.querySelector('dialog').open")
    assert opened.run(ACTIVE).startswith('Enlarge image 1, figure_1, ')

    opened.press(TAB)
    opened.press(SPACE)
    opened.wait_for(f"document.getElementById('asked').textContent == '{first[1]}'")
    names(opened)
    opened.press(TAB)
    assert opened.run(ACTIVE).startswith('Search with image 1, ')


def test_what_is_wrong_is_said(page, opened, tmp_path):
    said = "document.getElementById('error').textContent.includes('{}')"
    broken = tmp_path / 'broken.png'
    broken.write_text('no image')
    opened.choose('#file', broken)
    opened.wait_for(said.format('cannot be read'))
    opened.run('const carried = new DataTransfer();' + PASTE)
    opened.wait_for(said.format('not a file'))
    opened.choose('#file', photo(page))
    assert names(opened)
    broken.write_bytes(bytes(25_000_000))
    opened.choose('#file', broken)
    opened.wait_for(said.format('20 MB'))
    assert not opened.run(f'return {NAMES}.length')  # no answer to another picture
    assert opened.run("return document.getElementById('preview').hidden")
    assert opened.run("return document.getElementById('error').role") == 'alert'
    opened.log('browser')  # of the browser itself, about status 400


def test_the_folder_is_read_again(page, opened):
    opened.choose('#file', photo(page))
    names(opened)
    second = search_with(opened, 0)
    new = page.photos / 'figure_0.png'
    shutil.copy(photo(page), new)
    try:
        opened.run("document.getElementById('again').click()")
        opened.wait_for(
            "document.getElementById('changes').textContent.startsWith('1 new image.')"
        )
        opened.wait_for(f"{NAMES}[0] == 'figure_0.png'")
        assert names(opened) == ['figure_0.png', *second[:7]]
        assert text(opened, 'total') == '17'
    finally:
        new.unlink()
        page.post('/read_again')
    opened.run("document.querySelector('.ask').click()")
    opened.wait_for(
        "document.getElementById('error').textContent.includes('read again')"
    )
    opened.log('browser')


@pytest.mark.parametrize('width', [360, 800, 1280])
def test_width_and_contrast(page, opened, width, tmp_path):
    opened.resize(width)
    opened.choose('#file', write_noise(tmp_path / f'{"long_name_" * 12}.png'))
    names(opened)
    opened.check_themes(width)

"""What the search page refuses: damaged uploads, other origins, other names."""

import tempfile

import pytest
from PIL import Image

pytest.importorskip('flask', reason='flask is optional')
from page_cases import ORIGIN, PageCase, make_project

from areir.output.page import app as page_app


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp('page')
    make_project(folder)
    return PageCase(folder)


@pytest.fixture
def photo(page):
    return page.photos / 'figure_1/figure_1_01.png'


@pytest.fixture
def temporary(page, tmp_path, monkeypatch):
    """Look that requests leave no temporary file behind."""
    folder = tmp_path / 'temporary'
    folder.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(folder))
    yield
    assert not list(folder.iterdir()) and not list(page.uploads.iterdir())


def refused(page, picture, status=400):
    """Return the sentence that refuses an upload."""
    reply = page.post('/search', picture=picture)
    assert reply.status_code == status and reply.mimetype == 'text/plain'
    assert 'Traceback' not in reply.text and '/' not in reply.text, reply.text
    return reply.text


# Uploads


def test_uploads_are_removed(page, photo, temporary):
    assert len(page.search(picture=photo)) == 8
    assert page.post('/heat_map', picture=photo, shown=0, token=page.token).data


def test_a_damaged_upload(page, photo, tmp_path, temporary):
    cut = tmp_path / 'cut.png'
    cut.write_bytes(photo.read_bytes()[:500])
    assert 'cannot be read' in refused(page, cut)
    cut.write_text('no image')
    assert 'cannot identify image file' in refused(page, cut)
    reply = page.post('/heat_map', picture=cut, shown=0, token=page.token)
    assert reply.status_code == 400 and 'cannot be read' in reply.text


def test_an_empty_upload(page, tmp_path, temporary):
    (tmp_path / 'empty.png').touch()
    assert 'empty' in refused(page, tmp_path / 'empty.png')
    reply = page.post('/search')
    assert reply.status_code == 400 and 'No picture' in reply.text
    reply = page.post('/search', picture='text')
    assert reply.status_code == 400 and 'No picture' in reply.text


def test_too_many_bytes(page, tmp_path, temporary):
    large = tmp_path / 'large.png'
    large.write_bytes(bytes(page_app.LARGEST_UPLOAD + page_app.FORM))
    assert refused(page, large, 413) == page_app.TOO_LARGE


def test_too_many_pixels(page, tmp_path, temporary):
    Image.new('1', (20_000, 20_000)).save(tmp_path / 'huge.png')
    assert '400000000 pixels' in refused(page, tmp_path / 'huge.png')


def test_the_name_of_an_upload_is_not_used(page, photo, tmp_path, temporary):
    stranger = tmp_path / '..%2f..; rm $HOME <b>.png'
    stranger.write_bytes(photo.read_bytes())
    assert len(page.search(picture=stranger)) == 8


# Who asks


@pytest.mark.parametrize('name', ['127.0.0.1:8000', 'localhost:8000', '[::1]:80'])
def test_names_of_this_machine(page, name):
    assert page.client.get('/', base_url=f'http://{name}').status_code == 200


@pytest.mark.parametrize(
    'name', ['evil.com', 'evil.com:8000', '127.0.0.1.evil.com', 'localhost.evil.com']
)
def test_other_names_are_refused(page, name, photo):
    for path in ('/', '/page.css', f'/images/{page.token}/0/small', '/nowhere'):
        reply = page.client.get(path, base_url=f'http://{name}')
        assert reply.status_code == 403
    headers = {'Origin': f'http://{name}'}
    reply = page.client.post('/search', base_url=f'http://{name}', headers=headers)
    assert reply.status_code == 403


def test_with_host_other_names_are_taken(page):
    app = page_app.make_app(page.searched, page.uploads, False, 8, False)
    reply = app.test_client().get('/', base_url='http://my-machine:8000')
    assert reply.status_code == 200


@pytest.mark.parametrize(
    'origin', [None, 'null', 'http://evil.com', 'http://127.0.0.1:9000']
)
@pytest.mark.parametrize('path', ['/search', '/heat_map', '/read_again'])
def test_other_origins_are_refused(page, photo, path, origin):
    reply = page.post(path, origin=origin, image=0, token=page.token, shown=1)
    assert reply.status_code == 403
    assert page.get(path).status_code == 405


def test_every_reply_is_guarded(page):
    paths = '/', '/page.css', '/static/page.js', '/nowhere', f'/images/{page.token}/0/x'
    for path in paths:
        headers = page.get(path).headers
        assert "default-src 'none'" in headers['Content-Security-Policy']
        assert 'unsafe' not in headers['Content-Security-Policy']
        assert headers['X-Content-Type-Options'] == 'nosniff'
        assert headers['Cross-Origin-Resource-Policy'] == 'same-origin'
        assert 'Access-Control-Allow-Origin' not in headers


def test_a_bug_is_a_sentence(page, photo, monkeypatch):
    monkeypatch.setattr(page.searched, 'find', lambda *_: 1 / 0)
    reply = page.post('/search', picture=photo)
    assert reply.status_code == 500 and 'ZeroDivision' not in reply.text
    assert ORIGIN not in reply.text and 'terminal' in reply.text

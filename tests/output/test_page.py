"""The search page, asked without a browser: answers, pictures, what it refuses."""

import io
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import trained
from conftest import Project
from PIL import Image

pytest.importorskip('flask', reason='flask is optional')
from page_cases import ORIGIN, PageCase, make_page, read_tiles, write_noise

from areir.output.page import app as page_app

FIRST = 'figure_1/figure_1_01.png'


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """A page over a folder that stays as it is."""
    return make_page(tmp_path_factory.mktemp('page'))


@pytest.fixture
def photo(page):
    return page.photos / FIRST


@pytest.fixture
def own(tmp_path):
    """A project and a page of its own."""
    return make_page(tmp_path)


# Answers


def test_answers_are_those_of_inference(page, tmp_path):
    query = write_noise(tmp_path / 'noise.png')
    project = Project(tmp_path / 'my project')
    flags = [
        '--results_root',
        page.root / 'results',
        '--model',
        page.root / 'toy_model.pth',
    ]
    flags += ['--gallery', page.photos, '--query_img_name', query]
    code, _, errors = project.call('inference.py', *flags, '--retrieval_num', 5)
    assert code == 0, errors
    table = pd.read_csv(page.root / 'results/noise/retrieved.csv')

    html = page.post('/search', picture=query, number=5).text
    tiles = read_tiles(html)
    paths = [page.collection.images[number] for number, _, _ in tiles]
    assert paths == [name for _, name, _ in tiles] == table['path'].tolist()
    assert [score for *_, score in tiles] == [f'{s:.3f}' for s in table['score']]
    assert html.count('✓ match') == table['match'].sum()
    assert html.count('<span>below the threshold') == (~table['match']).sum()
    assert all(f'<bdi>{name}</bdi>' in html for name in table['class'])


def test_an_image_of_the_folder_is_a_query_and_is_left_out(page):
    tiles = page.search(image=3, token=page.token, number=100)
    numbers = [number for number, *_ in tiles]
    assert sorted(numbers) == [number for number in range(16) if number != 3]


def test_the_number_of_images(page, photo):
    for number, shown in (('3', 3), ('-5', 1), ('1000', 16), ('x', 8)):
        assert len(page.search(picture=photo, number=number)) == shown


def test_a_high_threshold_and_none(page, tmp_path):
    noise = write_noise(tmp_path / 'noise.png')
    strict = {**trained.CALIBRATION, 'thresholds': [0.99999, 0.99999]}
    trained.save_model(page.root / 'strict_model.pth', calibration=strict)
    strict = PageCase(page.root, 'strict_model.pth')
    html = strict.post('/search', picture=noise).text
    assert '✗ No match' in html and '✓' not in html and len(read_tiles(html)) == 8
    assert 'no match' not in html  # said once, about the whole answer

    trained.save_model(page.root / 'without_model.pth', calibration=None)
    without = PageCase(page.root, 'without_model.pth')
    assert 'no threshold' in without.get('/').text
    assert 'no threshold' not in page.get('/').text
    html = without.post('/search', picture=noise).text
    assert len(read_tiles(html)) == 8 and 'atch' not in html


def test_a_class_that_an_answer_predicts_is_shown(page, photo, monkeypatch):
    find = page.searched.find

    def find_class(*arguments):
        answer, indices = find(*arguments)
        answer.predicted_class, answer.confidence = 'a <b>', 0.93
        return answer, indices

    monkeypatch.setattr(page.searched, 'find', find_class)
    html = page.post('/search', picture=photo).text
    assert '<bdi>a &lt;b&gt;</bdi>' in html and '93%' in html


def test_two_people_at_once_get_their_own_answers(page, tmp_path):
    def ask(query):
        client = page.app.test_client()
        reply = page.post('/search', client, number=16, token=page.token, **query)
        pair = page.post('/heat_map', client, shown=1, token=page.token, **query)
        assert reply.status_code == 200, reply.text
        assert pair.mimetype == 'image/png'
        return read_tiles(reply.text), pair.data

    queries = [{'picture': path} for path in sorted(page.photos.glob('*/*'))[:3]]
    queries.append({'image': 9})
    alone = [ask(query) for query in queries]
    with ThreadPoolExecutor(len(queries)) as people:
        assert list(people.map(ask, queries)) == alone
    assert len({pair for _, pair in alone}) == len(queries)
    assert Image.open(io.BytesIO(alone[0][1])).size == (648, 320)


# The pictures


def test_pictures_are_served_by_number_and_reduced(own):
    Image.new('RGB', (4000, 1000)).save(own.photos / 'a.png')
    own.post('/read_again')
    assert own.searched.current.collection.images[0] == 'a.png'
    for size, expected in (('small', (320, 80)), ('large', (1600, 400))):
        reply = own.get(f'/images/{own.token}/0/{size}')
        assert reply.mimetype == 'image/jpeg'
        assert Image.open(io.BytesIO(reply.data)).size == expected
    assert own.get(f'/images/{own.token}/0/other').status_code == 404


def test_nothing_else_is_served(page):
    for path in (
        f'/images/{page.token}/16/small',
        f'/images/{page.token}/-1/small',
        f'/images/{page.token}/figure_1%2Ffigure_1_01.png/small',
        f'/images/{page.token}/../../toy_model.pth',
        '/images/..%2F..%2Ftoy_model.pth',
        '/static/..%2Fapp.py',
        '/static/%2Fetc%2Fpasswd',
        '/photos/figure_1/figure_1_01.png',
    ):
        assert page.get(path, follow_redirects=True).status_code == 404, path


# The folder, read again


def test_new_changed_and_removed_images(own):
    token = own.token
    assert own.post('/read_again').json['message'].startswith('0 new images.')
    assert own.token == token

    (own.photos / 'figure_0').mkdir()
    write_noise(own.photos / 'figure_0/new.png')
    shutil.copy(own.photos / 'figure_2/figure_2_01.png', own.photos / FIRST)
    (own.photos / 'figure_2/figure_2_02.png').unlink()
    (own.photos / 'broken.jpg').write_text('no image')
    was = own.collection.images.index(FIRST)
    reply = own.post('/read_again', image=was, token=token).json
    assert reply['message'] == (
        '1 new image, 1 changed, 1 gone. The folder has 16 images. '
        '1 file cannot be read; the terminal names them.'
    )
    assert reply['image'] == was + 1 and reply['token'] == own.token != token
    assert (
        own.search(picture=own.photos / 'figure_0/new.png')[0][1] == 'figure_0/new.png'
    )
    for reply in (
        own.get(f'/images/{token}/0/small'),
        own.post('/search', image=0, token=token),
        own.post('/heat_map', image=0, shown=1, token=token),
        own.post('/search', image=0),
    ):
        assert reply.status_code == 410 and 'read again' in reply.text


def test_an_image_that_has_gone(own):
    gone = own.collection.images.index(FIRST)
    os.remove(own.photos / FIRST)
    reply = own.get(f'/images/{own.token}/{gone}/small')
    assert reply.status_code == 400 and str(own.photos) not in reply.text
    assert len(own.search(image=gone, token=own.token)) == 8
    assert own.post('/read_again', image=gone, token=own.token).json['image'] is None


def test_a_folder_of_one_image_whose_name_is_no_unicode(own):
    name = os.fsdecode(b'<i>&\xff.png')
    os.rename(own.photos / FIRST, own.photos / name)
    for path in own.photos.glob('*/*'):
        path.unlink()
    own.post('/read_again')
    query = shutil.copy(own.photos / name, own.photos.with_name('query.png'))
    html = own.post('/search', picture=query).text
    assert '&lt;i&gt;&amp;' in html and '<i>' not in html
    reply = own.post('/search', image=0, token=own.token)
    assert reply.status_code == 400 and 'no other image' in reply.text


def test_a_folder_that_cannot_be_read_again(own):
    token = own.token
    own.photos.rename(own.photos.with_name('elsewhere'))
    reply = own.post('/read_again')
    assert reply.status_code == 400 and 'no such folder' in reply.text
    assert own.token == token
    own.photos.with_name('elsewhere').rename(own.photos)
    with own.searched.reading:  # by another request
        reply = own.post('/read_again')
    assert reply.status_code == 409 and 'being read' in reply.text
    assert own.post('/read_again').status_code == 200


# Uploads


def refused(page, picture, status=400, path='/search'):
    """Return the sentence that refuses an upload."""
    reply = page.post(path, picture=picture, shown=0, token=page.token)
    assert reply.status_code == status and reply.mimetype == 'text/plain'
    assert 'Traceback' not in reply.text and '/' not in reply.text, reply.text
    return reply.text


def test_uploads_are_removed_and_their_names_not_used(
    page, photo, tmp_path, monkeypatch
):
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    stranger = shutil.copy(photo, tmp_path / '..%2f..; rm $HOME <b>.png')
    assert len(page.search(picture=stranger)) == 8
    assert page.post('/heat_map', picture=stranger, shown=0, token=page.token).data
    cut = tmp_path / 'cut.png'
    cut.write_bytes(photo.read_bytes()[:500])
    assert 'cannot be read' in refused(page, cut)
    assert 'cannot be read' in refused(page, cut, path='/heat_map')
    cut.write_text('no image')
    assert 'cannot identify image file' in refused(page, cut)
    cut.write_bytes(b'')
    assert 'empty' in refused(page, cut)
    assert 'No picture' in refused(page, 'text')
    large = tmp_path / 'large.png'
    large.write_bytes(bytes(page_app.LARGEST_UPLOAD + page_app.FORM))
    assert refused(page, large, 413) == page_app.TOO_LARGE
    Image.new('1', (13_000, 13_000)).save(large)  # 22 KB
    for path in ('/search', '/heat_map'):
        assert '169 million' in (text := refused(page, large, path=path))
        assert text.endswith('.') and not text.endswith('..')
    for folder in (tmp_path / 'temporary', page.uploads):
        assert not list(folder.iterdir())


# Who asks


def test_only_names_of_this_machine_are_answered(page):
    for name in ('127.0.0.1:8000', 'localhost:8000', '[::1]:80'):
        assert page.client.get('/', base_url=f'http://{name}').status_code == 200
    for name in ('evil.com:8000', '127.0.0.1.evil.com', 'localhost.evil.com'):
        url, headers = f'http://{name}', {'Origin': f'http://{name}'}
        for path in ('/', '/page.css', f'/images/{page.token}/0/small', '/nowhere'):
            assert page.client.get(path, base_url=url).status_code == 403
        reply = page.client.post('/search', base_url=url, headers=headers)
        assert reply.status_code == 403


@pytest.mark.parametrize('path', ['/search', '/heat_map', '/read_again'])
def test_other_origins_are_refused(page, path):
    for origin in ('null', 'http://evil.com', 'http://127.0.0.1:9000'):
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

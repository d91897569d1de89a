"""The API of inference.py --serve: its JSON, what it refuses, what waits for what."""

import base64
import contextlib
import io
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import trained
from conftest import REPOSITORY, Project
from PIL import Image

pytest.importorskip('flask', reason='flask is optional')
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from openapi_spec_validator.readers import read_from_filename
from page_cases import ORIGIN, PageCase, make_page, write_noise

from areir.data.loading import Embedder
from areir.output.page import api, folder
from areir.output.page import app as page_app

together = folder.search_together
SECRET = 'a secret=: of 30 characters+/=='


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """A page over a folder that stays as it is."""
    return make_page(tmp_path_factory.mktemp('api'))


@pytest.fixture
def own(tmp_path):
    """A project and a page of its own."""
    return make_page(tmp_path)


@pytest.fixture(scope='module')
def specification():
    specification, _ = read_from_filename(os.path.join(REPOSITORY, 'docs/openapi.yaml'))
    return specification


def send(page, path, data=None, kind='image/png', **headers):
    """Post bytes, or the fields of a form, as a program does: without an Origin."""
    if isinstance(data, dict):
        kind = 'multipart/form-data'
    options = {'data': data, 'content_type': kind, 'headers': headers}
    client = page.app.test_client()
    return client.post(path, base_url=ORIGIN, **options)


def in_form(content, **fields):
    return {'picture': (io.BytesIO(content), 'my photo.png'), **fields}


def pictures(page):
    return [path.read_bytes() for path in sorted(page.photos.glob('*/*'))[:6]]


# Answers


def test_answers_are_those_of_the_command_line(page, tmp_path):
    noise = write_noise(tmp_path / 'noise.png')
    project = Project(tmp_path / 'my project')
    flags = [
        '--results_root',
        page.root / 'results',
        '--model',
        page.root / 'toy_model.pth',
    ]
    flags += ['--gallery', page.photos, '--query_img_name', noise]
    code, output, errors = project.call('inference.py', *flags, '--retrieval_num', 5)
    assert code == 0, errors
    table = pd.read_csv(page.root / 'results/noise/retrieved.csv')
    rows = [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in table.to_dict('records')
    ]
    content = noise.read_bytes()
    for reply in (
        send(page, '/api/search?k=5', content),
        send(page, '/api/search?k=5', content, 'application/octet-stream'),
        send(page, '/api/search', in_form(content, k=5)),
    ):
        assert reply.mimetype == 'application/json' and reply.status_code == 200
        assert reply.json['results'] == rows
        assert reply.json['verdict'] in output
        assert reply.json['match'] == rows[0]['match']
    assert len(send(page, '/api/search', content).json['results']) == 8


def test_a_large_retrieval_num_is_no_error(page):
    app = page_app.make_app(page.searched, page.uploads, 200, False)
    reply = send(SimpleNamespace(app=app), '/api/search', pictures(page)[0])
    assert len(reply.json['results']) == 16


def test_without_a_threshold(page):
    trained.save_model(page.root / 'without_model.pth', calibration=None)
    page = PageCase(page.root, 'without_model.pth')
    answer = send(page, '/api/search', pictures(page)[0]).json
    assert answer['match'] is answer['threshold'] is None
    assert 'no threshold' in answer['verdict']
    assert {row['match'] for row in answer['results']} == {None}


def test_an_embedding(page):
    reply = send(page, '/api/embed', pictures(page)[0]).json
    vector = np.array(reply['vector'], np.float32)
    assert reply['dimensions'] == len(vector)
    assert np.allclose(vector, page.collection.embeddings[0], atol=1e-6)
    assert reply['model'].endswith('toy_model.pth')


def test_an_update(own):
    os.rename(next(own.photos.glob('*/*')), own.photos / os.fsdecode(b'"\xff".png'))
    (own.photos / 'bad.png').write_text('')
    changes = send(own, '/api/update').json
    problems = changes.pop('problems')
    assert changes == {'images': 16, 'new': 1, 'changed': 0, 'gone': 1}
    assert list(problems) == ['bad.png']
    reply = send(own, '/api/search?k=100', (own.photos / '"\udcff".png').read_bytes())
    assert reply.json['results'][0]['path'] == '"?".png'
    with own.searched.reading:
        assert own.get('/api/status').json['updating']
        reply = send(own, '/api/update')
    assert reply.status_code == 409 and 'being read' in reply.json['error']


# What is refused


def test_errors_are_sentences_in_json(page, tmp_path):
    content = pictures(page)[0]
    huge = io.BytesIO()
    Image.new('1', (13_000, 13_000)).save(huge, 'PNG')
    large = bytes(page_app.LARGEST_UPLOAD + page_app.FORM + 1)
    for data, kind, status, words in (
        (content[:300], 'image/png', 400, 'cannot be read'),
        (b'text', 'image/jpeg', 400, 'cannot identify'),
        (b'', 'image/jpeg', 400, 'empty'),
        (huge.getvalue(), 'image/png', 400, 'million pixels'),
        ({'image': 'text'}, '', 400, 'field "picture"'),
        (in_form(content, k='x'), '', 400, 'from 1 to 100'),
        (in_form(content, k=101), '', 400, 'from 1 to 100'),
        (in_form(content, k=5000 * '1'), '', 400, 'from 1 to 100'),
        (large, 'image/png', 413, '20 MB'),
        (content, 'application/json', 415, 'image/jpeg'),
        (content, 'application/x-www-form-urlencoded', 415, 'image/jpeg'),
    ):
        reply = send(page, '/api/search', data, kind)
        assert reply.status_code == status and list(reply.json) == ['error']
        assert words in reply.json['error'] and str(page.uploads) not in reply.text
    assert page.get('/api/search').status_code == 405
    assert page.get('/api/search').headers['Allow']
    assert page.get('/api/nothing').status_code == 404
    assert page.get('/api/nothing').json['error']
    assert not list(page.uploads.iterdir())


@pytest.mark.parametrize('path', ['/api/search', '/api/embed', '/api/update'])
def test_web_sites_are_refused(page, path):
    for origin in ('null', 'http://evil.com', 'http://127.0.0.1:9000', 'file://'):
        for kind in ('image/png', 'text/plain', 'multipart/form-data; boundary=a'):
            reply = send(page, path, pictures(page)[0], kind, Origin=origin)
            assert reply.status_code == 403 and 'site' in reply.json['error']
    assert send(page, path, pictures(page)[0], Origin=ORIGIN).status_code == 200
    other = page.client.get('/api/status', base_url='http://evil.com')
    assert other.status_code == 403


def test_a_token_is_asked_for_everywhere(page):
    app = page_app.make_app(page.searched, page.uploads, 8, False, SECRET)

    def get(path, **headers):
        client = app.test_client()
        return client.get(path, base_url='http://machine', headers=headers)

    basic = base64.b64encode(f'me:{SECRET}'.encode()).decode()
    for path in ('/', '/api/status', '/static/page.js'):
        for wrong in (
            {},
            {'Authorization': 'Bearer a'},
            {'Authorization': f'Basic {base64.b64encode(b"me:").decode()}'},
            {'Authorization': 'Basic !'},
        ):
            reply = get(path, **wrong)
            assert reply.status_code == 401
            assert reply.headers['WWW-Authenticate'].startswith('Basic')
        assert get(path, Authorization=f'Basic {basic}').status_code == 200
    for scheme in ('Bearer', 'bearer', 'Bearer '):
        reply = get('/api/status', Authorization=f'{scheme} {SECRET}')
        assert reply.json['images'] == 16


# Requests that wait for each other


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Gate:
    """Stands before what computes requests together: `batches` are their numbers."""

    def __init__(self):
        self.batches = []
        self.arrived, self.opened = threading.Event(), threading.Event()
        self.opened.set()

    def search_together(self, wanted, collection):
        self.batches.append(len(wanted))
        self.arrived.set()
        assert self.opened.wait(30)
        return together(wanted, collection)

    @contextlib.contextmanager
    def closed(self, page, content):
        """Send a search and yield its future reply while it stands before the gate."""
        self.arrived.clear(), self.opened.clear()
        with ThreadPoolExecutor(1) as thread:
            try:
                reply = thread.submit(send, page, '/api/search?k=100', content)
                assert self.arrived.wait(30)
                yield reply
            finally:
                self.opened.set()

    def ask_together(self, page, requests):
        """Post (path, content) of each request; they wait until all are there."""
        with ThreadPoolExecutor(len(requests)) as threads:
            with self.closed(page, requests[0][1]):
                replies = [threads.submit(send, page, *one) for one in requests]
                wait_for(lambda: page.searched.waiting.qsize() == len(requests))
            return [reply.result() for reply in replies]


@pytest.fixture
def gate(monkeypatch):
    gate = Gate()
    monkeypatch.setattr(folder, 'search_together', gate.search_together)
    return gate


def test_requests_that_wait_are_computed_together(page, gate):
    requests = [
        (f'/api/search?k={number}', content)
        for number, content in zip((1, 3, 8, 16, 16), pictures(page))
    ]
    requests.insert(0, ('/api/embed', pictures(page)[0]))
    alone = [send(page, *request) for request in requests]
    del gate.batches[:]
    replies = gate.ask_together(page, requests)
    assert gate.batches == [1, len(requests)]
    (embedding, *answers), (embedded, *singles) = (
        [reply.json for reply in some] for some in (replies, alone)
    )
    assert np.allclose(embedding['vector'], embedded['vector'], atol=1e-6)
    for answer, single in zip(answers, singles, strict=True):
        paths = [row['path'] for row in single['results']]
        assert [row['path'] for row in answer['results']] == paths
        for row, expected in zip(answer['results'], single['results'], strict=True):
            assert abs(row['score'] - expected['score']) < 1e-6


def test_a_broken_picture_fails_alone(page):
    contents = pictures(page)
    with ThreadPoolExecutor(4) as threads:
        bodies = [contents[0], contents[1][:300], contents[2], b'']
        replies = list(threads.map(lambda b: send(page, '/api/search', b), bodies))
    assert [reply.status_code for reply in replies] == [200, 400, 200, 400]


def test_a_failure_of_the_network_reaches_all(page, gate, monkeypatch):
    def fail(embedder, pixels):
        raise RuntimeError('out of memory')

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, '__call__', fail)
        requests = [('/api/search', content) for content in pictures(page)]
        replies = gate.ask_together(page, requests)
    assert {reply.status_code for reply in replies} == {500}
    assert 'terminal' in replies[0].json['error']
    assert send(page, '/api/search', pictures(page)[0]).status_code == 200


def test_a_failure_of_one_picture_fails_no_other(page, gate, monkeypatch):
    usual, contents = Embedder.__call__, pictures(page)

    def fail(embedder, pixels):
        if (pixels.flatten(1) == 77).all(1).any():
            raise RuntimeError('odd')
        return usual(embedder, pixels)

    odd = io.BytesIO()
    Image.new('RGB', (32, 32), (77, 77, 77)).save(odd, 'PNG')
    requests = [('/api/search', content) for content in (odd.getvalue(), *contents)]
    monkeypatch.setattr(Embedder, '__call__', fail)
    codes = [reply.status_code for reply in gate.ask_together(page, requests)]
    assert codes == [500] + [200] * len(contents)


def test_a_search_keeps_to_the_images_that_it_began_with(own, gate):
    content = pictures(own)[0]
    with gate.closed(own, content) as reply:
        shutil.rmtree(next(own.photos.iterdir()))
        assert send(own, '/api/update').json['gone'] == 4
    assert len(reply.result().json['results']) == 16
    assert len(send(own, '/api/search?k=100', content).json['results']) == 12


# docs/openapi.yaml


def test_the_specification_is_valid_and_complete(page, specification):
    validate(specification)
    described = {
        (path, method.upper())
        for path, methods in specification['paths'].items()
        for method in methods
    }
    served = {
        (rule.rule, method)
        for rule in page.app.url_map.iter_rules()
        for method in rule.methods - {'HEAD', 'OPTIONS'}
        if rule.rule.startswith('/api')
    }
    assert described == served
    schemas = specification['components']['schemas']
    assert list(schemas['Result']['properties']) == list(api.COLUMNS)


def test_replies_are_as_specified(page, specification):
    strict = json.JSONDecoder(parse_constant=None)
    content = pictures(page)[0]
    without = PageCase(page.root, 'without_model.pth')
    for name, reply in (
        ('Answer', send(page, '/api/search', content)),
        ('Answer', send(without, '/api/search', content)),
        ('Embedding', send(page, '/api/embed', content)),
        ('Changes', send(page, '/api/update')),
        ('Status', page.get('/api/status')),
        ('Error', send(page, '/api/search', b'')),
        ('Error', page.get('/api/nothing')),
    ):
        schema = {'$ref': f'#/components/schemas/{name}', **specification}
        Draft202012Validator(schema).validate(strict.decode(reply.text))

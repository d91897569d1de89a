"""inference.py --serve as a process: its address, its end, and what it refuses."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request

import pytest
from conftest import Project
from page_cases import make_project

pytest.importorskip('flask', reason='flask is optional')
from areir.output.page import server


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp('serve') / 'my project')
    make_project(project.root)
    return project


@pytest.fixture
def flags(project):
    model = project.root / 'toy_model.pth'
    return ['--gallery', project.root / 'photos', '--model', model, '--serve']


def keep_asking(url, asked):
    """Ask for heat maps until the server has gone; set the Event `asked` after one."""

    def post(path, **fields):
        data = urllib.parse.urlencode(fields).encode()
        request = urllib.request.Request(url + path, data, {'Origin': url.rstrip('/')})
        with opener.open(request) as reply:
            return reply.read()

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError, http.client.HTTPException):
        token = json.loads(post('read_again'))['token']
        while True:
            post('heat_map', image=0, shown=1, token=token)
            asked.set()


@pytest.mark.slow
def test_it_prints_its_address_and_ends_at_ctrl_c(project, flags, tmp_path):
    """Ctrl-C ends it at once, even if threads compute."""
    command = [sys.executable, f'../{project.root.name}/inference.py', *flags, '0']
    server = subprocess.Popen(
        [str(word) for word in [*command, *project.roots('inference.py')]],
        cwd=project.elsewhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'TMPDIR': str(tmp_path)},
        # Ctrl-C ends it even if these tests run in the background of a shell
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    lines = iter(server.stdout.readline, '')
    url = next(line for line in lines if line.startswith('search page: ')).split()[2]
    asked = threading.Event()
    thread = threading.Thread(target=keep_asking, args=[url, asked])
    thread.start()
    assert asked.wait(300)
    server.send_signal(signal.SIGINT)
    _, errors = server.communicate(timeout=300)
    thread.join()
    assert server.returncode in (0, 130)
    for word in ('Traceback', 'terminate', 'GET', 'POST'):
        assert word not in errors
    assert not list(tmp_path.glob('areir_*'))


def wait_for_answer(client, more):
    """Return the first bytes of an answer; send `more` ten times a second meanwhile."""
    client.settimeout(0.1)
    for _ in range(100):
        with contextlib.suppress(TimeoutError):
            return client.recv(13)
        client.sendall(more)
    return b''


@pytest.mark.parametrize('limit', ['PATIENCE', 'LONGEST'])
def test_an_upload_that_stalls_ends(limit, monkeypatch, caplog):
    """It sends no more, or it trickles: a byte every now and then."""
    import flask

    app = flask.Flask('slow')
    app.add_url_rule('/', view_func=lambda: flask.request.form, methods=['POST'])
    monkeypatch.setattr(server, limit, 0.3)
    with server.listen('127.0.0.1', 0) as listening:
        serving = server.make_server(app, listening)
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        with socket.create_connection(listening.getsockname(), timeout=30) as client:
            client.sendall(
                b'POST / HTTP/1.1\r\nContent-Length: 1000\r\n'
                b'Content-Type: application/x-www-form-urlencoded\r\n\r\na'
            )
            answer = wait_for_answer(client, b'a' if limit == 'LONGEST' else b'')
        serving.shutdown()
        thread.join()
    serving.server_close()  # the request has ended
    assert answer == b'HTTP/1.1 400 ' and 'Traceback' not in caplog.text


def test_what_cannot_be_served_is_one_line(project, flags, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        assert f'--serve {port}' in project.refuse('inference.py', *flags, port)
    for more in (['70000'], ['0', '--host', '203.0.113.1'], ['--query_img_name', 'a']):
        assert '--serve' in project.refuse('inference.py', *flags, *more)
    assert '--serve' in project.refuse('inference.py', '--serve')
    with monkeypatch.context() as patch:
        patch.setenv('WORLD_SIZE', '2')
        assert 'torchrun' in project.refuse('inference.py', *flags)
    monkeypatch.setitem(sys.modules, 'flask', None)
    assert 'pip install flask' in project.refuse('inference.py', *flags)


def test_other_machines_are_warned_of(project, flags, monkeypatch):
    import werkzeug.serving

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(werkzeug.serving, 'make_server', interrupted)
    for host, warned in (('0.0.0.0', True), ('localhost', False)):
        more = [*flags, '0', '--host', host]
        code, output, _ = project.call('inference.py', *more)
        assert code == 130 and f'http://{host}:' in output
        assert ('can see the images' in output) == warned

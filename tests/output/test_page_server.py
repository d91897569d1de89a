"""inference.py --serve as a process: its address, its end, and what it refuses."""

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request

import pytest
from conftest import REPOSITORY, Project
from page_cases import make_project

pytest.importorskip('flask', reason='flask is optional')
waitress = pytest.importorskip('waitress', reason='waitress is optional')


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


def run_documented_clients(url, photo, capsys):
    """Run the commands and the program of docs/search.md at the URL of a server."""
    with open(os.path.join(REPOSITORY, 'docs/search.md'), encoding='utf-8') as file:
        text = file.read().partition('## Ask from a program')[2]
    text = text.replace('http://127.0.0.1:8000/', url).replace('photo.jpg', str(photo))
    blocks = re.findall(r'```\w*\n(.*?)```', text, re.DOTALL)
    commands = [line for line in blocks[0].splitlines() if shutil.which('curl')]
    for command in commands:
        reply = subprocess.run(shlex.split(command), capture_output=True, check=True)
        assert 'error' not in json.loads(reply.stdout)
    exec(blocks[1], {})
    assert 'figure_1_01.png' in capsys.readouterr().out


@pytest.mark.slow
def test_it_prints_its_address_and_ends_at_ctrl_c(
    project, flags, tmp_path, capsys, request
):
    """Programs get answers; Ctrl-C ends it at once, even if threads compute."""
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
    request.addfinalizer(server.kill)
    lines = iter(server.stdout.readline, '')
    url = next(line for line in lines if line.startswith('search page: ')).split()[2]
    photo = next(project.root.glob('photos/*/figure_1_01.png'))
    run_documented_clients(url, shutil.copy(photo, tmp_path / 'photo.jpg'), capsys)
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


def test_what_cannot_be_served_is_one_line(project, flags, monkeypatch, tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        assert f'--serve {port}' in project.refuse('inference.py', *flags, port)
    secret = tmp_path / 'token'
    secret.write_text(16 * 'a')
    elsewhere = ['--host', '203.0.113.1', '--token', secret]
    for more in (['70000'], ['0', *elsewhere], ['--query_img_name', 'a']):
        assert '--serve' in project.refuse('inference.py', *flags, *more)
    assert '--serve' in project.refuse('inference.py', '--serve')
    with monkeypatch.context() as patch:
        patch.setenv('WORLD_SIZE', '2')
        assert 'torchrun' in project.refuse('inference.py', *flags)
    for package in ('flask', 'waitress'):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            refusal = project.refuse('inference.py', *flags)
            assert '--serve: first pip install flask waitress' in refusal


def test_other_machines_need_a_token(project, flags, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(waitress, 'create_server', interrupted)
    local, others = [*flags, '0'], [*flags, '0', '--host', '0.0.0.0']
    assert '--token' in project.refuse('inference.py', *others)
    token = tmp_path / 'token'
    assert '--token' in project.refuse('inference.py', *local, '--token', token)
    for content in (b'', b'15 characters..\n' + 20 * b'a', 20 * b'\xff'):
        token.write_bytes(content)
        refusal = project.refuse('inference.py', *others, '--token', token)
        assert f'--token {token}: ' in refusal and 'secrets.token_urlsafe' in refusal
    token.write_text(16 * 'a' + '\n')
    for command in (local, [*local, '--token', token], [*others, '--token', token]):
        assert project.call('inference.py', *command)[0] == 130
    assert '--token' in project.refuse('inference.py', *flags[:4], '--token', token)

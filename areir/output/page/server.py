"""Start the server of the search page, print its address, and end it at Ctrl-C."""

import contextlib
import errno
import importlib.util
import logging
import os
import socket
import sys
import tempfile
import threading

from areir.errors import UserError
from areir.output.page.folder import SearchedFolder

PATIENCE = 30  # seconds in which nothing arrives, after which a request ends
LONGEST = 300  # seconds in which all of a request has to arrive
LOCAL_HOSTS = ('127.0.0.1', '::1', 'localhost')


def check(port, gallery, query):
    """Raise UserError if --serve cannot work."""
    if not gallery or query:
        raise UserError('--serve: add --gallery and leave out --query_img_name')
    if not 0 <= port <= 65535:
        raise UserError(f'--serve {port}: a port is from 0 to 65535')
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise UserError('--serve: works in one process; run it without torchrun')
    if not importlib.util.find_spec('flask'):
        raise UserError('--serve: flask is not installed: pip install flask')


def serve(gallery, host, port, number, heat_maps=False):
    """Serve the search page of a Gallery; end the process at Ctrl-C.

    port: 0 takes a free one; number, heat_maps: as of `make_app`.
    """
    from areir.output.page.app import make_app  # it needs flask

    is_local = host in LOCAL_HOSTS
    folder = SearchedFolder(gallery)
    temporary = tempfile.TemporaryDirectory(prefix='areir_', ignore_cleanup_errors=True)
    with temporary as uploads, listen(host, port) as listening:
        app = make_app(folder, uploads, is_local, number, heat_maps)
        port = listening.getsockname()[1]
        if not is_local:
            print(
                f'warning: --host {host}: anybody who reaches port {port} of this '
                'machine can see the images'
            )
        name = f'[{host}]' if ':' in host else host
        print(f'search page: http://{name}:{port}/ (Ctrl-C ends it)', flush=True)
        make_server(app, listening).serve_forever()  # returns at Ctrl-C
    # a thread may be inside torch, which aborts if Python ends the thread
    sys.stdout.flush()
    os._exit(0)


def make_server(app, listening):
    """Return the server of an app at a listening socket."""
    from werkzeug import serving

    class Handler(serving.WSGIRequestHandler):
        timeout = PATIENCE

        def handle(self):
            timer = threading.Timer(LONGEST, self.end_reading)
            timer.start()
            try:
                super().handle()
            finally:
                timer.cancel()

        def end_reading(self):  # the answer to what has arrived can still be sent
            with contextlib.suppress(OSError):  # the client has hung up
                self.connection.shutdown(socket.SHUT_RD)

    # no line per request, no traceback of a client that hangs up
    logging.getLogger('werkzeug').setLevel(logging.CRITICAL)
    host, port, *_ = listening.getsockname()
    options = {'threaded': True, 'fd': listening.fileno()}
    return serving.make_server(host, port, app, request_handler=Handler, **options)


def listen(host, port):
    """Return a socket that listens. Raises UserError if the port cannot be used."""
    if not host:  # which would mean all addresses
        raise UserError('--host: empty')
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, TypeError) as error:  # TypeError: two dots in a row
        reason = f'--host {host}: {getattr(error, "strerror", None) or error}'
        if getattr(error, 'errno', None) == errno.EADDRINUSE:
            reason = f'the port is in use: choose another, such as {port + 1}'
        raise UserError(f'--serve {port}: {reason}') from error

"""Start the server of the search page, print its address, and end it at Ctrl-C."""

import errno
import logging
import os
import socket
import sys
import tempfile

from areir.errors import UserError
from areir.output.page.folder import SearchedFolder

LOCAL_HOSTS = ('127.0.0.1', '::1', 'localhost')


def load_flask():
    """Import flask. Raises UserError saying what to do if it is not installed."""
    try:
        import flask
    except ImportError as error:
        raise UserError('--serve: flask is not installed: pip install flask') from error
    return flask


def check(port, gallery, query):
    """Raise UserError if --serve is given but cannot work; port: None if not given."""
    if port is None:
        return
    if not gallery or query:
        raise UserError('--serve: add --gallery and leave out --query_img_name')
    if not 0 <= port <= 65535:
        raise UserError(f'--serve {port}: a port is from 0 to 65535')
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise UserError('--serve: works in one process; run it without torchrun')
    load_flask()


def serve(collection, open_again, host, port, number, heat_maps=False):
    """Serve the search page of a FolderCollection; end the process at Ctrl-C.

    open_again: brings the index up to date and returns a new collection; port: 0 takes
    a free one; number, heat_maps: the settings that the page starts with.
    Raises UserError if flask is not installed or the port cannot be used.
    """
    load_flask()
    from werkzeug.serving import make_server

    from areir.output.page.app import make_app  # it needs flask

    is_local = host in LOCAL_HOSTS
    folder = SearchedFolder(collection, open_again)
    logging.getLogger('werkzeug').setLevel(logging.ERROR)  # no line per request
    with temporary_folder() as uploads, listen(host, port) as listening:
        app = make_app(folder, uploads, is_local, number, heat_maps)
        port = listening.getsockname()[1]
        if not is_local:
            print(
                f'warning: --host {host}: anybody who reaches port {port} of this '
                'machine can see the images'
            )
        print(f'search page: {address(host, port)} (Ctrl-C ends it)', flush=True)
        server = make_server(host, port, app, threaded=True, fd=listening.fileno())
        server.serve_forever()  # returns at Ctrl-C
    # a thread may be inside torch, which aborts if Python ends the thread
    sys.stdout.flush()
    os._exit(0)


def temporary_folder():
    """Return a folder for uploads, to be used in a `with` statement."""
    return tempfile.TemporaryDirectory(prefix='areir_', ignore_cleanup_errors=True)


def listen(host, port):
    """Return a socket that listens. Raises UserError if the port cannot be used."""
    if not host:  # which would mean all addresses
        raise UserError('--host: empty')
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError, TypeError) as error:
        reason = f'--host {host}: {getattr(error, "strerror", None) or error}'
        if getattr(error, 'errno', None) == errno.EADDRINUSE:
            reason = f'the port is in use: choose another, such as {port + 1}'
        raise UserError(f'--serve {port}: {reason}') from error


def address(host, port):
    """Return the URL of a host and a port."""
    host = f'[{host}]' if ':' in host else host
    return f'http://{host}:{port}/'

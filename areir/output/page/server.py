"""Start the server of the search page, print its address, and end it at Ctrl-C."""

import contextlib
import errno
import logging
import os
import socket
import sys
import tempfile

from areir.errors import UserError, optional
from areir.output.page.folder import MOST_TOGETHER, SearchedFolder

LARGEST_BODY = 100_000_000  # bytes that are read of a request; the app takes fewer
SHORTEST_TOKEN = 16  # characters
HOW = "python -c \"import secrets; open('token', 'w').write(secrets.token_urlsafe())\""
LOCAL_HOSTS = ('127.0.0.1', '::1', 'localhost')


def check(args):
    """Raise UserError if --serve cannot work."""
    port = args.serve
    if port is None:
        raise UserError('--token: works with --serve only')
    if not args.gallery or args.query_img_name:
        raise UserError('--serve: add --gallery and leave out --query_img_name')
    if not 0 <= port <= 65535:
        raise UserError(f'--serve {port}: a port is from 0 to 65535')
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise UserError('--serve: works in one process; run it without torchrun')
    for package in ('flask', 'waitress'):
        optional('--serve', package, 'flask waitress')
    if args.token:
        read_token(args.token)
    elif args.host not in LOCAL_HOSTS:
        raise UserError(
            f'--host {args.host}: for other machines, add --token token, a file with '
            f'a secret: {HOW}'
        )


def read_token(path):
    """Return the secret of --token, the first line of a file, or raise UserError."""
    try:
        with open(path, encoding='ascii') as file:
            token = file.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not plain ASCII'
        raise UserError(f'--token {path}: {reason}; make one: {HOW}') from error
    if len(token) < SHORTEST_TOKEN:
        raise UserError(
            f'--token {path}: the first line must have at least {SHORTEST_TOKEN} '
            f'characters; make one: {HOW}'
        )
    return token


def serve(gallery, host, port, number, heat_maps=False, token=None):
    """Serve the search page and the API of a Gallery; end the process at Ctrl-C.

    port: 0 takes a free one; number, heat_maps: as of `make_app`; token: the file of
    --token.
    """
    from waitress import create_server, wasyncore

    from areir.output.page.app import make_app

    secret = read_token(token) if token else None
    # no line per client that hangs up or has to wait
    logging.getLogger('waitress').setLevel(logging.CRITICAL)
    channels = {}
    temporary = tempfile.TemporaryDirectory(prefix='areir_', ignore_cleanup_errors=True)
    with temporary as uploads, listen(host, port) as listening:
        app = make_app(SearchedFolder(gallery), uploads, number, heat_maps, secret)
        options = {'threads': MOST_TOGETHER, 'max_request_body_size': LARGEST_BODY}
        create_server(app, channels, sockets=[listening], **options)
        name = f'[{host}]' if ':' in host else host
        address = f'http://{name}:{listening.getsockname()[1]}/'
        print(f'search page: {address} (Ctrl-C ends it)', flush=True)
        # not the server's own `run`, which waits for its threads at Ctrl-C
        with contextlib.suppress(KeyboardInterrupt):
            wasyncore.loop(map=channels)
    # a thread may be inside torch, which aborts if Python ends the thread
    sys.stdout.flush()
    os._exit(0)


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

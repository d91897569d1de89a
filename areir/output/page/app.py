"""The requests of the search page: which are accepted, and their replies."""

import contextlib
import hmac
import os
import re
from functools import partial

import jinja2
from flask import Flask, Response, abort, render_template, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import BadRequest, HTTPException, InternalServerError

from areir.errors import UserError
from areir.gallery.queries import stored_query
from areir.output.answers import verdict
from areir.output.page.api import MOST, Api, dumps
from areir.output.page.folder import describe_changes, draw_pair, uploaded

HERE = os.path.dirname(os.path.abspath(__file__))
# base.css is shared with the page of a run
TEMPLATES = [os.path.join(HERE, 'templates'), os.path.join(HERE, '../templates')]

LARGEST_UPLOAD = 20_000_000  # bytes
FORM = 10_000  # bytes of the rest of a request
TOO_LARGE = (
    f'The picture has more than {LARGEST_UPLOAD // 1_000_000} MB. Choose a smaller one.'
)
SENTENCES = {
    400: 'The request has not arrived as a whole. Send it again.',
    401: 'The token of --token is missing or wrong.',
    403: 'Refused: no other web site may ask, and only at an address of this machine.',
    410: 'The folder has been read again since this page showed the image, so its '
    'number may mean another one. Search with your picture again.',
    413: TOO_LARGE,
    500: 'The request failed. The terminal of inference.py says why.',
}
LOCAL_ADDRESS = re.compile(r'(127\.0\.0\.1|localhost|\[::1\])(:\d+)?')
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    'Content-Security-Policy': POLICY,
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Referrer-Policy': 'same-origin',
    'X-Content-Type-Options': 'nosniff',
}


def make_app(folder, uploads, number, heat_maps, secret=None):
    """Return the Flask app that searches a SearchedFolder.

    uploads: a folder for uploaded pictures; number, heat_maps: the settings that the
    page starts with; secret: that of --token, which each request must know. Without
    one, the app answers to names of this machine only.
    """
    app = Flask(__name__, static_folder=os.path.join(HERE, 'static'))
    app.jinja_options = {'autoescape': True, 'undefined': jinja2.StrictUndefined}
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_loader = jinja2.FileSystemLoader(TEMPLATES)
    app.config['MAX_CONTENT_LENGTH'] = LARGEST_UPLOAD + FORM
    app.before_request(partial(check_secret, secret) if secret else check_host)
    app.before_request(check_origin)
    app.after_request(add_headers)
    for kind in (UserError, OSError, HTTPException):
        app.register_error_handler(kind, error_reply)

    number = min(number, MOST)
    views = Views(folder, uploads, number, heat_maps)
    app.add_url_rule('/', view_func=views.page)
    app.add_url_rule('/page.css', view_func=views.style)
    app.add_url_rule('/search', view_func=views.search, methods=['POST'])
    app.add_url_rule('/heat_map', view_func=views.heat_map, methods=['POST'])
    app.add_url_rule('/read_again', view_func=views.read_again, methods=['POST'])
    picture = '/images/<token>/<int:index>/<any(small, large):size>'
    app.add_url_rule(picture, view_func=views.picture)
    api = Api(folder, uploads, number)
    for view in (api.search, api.embed, api.update):
        name = view.__name__
        app.add_url_rule(f'/api/{name}', f'api_{name}', view, methods=['POST'])
    app.add_url_rule('/api/status', view_func=api.status)
    return app


# Which requests are accepted


def check_secret(secret):
    """Refuse a request without the secret: `Bearer`, or the password of `Basic`."""
    scheme, _, given = request.headers.get('Authorization', '').partition(' ')
    if scheme.lower() == 'basic':
        given = request.authorization.password if request.authorization else ''
    if not hmac.compare_digest(given.strip().encode(), secret.encode()):
        abort(401, www_authenticate=WWWAuthenticate('basic', {'realm': 'AREIR'}))


def check_host():
    """Refuse a request to a name that is not this machine's own.

    Otherwise a web site could let its name point to 127.0.0.1 (DNS rebinding), and its
    scripts would see the images.
    """
    if not LOCAL_ADDRESS.fullmatch(request.host):
        abort(403)


def check_origin():
    """Refuse a POST from another web site. Only browsers name an origin."""
    origin = request.headers.get('Origin', f'http://{request.host}')
    if request.method == 'POST' and origin.partition('://')[2] != request.host:
        abort(403)


def add_headers(response):
    """Add HEADERS to a reply, and keep pages out of caches."""
    response.headers.update(HEADERS)
    response.headers.setdefault('Cache-Control', 'no-store')
    return response


# Replies


class Views:
    """The replies to each address. Threads share them, so no request changes them."""

    def __init__(self, folder, uploads, number, heat_maps):
        self.folder, self.uploads = folder, uploads
        self.number, self.heat_maps = number, heat_maps

    def page(self):
        """Return the page before a search."""
        collection = self.folder.current.collection
        html = render_template(
            'page.html.jinja',
            name=os.path.basename(os.path.abspath(collection.folder)),
            collection=collection,
            number=self.number,
            most=MOST,
            heat_maps=self.heat_maps,
            largest=LARGEST_UPLOAD,
            too_large=TOO_LARGE,
        )
        return to_utf8(html)

    def style(self):
        """Return the style sheet."""
        return Response(render_template('page.css'), mimetype='text/css')

    def search(self):
        """Return the images nearest to the query, as HTML."""
        number = request.form.get('number', self.number, type=int)
        number = max(1, min(number, MOST))
        generation = self.folder.current
        with sent_query(generation, self.uploads) as query:
            answer, indices = self.folder.find(query, number, generation.collection)
        html = render_template(
            'answer.html.jinja',
            answer=answer,
            images=list(zip(indices, answer.table.itertuples(), answer.labels)),
            token=generation.token,
            has_threshold=generation.collection.calibration is not None,
            verdict=verdict(answer, generation.collection),
        )
        return to_utf8(html)

    def heat_map(self):
        """Return the query and one image side by side, under their heat maps."""
        generation = self.folder.current
        collection = generation.collection
        shown = sent_index(generation, 'shown')
        with sent_query(generation, self.uploads) as query, self.folder.computing:
            path = collection.path_of(shown)
            pair = draw_pair(query.picture, path, collection.trained)
        return Response(pair, mimetype='image/png')

    def picture(self, token, index, size):
        """Return an image of the folder, small or large."""
        generation = self.folder.current
        check(generation, token, index)
        jpeg = self.folder.picture(generation.collection.path_of(index), size)
        headers = {'Cache-Control': 'private, max-age=3600'}
        return Response(jpeg, mimetype='image/jpeg', headers=headers)

    def read_again(self):
        """Read the folder again; return what has changed.

        The form may name the image that was the query. Its number in the new generation
        is then part of the reply, or None if the image is gone.
        """
        earlier, later, changes = self.folder.read_again()
        path, images = None, later.collection.images
        if 'image' in request.form and request.form.get('token') == earlier.token:
            path = earlier.collection.images[sent_index(earlier, 'image')]
        return {
            'message': describe_changes(changes, earlier.collection, later.collection),
            'total': f'{len(images):,}',
            'token': later.token,
            'image': images.index(path) if path in images else None,
        }


# What a request sends


@contextlib.contextmanager
def sent_query(generation, uploads):
    """Yield the Query of a request: an image by its number, or an uploaded picture."""
    if 'image' in request.form:
        yield stored_query(sent_index(generation, 'image'), generation.collection)
        return
    upload = request.files.get('picture')
    if upload is None:
        raise UserError('No picture has arrived. Choose one.')
    with uploaded(upload.stream, uploads) as query:
        yield query


def sent_index(generation, field):
    """Return the number of an image that a field of the form holds, checked."""
    index = request.form.get(field, -1, type=int)
    check(generation, request.form.get('token'), index)
    return index


def check(generation, token, index):
    """Refuse a token of another generation, and the number of no image."""
    if token != generation.token:
        abort(410)
    if not 0 <= index < len(generation.collection):
        abort(404, 'The folder has no image of this number.')


def error_reply(error):
    """Reply to an HTTPException, UserError or OSError with a sentence."""
    if isinstance(error, HTTPException):
        text = SENTENCES.get(error.code, error.description)
    else:
        kind = InternalServerError if isinstance(error, OSError) else BadRequest
        text, error = str(error), kind()
    reply = error.get_response()
    if request.path.startswith('/api/'):
        reply.data, reply.mimetype = dumps({'error': text}), 'application/json'
    else:
        reply.data, reply.mimetype = to_utf8(text), 'text/plain'
    return reply


def to_utf8(text):
    """Encode a text; names of files may hold any bytes."""
    return text.encode(errors='replace')

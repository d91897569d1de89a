"""The requests of the search page and their replies."""

import contextlib
import os
import tempfile

import jinja2
from flask import Flask, Response, render_template, request
from werkzeug.exceptions import HTTPException

from areir.errors import UserError
from areir.gallery.queries import Query, stored_query
from areir.output import wording
from areir.output.page import guards
from areir.output.page.folder import NoSuchImage, OldPage, place_after
from areir.output.page.pictures import SIDES, PictureMaker, draw_pair
from areir.output.page.view import MOST, view_answer

HERE = os.path.dirname(os.path.abspath(__file__))
# base.css is shared with the page of a run
TEMPLATES = [os.path.join(HERE, 'templates'), os.path.join(HERE, '../templates')]
STATUS = {OldPage: 410, NoSuchImage: 404}  # 400 for any other UserError


def make_app(folder, uploads, is_local, number, heat_maps):
    """Return the Flask app that searches a SearchedFolder.

    uploads: a folder for uploaded pictures, which are removed after their request;
    is_local: whether the app serves this machine only; number, heat_maps: the settings
    that the page starts with.
    """
    app = Flask(__name__, static_folder=os.path.join(HERE, 'static'))
    app.jinja_options = {'autoescape': True, 'undefined': jinja2.StrictUndefined}
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_loader = jinja2.FileSystemLoader(TEMPLATES)
    app.jinja_env.filters.update(share=wording.share, number=wording.number)
    guards.protect(app, is_local)

    views = Views(folder, uploads, number, heat_maps)
    app.add_url_rule('/', view_func=views.page)
    app.add_url_rule('/page.css', view_func=views.style)
    app.add_url_rule('/search', view_func=views.search, methods=['POST'])
    app.add_url_rule('/heat_map', view_func=views.heat_map, methods=['POST'])
    app.add_url_rule('/read_again', view_func=views.read_again, methods=['POST'])
    app.add_url_rule('/images/<token>/<int:index>/<size>', view_func=views.picture)
    app.register_error_handler(UserError, error_reply)
    app.register_error_handler(OSError, error_reply)
    app.register_error_handler(HTTPException, http_error_reply)
    return app


class Views:
    """The replies to each address. Threads share them, so no request changes them."""

    def __init__(self, folder, uploads, number, heat_maps):
        self.folder, self.uploads = folder, uploads
        self.number, self.heat_maps = number, heat_maps
        self.pictures = PictureMaker()

    def page(self):
        """Return the page before a search."""
        collection = self.folder.current.collection
        html = render_template(
            'page.html.jinja',
            name=os.path.basename(os.path.abspath(collection.folder)),
            collection=collection,
            number=min(self.number, MOST),
            most=MOST,
            heat_maps=self.heat_maps,
            largest=guards.LARGEST_UPLOAD,
            too_large=guards.TOO_LARGE,
        )
        return wording.valid_unicode(html)

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
        view = view_answer(answer, indices, generation)
        return wording.valid_unicode(render_template('answer.html.jinja', view=view))

    def heat_map(self):
        """Return the query and one image side by side, under their heat maps."""
        generation = self.folder.current
        collection = generation.collection
        shown = sent_index(generation, 'shown')
        with sent_query(generation, self.uploads) as query, self.folder.computing:
            path = collection.path_of(shown)
            pair = draw_pair(query.file, path, collection.load_model())
        return Response(pair, mimetype='image/png')

    def picture(self, token, index, size):
        """Return an image of the folder, small or large."""
        generation = self.folder.current
        generation.check(token, index)
        if size not in SIDES:
            raise NoSuchImage('Images are small or large.')
        path = generation.collection.path_of(index)
        jpeg = self.pictures.picture(path, token, size)
        headers = {'Cache-Control': 'private, max-age=3600'}
        return Response(jpeg, mimetype='image/jpeg', headers=headers)

    def read_again(self):
        """Read the folder again; return what has changed.

        The form may name the image that was the query. Its number in the new generation
        is then part of the reply, or None if the image is gone.
        """
        earlier, later, changes = self.folder.read_again()
        image = None
        if 'image' in request.form and request.form.get('token') == earlier.token:
            index = sent_index(earlier, 'image')
            image = place_after(index, earlier.collection, later.collection)
        return {
            'message': str(changes),
            'total': f'{changes.total:,}',
            'token': later.token,
            'image': image,
        }


# What a request sends


@contextlib.contextmanager
def sent_query(generation, uploads):
    """Yield the Query of a request: an image by its number, or an uploaded picture.

    An upload lies in a temporary folder below `uploads`, which is removed afterwards.
    """
    collection = generation.collection
    if 'image' in request.form:
        index = sent_index(generation, 'image')
        yield stored_query(index, collection)
        return
    upload = request.files.get('picture')
    if upload is None:
        raise UserError('No picture has arrived. Choose one.')
    with tempfile.TemporaryDirectory(dir=uploads) as folder:
        path = os.path.join(folder, 'picture')
        upload.save(path)
        if not os.path.getsize(path):
            raise UserError('The picture is an empty file. Choose another one.')
        yield Query(file=path, name='picture')


def sent_index(generation, field):
    """Return the number of an image that a field of the form holds, checked."""
    index = request.form.get(field, -1, type=int)
    return generation.check(request.form.get('token'), index)


# Errors


def error_reply(error):
    """Reply with the message of a UserError or OSError."""
    status = 500 if isinstance(error, OSError) else STATUS.get(type(error), 400)
    return text_reply(str(error), status)


def http_error_reply(error):
    """Reply to an HTTP error with a sentence."""
    text = guards.SENTENCES.get(error.code, error.description)
    return text_reply(text, error.code)


def text_reply(text, status):
    """Return a reply of plain text."""
    return Response(wording.valid_unicode(text), status, mimetype='text/plain')

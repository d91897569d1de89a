"""The requests of programs, answered in JSON: docs/openapi.yaml describes them."""

import json
import os

import pandas as pd
from flask import Response, abort, request

import areir
from areir.errors import UserError
from areir.matching.thresholds import threshold_of
from areir.output.answers import verdict
from areir.output.page.folder import uploaded

MOST = 100  # images that are shown at most
# of retrieved.csv
COLUMNS = 'rank', 'path', 'class', 'score', 'match', 'predicted_class', 'confidence'
HOW_TO_SEND = (
    'Send the picture as the field "picture" of multipart/form-data, or as the body '
    'with its own type, such as image/jpeg.'
)


class Api:
    """The replies to programs. Threads share them, so no request changes them."""

    def __init__(self, folder, uploads, number):
        """folder, uploads, number: see `app.make_app`."""
        self.folder, self.uploads, self.number = folder, uploads, number

    def search(self):
        """Return the images nearest to a picture: the Answer."""
        collection = self.folder.current.collection
        with sent_picture(self.uploads) as query:
            number = wanted_number(self.number)
            answer, _ = self.folder.find(query, number, collection)
        threshold = threshold_of(collection)
        results = [
            {name: None if pd.isna(row.get(name)) else row[name] for name in COLUMNS}
            for row in answer.table.to_dict('records')
        ]
        return to_json(
            {
                'results': results,
                'match': answer.matched if threshold else None,
                'threshold': threshold and threshold.score,
                'predicted_class': answer.predicted_class,
                'confidence': answer.confidence,
                'verdict': verdict(answer, collection),
            }
        )

    def embed(self):
        """Return the embedding of a picture."""
        collection = self.folder.current.collection
        with sent_picture(self.uploads) as query:
            vector, _, _ = self.folder.ask(query, collection)
        return to_json(
            {
                'vector': vector.tolist(),
                'dimensions': len(vector),
                'model': collection.trained.path,
            }
        )

    def update(self):
        """Read the folder again; return the Changes."""
        _, _, changes = self.folder.read_again()
        return to_json(changes._asdict())

    def status(self):
        """Return what is searched, and with which model."""
        collection = self.folder.current.collection
        threshold = threshold_of(collection)
        return to_json(
            {
                'folder': os.path.abspath(collection.folder),
                'images': len(collection),
                'classes': len({*collection.classes} - {None}),
                'model': collection.trained.path,
                'dimensions': collection.embeddings.shape[1],
                'threshold': threshold and threshold.score,
                'updating': self.folder.reading.locked(),
                'version': areir.__version__,
            }
        )


def sent_picture(uploads):
    """Return a context manager that yields the Query of a program's picture."""
    kind = request.mimetype or 'application/octet-stream'
    if kind == 'multipart/form-data':
        if 'picture' not in request.files:
            raise UserError(f'No picture has arrived. {HOW_TO_SEND}')
        return uploaded(request.files['picture'].stream, uploads)
    if kind.startswith('image/') or kind == 'application/octet-stream':
        return uploaded(request.stream, uploads)
    return abort(415, f'{kind} is not read here. {HOW_TO_SEND}')


def wanted_number(default):
    """Return the number of images to show: k of the form or of the address."""
    text = request.values.get('k', str(default))
    if text not in map(str, range(1, MOST + 1)):
        raise UserError(f'k: a whole number from 1 to {MOST}.')
    return int(text)


def to_json(value):
    """Return a reply in JSON."""
    return Response(dumps(value), mimetype='application/json')


def dumps(value):
    """Encode a value in JSON. Names of files may hold any bytes."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode(errors='replace')

"""Send a picture to the search page, through Flask's test client."""

import sys

import inference


def main():
    """Print the answer to the picture that is the first word of sys.argv.

    The other words are flags of inference.py.

    Exits with 2 if the page refuses it, whose reply is then on stderr.
    """
    from areir.output.page.app import make_app
    from areir.output.page.folder import SearchedFolder

    picture = sys.argv.pop(1)
    args = inference.get_args()
    collection = inference.open_folder(args, inference.Clock())
    app = make_app(SearchedFolder(collection), '.', True, 4, False)
    with open(picture, 'rb') as file:
        reply = app.test_client().post(
            'http://localhost/search',
            data={'picture': (file, 'picture')},
            headers={'Origin': 'http://localhost'},
        )
    if reply.status_code == 200:
        print(reply.text)
        return
    print(f'page: error: {reply.text}', file=sys.stderr)
    sys.exit(1 if reply.status_code == 500 else 2)

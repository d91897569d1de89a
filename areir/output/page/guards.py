"""Which requests the search page accepts, and what its replies allow browsers."""

import re

from flask import abort, request

LARGEST_UPLOAD = 20_000_000  # bytes
FORM = 10_000  # bytes of the rest of a request
TOO_LARGE = (
    f'The picture has more than {LARGEST_UPLOAD // 1_000_000} MB. Choose a smaller one.'
)
SENTENCES = {
    403: 'Refused: only the search page itself may ask, at its own address.',
    404: 'There is nothing at this address.',
    405: 'This address cannot be used in this way.',
    413: TOO_LARGE,
    500: 'The search failed. The terminal of inference.py says why.',
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


def protect(app, is_local):
    """Limit the requests that a Flask app accepts, and secure its replies.

    is_local: whether to accept only requests to a name of this machine.
    """
    app.config['MAX_CONTENT_LENGTH'] = LARGEST_UPLOAD + FORM
    if is_local:
        app.before_request(check_host)
    app.before_request(check_origin)
    app.after_request(add_headers)


def check_host():
    """Refuse a request to a name that is not this machine's own.

    Otherwise a web site could let its name point to 127.0.0.1 (DNS rebinding), and its
    scripts would see the images.
    """
    if not LOCAL_ADDRESS.fullmatch(request.host):
        abort(403)


def check_origin():
    """Refuse a POST that does not come from this page."""
    origin = request.headers.get('Origin', '')
    if request.method == 'POST' and origin.partition('://')[2] != request.host:
        abort(403)


def add_headers(response):
    """Add the security headers to a reply, and keep pages out of caches."""
    for name, value in HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault('Cache-Control', 'no-store')
    return response

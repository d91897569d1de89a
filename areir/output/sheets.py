"""Thumbnails, and sheets of them."""

import contextlib
import functools
import unicodedata
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

# of frames: the class is right, wrong, or not known
COLOURS = {True: (0, 150, 70), False: (205, 35, 45), None: (135, 135, 135)}
THUMBNAIL = 192  # pixels per side
GAP = 14
CAPTION = 42  # pixels for its two lines
LINE = 18
FONT_SIZE = 14
# of Linux, macOS and Windows; pillow looks for them where the system keeps its fonts
CJK_FONTS = (
    *('NotoSansCJK-Regular.ttc', 'NotoSansCJKjp-Regular.otf', 'wqy-zenhei.ttc'),
    *('Hiragino Sans GB.ttc', 'AppleSDGothicNeo.ttc', 'Arial Unicode.ttf'),
    *('YuGothM.ttc', 'msyh.ttc', 'msgothic.ttc', 'malgun.ttf'),
)
COLUMNS = 8  # images in a row


def thumbnail(image, colour, width):
    """Fit an image into a white square of THUMBNAIL pixels with a coloured frame.

    width: of the frame, in pixels.
    """
    side = THUMBNAIL - 2 * width
    square = ImageOps.pad(image, (side, side), Image.Resampling.LANCZOS, 'white')
    return ImageOps.expand(square, width, colour)


def sheet(thumbnails, captions, columns, apart=0):
    """Draw thumbnails in rows, each above its caption of two lines.

    thumbnails: images, or None for an empty place; apart: pixels after the first
    column.
    """
    rows = -(-len(thumbnails) // columns)
    step_x, step_y = THUMBNAIL + GAP, THUMBNAIL + CAPTION + GAP
    size = GAP + columns * step_x + apart, GAP + rows * step_y
    picture = Image.new('RGB', size, 'white')
    draw = ImageDraw.Draw(picture)
    for index, (image, caption) in enumerate(zip(thumbnails, captions)):
        row, column = divmod(index, columns)
        x = GAP + column * step_x + (apart if column else 0)
        y = GAP + row * step_y
        if image:
            picture.paste(image, (x, y))
        for line, text in enumerate(caption):
            # Chinese, Japanese or Korean
            font = find_font(any(unicodedata.east_asian_width(c) in 'WF' for c in text))
            text = fit_caption(text, draw, font)
            place = x + THUMBNAIL / 2, y + THUMBNAIL + 4 + LINE * line
            draw.text(place, text, 'black', font, anchor='ma')
    return picture


@functools.cache
def find_font(wide=False):
    """Return the font of captions: DejaVu Sans, which matplotlib brings.

    wide: one of CJK_FONTS, if the system has any. matplotlib is not imported: that
    takes longer than a sheet.
    """
    for name in CJK_FONTS if wide else ():
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, FONT_SIZE)
    folder = Path(find_spec('matplotlib').origin).parent
    font = folder / 'mpl-data/fonts/ttf/DejaVuSans.ttf'
    return ImageFont.truetype(str(font), FONT_SIZE)


def fit_caption(text, draw, font):
    """Return a text that fits below a thumbnail, in one line, with composed letters."""
    text = unicodedata.normalize('NFC', ' '.join(text.split()))
    text = text.encode('utf-8', 'replace').decode()
    while len(text) > 2 and draw.textlength(text, font) > THUMBNAIL:
        text = text[:-2] + '…'
    return text


def contact_sheet(thumbnails, captions):
    """Draw an answer: the query at the left, the retrieved images in rows beside it.

    The query comes first in both lists.
    """
    columns = min(COLUMNS, len(thumbnails) - 1)
    images, texts = thumbnails[: 1 + columns], captions[: 1 + columns]
    for start in range(1 + columns, len(thumbnails), COLUMNS):
        # nothing below the query
        images += [None, *thumbnails[start : start + COLUMNS]]
        texts += [(), *captions[start : start + COLUMNS]]
    return sheet(images, texts, columns + 1, apart=GAP)

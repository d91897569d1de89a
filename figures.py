"""What is drawn of images: thumbnails, sheets of them, heat maps over them."""
from PIL import Image, ImageDraw, ImageFont, ImageOps

COLOURS = {True: (0, 150, 70), False: (205, 35, 45), None: (135, 135, 135)}  # right, wrong, class unknown
THUMBNAIL, GAP, CAPTION, COLUMNS = 192, 14, 42, 8                            # pixels, and images in a row


def thumbnail(image, colour, width):
    """An image fitted into a white square of THUMBNAIL pixels with a frame `width` pixels wide."""
    side = THUMBNAIL - 2 * width
    fitted = image.resize([max(1, round(length * side / max(image.size))) for length in image.size],
                          Image.Resampling.LANCZOS)
    square = Image.new('RGB', (side, side), 'white')
    square.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return ImageOps.expand(square, width, colour)


def sheet(thumbnails, captions, columns, apart=0):
    """One picture of thumbnails in rows, each with its caption of two lines; `apart` pixels after the first column."""
    rows = -(-len(thumbnails) // columns)
    step_x, step_y = THUMBNAIL + GAP, THUMBNAIL + CAPTION + GAP
    picture = Image.new('RGB', (GAP + columns * step_x + apart, GAP + rows * step_y), 'white')
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(15)
    for index, (image, caption) in enumerate(zip(thumbnails, captions)):
        row, column = divmod(index, columns)
        x, y = GAP + column * step_x + (apart if column else 0), GAP + row * step_y
        if image:
            picture.paste(image, (x, y))
        for line, text in enumerate(caption):
            text = ' '.join(text.split()).encode('utf-8', 'replace').decode()
            while len(text) > 2 and draw.textlength(text, font) > THUMBNAIL:
                text = text[:-2] + '…'
            draw.text((x + THUMBNAIL / 2, y + THUMBNAIL + 4 + 18 * line), text, 'black', font, anchor='ma')
    return picture


def contact_sheet(thumbnails, captions):
    """A sheet of an answer: the query, which comes first, at the left, the retrieved images beside it in rows."""
    columns = min(COLUMNS, len(thumbnails) - 1)
    pairs = list(zip(thumbnails, captions))
    for place in range(columns + 1, len(pairs) * 2, columns + 1):  # below the query nothing
        if place < len(pairs):
            pairs.insert(place, (None, ()))
    return sheet(*zip(*pairs), columns + 1, apart=GAP)


def heated(image, heat):
    """An RGB image, dimmed where heat, an array (h, w) from 0 to 1, is low, and coloured from red to yellow with it."""
    heat = Image.fromarray((heat * 255).astype('uint8')).resize(image.size, Image.Resampling.BICUBIC)
    glow = ImageOps.colorize(heat, 'black', 'yellow', (220, 30, 30))
    dimmed = Image.blend(image.convert('L').convert('RGB'), Image.new('RGB', image.size, 'black'), 0.35)
    return Image.composite(Image.blend(image, glow, 0.4), dimmed, heat.point(lambda value: min(255, 2 * value)))

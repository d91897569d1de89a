"""Show the images of a database that are nearest to a query.

    python inference.py --query_img_name data/car/uncropped/008055.jpg --retrieval_num 10
    python inference.py --query_img_name my_photo.jpg --data_base sample_uncropped_resnet18_4_16_data_base.pth

The query is an image of the database, which needs no model, or any image file, for which the model that lies
beside the database is used. Into results/<query>/ go the query, the retrieved images, a contact sheet and a table.
"""
import argparse
import os
import shutil
import tempfile

import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

import data_utils
import utils
from model import EnsembleModel
from retrieval import search

COLOURS = {True: (0, 150, 70), False: (205, 35, 45), None: (135, 135, 135)}  # right, wrong, class unknown
THUMBNAIL, GAP, CAPTION, COLUMNS = 192, 14, 42, 8                            # pixels, and images in a row


def get_args():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS,
                                     description='Retrieve the images of a database that are nearest to a query.')
    parser.add_argument('--query_img_name', default='data/car/uncropped/008055.jpg',
                        help="query image name [default value is '%(default)s']")
    parser.add_argument('--data_base', default='car_uncropped_resnet18_48_12_data_base.pth',
                        help="queried database, a file or a name below --results_root [default value is '%(default)s']")
    parser.add_argument('--retrieval_num', default=8, type=utils.positive,
                        help='retrieval number [default value is %(default)s]')
    parser.add_argument('--data_root', help='folder of the datasets, if they have moved since training')
    parser.add_argument('--results_root', default='results', help="folder of what is written "
                                                                  "[default value is '%(default)s']")
    return parser.parse_args()


def load_database(name, results_root):
    """(database, its path). Raises ValueError if there is none, listing those there are."""
    path = name if os.path.isfile(name) else os.path.join(results_root, name)
    if not os.path.isfile(path):
        found = [file for file in sorted(os.listdir(results_root)) if file.endswith('_data_base.pth')] \
            if os.path.isdir(results_root) else []
        raise ValueError(f'--data_base {name}: no such database; in {results_root}: {", ".join(found) or "none"}')
    database = utils.load(path)
    needed = {'embeddings', 'labels', 'images', 'classes', 'data_name', 'data_root', 'model', 'version'}
    if not isinstance(database, dict) or not needed <= database.keys():
        raise ValueError(f'--data_base {name}: not a database written by train.py')
    return database, path


def image_folder(database, path, data_root):
    """The folder that the database's image paths start from: --data_root, else where it was at training."""
    beside = os.path.join(os.path.dirname(os.path.realpath(path)), database['data_root'])
    roots = [data_root] if data_root else [beside, 'data']
    folders = [os.path.normpath(os.path.join(root, database['data_name'])) for root in roots]
    for folder in folders:
        if os.path.isfile(os.path.join(folder, database['images'][0])):
            return min(folder, os.path.relpath(folder), key=len)
    raise ValueError(f'images of the database are not in {" or ".join(folders)}: say where with --data_root')


def find_image(query, images, folder):
    """The position of a query among images below folder, or None: by file, whatever names and links lead to it;
    a query that is no file, by the database's own name for it."""
    if os.path.isfile(query):
        wanted = os.stat(query)
        for index, image in enumerate(images):
            path = os.path.join(folder, image)
            if os.path.isfile(path) and os.path.samestat(wanted, os.stat(path)):
                return index
        return None
    named = '/' + os.path.normpath(query).replace(os.sep, '/')
    for index, image in enumerate(images):
        if named == f'/{image}' or named.endswith(f'/{os.path.basename(folder)}/{image}'):
            return index
    return None


def embed_file(query, database, path):
    """Embedding (1, E * M) of an image file by the model beside the database."""
    if not os.path.isfile(query):
        raise ValueError(f'--query_img_name {query}: no such file, and no image of the database')
    model_path = os.path.join(os.path.dirname(path), database['model'])
    if not os.path.isfile(model_path):
        raise ValueError(f'{model_path}: no such file; the model is needed for an image that is not in the database')
    image = data_utils.load_image(query)
    saved = utils.load(model_path)
    if not isinstance(saved, dict) or saved.get('version') != database['version']:
        raise ValueError(f'{model_path} does not fit {path}: they were not written by the same epoch of one run')
    model = EnsembleModel(**saved['model_args'])
    model.load_state_dict(saved['state_dict'])
    pixels = data_utils.to_pixels(image, saved['image_size'])
    return model.embed(data_utils.normalise(pixels[None], saved['mean'], saved['std']))


def thumbnail(image, colour, width):
    """An image fitted into a white square of THUMBNAIL pixels with a frame `width` pixels wide."""
    side = THUMBNAIL - 2 * width
    fitted = image.resize([max(1, round(length * side / max(image.size))) for length in image.size],
                          Image.Resampling.LANCZOS)
    square = Image.new('RGB', (side, side), 'white')
    square.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return ImageOps.expand(square, width, colour)


def contact_sheet(thumbnails, captions):
    """One picture: the query, which comes first, at the left, the retrieved images beside it in rows, each with
    its caption of two lines."""
    columns = min(COLUMNS, len(thumbnails) - 1)
    rows = -(-(len(thumbnails) - 1) // columns)
    step_x, step_y = THUMBNAIL + GAP, THUMBNAIL + CAPTION + GAP
    sheet = Image.new('RGB', (GAP + (columns + 1) * step_x + GAP, GAP + rows * step_y), 'white')
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for index, (image, caption) in enumerate(zip(thumbnails, captions), -1):
        row, column = divmod(index, columns) if index >= 0 else (0, -1)
        x, y = GAP + (column + 1) * step_x + (GAP if index >= 0 else 0), GAP + row * step_y
        sheet.paste(image, (x, y))
        for line, text in enumerate(caption):
            text = ' '.join(text.split())
            while len(text) > 2 and draw.textlength(text, font) > THUMBNAIL:
                text = text[:-2] + '…'
            draw.text((x + THUMBNAIL / 2, y + THUMBNAIL + 4 + 18 * line), text, 'black', font, anchor='ma')
    return sheet


def answer_name(query, images):
    """Name of the folder of an answer: the query's, with its folders where other images are named alike."""
    alike = sum(os.path.basename(image) == os.path.basename(query) for image in images) > 1
    return os.path.splitext(query.replace('/', '_') if alike else os.path.basename(query))[0]


def write_results(folder, query_path, table, rights, query_class):
    """Write everything into a folder beside `folder` and move it there; an earlier answer is replaced."""
    if os.path.lexists(folder) and not os.path.isfile(os.path.join(folder, 'retrieved.csv')):
        raise ValueError(f'{folder} is not an answer of inference.py: move it away')
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    partial = tempfile.mkdtemp(prefix='.inference-', dir=os.path.dirname(folder))
    try:
        query = data_utils.load_image(query_path)
        query.save(os.path.join(partial, 'query.jpg'), quality=95)
        thumbnails, captions = [thumbnail(query, 'black', 1)], [('query', str(query_class))]
        digits = len(str(len(table)))
        for rank, path, label, score, right in zip(*table.to_dict('list').values(), rights):
            image = data_utils.load_image(path)
            framed = ImageOps.expand(image, max(3, max(image.size) // 40), COLOURS[right])
            framed.save(os.path.join(partial, f'{rank:0{digits}d}_{score:.4f}.jpg'), quality=95)
            thumbnails.append(thumbnail(image, COLOURS[right], 5))
            captions.append((f'{rank}: {score:.3f}', str(label)))
        contact_sheet(thumbnails, captions).save(os.path.join(partial, 'contact_sheet.png'))
        table.to_csv(os.path.join(partial, 'retrieved.csv'), index=False)
        os.chmod(partial, 0o755)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main():
    args = get_args()
    database, path = load_database(args.data_base, args.results_root)
    folder = image_folder(database, path, args.data_root)
    gallery, classes = database['embeddings'], database['classes']

    # the query: an image of the gallery, an image of the query set (In-shop), or a file
    own = find_image(args.query_img_name, database['images'], folder)
    asked = find_image(args.query_img_name, database.get('query_images', []), folder) if own is None else None
    if own is not None:
        query, query_label, query_path = gallery[own], database['labels'][own], database['images'][own]
    elif asked is not None:
        query, query_label = database['query_embeddings'][asked], database['query_labels'][asked]
        query_path = database['query_images'][asked]
    else:
        query, query_label, query_path = embed_file(args.query_img_name, database, path)[0], None, None
    known = database['images'] + database.get('query_images', [])
    name = answer_name(query_path, known) if query_path else answer_name(args.query_img_name, [])
    query_path = os.path.join(folder, query_path) if query_path else args.query_img_name

    available = len(gallery) - (own is not None)
    if args.retrieval_num > available:
        raise ValueError(f'--retrieval_num {args.retrieval_num}: the database has {available} images to retrieve')
    if query.shape != gallery[0].shape:
        raise ValueError(f'{database["model"]} does not fit {path}: embeddings of {len(query)} and '
                         f'{gallery.shape[1]} numbers')
    exclude = None if own is None else torch.tensor([own])
    scores, indices = (result[0].tolist() for result in search(query[None], gallery, args.retrieval_num, exclude))

    rights = [None if query_label is None else bool(database['labels'][index] == query_label) for index in indices]
    table = pd.DataFrame({'rank': range(1, len(indices) + 1),
                          'path': [os.path.join(folder, database['images'][index]) for index in indices],
                          'class': [classes[database['labels'][index]] for index in indices], 'score': scores})
    query_class = 'class unknown' if query_label is None else classes[query_label]
    target = os.path.join(args.results_root, name)
    write_results(target, query_path, table, rights, query_class)
    print(f'query {query_path} ({query_class})')
    print(table.to_string(index=False, float_format='{:.4f}'.format))
    print(f'wrote {os.path.join(target, "contact_sheet.png")}')


if __name__ == '__main__':
    utils.run(main)

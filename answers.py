"""What inference.py writes: the answer to one query or many, the pairs of a gallery, its vectors."""
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import ImageOps
from tqdm import tqdm

import data_utils
import gallery
import utils
from figures import COLOURS, contact_sheet, heated, sheet, thumbnail
from heatmap import similarity_maps

TOGETHER = 4096           # queries searched at a time
SHEETS, PAIRS = 100, 32   # contact sheets, and pairs on a sheet, that are drawn at most
ALIKE = 6                 # of 255, mean difference of near-duplicates reduced to 16 x 16 pixels


class Collection(NamedTuple):
    """What is searched, in one order; `embed(paths)` gives the vectors of other files and {place: problem}."""
    name: str           # as messages call it
    folder: str         # that the images' paths start from
    images: list
    classes: list       # the name of each image's class, or None
    vectors: object     # (images, dimensions), a tensor or a memory-mapped array
    search: object      # as retrieval.search, of (query, k, exclude)
    embed: object
    threshold: object   # (of a match, whether it was set for so many images), or None
    sizes: list = ()    # bytes of the files, where known
    asked: tuple = ((), (), ())  # images, classes and vectors of queries that a database keeps beside it


class Query(NamedTuple):
    path: str           # of the file, relative to the collection's folder if it is of the collection
    own: int            # place among the collection's images, or -1
    asked: int          # place among the queries that the database keeps, or -1


def query_class(query, collection):
    """The name of a query's class, or None where it is not known."""
    return collection.classes[query.own] if query.own >= 0 else \
        collection.asked[1][query.asked] if query.asked >= 0 else None


def query_file(query, collection):
    return os.path.join(collection.folder, query.path) if query.own >= 0 or query.asked >= 0 else query.path


def verdict(score, collection, measured):
    """What is said of a query's nearest image."""
    if not collection.threshold:
        return 'no threshold: the model has none; training again gives it one'
    threshold, within = collection.threshold
    beyond = '' if within else f', set for {measured["sizes"][-1]:,} at most'
    what = f'match: the nearest scores {score:.3f}, the threshold is' if score >= threshold else \
        f'no match: the nearest scores {score:.3f}, below the threshold of'
    return (f'{what} {threshold:.3f} ({measured["false_match_rate"]:.2%} false matches asked for, among '
            f'{len(collection.images):,} images{beyond})')


def answer_table(scores, indices, collection):
    """An answer as a table: rank, path, class, score and, where there is a threshold, match."""
    found = [index for index in indices if index >= 0]
    table = pd.DataFrame({
        'rank': range(1, len(found) + 1),
        'path': [os.path.join(collection.folder, collection.images[index]) for index in found],
        'class': [collection.classes[index] for index in found], 'score': scores[:len(found)]})
    if collection.threshold:
        table['match'] = table['score'] >= collection.threshold[0]
    return table


def answer_name(query, images):
    """Name of the folder of an answer: the query's, with its folders where other images are named alike."""
    alike = sum(os.path.basename(image) == os.path.basename(query) for image in images) > 1
    return os.path.splitext(query.replace('/', '_') if alike else os.path.basename(query))[0]


def rights(table, wanted):
    """For each retrieved image whether it is of the class wanted; None where that is not known."""
    return [None if wanted is None or label is None else label == wanted for label in table['class']]


def save_jpeg(image, path):
    """Images beyond what JPEG can hold are reduced."""
    image = image.copy()
    image.thumbnail((60_000, 60_000))
    image.save(path, quality=95)


def draw_answer(query_path, wanted, table, matched):
    """The contact sheet of an answer, the images on it read once more: (sheet, [query, retrieved, ...])."""
    images = [data_utils.load_image(query_path)]
    thumbnails = [thumbnail(images[0], 'black', 1)]
    captions = [('query' if matched else 'query: no match', 'class unknown' if wanted is None else str(wanted))]
    for rank, path, label, score, right in zip(table['rank'], table['path'], table['class'], table['score'],
                                               rights(table, wanted)):
        images.append(data_utils.load_image(path))
        thumbnails.append(thumbnail(images[-1], COLOURS[right], 5))
        captions.append((f'{rank}: {score:.3f}', os.path.basename(path) if label is None else str(label)))
    return contact_sheet(thumbnails, captions), images


def draw_heat_maps(images, captions, model, saved):
    """A sheet of pairs: the query, and beside it a retrieved image, with the regions that make the two similar."""
    tiles = []
    pixels = [data_utils.to_pixels(image, saved['image_size']) for image in images]
    for number in range(1, len(images)):
        pair = data_utils.normalise(torch.stack([pixels[0], pixels[number]]), saved['mean'], saved['std'])
        for image, heat in zip((images[0], images[number]), similarity_maps(model, pair)):
            tiles.append(thumbnail(heated(image, heat.numpy()), 'black', 1))
    texts = [caption for number in range(1, len(images)) for caption in (('query', ''), captions[number - 1])]
    return sheet(tiles, texts, min(len(tiles), 4))


@contextlib.contextmanager
def replaced(folder, mark):
    """A new folder that is moved to `folder` when all is written into it. What an earlier call has left there, which
    its file `mark` tells, is replaced. Raises ValueError if it is anything else."""
    if os.path.islink(folder) or (os.path.lexists(folder) and not os.path.isfile(os.path.join(folder, mark))):
        raise ValueError(f'{folder} is not an answer of inference.py: move it away')
    os.makedirs(os.path.dirname(folder) or '.', exist_ok=True)
    partial = tempfile.mkdtemp(prefix='.inference-', dir=os.path.dirname(folder) or '.')
    try:
        yield partial
        os.chmod(partial, 0o755)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_table(table, path):
    utils.save_text(table.to_csv(index=False), path)


def answer_one(query, scores, indices, collection, measured, load, args, clock):
    """Write and print the answer to one query."""
    path, wanted = query_file(query, collection), query_class(query, collection)
    table = answer_table(scores, indices, collection)
    matched = not collection.threshold or scores[0] >= collection.threshold[0]
    known = [*collection.images, *collection.asked[0]]
    name = answer_name(query.path, known if query.own >= 0 or query.asked >= 0 else [])
    target = os.path.join(args.results_root, name)
    with replaced(target, 'retrieved.csv') as folder, clock('drawing'):
        drawn, images = draw_answer(path, wanted, table, matched)
        save_jpeg(images[0], os.path.join(folder, 'query.jpg'))
        digits = len(str(len(table)))
        for rank, score, image, right in zip(table['rank'], table['score'], images[1:], rights(table, wanted)):
            framed = ImageOps.expand(image, max(3, max(image.size) // 40), COLOURS[right])
            save_jpeg(framed, os.path.join(folder, f'{rank:0{digits}d}_{score:.4f}.jpg'))
        if args.heat_maps:
            captions = [(f'{rank}: {score:.3f}', os.path.basename(file))
                        for rank, score, file in zip(table['rank'], table['score'], table['path'])]
            draw_heat_maps(images, captions, *load()).save(os.path.join(folder, 'heat_maps.png'))
        drawn.save(os.path.join(folder, 'contact_sheet.png'))
        save_table(table, os.path.join(folder, 'retrieved.csv'))
    print(f'query {path} ({"class unknown" if wanted is None else wanted})')
    print(table.dropna(axis=1, how='all').to_string(index=False, float_format='{:.4f}'.format, na_rep=''))
    print(verdict(scores[0], collection, measured))
    if args.heat_maps:
        print(f'wrote {os.path.join(target, "heat_maps.png")}')
    return f'wrote {os.path.join(target, "contact_sheet.png")}'


def answer_many(queries, scores, indices, collection, args, clock):
    """Write the answers to the queries of a folder: one table, and a contact sheet for each of the first."""
    target = os.path.join(args.results_root, f'{os.path.basename(os.path.abspath(args.query_img_name))}_answers')
    tables = []
    with replaced(target, 'retrieved.csv') as folder, clock('drawing'):
        for number, (query, score, index) in enumerate(tqdm(zip(queries, scores, indices), total=len(queries),
                                                            desc='drawing', unit='query', delay=1)):
            path = query_file(query, collection)
            table = answer_table(score, index, collection)
            matched = not collection.threshold or score[0] >= collection.threshold[0]
            tables.append(table.assign(query=path))
            if number < SHEETS:
                drawn, _ = draw_answer(path, query_class(query, collection), table, matched)
                name = os.path.splitext(os.path.relpath(path, args.query_img_name).replace(os.sep, '_'))[0]
                drawn.save(os.path.join(folder, f'{number + 1:03d}_{name[:100]}.png'))
        table = pd.concat(tables)
        save_table(table[['query', *tables[0].columns.drop('query')]], os.path.join(folder, 'retrieved.csv'))
    if collection.threshold:
        matches = sum(score[0] >= collection.threshold[0] for score in scores)
        print(f'{len(queries):,} queries: {matches:,} with a match at or above {collection.threshold[0]:.3f}, '
              f'{len(queries) - matches:,} with none')
    if len(queries) > SHEETS:
        print(f'notice: contact sheets are drawn for the first {SHEETS} queries')
    return f'wrote {os.path.join(target, "retrieved.csv")}'


# Every image against the rest


def same_pairs(collection, k):
    """The pairs of images that are among each other's k nearest and, where there is a threshold, reach it:
    {(index, index): score}."""
    pairs = {}
    lowest = collection.threshold[0] if collection.threshold else -1
    for rows in torch.arange(len(collection.images)).split(TOGETHER):
        query = torch.as_tensor(np.asarray(collection.vectors[rows[0]:rows[-1] + 1])).float()
        scores, indices = collection.search(query, k, rows)
        row, column = ((scores >= lowest) & (indices >= 0)).nonzero(as_tuple=True)
        for one, other, score in zip(rows[row].tolist(), indices[row, column].tolist(), scores[row, column].tolist()):
            pairs[min(one, other), max(one, other)] = score
    return pairs


def kinds_of_pairs(pairs, collection):
    """For each pair: identical (the same bytes), near-duplicate (alike when reduced to 16 x 16 pixels) or same item."""
    involved = sorted({index for pair in pairs for index in pair})
    paths = [os.path.join(collection.folder, collection.images[index]) for index in involved]
    reduced = {}
    for places, pixels, _ in gallery.embed_files('', paths, 16, lambda pixels: pixels.flatten(1).float(), 'comparing'):
        reduced |= {involved[place]: values for place, values in zip(places, pixels.astype(np.int16))}
    digests = {}

    def digest(index):
        if index not in digests:
            with open(os.path.join(collection.folder, collection.images[index]), 'rb') as file:
                digests[index] = hashlib.file_digest(file, 'sha256').digest() \
                    if sys.version_info >= (3, 11) else hashlib.sha256(file.read()).digest()
        return digests[index]

    kinds = []
    for one, other in pairs:
        gone = one not in reduced or other not in reduced
        difference = 255 if gone else abs(reduced[one] - reduced[other]).mean()
        same = difference == 0 and digest(one) == digest(other)
        kinds.append('identical' if same else 'near-duplicate' if difference <= ALIKE else 'same item')
    return kinds


def compare_all(collection, k, args, clock):
    """Write the report of every image of a gallery against the rest: pairs.csv, and the first pairs as a picture."""
    with clock('search'):
        pairs = same_pairs(collection, k)
    with clock('comparing'):
        kinds = kinds_of_pairs(pairs, collection)
    if not collection.threshold:
        print('notice: the model has no threshold: same items are not told, only duplicates')
    order = ['identical', 'near-duplicate', 'same item'][:3 if collection.threshold else 2]
    table = pd.DataFrame({
        'kind': pd.Categorical(kinds, order, ordered=True), 'score': list(pairs.values()),
        **{f'{which}{column}': [value(pair[place]) for pair in pairs]
           for place, which in enumerate(('', 'other_'))
           for column, value in (('path', lambda index: os.path.join(collection.folder, collection.images[index])),
                                 ('class', lambda index: collection.classes[index]))}}).dropna(subset='kind')
    table = table.sort_values(['kind', 'score', 'path', 'other_path'], ascending=[True, False, True, True])
    target = os.path.join(args.results_root, f'{os.path.basename(os.path.abspath(args.gallery))}_pairs')
    if utils.is_first():
        with replaced(target, 'pairs.csv') as folder, clock('drawing'):
            tiles, captions = [], []
            for row in table.head(PAIRS).itertuples():
                for path, label in ((row.path, row.kind), (row.other_path, f'{row.score:.3f}')):
                    tiles.append(thumbnail(data_utils.load_image(path), 'black', 1))
                    captions.append((os.path.basename(path), label))
            if tiles:
                sheet(tiles, captions, min(len(tiles), 8)).save(os.path.join(folder, 'pairs.png'))
            save_table(table, os.path.join(folder, 'pairs.csv'))
    print(', '.join(f'{(table["kind"] == kind).sum():,} {kind}' for kind in order) + ' pairs; '
          f'{len(collection.images) - len(set(table["path"]) | set(table["other_path"])):,} of '
          f'{len(collection.images):,} images are in none')
    return f'wrote {os.path.join(target, "pairs.csv")}'


def export(collection, folder):
    """Write the vectors (.npy), and paths and classes (CSV), row for row."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, 'vectors.npy')
    vectors = np.asarray(collection.vectors, np.float32) if isinstance(collection.vectors, torch.Tensor) else \
        collection.vectors
    try:
        with open(f'{path}.part', 'wb') as file:
            np.save(file, vectors)
        os.replace(f'{path}.part', path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(f'{path}.part')
        raise OSError(f'{path} cannot be written, is the disk full? ({error.strerror})') from error
    save_table(pd.DataFrame({'row': range(len(collection.images)), 'path': collection.images,
                             'class': collection.classes}), os.path.join(folder, 'images.csv'))
    print(f'wrote {path} ({vectors.shape[0]:,} x {vectors.shape[1]:,} float32) and '
          f'{os.path.join(folder, "images.csv")}')

"""The answers to queries: a table, a contact sheet, and the images themselves."""

import math
import os
from dataclasses import dataclass

import pandas as pd
from PIL import Image, ImageOps, ImageStat

from areir.bars import progress_bar
from areir.data.images import load_image, save_image
from areir.errors import UserError, counted
from areir.files import atomic_folder, cut_name, write_table
from areir.gallery.queries import Query, search_queries
from areir.matching.thresholds import digits_apart, threshold_of
from areir.matching.votes import confidence_of, images_to_find, vote
from areir.output.sheets import COLOURS, THUMBNAIL, contact_sheet, thumbnail

SHEETS = 100  # contact sheets drawn at most
MARK = 'retrieved.csv'  # marks a folder that an earlier call wrote
# ends of the names of other folders below --results_root
OTHERS = '_answers', '_duplicates', '_index', '_checkpoint', '_copies', '_tensorboard'
SIDE = 16  # pixels of a query, reduced to tell whether it is plain
PLAIN = 4  # of 255: largest standard deviation of a plain query's pixels, in a channel


@dataclass
class Answer:
    """The images retrieved for a query."""

    query: Query
    score: float  # of the nearest image
    labels: list  # the class of each image, or None
    table: pd.DataFrame  # rank, path, class, score and, with a threshold, match
    folder: str  # that the paths are relative to
    matched: bool = True  # whether the score reaches the threshold, if there is one
    is_plain: bool = False  # whether the query shows nothing, so no image is a match
    predicted_class: object = None  # the winner of the nearest images' vote, or None
    confidence: float | None = None  # that this class is right, from 0 to 1

    def rights(self):
        """Return whether each image is of the query's class, None if not known."""
        wanted = self.query.label
        return [
            None if wanted is None or label is None else label == wanted
            for label in self.labels
        ]


def make_answer(query, scores, indices, collection, number):
    """Return the Answer of one row of search results.

    number: how many images it shows; further images only vote. Indices of -1 are left
    out.
    """
    indices = [index for index in indices if index >= 0]
    labels = [collection.classes[index] for index in indices]
    shown = indices[:number]
    table = pd.DataFrame(
        {
            'rank': range(1, len(shown) + 1),
            'path': [collection.images[index] for index in shown],
            'class': labels[:number],
            'score': scores[: len(shown)],
        }
    )
    answer = Answer(query, scores[0], labels[:number], table, collection.folder)
    threshold = threshold_of(collection)
    if not threshold:
        return answer
    lowest = threshold.score
    if answer.score >= lowest and query.index < 0 and is_plain(query.picture):
        answer.is_plain, lowest = True, math.inf
    answer.matched = answer.score >= lowest
    table['match'] = table['score'] >= lowest
    winner = vote(scores, labels, lowest)
    answer.predicted_class = winner.label
    curve = collection.calibration['confidence']
    if winner.label is not None and curve:
        answer.confidence = confidence_of(winner, curve)
    if any(label is not None for label in labels):
        table['predicted_class'] = winner.label if answer.matched else 'no match'
        confidence = answer.confidence
        table['confidence'] = math.nan if confidence is None else confidence
    return answer


def find_answers(queries, collection, number, least=1):
    """Return the Answers to Queries, which have embeddings.

    number: how many images each shows; fewer if the collection has no more, but there
    must be `least`, or a UserError says so.
    """
    # no query retrieves itself
    available = len(collection) - any(query.index >= 0 for query in queries)
    if available < least:
        asked = f'--retrieval_num {least}: ' if least > 1 else ''
        raise UserError(
            f'{asked}{collection.name} has {counted(available, "image")} to retrieve '
            'beside the query'
        )
    results = search_queries(queries, collection, images_to_find(number, available))
    return [
        make_answer(query, *nearest, collection, number) for query, nearest in results
    ]


def join_tables(answers, names):
    """Return one table of all Answers; the column query has these names."""
    tables = [answer.table.copy() for answer in answers]
    for table, name in zip(tables, names):
        table.insert(0, 'query', name)
    return pd.concat(tables, ignore_index=True)


def is_plain(picture):
    """Return whether an image has one colour: a network may find it near anything."""
    image = load_image(picture, least=SIDE).resize((SIDE, SIDE), Image.Resampling.BOX)
    return max(ImageStat.Stat(image).stddev) <= PLAIN


def verdict(answer, collection):
    """Return the sentence that tells whether the nearest image is a match."""
    if not collection.calibration:
        return 'no threshold, so no verdict: ' + collection.how_to_calibrate
    if answer.is_plain:
        return 'no match: the query has a single colour, so it shows nothing to find'
    threshold, calibrated = threshold_of(collection)
    rate = collection.calibration['false_match_rate']
    digits = digits_apart(answer.score, threshold)
    score = f'{answer.score:.{digits}f}'
    if answer.matched:
        text = f'match: the nearest scores {score}, the threshold is'
    else:
        text = f'no match: the nearest scores {score}, below the threshold of'
    most = collection.calibration['sizes'][-1]
    beyond = '' if calibrated else f', calibrated for at most {most:,}'
    return (
        f'{text} {threshold:.{digits}f} ({rate:.2%} false matches asked for, among '
        f'{counted(len(collection), "image")}{beyond})'
    )


def draw_answer(answer, least=None):
    """Return (contact sheet, [query, retrieved images ...] as RGB).

    least: see `load_image`; by default the images are whole.
    """
    query = answer.query
    images = [load_image(query.picture, least=least)]
    thumbnails = [thumbnail(images[0], 'black', 1)]
    title = 'query' if answer.matched else 'query: no match'
    captions = [(title, 'class unknown' if query.label is None else str(query.label))]
    rows = answer.table.itertuples()
    for row, label, right in zip(rows, answer.labels, answer.rights()):
        path = os.path.join(answer.folder, row.path)
        images.append(load_image(path, least=least))
        thumbnails.append(thumbnail(images[-1], COLOURS[right], 5))
        text = os.path.basename(row.path) if label is None else str(label)
        captions.append((f'{row.rank}: {row.score:.3f}', text))
    return contact_sheet(thumbnails, captions), images


def save_images(answer, images, folder):
    """Write the query and the retrieved images, in frames, to a folder."""
    path = os.path.join(folder, 'query.jpg')
    save_image(images[0], path, 'JPEG', quality=95)
    digits = len(str(len(answer.table)))
    rows = answer.table.itertuples()
    for row, image, right in zip(rows, images[1:], answer.rights()):
        width = max(3, max(image.size) // 40)
        framed = ImageOps.expand(image, width, COLOURS[right])
        path = os.path.join(folder, f'{row.rank:0{digits}d}_{row.score:.4f}.jpg')
        save_image(framed, path, 'JPEG', quality=95)


def answer_name(query, collection):
    """Return the name of an answer's folder: the query's name without its suffix.

    If the collection holds the query and other images of the same name, the names of
    the query's folders come first. A name that another folder may have gets an ending.
    """
    name = os.path.basename(query.name)
    if query.name in collection.names:
        names = [os.path.basename(image) for image in collection.names]
        if names.count(name) > 1:
            name = query.name.replace('/', '_')
    name = cut_name(os.path.splitext(name)[0])
    return f'{name}_query' if name.lower().endswith(OTHERS) else name


def write_answer(answer, collection, results_root, heat_maps=False):
    """Write and print the answer to one query; return the path of its contact sheet.

    Raises UserError if its folder exists and was not written by an earlier call.
    """
    target = os.path.join(results_root, answer_name(answer.query, collection))
    table = answer.table
    with atomic_folder(target, MARK) as folder:
        sheet, images = draw_answer(answer)
        save_images(answer, images, folder)
        if heat_maps:
            from areir.output.heat_maps import draw_heat_maps  # few ask for them

            captions = []
            for rank, score, path in zip(table['rank'], table['score'], table['path']):
                captions.append((f'{rank}: {score:.3f}', os.path.basename(path)))
            maps = draw_heat_maps(images, captions, collection.trained)
            maps.save(os.path.join(folder, 'heat_maps.png'))
        sheet.save(os.path.join(folder, 'contact_sheet.png'))
        write_table(os.path.join(folder, MARK), table)
    print_answer(answer, collection)
    if heat_maps:
        print(f'wrote {os.path.join(target, "heat_maps.png")}')
    return os.path.join(target, 'contact_sheet.png')


def print_answer(answer, collection):
    """Print the query, the table and the verdict."""
    label = 'class unknown' if answer.query.label is None else answer.query.label
    print(f'query {answer.query.picture} ({label}), nearest in {answer.folder}:')
    table = answer.table.dropna(axis=1, how='all')
    table = table.drop(columns=['predicted_class', 'confidence'], errors='ignore')
    print(table.to_string(index=False, float_format='{:.4f}'.format, na_rep=''))
    print(verdict(answer, collection))
    if answer.predicted_class is not None:
        sure = ''
        if answer.confidence is not None:
            sure = f', with a confidence of {answer.confidence:.0%}'
        print(f'class: {answer.predicted_class}{sure}')


def write_answers(answers, collection, query_folder, results_root):
    """Write the answers to the queries of a folder; return the path of their table.

    Writes one table for all, and a contact sheet for each of the first SHEETS queries.
    """
    name = cut_name(os.path.basename(os.path.abspath(query_folder)))
    target = os.path.join(results_root, f'{name}_answers')
    with atomic_folder(target, MARK) as folder:
        names = [
            os.path.relpath(answer.query.picture, query_folder).replace(os.sep, '/')
            for answer in answers
        ]
        bar = progress_bar(answers[:SHEETS], 'drawing', unit='query', delay=1)
        for number, (answer, name) in enumerate(zip(bar, names), 1):
            name = os.path.splitext(name.replace('/', '_'))[0]
            sheet, _ = draw_answer(answer, THUMBNAIL)
            path = f'{number:03d}_{cut_name(name, 100)}.png'
            sheet.save(os.path.join(folder, path))
        write_table(os.path.join(folder, MARK), join_tables(answers, names))
    threshold = threshold_of(collection)
    if threshold:
        matches = sum(answer.matched for answer in answers)
        print(
            f'{counted(len(answers), "query")}: {matches:,} with a match at or above '
            f'{threshold.score:.3f}, {len(answers) - matches:,} with none'
        )
    if len(answers) > SHEETS:
        print(f'notice: contact sheets are drawn for the first {SHEETS} queries')
    return os.path.join(target, MARK)

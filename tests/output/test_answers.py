"""The answers to queries: names, tables, verdicts, and what is drawn."""

import math
import os

import pandas as pd
import pytest
from PIL import Image
from toy import ToyCollection, draw_noise, on_circle
from trained import CALIBRATION

from areir.gallery.queries import Query, find_queries, query_paths, search_queries
from areir.matching.thresholds import threshold_of
from areir.output import answers
from areir.output.sheets import COLOURS

PATHS = ['a/1.png', 'a/2.png', 'b/1.png', 'b/4.png', '5.png']
CLASSES = ['a', 'a', 'b', 'b', None]


@pytest.fixture
def collection(tmp_path):
    vectors = on_circle(0, 10, 20, 40, 110)
    folder = tmp_path / 'photos'
    return ToyCollection(folder, PATHS, vectors, CLASSES, CALIBRATION)


def answers_to(name, collection, k):
    queries = find_queries(query_paths(str(name), collection.folder), collection)
    results = search_queries(queries, collection, k)
    return [answers.make_answer(query, *row, collection, k) for query, row in results]


def answer_to(name, collection, k=4):
    (answer,) = answers_to(name, collection, k)
    return answer


def answer_outside(collection, tmp_path, degrees, k=4):
    """Return the Answer to an image outside the collection."""
    path = str(tmp_path / 'own.png')
    draw_noise(tmp_path / 'own.png', 99)
    query = Query(path, path, embedding=on_circle(degrees)[0])
    ((_, row),) = search_queries([query], collection, 4)
    return answers.make_answer(query, *row, collection, k)


def test_an_answer_is_a_table_in_the_order_of_scores(collection):
    answer = answer_to('a/1.png', collection)
    table = answer.table
    assert table['rank'].tolist() == [1, 2, 3, 4]
    assert table['path'].tolist() == PATHS[1:]
    assert table['class'].tolist()[:3] == ['a', 'b', 'b'] and table['class'].isna()[3]
    assert answer.rights() == [True, False, False, None]
    assert table['score'][0] == answer.score == pytest.approx(0.9848, abs=1e-4)
    threshold = threshold_of(collection).score
    assert table['match'].tolist() == (table['score'] >= threshold).tolist()
    assert answer.matched and 0 < table['match'].sum() < 4


def test_the_verdict_names_score_threshold_and_size(collection, tmp_path):
    threshold = f'{threshold_of(collection).score:.3f}'
    text = answers.verdict(answer_to('a/1.png', collection), collection)
    for part in ('match: ', '0.985', threshold, '1.00%', 'among 5 images'):
        assert part in text
    answer = answer_outside(collection, tmp_path, 170)
    assert answer.rights() == [None] * 4 and not answer.table['match'].any()
    assert set(answer.table['predicted_class']) == {'no match'}
    assert answers.verdict(answer, collection).startswith('no match: ')
    collection.calibration = {**CALIBRATION, 'sizes': [1, 3]}
    assert 'calibrated for at most 3' in answers.verdict(answer, collection)


def test_a_query_of_one_colour_has_no_match(collection, tmp_path):
    """Even with the very embedding of an image."""
    path = str(tmp_path / 'green.jpg')
    embedding = on_circle(0)[0]
    query = Query(path, path, embedding=embedding)
    for spread, matched in ((1, False), (25, True)):
        image = Image.effect_noise((12, 12), spread).resize((200, 200))
        image.convert('RGB').save(path)
        ((_, row),) = search_queries([query], collection, 4)
        answer = answers.make_answer(query, *row, collection, 4)
        assert answer.score > 0.99 and answer.matched == matched
        assert answer.table['match'].any() == matched
        assert (answer.predicted_class is not None) == matched
        text = answers.verdict(answer, collection)
        assert ('no match' in text) == ('single colour' in text) == (not matched)


def test_the_folder_is_named_after_the_query(collection):
    """With its folders, if other images of the collection have the same name."""
    for name, expected in (('a/1.png', 'a_1'), ('b/4.png', '4'), ('5.png', '5')):
        (query,) = find_queries(query_paths(name, collection.folder), collection)
        assert answers.answer_name(query, collection) == expected
    for name, expected in (
        ('1', '1'),
        ('photos_duplicates', 'photos_duplicates_query'),  # that of the compared folder
        ('Photos_Answers', 'Photos_Answers_query'),
    ):
        query = Query(f'/x/{name}.png', f'/x/{name}.png')
        assert answers.answer_name(query, collection) == expected


def test_an_answer_is_written_and_printed(collection, tmp_path, capsys):
    answer = answer_to('a/1.png', collection)
    sheet = answers.write_answer(answer, collection, str(tmp_path / 'results'))
    assert sheet == f'{tmp_path}/results/a_1/contact_sheet.png'
    folder = os.path.dirname(sheet)
    table = pd.read_csv(os.path.join(folder, 'retrieved.csv'))
    rows = zip(table['rank'], table['score'])
    images = [f'{rank}_{score:.4f}.jpg' for rank, score in rows]
    files = ['contact_sheet.png', 'query.jpg', 'retrieved.csv', *images]
    assert sorted(os.listdir(folder)) == sorted(files)
    for name, right in zip(images, (True, False, False, None)):
        with Image.open(os.path.join(folder, name)) as image:
            assert math.dist(image.getpixel((1, 1)), COLOURS[right]) < 20
    output = capsys.readouterr().out
    photos = f'{tmp_path}/photos'
    assert f'query {photos}/a/1.png (a), nearest in {photos}:' in output
    assert '\nmatch: ' in output and table['path'][0] in output


def test_the_nearest_images_vote_for_the_class(collection, tmp_path, capsys):
    """Images at 0, 10, 20, 40 degrees; the threshold of 0.64 lets 50 degrees pass."""
    collection.calibration = {**CALIBRATION, 'confidence': [-1.0, 3.0, 2.0]}
    answer = answer_outside(collection, tmp_path, 5)
    cosines = [math.cos(math.radians(angle)) for angle in (5, 5, 15, 35)]
    share = sum(cosines[:2]) / sum(cosines)
    assert answer.predicted_class == 'a'
    lead = cosines[0] - cosines[2]
    wanted = 1 / (1 + math.exp(1 - 3 * share - 2 * lead))
    assert answer.confidence == pytest.approx(wanted, abs=1e-6)
    assert set(answer.table['predicted_class']) == {'a'}
    assert answer.table['confidence'].tolist() == [answer.confidence] * 4
    answers.print_answer(answer, collection)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f'class: a, with a confidence of {wanted:.0%}'


def test_images_that_are_not_shown_vote(collection, tmp_path):
    """The nearest image is of class b, the next two are of class a."""
    collection.embeddings = on_circle(20, 15, 31, 110, 150)
    answer = answer_outside(collection, tmp_path, 32, k=1)
    assert len(answer.table) == 1 and answer.labels == ['b']
    assert answer.predicted_class == 'a'


def test_many_answers_share_a_table(collection, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(answers, 'SHEETS', 3)
    folder = tmp_path / 'photos'
    many = answers_to(folder, collection, 2)
    results = str(tmp_path / 'results')
    path = answers.write_answers(many, collection, str(folder), results)
    assert path == f'{results}/photos_answers/retrieved.csv'
    table = pd.read_csv(path)
    queries = [name for name in sorted(PATHS) for _ in range(2)]
    assert table['query'].tolist() == queries and set(table['path']) <= set(PATHS)
    sheets = sorted(name for name in os.listdir(os.path.dirname(path)) if 'png' in name)
    assert sheets == ['001_5.png', '002_a_1.png', '003_a_2.png']
    output = capsys.readouterr().out
    matches = sum(answer.matched for answer in many)
    assert f'5 queries: {matches} with a match' in output and 0 < matches < 5
    assert f'{5 - matches} with none' in output and 'first 3 queries' in output

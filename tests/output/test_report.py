"""The page of a run, of a small database that is made here."""

import re
import shutil
import sys

import pytest
import torch
from pages import (
    HOSTILE,
    PICTURES,
    RUN,
    check_page,
    make_database,
    some_images,
    write,
    write_alone,
)
from trained import CALIBRATION

from areir.errors import UserError
from areir.output import maps, report
from areir.output.charts import share
from areir.output.run_statistics import SearchedImages
from areir.retrieval import evaluate

SECTIONS = ['curves', 'heads', 'classes', 'map', 'queries', 'scores', 'provenance']


@pytest.fixture(scope='module')
def database(tmp_path_factory):
    """A database whose images are drawn elsewhere: the pages name them."""
    return make_database(tmp_path_factory.mktemp('database'))


def page_text(folder, database, **changed):
    """Return the text that a reader of the page sees, with single spaces."""
    return check_page(write(folder, {**database, **changed})).visible()


def test_page(tmp_path):
    database = {**make_database(tmp_path), 'calibration': CALIBRATION}
    page = write(tmp_path, database)
    outline = check_page(page)
    text = outline.visible()
    recall = evaluate(database['embeddings'], database['labels'], [1])['recall@1']
    assert f'Recall@1 is {share(recall)}' in text and 'protocol strict' in text
    assert '24 images of 4 classes' in text
    trained = f'trained classes{share(0.875)}95 % interval {share(0.7)} to'
    assert trained in text and f'new classes{share(0.4375)}no interval' in text
    assert not re.search(r'\b(nan|inf)\b', text)  # the CSV has both
    assert '0.900' in text and '100 images' in text and share(0.5) in text
    for part in ('10 images of 5 classes', 'cafe', 'torch 2.11', 'train.py', '2.500'):
        assert part in text
    assert page == write(tmp_path, database)  # nothing is drawn by chance
    assert outline.all('id', 'section') == SECTIONS
    assert {f'#{key}' for key in SECTIONS} < set(outline.all('href', 'a'))
    regions = outline.all('aria-label', 'div')
    assert {'Every epoch', 'Arguments', 'Shares of scores'} <= set(regions)
    # right and wrong are told by sign and by text; each sign is explained once
    classes = outline.all('class', 'figure')
    assert text.count('✓') - 1 == classes.count('tile right') > 0
    assert text.count('✗') - 1 == classes.count('tile wrong') > 0
    kinds = [alt.partition(':')[0] for alt in outline.all('alt', 'img')]
    for kind in ('right', 'wrong', 'query'):
        assert kinds.count(kind) == classes.count(f'tile {kind}')


def test_hostile_names(tmp_path):
    classes = (HOSTILE, '\u202eevil\udcff', '</style></title><b>', '&lt;')
    database = make_database(tmp_path, classes)
    database['images'][3] = HOSTILE.replace('/', '_')  # missing, so its name is shown
    page = write(tmp_path, database)
    text = ''.join(check_page(page).text)
    assert HOSTILE in text and '</style></title><b>' in text
    assert '&lt;script&gt;alert(&#34;1&#34;)' in page and '&amp;lt;' in page
    assert not re.search(r'<(script|b>evil|img src=x)', page)
    assert '\u202eevil?' in text


# The files beside the database


@pytest.mark.parametrize('content', [None, '{"a": '])
def test_files_that_are_missing_or_damaged(tmp_path, database, content):
    names = [f'{RUN}_results.csv', f'{RUN}_run.json']
    for name in names:
        if content is not None:
            (tmp_path / name).write_text(content)
    text = check_page(write_alone(tmp_path, database)).visible()
    reason = 'missing' if content is None else 'damaged'
    assert all(f'{name} is {reason}' in text for name in names)


def test_charts_and_tables_tell_their_numbers(tmp_path, database):
    page = write(tmp_path, database)
    outline = check_page(page)
    pictures = zip(outline.all('src', 'img'), outline.all('alt', 'img'))
    charts = [alt for source, alt in pictures if source.startswith(PICTURES[1])]
    assert len(charts) == 8  # 5 of curves, 1 of heads, 2 of scores
    assert charts[0] == 'Training loss, by epoch: 2.500 at epoch 1, 1.000 at epoch 3'
    rows = re.findall(r'<tr>.*?</tr>', page.split('Every epoch')[2], re.DOTALL)
    cells = re.findall(r'<t[hd][^>]*>([^<]*)</t[hd]>', rows[3])
    shares = [share(value) for value in (0.6, 1, 0.9375, 0.3125, 0.2)]
    assert cells == ['3', '1.000', '', *shares]


def test_map(tmp_path, database, monkeypatch):
    page = write(tmp_path, database)
    outline = check_page(page)
    pictures = dict(zip(outline.all('src', 'img'), outline.all('alt', 'img')))
    (description,) = [
        alt for source, alt in pictures.items() if source.startswith(PICTURES[2])
    ]
    recall = evaluate(database['embeddings'], database['labels'], [1])['recall@1']
    assert description == f'Map of 24 images, {share(1 - recall)} with a ring'
    assert 'The map shows all 24 images.' in outline.visible()
    names = re.findall(r'<li><bdi>(\w+)</bdi></li>', page)
    assert sorted(names) == sorted(database['classes'])
    table = re.findall(r'<th scope="row"><bdi>(\w+)</bdi></th>', page)
    assert names[: len(table)] == table != []  # in the order of the table
    monkeypatch.setattr(maps, 'MOST', 10)
    text = page_text(tmp_path, database)
    assert 'shows 10 of 24 images, first those of the classes of lowest' in text
    monkeypatch.setitem(sys.modules, 'sklearn.manifold', None)
    text = page_text(tmp_path, database)
    assert 'There is no map: t-SNE: first pip install scikit-learn' in text


# Other runs


def test_gallery_of_its_own(tmp_path, database):
    gallery, query = (some_images(database, slice(i, None, 2)) for i in (0, 1))
    queries = {f'query_{name}': values for name, values in query.items()}
    text = page_text(tmp_path, database, **gallery, **queries)
    images = query['embeddings'], query['labels']
    metrics = evaluate(*images, [1], gallery['embeddings'], gallery['labels'])
    assert f'Recall@1 is {share(metrics["recall@1"])}' in text
    assert '12 images of 4 classes search a gallery of 12' in text


def test_groups(tmp_path, database):
    groups = torch.arange(24) % 3
    text = page_text(tmp_path, database, groups=groups)
    images = database['embeddings'], database['labels']
    wanted = evaluate(*images, [1], groups=groups)['map']
    assert f'mAP{share(wanted)}' in text and 'ignores its copies' in text
    assert 'mAP' not in (text := page_text(tmp_path, database))
    assert 'ignores its copies' not in text


def test_without_calibration_or_its_check(tmp_path, database):
    assert 'has no threshold' in page_text(tmp_path, database)
    names = ('low', 'high', 'realised', 'realised_low', 'realised_high')
    unchecked = {**CALIBRATION, **dict.fromkeys(names)}
    text = page_text(tmp_path, database, calibration=unchecked)
    assert 'too few classes to check' in text


def test_heads_are_shown_if_they_have_parts(tmp_path, database):
    assert 'first heads by themselves' in page_text(tmp_path, database)
    projected = {**database, 'ensemble_size': 1}
    text = page_text(tmp_path, projected)
    assert 'has 3 heads, which the projection' in text and 'themselves' not in text
    (tmp_path / f'{RUN}_run.json').unlink()
    text = check_page(write_alone(tmp_path, projected)).visible()
    assert 'no figures of the first heads' in text and 'The model has' not in text


@pytest.mark.parametrize(
    ('protocol', 'select'),
    [('strict', 'last'), ('strict', 'test'), ('published', 'val')],
)
def test_what_flatters_is_said(tmp_path, database, protocol, select):
    text = page_text(tmp_path, database, protocol=protocol, select=select)
    assert ('Not comparable' in text) == (select != 'last')
    assert ('flatters' in text) == (select == 'test')
    assert ('random weight' in text) == (protocol == 'published')


def test_a_perfect_run_and_a_single_class(tmp_path, database):
    text = page_text(tmp_path, make_database(tmp_path, noise=0.0))
    assert 'No query that has a right image is answered by a wrong one' in text
    assert 'There are none' in text
    text = page_text(tmp_path, database, labels=torch.zeros(24, dtype=torch.int64))
    assert 'no interval' in text and 'there is no wrong image' in text
    assert not re.search(r'\binf\b', text)


def test_few_images(tmp_path, database):
    page_text(tmp_path, database, **some_images(database, slice(2)))
    with pytest.raises(UserError, match='k = 0'):
        page_text(tmp_path, database, **some_images(database, slice(1)))


# Thumbnails


def test_answers_are_the_nearest_images_and_the_first_right_one(tmp_path):
    database = make_database(tmp_path, [f'class {n}' for n in range(12)], each=2)
    images = SearchedImages(database)
    page = report.describe_results(images, database, str(tmp_path))
    labels = dict(zip(database['images'], database['labels'].tolist()))
    vectors = dict(zip(database['images'], database['embeddings']))
    for query, _, answers in page['worst'] + page['best']:
        scores = {
            path: float(vectors[query['path']] @ vectors[path]) for path in labels
        }
        del scores[query['path']]
        nearest = sorted(scores, key=scores.get, reverse=True)
        right = [path for path in nearest if labels[path] == labels[query['path']]]
        shown = [tile['path'] for tile in answers]
        assert shown[:8] == nearest[:8] and right[0] in shown
        assert shown[8:] == right[: len(shown) - 8]
        for tile in answers:
            assert tile['score'] == pytest.approx(scores[tile['path']], abs=1e-6)
            assert tile['kind'] == ('right' if tile['path'] in right else 'wrong')
            assert tile['class_name'] == database['classes'][labels[tile['path']]]
    assert {len(answers) for *_, answers in page['worst']} == {8, 9}
    for row, query, answer in page['classes']:
        assert query['class_name'] == database['classes'][row.label]
        assert answer['class_name'] == database['classes'][row.confusions[0][0]]


def test_images_that_cannot_be_read_are_named(tmp_path):
    database = make_database(tmp_path)
    shutil.rmtree(tmp_path / 'test/0')
    (tmp_path / database['images'][7]).write_bytes(b'no image')
    outline = check_page(write(tmp_path, database))
    assert {*database['images'][:6], database['images'][7]} & set(outline.text)

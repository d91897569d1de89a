"""The search page, asked without a browser."""

import os
import shutil
import threading

import pandas as pd
import pytest
import trained
from conftest import Project
from PIL import Image

pytest.importorskip('flask', reason='flask is optional')
from page_cases import PageCase, make_project, read_tiles, write_noise

from areir.output.answers import make_answer


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('page')
    make_project(folder)
    return folder


@pytest.fixture(scope='module')
def page(folder):
    """A page over a folder that stays as it is."""
    return PageCase(folder)


@pytest.fixture
def own(tmp_path):
    """A project and a page of its own."""
    make_project(tmp_path)
    return PageCase(tmp_path)


@pytest.fixture
def photo(page):
    return page.photos / 'figure_1/figure_1_01.png'


# Answers


@pytest.mark.parametrize('index', ['exact', 'faiss'])
def test_answers_are_those_of_inference(folder, tmp_path, index):
    if index == 'faiss':
        pytest.importorskip('faiss', reason='faiss is optional')
    page = PageCase(folder, '--index', index)
    query = write_noise(tmp_path / 'noise.png')
    project = Project(tmp_path / 'my project')
    flags = ['--results_root', folder / 'results', '--model', folder / 'toy_model.pth']
    flags += ['--gallery', page.photos, '--index', index, '--query_img_name', query]
    code, _, errors = project.call('inference.py', *flags, '--retrieval_num', 5)
    assert code == 0, errors
    table = pd.read_csv(folder / 'results/noise/retrieved.csv')

    html = page.post('/search', picture=query, number=5).text
    tiles = read_tiles(html)
    paths = [page.collection.path_of(number) for number, _, _ in tiles]
    assert paths == table['path'].tolist()
    assert [score for *_, score in tiles] == [f'{s:.3f}' for s in table['score']]
    assert html.count('✓ match') == table['match'].sum()
    assert html.count('<span>no match') == (~table['match']).sum()
    assert all(f'<bdi>{name}</bdi>' in html for name in table['class'])


def test_an_image_of_the_folder_is_a_query_and_is_left_out(page):
    tiles = page.search(image=3, token=page.token, number=100)
    numbers = [number for number, *_ in tiles]
    assert sorted(numbers) == [number for number in range(16) if number != 3]


def test_an_uploaded_copy_finds_its_original(page, photo):
    tiles = page.search(picture=photo, number=1)
    assert [tile[1:] for tile in tiles] == [('figure_1_01.png', '1.000')]


@pytest.mark.parametrize(
    ('number', 'shown'), [('3', 3), ('0', 1), ('-5', 1), ('1000', 16), ('x', 8)]
)
def test_the_number_of_images(page, photo, number, shown):
    assert len(page.search(picture=photo, number=number)) == shown


def test_no_match(folder, page, tmp_path):
    strict = {**trained.CALIBRATION, 'thresholds': [0.99999, 0.99999]}
    trained.save_model(folder / 'strict_model.pth', calibration=strict)
    strict_page = PageCase(folder, '--model', folder / 'strict_model.pth')
    noise = write_noise(tmp_path / 'noise.png')
    html = strict_page.post('/search', picture=noise).text
    assert '✗ No match' in html and '✓' not in html and len(read_tiles(html)) == 8


def test_without_a_threshold_only_the_page_says_so(folder, photo, page):
    trained.save_model(folder / 'older_model.pth', calibration=None)
    older = PageCase(folder, '--model', folder / 'older_model.pth')
    assert 'no threshold' in older.get('/').text
    assert 'no threshold' not in page.get('/').text
    assert 'atch' not in older.post('/search', picture=photo).text


def test_a_class_that_an_answer_predicts_is_shown(page, photo, monkeypatch):
    from areir.output.page import folder

    def answer_with_class(*arguments):
        answer = make_answer(*arguments)
        answer.predicted_class, answer.confidence = 'a <b>', 0.93
        return answer

    monkeypatch.setattr(folder, 'make_answer', answer_with_class)
    html = page.post('/search', picture=photo).text
    assert '<bdi>a &lt;b&gt;</bdi>' in html and '93\N{NO-BREAK SPACE}%' in html


def test_heat_maps(page, photo, tmp_path):
    fields = {'shown': 2, 'token': page.token}
    for query in ({'picture': photo}, {'image': 0}):
        reply = page.post('/heat_map', **fields, **query)
        assert reply.mimetype == 'image/png'
        (tmp_path / 'pair.png').write_bytes(reply.data)
        assert Image.open(tmp_path / 'pair.png').size == (648, 320)


def test_names_are_escaped_and_need_not_be_unicode(own):
    wrong = os.fsdecode(b'<i>&\xff.png')
    shutil.copy(own.photos / 'figure_1/figure_1_01.png', own.photos / wrong)
    own.post('/read_again')
    html = own.post('/search', image=1, token=own.token, number=100).text
    assert '&lt;i&gt;&amp;' in html and '<i>' not in html


def test_a_folder_of_one_image(own):
    for path in own.photos.glob('*/*'):
        if path.name != 'figure_1_01.png':
            path.unlink()
    own.post('/read_again')
    assert len(own.search(picture=next(own.photos.glob('*/*')))) == 1
    reply = own.post('/search', image=0, token=own.token)
    assert reply.status_code == 400 and 'no other image' in reply.text


def test_two_people_at_once_get_their_own_answers(page):
    paths = sorted(page.photos.glob('*/*'))[:8]
    alone = {path: page.search(picture=path, number=16) for path in paths}
    together = {}

    def ask(path):
        client = page.app.test_client()
        for _ in range(2):
            reply = page.post('/search', client, picture=path, number=16)
            shown = page.post('/heat_map', client, picture=path, shown=1, token=token)
            together.setdefault(path, []).append((read_tiles(reply.text), shown.data))

    token = page.token
    threads = [threading.Thread(target=ask, args=[path]) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for path in paths:
        assert [tiles for tiles, _ in together[path]] == [alone[path]] * 2
        assert len({data for _, data in together[path]}) == 1
    assert len({data for replies in together.values() for _, data in replies}) == 8


# The pictures


def test_pictures_are_served_by_number(page):
    for size, side in (('small', 320), ('large', 1600)):
        reply = page.get(f'/images/{page.token}/0/{size}')
        assert reply.mimetype == 'image/jpeg' and reply.data[:2] == b'\xff\xd8'
        assert side >= trained.SIDE
    assert page.get(f'/images/{page.token}/0/other').status_code == 404


def test_large_images_are_reduced(own, tmp_path):
    Image.new('RGB', (4000, 1000)).save(own.photos / 'a.png')
    own.post('/read_again')
    assert own.searched.current.collection.images[0] == 'a.png'
    for size, expected in (('small', (320, 80)), ('large', (1600, 400))):
        reply = own.get(f'/images/{own.token}/0/{size}')
        (tmp_path / 'it.jpg').write_bytes(reply.data)
        assert Image.open(tmp_path / 'it.jpg').size == expected


@pytest.mark.parametrize(
    'path',
    [
        '/images/{0}/16/small',
        '/images/{0}/-1/small',
        '/images/{0}/9999999999999999999999/small',
        '/images/{0}/figure_1%2Ffigure_1_01.png/small',
        '/images/{0}/../../toy_model.pth',
        '/images/..%2F..%2Ftoy_model.pth',
        '/static/../app.py',
        '/static/..%2Fapp.py',
        '/static/%2Fetc%2Fpasswd',
        '/photos/figure_1/figure_1_01.png',
    ],
)
def test_nothing_else_is_served(page, path):
    reply = page.get(path.format(page.token), follow_redirects=True)
    assert reply.status_code == 404


def test_an_image_that_has_gone(own):
    gone = own.collection.images.index('figure_1/figure_1_01.png')
    os.remove(own.photos / 'figure_1/figure_1_01.png')
    reply = own.get(f'/images/{own.token}/{gone}/small')
    assert reply.status_code == 400 and str(own.photos) not in reply.text
    assert len(own.search(image=gone, token=own.token)) == 8


# The folder, read again


def test_new_changed_and_removed_images(own):
    first, token = own.photos / 'figure_1/figure_1_01.png', own.token
    assert own.post('/read_again').json['message'].startswith('0 new images.')
    assert own.token == token

    (own.photos / 'figure_0').mkdir()
    write_noise(own.photos / 'figure_0/new.png')
    shutil.copy(own.photos / 'figure_2/figure_2_01.png', first)
    (own.photos / 'figure_2/figure_2_02.png').unlink()
    (own.photos / 'broken.jpg').write_text('no image')
    was = own.collection.images.index('figure_1/figure_1_01.png')
    reply = own.post('/read_again', image=was, token=token).json
    assert reply['message'] == (
        '1 new image, 1 changed, 1 gone. The folder has 16 images. '
        '1 file cannot be read; the terminal names them.'
    )
    assert reply['image'] == was + 1 and reply['token'] == own.token != token
    assert own.search(picture=own.photos / 'figure_0/new.png')[0][1] == 'new.png'


def test_an_old_page_is_told(own):
    token = own.token
    write_noise(own.photos / 'a.png')
    own.post('/read_again')
    replies = [
        own.get(f'/images/{token}/0/small'),
        own.get(f'/images/{token}/99/large'),
        own.post('/search', image=0, token=token),
        own.post('/heat_map', image=0, shown=1, token=token),
    ]
    for reply in replies:
        assert reply.status_code == 410 and 'read again' in reply.text
    assert own.post('/search', image=0).status_code == 410


def test_a_query_that_has_gone(own):
    os.remove(own.photos / 'figure_1/figure_1_01.png')
    gone = own.collection.images.index('figure_1/figure_1_01.png')
    assert own.post('/read_again', image=gone, token=own.token).json['image'] is None


def test_a_lost_threshold_is_said(own):
    """As when components are fitted again."""
    later = own.searched.open_again()
    later.calibration = None
    own.searched.open_again = lambda: later
    text = own.post('/read_again').text
    assert 'no threshold any more' in text and '--calibrate' in text


def test_a_folder_that_cannot_be_read_again(own):
    token = own.token
    own.photos.rename(own.photos.with_name('elsewhere'))
    reply = own.post('/read_again')
    assert reply.status_code == 400 and 'no such folder' in reply.text
    assert own.token == token
    own.photos.with_name('elsewhere').rename(own.photos)
    assert own.post('/read_again').status_code == 200


def test_the_folder_is_read_once_at_a_time(page):
    with page.searched.reading:
        reply = page.post('/read_again')
    assert reply.status_code == 400 and 'being read' in reply.text

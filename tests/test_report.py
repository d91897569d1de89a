"""The page that shows a run, of a small database that is made here."""
import base64
import contextlib
import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import urllib.request

import pytest
import torch
from PIL import Image

import markup
import report
import retrieval

RUN = 'small_uncropped_resnet18_3_4'
HOSTILE = '<script>alert("1")</script>\'"&<img src=x onerror=alert(2)>'
CALIBRATION = {'false_match_rate': 0.01, 'queries': 24, 'classes': 4, 'gallery_size': 18, 'threshold': 0.75, 'low': 0.7,
               'high': 0.8, 'found': 0.5, 'realised': 0.02, 'realised_low': 0.0, 'realised_high': 0.05,
               'sizes': [18], 'thresholds': [0.75]}
VOID = {'meta', 'img', 'br', 'link', 'hr', 'input'}
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
DRIVER = shutil.which('chromedriver')
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync']


def make_database(folder, classes=('bolt', 'nut', 'gear', 'cog'), each=6, noise=1.0):
    """A database of random embeddings, three heads of four numbers, with its images drawn below folder."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(classes)).repeat_interleave(each)
    centres = torch.randn(len(classes), 12, generator=generator)
    embeddings = centres[labels] + noise * torch.randn(len(labels), 12, generator=generator)
    embeddings = torch.nn.functional.normalize(embeddings.unflatten(1, (3, 4)), dim=2).flatten(1) / math.sqrt(3)
    images = [f'test/{label}/{index}.png' for index, label in enumerate(labels.tolist())]
    for index, image in enumerate(images):
        path = os.path.join(folder, image)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Image.new('RGB', (40, 30), (10 * index, 100, 200 - 5 * index)).save(path)
    return {'data_name': 'small', 'crop_type': 'uncropped', 'version': 'v', 'epoch': 2, 'protocol': 'strict',
            'select': 'last', 'ensemble_size': 3, 'model': f'{RUN}_model.pth', 'classes': list(classes),
            'data_root': '.', 'embeddings': embeddings, 'labels': labels, 'images': images}


def write(folder, database, beside=True):
    """The text of the page of a database."""
    if beside:
        (folder / f'{RUN}_results.csv').write_text(
            'epoch,train_loss,train_accuracy,test_recall@1,test_recall@2,test_map@r,protocol\n'
            '1,2.5,0.25,0.5,0.75,0.125,strict\n2,1.25,0.5,0.625,1.0,0.25,strict\n3,1.0,nan,0.6,1.0,0.2,strict\n')
        (folder / f'{RUN}_run.json').write_text(json.dumps({
            'command': ['train.py', '--data_name', HOSTILE], 'arguments': {'lr': 1e-4, 'weights': HOSTILE},
            'commit': 'abc', 'versions': {'torch': '2.11'}, 'device': 'CPU', 'precision': 'fp32',
            'data': {'counts': {'train': [10, 5], 'test': [24, 4]}, 'split_sha256': 'cafe', 'warnings': [HOSTILE]}}))
    path = report.write_report(str(folder), str(folder / f'{RUN}_data_base.pth'), database, str(folder), progress=False)
    assert path == str(folder / f'{RUN}_report.html')
    with open(path, encoding='utf-8') as file:
        return file.read()


class Outline(html.parser.HTMLParser):
    """Checks nesting; gathers tags, ids and text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if 'style' not in self.open:
            self.text.append(data)

    def all(self, attribute, tag=None):
        return [found[attribute] for name, found in self.tags if attribute in found and tag in (None, name)]


def check_page(page):
    """The rules that hold for every page; returns its outline."""
    outline = Outline(page)
    names = [name for name, _ in outline.tags]
    ids = outline.all('id')
    assert len(ids) == len(set(ids))
    assert {link.removeprefix('#') for link in outline.all('href')} <= set(ids)
    assert {key for keys in outline.all('aria-labelledby') for key in keys.split()} <= set(ids)
    assert all(source.startswith('data:image/jpeg;base64,') for source in outline.all('src'))
    assert names.count('h1') == names.count('main') == names.count('nav') == 1
    assert not {'script', 'link', 'iframe', 'object', 'embed', 'base', 'form'} & set(names)
    assert not any(attribute.startswith('on') for _, found in outline.tags for attribute in found)
    assert 'http://' not in page and 'https://' not in page and 'url(' not in page
    assert names.count('table') == names.count('caption')
    assert all(found.get('scope') in ('row', 'col') for name, found in outline.tags if name == 'th')
    assert all(found.get('alt') for name, found in outline.tags if name == 'img')
    assert "default-src 'none'" in outline.all('content', 'meta')[0]
    regions = [found for _, found in outline.tags if found.get('role') == 'region']
    assert regions and all(found['tabindex'] == '0' and found['aria-label'] for found in regions)
    return outline


# What is shown


def test_lowest_classes():
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
    rank = torch.tensor([1, 2, 5, 1, 3, 1, 1, 0])               # class 3 has nothing to find
    nearest = torch.tensor([0, 1, 1, 1, 2, 2, 2, 0])
    scores = torch.tensor([.9, .5, .6, .9, .4, .9, .9, .9])
    low, next_one = report.lowest_classes(labels, rank, nearest, scores)
    assert low == {'label': 0, 'queries': 3, 'recall': pytest.approx(1 / 3), 'confusions': [(1, 2)], 'example': 2}
    assert next_one == {'label': 1, 'queries': 2, 'recall': 0.5, 'confusions': [(2, 1)], 'example': 4}
    assert report.lowest_classes(labels, rank, nearest, scores, count=1) == [low]


def test_confusions_are_ordered_by_their_number():
    labels, rank = torch.zeros(5, dtype=torch.int64), torch.full((5,), 2)
    row, = report.lowest_classes(labels, rank, torch.tensor([3, 2, 1, 2, 1]), torch.tensor([.9, .1, .2, .3, .1]))
    assert sorted(row['confusions'][:2]) == [(1, 2), (2, 2)] and row['confusions'][2] == (3, 1)
    assert row['recall'] == 0 and row['example'] == 3             # of class 2, which comes first


def test_pick():
    values, labels = torch.tensor([5., 9., 8., 7., 6.]), torch.tensor([1, 0, 0, 0, 1])
    everything = torch.ones(5, dtype=torch.bool)
    assert report.pick(values, labels, everything) == [1, 2, 4, 0]
    assert report.pick(values, labels, everything, count=1) == [1]
    assert report.pick(values, labels, labels == 1) == [4, 0]
    assert report.pick(values, labels, ~everything) == []


def test_score_statistics():
    gallery = torch.tensor([[1., 0.], [0., 1.], [-1., 0.], [.6, .8]])
    labels = torch.tensor([0, 1, 1, 0])
    found = report.query_and_gallery({'embeddings': gallery, 'labels': labels, 'images': list('abcd')})
    statistics = report.score_statistics(found)
    assert statistics['best_right'].tolist() == pytest.approx([.6, 0, 0, .6])
    assert statistics['nearest_right'].tolist() == [3, 2, 1, 0]
    assert statistics['best_wrong'].tolist() == pytest.approx([0, .8, -.6, .8])
    assert statistics['right'].sum() == 4 and statistics['wrong'].sum() == 8
    assert statistics['right'][50] == 2                           # of score 0, twice the pair 1, 2
    assert statistics['wrong'][0] == statistics['wrong'][50] == 2  # pair 0, 2 is opposite, pair 0, 1 orthogonal
    few = report.score_statistics(found, sample=3)
    assert few['sampled'] == 3 and few['right'].sum() == 3 and few['wrong'].sum() == 6
    assert few['best_wrong'].equal(statistics['best_wrong'])


def test_statistics_do_not_depend_on_blocks(tmp_path, monkeypatch):
    found = report.query_and_gallery(make_database(tmp_path))
    whole = report.score_statistics(found)
    monkeypatch.setattr(report, 'BLOCK', 5)
    parts = report.score_statistics(found)
    assert all(torch.equal(whole[key], parts[key]) for key in ('right', 'wrong', 'nearest_right'))
    assert torch.allclose(whole['best_wrong'], parts['best_wrong'])


def test_best_scores_agree_with_search(tmp_path):
    found = report.query_and_gallery(make_database(tmp_path))
    scores, indices = retrieval.search(found['embeddings'], found['embeddings'], 1, found['own'])
    right = found['labels'][indices[:, 0]] == found['labels']
    statistics = report.score_statistics(found)
    best = torch.where(right, statistics['best_right'], statistics['best_wrong'])
    assert torch.allclose(best, scores[:, 0], atol=1e-6) and right.any() and not right.all()


def test_heads(tmp_path):
    database = make_database(tmp_path)
    recalls, ranks = report.rank_heads(report.query_and_gallery(database), 3)
    assert list(recalls) == [1, 2, 3]
    for heads, (value, (low, high)) in recalls.items():
        metrics = retrieval.evaluate(database['embeddings'][:, :4 * heads], database['labels'], [1])
        assert value == pytest.approx(metrics['recall@1']) and low <= value <= high
    assert (ranks['rank'] == 1).double().mean().item() == recalls[3][0]


@pytest.mark.parametrize('count, expected', [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_numbers_of_heads(count, expected):
    found = report.query_and_gallery({'embeddings': torch.eye(2 * count)[:4 if count > 1 else 2],
                                      'labels': torch.tensor([0, 0, 1, 1][:4 if count > 1 else 2]), 'images': []})
    assert list(report.rank_heads(found, count)[0]) == expected


@pytest.mark.parametrize('low, high, expected', [
    (0, 1, [0, .5, 1]), (.2, .83, [.2, .4, .6, .8, 1]), (.63, 2.44, [.5, 1, 1.5, 2, 2.5]), (3, 3, [3, 4])])
def test_round_ticks(low, high, expected):
    assert markup.round_ticks(low, high) == pytest.approx(expected)


# The page


def test_page(tmp_path):
    database = {**make_database(tmp_path), 'calibration': CALIBRATION}
    page = write(tmp_path, database)
    text = ' '.join(check_page(page).text)
    recall = retrieval.evaluate(database['embeddings'], database['labels'], [1])['recall@1']
    assert f'{100 * recall:.2f}\N{NO-BREAK SPACE}%' in text and 'protocol strict' in text
    assert '0.750' in text and '18 images' in text and '50.00\N{NO-BREAK SPACE}%' in text
    assert '2.00\N{NO-BREAK SPACE}%' in text and 'Not comparable' not in text
    assert 'train: 10 images of 5 classes; test: 24 images of 4 classes' in text and 'cafe' in text
    assert '2.500' in text and 'kept' not in page.split('</style>')[1].split('id="curves"')[0]
    assert page == write(tmp_path, database)                      # nothing is drawn by chance


def test_right_and_wrong_are_said(tmp_path):
    database = make_database(tmp_path)
    outline = check_page(write(tmp_path, database))
    tiles = [found['class'] for name, found in outline.tags if name == 'figure' and 'tile' in found.get('class', '')]
    text = ''.join(outline.text)
    assert text.count('✓') - 3 == tiles.count('tile right') > 0   # and in the legend and both charts
    assert text.count('✗') - 3 == tiles.count('tile wrong') > 0
    alts = [alt.partition(':')[0] for alt in outline.all('alt', 'img')]
    assert all(alts.count(kind) == tiles.count(f'tile {kind}') for kind in ('right', 'wrong', 'query'))


def test_hostile_names(tmp_path):
    database = make_database(tmp_path, classes=(HOSTILE, '\u202eevil\udcff', '</style></title><b>', '&lt;'))
    database['images'][3] = f'{HOSTILE.replace("/", "_")}.png'    # which is missing, so its name is shown
    page = write(tmp_path, database)
    text = ''.join(check_page(page).text)
    assert HOSTILE in text and '&lt;script&gt;alert(&quot;1&quot;)' in page and '</style></title><b>' in text
    assert not re.search(r'<(script|b>evil|img src=x)', page)


def test_missing_images(tmp_path):
    database = make_database(tmp_path)
    shutil.rmtree(tmp_path / 'test/0')
    (tmp_path / database['images'][7]).write_bytes(b'no image')
    outline = check_page(write(tmp_path, database))
    gone = [found for _, found in outline.tags if found.get('class') == 'gone']
    assert gone and {'0.png', '1.png', '2.png', '3.png', '4.png', '5.png', '7.png'} & set(outline.text)


@pytest.mark.parametrize('content, why', [(None, 'missing'), ('', 'damaged'), ('{"a": ', 'damaged'),
                                          ('\x00\x01', 'damaged'), ('[1, 2]', 'damaged'), ('epoch\nx\n', 'damaged')])
def test_files_beside(tmp_path, content, why):
    database = make_database(tmp_path)
    for ending in ('results.csv', 'run.json'):
        if content is not None:
            (tmp_path / f'{RUN}_{ending}').write_text(content)
    text = ''.join(check_page(write(tmp_path, database, beside=False)).text)
    assert f'{RUN}_results.csv is {why}' in text and f'{RUN}_run.json is {why}' in text


@pytest.mark.parametrize('run', [
    {}, {'data': [], 'arguments': 3, 'command': 'x'}, {'data': {'counts': {'train': 5}, 'warnings': 'w'}},
    {'command': [None, {}], 'versions': None, 'data': None, 'arguments': {'a': None, 'b': [True, 1.5, {'c': []}]}}])
def test_odd_provenance(tmp_path, run):
    (tmp_path / f'{RUN}_run.json').write_text(json.dumps(run))
    check_page(write(tmp_path, make_database(tmp_path), beside=False))


def test_csv_of_one_epoch_and_infinite_loss(tmp_path):
    (tmp_path / f'{RUN}_results.csv').write_text('epoch,train_loss,train_accuracy,val_recall@1\n1,inf,0.5,0.25\n')
    page = write(tmp_path, make_database(tmp_path), beside=False)
    text = ''.join(check_page(page).text)
    assert '50.00\N{NO-BREAK SPACE}% at epoch 1, 50.00\N{NO-BREAK SPACE}% at epoch 1' in text and 'held-out' in text
    assert not re.search(r'\b(nan|inf)\b', page.split('</style>')[1].split('<img')[0])


def test_curves_name_their_numbers(tmp_path):
    outline = check_page(write(tmp_path, make_database(tmp_path)))
    text = ''.join(outline.text)
    assert 'R@1 50.00\N{NO-BREAK SPACE}% at epoch 1, 60.00\N{NO-BREAK SPACE}% at epoch 3' in text
    assert 'Training loss, by epoch2.500 at epoch 1, 1.000 at epoch 3' in text
    assert len([name for name, _ in outline.tags if name == 'svg']) == 7
    assert all(found.get('role') == 'img' for name, found in outline.tags if name == 'svg')


def test_in_shop(tmp_path):
    whole = make_database(tmp_path)
    database = {**whole, **{name: whole[name][::2] for name in ('embeddings', 'labels', 'images')},
                **{f'query_{name}': whole[name][1::2] for name in ('embeddings', 'labels', 'images')}}
    text = ''.join(check_page(write(tmp_path, database)).text)
    metrics = retrieval.evaluate(database['query_embeddings'], database['query_labels'], [1],
                                 database['embeddings'], database['labels'])
    assert f'Recall@1 is {100 * metrics["recall@1"]:.2f}\N{NO-BREAK SPACE}%' in text
    assert '12 images of 4 classes, they query a gallery of 12' in text


@pytest.mark.parametrize('calibration', [None, {**CALIBRATION, 'realised': None, 'realised_low': None,
                                                'realised_high': None}])
def test_without_calibration(tmp_path, calibration):
    database = make_database(tmp_path)
    text = ''.join(check_page(write(tmp_path, {**database, 'calibration': calibration})).text)
    assert ('has no threshold' in text) == (calibration is None)
    assert ('too few to check' in text) == (calibration is not None)
    if calibration is None:
        assert write(tmp_path, database) == write(tmp_path, {**database, 'calibration': None})


@pytest.mark.parametrize('protocol, select', [('published', 'test'), ('strict', 'test')])
def test_warning(tmp_path, protocol, select):
    database = {**make_database(tmp_path), 'protocol': protocol, 'select': select}
    text = ''.join(check_page(write(tmp_path, database)).text)
    assert 'Not comparable with strict figures' in text and 'flatters' in text


def test_extremes(tmp_path):
    perfect = make_database(tmp_path, noise=0.0)
    text = ''.join(check_page(write(tmp_path, perfect)).text)
    assert 'No query that has a right image is answered by a wrong one' in text and 'There are none' in text
    hopeless = {**perfect, 'labels': torch.arange(24), 'classes': list(map(str, range(24)))}
    text = ''.join(check_page(write(tmp_path, hopeless)).text)
    assert '24 queries have no right image' in text
    alone = {**perfect, 'labels': torch.zeros(24, dtype=torch.int64)}
    page = write(tmp_path, alone)
    assert 'no interval' in ''.join(check_page(page).text) and 'inf ahead' not in page
    two = {**perfect, **{name: perfect[name][:2] for name in ('embeddings', 'labels', 'images')}}
    check_page(write(tmp_path, two))
    with pytest.raises(ValueError, match='single image'):
        write(tmp_path, {**perfect, **{name: perfect[name][:1] for name in ('embeddings', 'labels', 'images')}})


def test_one_picture_of_each_size(tmp_path):
    wide = tmp_path / 'wide.png'
    Image.new('RGB', (1000, 10), 'red').save(wide)
    found = report.thumbnails([str(wide), str(tmp_path / 'none.png')])
    assert found[str(tmp_path / 'none.png')] is None
    with open(tmp_path / 'small.jpg', 'wb') as file:
        file.write(base64.b64decode(found[str(wide)].partition(',')[2]))
    with Image.open(tmp_path / 'small.jpg') as image:
        assert image.size == (96, 1)


# In a browser


@contextlib.contextmanager
def browser(folder):
    """do(command, **parameters) of WebDriver, in a headless Chromium that chromedriver drives."""
    driver = subprocess.Popen([DRIVER, '--port=0'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        port = next(found[1] for line in driver.stdout if (found := re.search(r'successfully on port (\d+)', line)))

        def call(path, method='POST', **body):
            request = urllib.request.Request(f'http://127.0.0.1:{port}/session{path}', json.dumps(body).encode(),
                                             {'Content-Type': 'application/json'}, method=method)
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)['value']
        options = {'binary': CHROMIUM, 'args': [*FLAGS, f'--user-data-dir={folder}']}
        session = call('', capabilities={'alwaysMatch': {'goog:chromeOptions': options}})['sessionId']
        try:
            yield lambda command, **body: call(f'/{session}/{command}', **body)
        finally:
            call(f'/{session}', 'DELETE')
    finally:
        driver.terminate()
        driver.wait(10)
        driver.stdout.close()


CONTRAST = '''
const luminance = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
  .map(part => part <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
  .reduce((sum, part, place) => sum + part * [.2126, .7152, .0722][place], 0)
let least = 99
for (const element of document.querySelectorAll('body *')) {
  if (![...element.childNodes].some(node => node.nodeType == 3 && node.data.trim())) continue
  const style = getComputedStyle(element)
  let behind = element, back
  do { back = getComputedStyle(behind).backgroundColor; behind = behind.parentElement }
  while (behind && back == 'rgba(0, 0, 0, 0)')
  const pair = [luminance(element instanceof SVGElement ? style.fill : style.color), luminance(back)].sort()
  if (!element.closest('title, desc')) least = Math.min(least, (pair[1] + .05) / (pair[0] + .05))
}
return least
'''


@pytest.mark.skipif(not CHROMIUM, reason='no chromium, chromium-browser or google-chrome here')
def test_dom(tmp_path):
    page = write(tmp_path, {**make_database(tmp_path), 'calibration': CALIBRATION})
    result = subprocess.run([CHROMIUM, *FLAGS, f'--user-data-dir={tmp_path / "profile"}', '--dump-dom',
                             (tmp_path / f'{RUN}_report.html').as_uri()], capture_output=True, text=True, timeout=60)
    dom = check_page(result.stdout)
    assert result.stdout.rstrip().endswith('</html>')
    assert [name for name, _ in dom.tags if name != 'tbody'] == [
        name for name, _ in Outline(page).tags if name != 'tbody']


@pytest.mark.skipif(not CHROMIUM or not DRIVER, reason='no chromium, chromium-browser or google-chrome, or no '
                                                       'chromedriver, here')
def test_layout_contrast_and_keyboard(tmp_path):
    classes = ('W' * 90, 'a name of several words that is as long as those of cars are, and then some', HOSTILE, 'cog')
    database = {**make_database(tmp_path, classes), 'calibration': CALIBRATION, 'protocol': 'published'}
    (tmp_path / database['images'][0]).unlink()
    write(tmp_path, database)
    with browser(tmp_path / 'profile') as do:
        def emulate(command, **params):
            return do('goog/cdp/execute', cmd=f'Emulation.{command}', params=params)

        def ask(script):
            return do('execute/sync', script=script, args=[])
        do('url', url=(tmp_path / f'{RUN}_report.html').as_uri())
        backgrounds = set()
        for width in (360, 800, 1440):
            emulate('setDeviceMetricsOverride', width=width, height=800, deviceScaleFactor=1, mobile=width == 360)
            for theme in ('light', 'dark'):
                emulate('setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': theme}])
                ask('for (const details of document.querySelectorAll("details")) details.open = true')
                assert ask('return innerWidth') == width
                assert ask('return document.documentElement.scrollWidth') <= width
                assert ask(CONTRAST) >= 4.5
                backgrounds.add(ask('return getComputedStyle(document.body).backgroundColor'))
        assert len(backgrounds) == 2

        def press_tab():
            do('actions', actions=[{'type': 'key', 'id': 'keyboard', 'actions': [
                {'type': 'keyDown', 'value': '\ue004'}, {'type': 'keyUp', 'value': '\ue004'}]}])
            return ask('return document.activeElement.textContent'), ask(
                'const box = document.activeElement.getBoundingClientRect();'
                'return box.left >= 0 && box.top >= 0 && getComputedStyle(document.activeElement).outlineStyle')
        assert [press_tab() for _ in range(4)] == [('To the results', 'solid'), ('Curves', 'solid'), ('Heads', 'solid'),
                                                   ('Classes', 'solid')]

"""A small database made here, the page of its run, and the rules for every page."""

import html.parser
import json
import math
import os

import torch
from PIL import Image

from areir.output.report import write_report

RUN = 'small_uncropped_resnet18_3_4'
HOSTILE = '<script>alert("1")</script>\'"&<img src=x onerror=alert(2)>'
SPACE = '\N{NO-BREAK SPACE}'
CALIBRATION = {
    'false_match_rate': 0.01,
    'queries': 24,
    'classes': 4,
    'gallery_size': 18,
    'threshold': 0.75,
    'low': 0.7,
    'high': 0.8,
    'found': 0.5,
    'realised': 0.02,
    'realised_low': 0.0,
    'realised_high': 0.05,
    'sizes': [18],
    'thresholds': [0.75],
}
CSV = (
    'epoch,train_loss,train_accuracy,test_recall@1,test_recall@2,test_map@r,protocol\n'
    '1,2.5,0.25,0.5,0.75,0.125,strict\n'
    '2,1.25,0.5,0.625,1.0,0.25,strict\n'
    '3,1.0,nan,0.6,1.0,0.2,strict\n'
)
PROVENANCE = {
    'command': ['train.py', '--data_name', HOSTILE],
    'arguments': {'lr': 1e-4, 'weights': HOSTILE},
    'commit': 'abc',
    'versions': {'torch': '2.11'},
    'device': 'CPU',
    'precision': 'fp32',
    'data': {
        'counts': {'train': [10, 5], 'test': [24, 4]},
        'split_sha256': 'cafe',
        'warnings': [HOSTILE],
    },
}
CHART = 'data:image/svg+xml;base64,'
VOID = {'meta', 'img', 'br', 'link', 'hr', 'input'}
FORBIDDEN = {'script', 'link', 'iframe', 'object', 'embed', 'base', 'form'}


def make_database(folder, classes=('bolt', 'nut', 'gear', 'cog'), each=6, noise=1.0):
    """Return a database of random embeddings, three heads of four numbers.

    Its images are drawn below folder.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(classes)).repeat_interleave(each)
    centres = torch.randn(len(classes), 12, generator=generator)
    noises = torch.randn(len(labels), 12, generator=generator)
    embeddings = (centres[labels] + noise * noises).unflatten(1, (3, 4))
    embeddings = torch.nn.functional.normalize(embeddings, dim=2).flatten(1)
    images = [
        f'test/{label}/{index}.png' for index, label in enumerate(labels.tolist())
    ]
    for index, image in enumerate(images):
        path = os.path.join(folder, image)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        colour = (10 * index, 100, 200 - 5 * index)
        Image.new('RGB', (40, 30), colour).save(path)
    return {
        'data_name': 'small',
        'crop_type': 'uncropped',
        'version': 'v',
        'epoch': 2,
        'protocol': 'strict',
        'select': 'last',
        'ensemble_size': 3,
        'model': f'{RUN}_model.pth',
        'classes': list(classes),
        'data_root': '.',
        'calibration': None,
        'embeddings': embeddings / math.sqrt(3),
        'labels': labels,
        'images': images,
    }


def some_images(database, rows):
    """Return {embeddings, labels, images} of the rows (a slice) of a database."""
    return {name: database[name][rows] for name in ('embeddings', 'labels', 'images')}


def write(folder, database, beside=True):
    """Return the text of the page of a database; beside: with its CSV and JSON."""
    if beside:
        (folder / f'{RUN}_results.csv').write_text(CSV)
        (folder / f'{RUN}_run.json').write_text(json.dumps(PROVENANCE))
    database_path = str(folder / f'{RUN}_data_base.pth')
    path = write_report(str(folder), database_path, database, str(folder))
    assert path == str(folder / f'{RUN}_report.html')
    with open(path, encoding='utf-8') as file:
        return file.read()


def page_text(folder, database, beside=True):
    """Return the text that a reader of the page sees, with single spaces."""
    outline = check_page(write(folder, database, beside))
    return outline.visible()


class Outline(html.parser.HTMLParser):
    """Checks the nesting of a page; gathers its tags, ids and text."""

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

    def visible(self):
        """Return the whole text; runs of blanks and line ends are one space."""
        words = ''.join(self.text).replace(SPACE, '\0').split()
        return ' '.join(words).replace('\0', SPACE)

    def all(self, attribute, tag=None):
        """Return the values of an attribute, of all tags or of one kind."""
        return [
            attributes[attribute]
            for name, attributes in self.tags
            if attribute in attributes and tag in (None, name)
        ]

    def having(self, attribute, value):
        """Return the attributes of the tags that have this one."""
        return [found for _, found in self.tags if found.get(attribute) == value]


def check_page(page):
    """Check the rules that hold for every page; return its Outline."""
    outline = Outline(page)
    names = [name for name, _ in outline.tags]
    ids = outline.all('id')
    assert len(ids) == len(set(ids))
    assert {link.removeprefix('#') for link in outline.all('href')} <= set(ids)
    labels = [key for keys in outline.all('aria-labelledby') for key in keys.split()]
    assert set(labels) <= set(ids)
    for source in outline.all('src'):
        assert source.startswith(('data:image/jpeg;base64,', CHART))
    assert names.count('h1') == names.count('main') == names.count('nav') == 1
    assert not FORBIDDEN & set(names) and names.count('style') == 1
    attributes = {attribute for _, found in outline.tags for attribute in found}
    assert not any(attribute.startswith('on') for attribute in attributes)
    for outside in ('http://', 'https://', 'url(', '{{', '{%', '{#'):
        assert outside not in page
    check_for_screen_readers(outline, names)
    return outline


def check_for_screen_readers(outline, names):
    assert names.count('table') == names.count('caption')
    for name, attributes in outline.tags:
        if name == 'th':
            assert attributes.get('scope') in ('row', 'col')
        if name == 'img':
            assert attributes.get('alt')
    assert "default-src 'none'" in outline.all('content', 'meta')[0]
    regions = outline.having('role', 'region')
    assert regions
    assert all(region['tabindex'] == '0' for region in regions)
    assert all(region['aria-label'] for region in regions)

"""A small database made here, the page of its run, and the rules for every page."""

import html.parser
import json

import torch
from PIL import Image
from torch.nn import functional as F

from areir.output.report import write_report

RUN = 'small_uncropped_resnet18_3_4'
HOSTILE = '<script>alert("1")</script>\'"&<img src=x onerror=alert(2)>'
CSV = (
    'epoch,train_loss,train_accuracy,test_recall@1,test_recall@2,test_map@r,'
    'all_recall@1_trained,all_recall@1_new,protocol\n'
    '1,2.5,0.25,0.5,0.75,0.125,0.75,0.5,strict\n'
    '2,inf,0.5,0.625,1.0,0.25,0.875,0.4375,strict\n'
    '3,1.0,nan,0.6,1.0,0.2,0.9375,0.3125,strict\n'
)
RECORD = {
    'command': ['train.py', '--data_name', HOSTILE],
    'arguments': {'lr': 1e-4, 'weights': HOSTILE, 'ensemble_size': 3},
    'commit': 'abc',
    'versions': {'torch': '2.11'},
    'device': 'CPU',
    'precision': 'fp32',
    'metrics': {'all_recall@1_trained': 0.875, 'all_recall@1_new': 0.4375},
    'intervals': {'all_recall@1_trained': [0.7, 0.9], 'all_recall@1_new': [None, None]},
    'data': {
        'counts': {'train': [10, 5], 'test': [24, 4]},
        'split_sha256': 'cafe',
        'warnings': [HOSTILE],
    },
}
KINDS = 'jpeg', 'svg+xml', 'png'
PICTURES = tuple(f'data:image/{kind};base64,' for kind in KINDS)
VOID = {'meta', 'img'}
FORBIDDEN = {'script', 'link', 'iframe', 'object', 'embed', 'base', 'form'}


def make_database(folder, classes=('bolt', 'nut', 'gear', 'cog'), each=6, noise=1.0):
    """Return a database of random embeddings, three heads of four numbers.

    Its images are drawn below folder.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(classes)).repeat_interleave(each)
    centres = torch.randn(len(classes), 12, generator=generator)
    noises = torch.randn(len(labels), 12, generator=generator)
    heads = (centres[labels] + noise * noises).unflatten(1, (3, 4))
    embeddings = F.normalize(heads, dim=2).flatten(1) / 3**0.5
    images = []
    for index, label in enumerate(labels.tolist()):
        images.append(f'test/{label}/{index}.png')
        (folder / images[-1]).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (40, 30), (10 * index, 100, 90)).save(folder / images[-1])
    return {
        'data_name': 'small',
        'crop_type': 'uncropped',
        'epoch': 2,
        'protocol': 'strict',
        'select': 'last',
        'ensemble_size': 3,
        'classes': list(classes),
        'calibration': None,
        'embeddings': embeddings,
        'labels': labels,
        'images': images,
    }


def some_images(database, rows):
    """Return {embeddings, labels, images} of the rows (a slice) of a database."""
    return {name: database[name][rows] for name in ('embeddings', 'labels', 'images')}


def write(folder, database):
    """Return the text of the page of a database, with its CSV and run.json."""
    (folder / f'{RUN}_results.csv').write_text(CSV)
    (folder / f'{RUN}_run.json').write_text(json.dumps(RECORD))
    return write_alone(folder, database)


def write_alone(folder, database):
    """Return the text of the page of a database; other files stay as they are."""
    database_path = str(folder / f'{RUN}_data_base.pth')
    path = write_report(str(folder), database_path, database, str(folder))
    assert path == str(folder / f'{RUN}_report.html')
    with open(path, encoding='utf-8') as file:
        return file.read()


class Outline(html.parser.HTMLParser):
    """Checks the nesting of a page; gathers its tags, (name, attributes), and text."""

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

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if 'style' not in self.open:
            self.text.append(data)

    def visible(self):
        """Return the whole text; runs of blanks and line ends are one space."""
        return ' '.join(''.join(self.text).split())

    def all(self, attribute, *tags):
        """Return the values of an attribute, of all tags or of some kinds."""
        return [
            attributes[attribute]
            for name, attributes in self.tags
            if attribute in attributes and (name in tags or not tags)
        ]


def check_page(page):
    """Check the rules that hold for every page; return its Outline."""
    outline = Outline(page)
    names = [name for name, _ in outline.tags]
    ids = outline.all('id')
    assert len(ids) == len(set(ids))
    assert {link.removeprefix('#') for link in outline.all('href')} <= set(ids)
    assert set(outline.all('aria-labelledby')) <= set(ids)
    assert all(source.startswith(PICTURES) for source in outline.all('src'))
    assert names.count('h1') == names.count('main') == names.count('nav') == 1
    assert not FORBIDDEN & set(names)
    assert not any(key.startswith('on') for _, found in outline.tags for key in found)
    for outside in ('http://', 'https://', 'url(', '{{', '{%', '{#'):
        assert outside not in page
    assert "default-src 'none'" in outline.all('content', 'meta')[0]
    # for screen readers
    assert all(outline.all('alt', 'img')) and all(outline.all('aria-label'))
    assert len(outline.all('alt', 'img')) == names.count('img')
    assert len(outline.all('scope', 'th')) == names.count('th')
    tables = names.count('table')
    assert tables == names.count('caption') == len(outline.all('tabindex', 'div'))
    return outline

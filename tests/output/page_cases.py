"""A search page over a few drawn figures, for the tests of areir/output/page/."""

import io
import re
import shutil

import trained
from PIL import Image

from areir.data.sample import draw_sample
from areir.retrieval import Gallery

ORIGIN = 'http://127.0.0.1:8000'
TILE = re.compile(r'data-image="(\d+)" data-token="(\w+)" data-name="([^"]*)"')
SCORE = re.compile(r'<b>(-?[\d.]+)</b>')


def make_project(folder):
    """Write 16 figures of 4 classes and a model of random weights to a folder."""
    sizes = {'train_classes': 2, 'test_classes': 2, 'images_per_class': 4}
    draw_sample(str(folder / 'drawn'), **sizes, side=trained.SIDE)
    (folder / 'photos').mkdir()
    for path in folder.glob('drawn/*/*'):
        shutil.move(path, folder / 'photos')
    trained.save_model(folder / 'toy_model.pth')


class PageCase:
    """The page of a project, asked by Flask's test client."""

    def __init__(self, folder, model='toy_model.pth'):
        from areir.output.page.app import make_app
        from areir.output.page.folder import SearchedFolder

        self.root, self.photos = folder, folder / 'photos'
        gallery = Gallery(self.photos, folder / model, folder / 'results', 'cpu')
        self.collection = gallery.collection
        self.searched = SearchedFolder(gallery)
        self.uploads = folder / 'uploads'
        self.uploads.mkdir(exist_ok=True)
        self.app = make_app(self.searched, self.uploads, 8, False)
        self.client = self.app.test_client()

    @property
    def token(self):
        return self.searched.current.token

    def get(self, path, **options):
        return self.client.get(path, base_url=ORIGIN, **options)

    def post(self, path, client=None, origin=ORIGIN, **fields):
        """Post a form as the page does; a Path among the fields is a file."""
        data = {}
        for name, value in fields.items():
            if hasattr(value, 'read_bytes'):
                value = io.BytesIO(value.read_bytes()), value.name
            data[name] = value
        return (client or self.client).post(
            path,
            base_url=ORIGIN,
            headers={'Origin': origin} if origin else {},
            data=data,
            content_type='multipart/form-data',
        )

    def search(self, **fields):
        """Return [(number, name, score as shown)] of a search that succeeds."""
        reply = self.post('/search', **fields)
        assert reply.status_code == 200, reply.text
        return read_tiles(reply.text)


def make_page(folder):
    """Write a project to a folder and return its page."""
    make_project(folder)
    return PageCase(folder)


def read_tiles(html):
    """Return [(number, name, score as shown)] of the HTML of an answer."""
    tiles = [(int(number), name) for number, _, name in TILE.findall(html)]
    scores = SCORE.findall(html)
    return [(*tile, score) for tile, score in zip(tiles, scores, strict=True)]


def write_noise(path):
    """Write a picture that shows nothing."""
    Image.effect_noise((48, 32), 90).convert('RGB').save(path)
    return path

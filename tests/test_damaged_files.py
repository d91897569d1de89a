"""What a damaged file of ours gives: one line that names it and says what to do."""

import io

import pytest
import torch
import trained
from conftest import Project, draw_small
from slim import use_slim_backbone

from areir.files import FORMAT
from areir.scripts.model import EnsembleModel

SPLIT = 'data/small/uncropped_data_dicts.pth'
MODEL = 'results/toy_model.pth'
DATABASE = 'results/toy_data_base.pth'
PHOTO = '../my project/data/photos/test/figure_07/figure_07_01.png'
QUERY = ['--query_img_name', PHOTO]
TRAIN = ['--data_name', 'small', '--weights', 'none', '--image_size', 32]
CALLS = {
    'split': (SPLIT, 'train.py', TRAIN),
    'model': (
        MODEL,
        'inference.py',
        ['--gallery', '../my project/data/photos', '--model', 'toy_model.pth', *QUERY],
    ),
    'database': (
        DATABASE,
        'inference.py',
        ['--data_base', 'toy_data_base.pth', *QUERY],
    ),
}


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A project with a dataset, a slim model of random weights and its database."""
    project = Project(tmp_path_factory.mktemp('damaged') / 'my project')
    draw_small(project)
    with pytest.MonkeyPatch.context() as patch:
        use_slim_backbone(patch)
        weights = EnsembleModel(**trained.MODEL_ARGS).state_dict()
        (project.root / 'results').mkdir()
        saved = trained.save_model(project.root / MODEL, state_dict=weights)
        photos = project.root / 'data/photos'
        trained.save_database(project.root / DATABASE, photos, saved, 'toy_model.pth')
        yield project


def other_version(content):
    value = torch.load(io.BytesIO(content), weights_only=True)
    out = io.BytesIO()
    torch.save({**value, 'format': FORMAT + 1}, out)
    return out.getvalue()


def flip_bit(content):
    place = content.index(b'format')  # in the names of its fields
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES = {
    'cut short': lambda content: content[: len(content) // 2],
    'flipped bit': flip_bit,
    'empty': lambda content: b'',
    'wrong kind': lambda content: b'\x89PNG\r\n\x1a\n' + bytes(100),
    'other version': other_version,
}


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('kind', CALLS)
def test_a_damaged_file_is_one_line(project, kind, damage):
    name, script, flags = CALLS[kind]
    path = project.root / name
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    try:
        assert path.name in project.refuse(script, *flags)
    finally:
        path.write_bytes(whole)

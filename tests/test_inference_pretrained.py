"""inference.py on a folder before anything is trained: a pretrained network."""

import shutil

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import TINY, Project
from trained import read_images

from areir.cli.searching import DEFAULT_NETWORK
from areir.data.images import PixelFormat, load_image
from areir.data.sample import draw_sample
from areir.files import load_tensors
from areir.gallery import index
from areir.networks.pretrained import network_of
from areir.scripts.model import load_model


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A project in which nothing is trained, and a folder of class folders."""
    project = Project(tmp_path_factory.mktemp('untrained') / 'my project')
    figures = project.root / 'figures'
    sizes = {'train_classes': 6, 'test_classes': 2, 'images_per_class': 5}
    draw_sample(str(figures), **sizes, side=32)
    project.photos = figures / 'train'
    project.query = min((figures / 'test').glob('*/*.png'))
    return project


@pytest.fixture
def network(slim_backbone, weights, tmp_path):
    """A file of weights, under the name of its network."""
    path = tmp_path / 'resnet18-slim.pth'
    shutil.copy(weights, path)
    return path


@pytest.fixture
def ask(project, network, tmp_path):
    """Call inference.py in this process and return what it prints."""

    flags = ['--results_root', tmp_path / 'results', '--gallery', project.photos]
    flags += ['--model', network]
    return lambda *more: project.ask('inference.py', *flags, *more)


def embed_by_hand(network, path):
    """Return the normalised features of the last two stages, one after the other."""
    trained = load_model(str(network))
    with torch.no_grad():
        third = trained.model.trunk(read_images([path], trained.pixel_format))
        fourth = trained.model.heads[0].stages(third)
    parts = [features.mean(dim=(2, 3)) for features in (third, fourth)]
    parts = [torch.nn.functional.normalize(part) for part in parts]
    return torch.cat(parts, dim=1)[0] / 2**0.5


def test_a_folder_is_searched(ask, project, network, tmp_path):
    output = ask('--query_img_name', project.query)
    assert f'model {network}' in output and '30 embedded now' in output
    assert 'no threshold' in output and '--calibrate' in output
    table = pd.read_csv(tmp_path / f'results/{project.query.stem}/retrieved.csv')
    expected = embed_by_hand(network, project.query)
    assert len(expected) == 16 + 32
    for path, score in zip(table['path'], table['score']):
        vector = embed_by_hand(network, project.photos / path)
        cosine = torch.dot(vector, expected).item()
        assert cosine == pytest.approx(score, abs=0.01)
    assert 'match' not in table and 'predicted_class' not in table


def test_a_network_of_timm_searches_with_its_own_features(project, hub, tmp_path):
    flags = ['--results_root', tmp_path / 'results', '--gallery', project.photos]
    flags += ['--query_img_name', project.query]
    output = project.ask('inference.py', *flags, '--model', TINY)
    assert f'model {TINY}, pretrained\n' in output
    table = pd.read_csv(tmp_path / f'results/{project.query.stem}/retrieved.csv')
    config = timm.data.resolve_model_data_config(hub)
    own = PixelFormat(160, config['mean'], config['std'], config['interpolation'])
    files = [project.photos / path for path in table['path']]
    images = read_images([project.query, *files], own)
    with torch.no_grad():
        vectors = hub.forward_head(hub.forward_features(images), pre_logits=True)
    cosines = torch.cosine_similarity(vectors[:1], vectors[1:])
    assert table['score'].tolist() == pytest.approx(cosines.tolist(), abs=0.01)

    # the default is not in the cache
    line = project.refuse('inference.py', *flags)
    assert f'https://huggingface.co/timm/{DEFAULT_NETWORK}/' in line
    assert '--model FILE' in line and '--weights' not in line


@pytest.mark.parametrize(
    ('file', 'network'),
    [
        ('resnet18-f37072fd.pth', 'resnet18'),
        ('a.b/vit_small_patch16_224.dino.safetensors', 'vit_small_patch16_224.dino'),
        ('vit_small_patch16_224.dino-v2.pth', 'vit_small_patch16_224.dino'),
        ('resnet50.mine.pth', 'resnet50'),
    ],
)
def test_a_file_of_weights_names_its_network_and_tag(file, network):
    assert network_of(file) == network


def test_many_images_are_shortened(ask, project, tmp_path, monkeypatch):
    """Their principal components are part of the exported network."""
    monkeypatch.setattr(index, 'LEAST_IMAGES', 20)
    path = tmp_path / 'network.pt2'
    ask('--export', tmp_path / 'out', '--export_model', path)
    vectors = np.load(tmp_path / 'out/vectors.npy')
    images = pd.read_csv(tmp_path / 'out/images.csv')['path'][:3]
    files = [project.photos / image for image in images]
    pixels = torch.stack(
        [PixelFormat(224).to_pixels(load_image(file)) for file in files]
    )
    network = torch.export.load(path).module()
    found = network(pixels.permute(0, 2, 3, 1))
    assert len(vectors) == 30 and found.shape[1] == vectors.shape[1] < 48
    cosines = (found * torch.from_numpy(vectors[:3])).sum(dim=1)
    # where bf16 is native, vectors are rounded, and whitening amplifies that
    assert cosines.min() > 0.98


def test_calibrate_sets_a_threshold_and_stores_it(ask, project, tmp_path):
    inside = min(project.photos.glob('*/*.png'))
    for share, rate in ((0.2, '20.00%'), (0.1, '10.00%')):
        output = ask('--calibrate', '--false_match_rate', share)
        assert f'for {rate} false' in output
        assert f'({rate} false matches asked for' in ask('--query_img_name', inside)
    table = pd.read_csv(tmp_path / f'results/{inside.stem}/retrieved.csv')
    assert {'match', 'predicted_class', 'confidence'} <= {*table}


@pytest.mark.parametrize(
    ('flags', 'text'),
    [
        ('--calibrate', '--calibrate: works for --gallery only'),
        ('--false_match_rate 0.1', 'works with --calibrate only'),
        ('--gallery figure_01 --calibrate', 'a folder for each class'),
        ('--gallery figure_01 --model resnet19', 'no network that'),
        ('--gallery figure_01 --model mine.pth', 'resnet18-mine.pth'),
        ('--gallery figure_01 --model resnet18-wide.pth', 'conv1.weight'),
    ],
)
def test_what_cannot_be_done_is_one_line(network, project, tmp_path, flags, text):
    shutil.copytree(project.photos / 'figure_1', tmp_path / 'figure_01')
    shutil.copy(network, tmp_path / 'mine.pth')  # it names no network
    wide = {**load_tensors(str(network)), 'conv1.weight': torch.zeros(64, 3, 7, 7)}
    torch.save(wide, tmp_path / 'resnet18-wide.pth')
    own = {path.name: str(path) for path in tmp_path.iterdir()}
    flags = [own.get(word, word) for word in f'--model {network} {flags}'.split()]
    results = ['--results_root', tmp_path / 'results']
    code, _, errors = project.call('inference.py', *results, *flags)
    assert code == 2 and text in errors.splitlines()[-1]

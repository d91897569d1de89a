"""Exports: vectors row for row, and a network that gives the vectors of its model."""

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from toy import ToyCollection, on_circle
from trained import take_statistics

from areir.data.images import PixelFormat, list_files, load_image
from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.files import WriteError
from areir.networks.projection import fit_projection
from areir.output import exports
from areir.output.exports import export_network, export_parquet, export_vectors
from areir.scripts.model import EnsembleModel

MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.3, 0.2]  # another for each channel
PATHS = ['a/1.png', 'b/caf\udce9.png', '3.png']


def need_onnx():
    for package in exports.ONNX_PACKAGES:
        pytest.importorskip(package, reason=f'{package} is optional')


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Eight figures of 48 pixels, of four classes."""
    folder = tmp_path_factory.mktemp('pictures') / 'figures'
    sizes = {'train_classes': 2, 'test_classes': 2, 'images_per_class': 2}
    draw_sample(str(folder), **sizes, side=48)
    return [load_image(str(folder / path)) for path in list_files(str(folder))]


def read_pixels(pictures, side):
    """Return uint8 (N, side, side, 3), as a program outside makes them."""
    size, bilinear = (side, side), Image.Resampling.BILINEAR
    return np.stack([picture.resize(size, bilinear) for picture in pictures])


def prepare(pixels, pixel_format):
    """Return the normalised images (N, 3, S, S) of pixels (N, S, S, 3)."""
    return pixel_format.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def make_trained(pictures, model_type='resnet18', side=32, projected=False, **options):
    """Return what export_network takes: a model that tells the pictures apart.

    It knows images of noise and spots, too: without them, an untrained network blows
    up rounding errors. Its weights can be trained, which those of a file must not need.
    """
    pixel_format = PixelFormat(side, MEAN, STD)
    images = prepare(read_pixels(pictures, side), pixel_format)
    generator = torch.Generator().manual_seed(1)
    known = [images]
    for cells in (4, side):
        noise = 255 * torch.rand(4, 3, cells, cells, generator=generator)
        noise = F.interpolate(noise, (side, side), mode='bilinear')
        known.append(pixel_format.normalise(noise))
    model = EnsembleModel(model_type, 2, 5, **options)
    take_statistics(model, torch.cat(known))
    if projected:
        model.projection = fit_projection(model.embed(images), 4, whitening=0.5)
    return SimpleNamespace(
        model=model,
        path='results/toy_model.pth',
        pixel_format=pixel_format,
        dimensions=model.dimensions,
    )


def run_onnx(path, pixels):
    """Return the vectors of an ONNX file; its input and output are what is promised."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type) == ('images', 'tensor(uint8)')
    assert (given.name, given.type) == ('vectors', 'tensor(float)')
    assert isinstance(taken.shape[0], str) and taken.shape[1:] == [*pixels.shape[1:]]
    return session.run(None, {'images': pixels})[0]


def check_export(trained, pictures, folder, ending):
    """Export a model and compare the file with it, on batches of several sizes."""
    path = str(folder / f'network{ending}')
    export_network(trained, path)
    pixels = read_pixels(pictures, trained.pixel_format.image_size)
    wanted = trained.model.embed(prepare(pixels, trained.pixel_format)).numpy()
    assert wanted.shape == (8, trained.dimensions)
    scores = wanted @ wanted.T
    assert scores[~np.eye(8, dtype=bool)].max() < 0.9995  # they differ
    for rows in (slice(0, 1), slice(1, 4), slice(None)):
        if ending == '.onnx':
            vectors = run_onnx(path, pixels[rows])
        else:
            images = torch.from_numpy(pixels[rows])
            vectors = torch.export.load(path).module()(images).numpy()
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, wanted[rows], atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


# The vectors of a network


LOGITS = {'embedding': 'logits', 'with_se': False, 'mirror': True}
FEATURES = {'embedding': 'features', 'with_se': True, 'mirror': False}


@pytest.mark.parametrize('ending', ['.onnx', '.pt2'])
@pytest.mark.parametrize(('options', 'projected'), [(LOGITS, True), (FEATURES, False)])
def test_embeddings(slim_backbone, pictures, tmp_path, ending, options, projected):
    if ending == '.onnx':
        need_onnx()
    trained = make_trained(pictures, projected=projected, **options)
    check_export(trained, pictures, tmp_path, ending)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('model_type', 'ending'),
    [
        ('test_efficientnet', '.onnx'),
        ('test_vit3', '.onnx'),  # attention pooling
        ('test_mambaout', '.onnx'),  # channels last
        ('eva02_tiny_patch14_224', '.pt2'),  # a rotary position embedding
    ],
)
def test_networks_of_each_kind(pictures, tmp_path, model_type, ending):
    if ending == '.onnx':
        need_onnx()
    options = {'embedding': 'features', 'shared_stages': 3}
    options |= {'side': 112, 'image_size': 112}
    trained = make_trained(pictures, model_type, **options)
    check_export(trained, pictures, tmp_path, ending)


# The file of a network


@pytest.fixture
def trained(slim_backbone, pictures):
    return make_trained(pictures)


def test_the_file_says_what_it_takes(trained, tmp_path, capsys):
    path = str(tmp_path / 'new folder/network.pt2')
    export_network(trained, path)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f'wrote {path} (') and '(N, 32, 32, 3)' in line
    assert line.endswith(' 1.000000')
    extra = {exports.METADATA: ''}
    torch.export.load(path, extra_files=extra)
    about = json.loads(extra[exports.METADATA])
    assert about['model'] == 'toy_model.pth'

    need_onnx()
    import onnx

    path = tmp_path / 'new folder/network.onnx'
    export_network(trained, str(path))
    network = onnx.load(str(path))
    onnx.checker.check_model(network)
    assert {entry.key: entry.value for entry in network.metadata_props} == about
    assert __file__.encode() not in path.read_bytes()  # nor other names from here


def refuse(trained, path, text):
    """Check that an export is refused and leaves an earlier file."""
    path.write_text('earlier')
    with pytest.raises(UserError, match=text):
        export_network(trained, str(path))
    assert path.read_text() == 'earlier'


@pytest.mark.parametrize('factor', [1.5, float('nan')])
def test_a_file_of_other_vectors_is_not_written(trained, tmp_path, monkeypatch, factor):
    fold = exports.fold_batch_norms

    def spoil(model):
        model = fold(model)
        with torch.no_grad():
            next(model.trunk.parameters())[0] *= factor
        return model

    monkeypatch.setattr(exports, 'fold_batch_norms', spoil)
    refuse(trained, tmp_path / 'network.pt2', 'not written')


def test_what_cannot_be_exported(trained, tmp_path, monkeypatch):
    refuse(trained, tmp_path / 'network.pth', r'network\.pth')
    with monkeypatch.context() as patch:
        patch.setattr(exports, 'trace', lambda trained: 1 / 0)
        refuse(trained, tmp_path / 'network.pt2', 'resnet18: division by zero')
    need_onnx()
    path = tmp_path / 'network.onnx'
    with monkeypatch.context() as patch:
        patch.setattr(exports, 'ONNX_LIMIT', 1000)
        refuse(trained, path, '.pt2')
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    refuse(trained, path, 'onnxscript')


# The vectors of a folder


def test_vectors_and_images_are_written_row_for_row(tmp_path):
    vectors = on_circle(0, 10, 20)
    collection = ToyCollection(tmp_path, PATHS, vectors, ['a', 'b', None])
    folder = tmp_path / 'out'
    export_vectors(collection, str(folder))
    assert sorted(os.listdir(folder)) == ['images.csv', 'vectors.npy']
    written = np.load(folder / 'vectors.npy')
    assert written.dtype == np.float32 and np.array_equal(written, vectors)
    table = pd.read_csv(folder / 'images.csv', encoding_errors='surrogateescape')
    assert table['row'].tolist() == [0, 1, 2] and table['path'].tolist() == PATHS
    assert table['class'].tolist()[:2] == ['a', 'b'] and table['class'].isna()[2]


def test_parquet_has_a_row_for_each_image_in_blocks(tmp_path, monkeypatch):
    parquet = pytest.importorskip('pyarrow.parquet', reason='pyarrow is optional')
    monkeypatch.setattr(exports, 'ROW_GROUP', 2)
    vectors = on_circle(0, 10, 20)
    collection = ToyCollection(tmp_path, PATHS, vectors, ['a', 'b', None])
    export_parquet(collection, str(tmp_path / 'out'))
    file = parquet.ParquetFile(tmp_path / 'out/images.parquet')
    assert file.num_row_groups == 2
    assert str(file.schema_arrow.field('vector').type).startswith('fixed_size_list')
    table = file.read().to_pydict()
    assert table['path'] == ['a/1.png', r'b/caf\xe9.png', '3.png']
    assert table['class'] == ['a', 'b', None]
    assert np.array_equal(np.float32(table['vector']), vectors)


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    with pytest.raises(UserError, match='pip install pyarrow'):
        export_parquet(ToyCollection(tmp_path, PATHS, on_circle(0, 10, 20)), 'out')


def test_a_full_disk_leaves_an_earlier_export(tmp_path, monkeypatch):
    collection = ToyCollection(tmp_path, PATHS, on_circle(0, 10, 20))
    export_vectors(collection, str(tmp_path / 'out'))
    before = (tmp_path / 'out/vectors.npy').read_bytes()

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'save', full)
    with pytest.raises(WriteError, match=r'vectors\.npy'):
        export_vectors(collection, str(tmp_path / 'out'))
    assert (tmp_path / 'out/vectors.npy').read_bytes() == before
    assert sorted(os.listdir(tmp_path / 'out')) == ['images.csv', 'vectors.npy']

"""The method, number by number: parameters, meta-classes, blocks, loss, embedding."""

import copy
import math
import pickle
import sys

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from trained import MODEL_ARGS, PIXEL_FORMAT, SIDE, save_model

from areir.errors import UserError
from areir.networks.layers import Layout
from areir.networks.projection import fit_projection
from areir.scripts import model as model_module
from areir.scripts import utils
from areir.scripts.model import (
    EnsembleLoss,
    EnsembleModel,
    SqueezeExcitation,
    TrainedModel,
    assign_meta_classes,
    count_parameters,
)

# trainable parameters of 48 heads, as published: model_type, with_se, meta_class_size
PARAMETERS = {
    ('resnet18', False, 12): 529_365_376,
    ('resnet18', True, 12): 529_561_984,
    ('resnet34', False, 12): 1_011_079_808,
    ('resnet34', True, 12): 1_011_276_416,
    ('resnet50', False, 12): 1_118_974_592,
    ('resnet50', True, 12): 1_122_120_320,
    ('resnext50_32x4d', False, 12): 1_094_093_696,
    ('resnext50_32x4d', True, 12): 1_097_239_424,
    ('resnet18', False, 192): 533_797_696,
}


def random_images(count, side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, side, side, generator=generator)


@pytest.fixture(scope='module')
def model():
    """Three heads with other batch statistics than the initial ones, in eval mode."""
    model = EnsembleModel('resnet18', 3, 4)
    with torch.no_grad():
        model.train()(random_images(4) * 3 + 1)
    return model.eval()


# Parameters and layers


@pytest.mark.parametrize(('variant', 'expected'), PARAMETERS.items())
def test_parameter_table(variant, expected):
    model_type, with_se, meta_class_size = variant
    trunk, head, total = count_parameters(model_type, 48, meta_class_size, with_se)
    assert (total, trunk + 48 * head) == (expected, expected)
    heads = 48 if model_type == 'resnet18' else 3  # 48 deeper ones take seconds
    with torch.device('meta'):
        model = EnsembleModel(model_type, heads, meta_class_size, with_se)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == trunk + heads * head


def printed_rows(monkeypatch, capsys, *flags):
    """Return what model.py prints: {(name, heads, meta_classes): total}."""
    monkeypatch.setattr(sys, 'argv', ['model.py', *flags])
    model_module.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {}
    for name, heads, meta_classes, *counts in lines[1:]:
        trunk, head, total = (int(count.replace(',', '')) for count in counts)
        assert total == trunk + int(heads) * head
        rows[name, int(heads), int(meta_classes)] = total
    return rows


def test_the_script_prints_the_variants_that_flags_choose(monkeypatch, capsys):
    flags = ['--model_type', 'resnet18', '--with_se', 'yes']
    flags += ['--ensemble_size', '8', '--meta_class_size', '5', '7']
    rows = printed_rows(monkeypatch, capsys, *flags)
    assert [*rows] == [('se-resnet18', 8, 5), ('se-resnet18', 8, 7)]
    monkeypatch.setattr(sys, 'argv', ['model.py', '--model_type', 'resnet19'])
    with pytest.raises(SystemExit) as end:
        utils.run_script(model_module.main)
    assert end.value.code == 2 and '--model_type' in capsys.readouterr().err


@torch.no_grad()
def test_squeeze_excitation_by_hand():
    block = SqueezeExcitation(Layout(16))
    features = torch.randn(3, 16, 5, 7)
    means = features.flatten(2).sum(dim=2) / 35
    hidden = (means @ block.squeeze.weight.T).clamp(min=0)
    gates = 1 / (1 + (-(hidden @ block.excite.weight.T)).exp())
    wanted = features * gates[:, :, None, None]
    assert torch.allclose(block(features), wanted, atol=1e-5)
    assert block.squeeze.bias is None and block.excite.bias is None


@torch.no_grad()
def test_head_and_trunk_by_hand(model):
    """They are a torchvision network with the block put in after layer2."""
    reference = torchvision.models.resnet18(num_classes=4)
    ((trunk,),), head = model.trunk, model.heads[1]
    parts = {name: getattr(trunk.network, name) for name in ('conv1', 'bn1', 'layer1')}
    for name, stage in zip(('layer2', 'layer3', 'layer4'), head.stages):
        parts[name] = stage[0]
    for name, part in {**parts, 'fc': head.fc}.items():
        reference.get_submodule(name).load_state_dict(part.state_dict())
    attention = head.stages[0].se
    reference.layer2.append(attention)
    images = random_images(2)
    assert torch.equal(model(images)[:, 1], reference.eval()(images))
    assert attention.squeeze.weight.shape == (16, 128)  # 128 channels, reduction 8


# Loss and embedding


def test_loss_by_hand():
    logits, meta_labels = torch.randn(5, 3, 4), torch.randint(0, 4, (5, 3))
    shares = logits.exp() / logits.exp().sum(dim=2, keepdim=True)
    losses = [
        -math.log(shares[n, e, meta_labels[n, e]]) for n in range(5) for e in range(3)
    ]
    loss = EnsembleLoss(nn.CrossEntropyLoss(), 3)(logits, meta_labels).item()
    assert loss == pytest.approx(sum(losses) / 15, rel=1e-5)


@torch.no_grad()
def test_embedding_by_hand(model):
    images = random_images(3)
    logits, embeddings = model(images), model.embed(images)
    lengths = logits.pow(2).sum(dim=2, keepdim=True).sqrt()
    wanted = (logits / lengths / math.sqrt(3)).flatten(1)
    assert torch.allclose(embeddings, wanted, atol=1e-6)
    cosines = [F.cosine_similarity(logits[0, e], logits[1, e], dim=0) for e in range(3)]
    product = embeddings[0] @ embeddings[1]
    assert torch.allclose(product, sum(cosines) / 3, atol=1e-6)


def test_a_model_in_training_mode_embeds_with_the_same_statistics(model):
    images = random_images(4)
    wanted = model.embed(images)
    trained = copy.deepcopy(model).train()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    assert torch.allclose(trained.embed(images), wanted, atol=1e-5)
    assert trained.training
    for name, value in trained.state_dict().items():
        assert torch.equal(before[name], value), name


# Meta-classes and seeds


@pytest.mark.parametrize(
    ('classes', 'meta_classes'), [(98, 12), (11318, 500), (7, 7), (5, 1)]
)
def test_meta_classes_are_balanced(classes, meta_classes):
    table = assign_meta_classes(classes, meta_classes, 6, seed=3)
    assert table.shape == (6, classes) and table.dtype == torch.int64
    for row in table:
        sizes = torch.bincount(row, minlength=meta_classes)
        assert len(sizes) == meta_classes and sizes.min() >= 1
        assert sizes.max() - sizes.min() <= 1


def test_meta_classes_come_from_the_seed():
    table = assign_meta_classes(98, 12, 48, seed=1)
    assert torch.equal(table, assign_meta_classes(98, 12, 48, seed=1))
    assert not torch.equal(table, assign_meta_classes(98, 12, 48, seed=2))
    assert len({tuple(row.tolist()) for row in table}) == 48
    # head 5 is the same whatever the number of heads
    assert torch.equal(table[5], assign_meta_classes(98, 12, 6, seed=1)[5])


@pytest.mark.parametrize('sizes', [(10, 11, 2), (10, 0, 2), (10, 5, 0)])
def test_impossible_meta_classes_are_refused(sizes):
    with pytest.raises(UserError, match=r'meta_class_size|ensemble_size'):
        assign_meta_classes(*sizes, seed=0)
    if 0 in sizes:
        with pytest.raises(UserError, match=r'meta_class_size|ensemble_size'):
            EnsembleModel('resnet18', sizes[2], sizes[1])


@pytest.mark.parametrize('model_type', ['resnet18', 'test_vit'])
def test_heads_are_drawn_one_by_one(model_type):
    state = torch.random.get_rng_state()
    three = EnsembleModel(model_type, 3, 4, seed=7)
    assert state.equal(torch.random.get_rng_state())
    torch.rand(3)
    one = EnsembleModel(model_type, 1, 4, seed=7)
    weights = three.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert not torch.equal(three.heads[0].fc.weight, three.heads[1].fc.weight)
    plain = EnsembleModel(model_type, 1, 4, with_se=False, seed=7)
    assert torch.equal(plain.heads[0].fc.weight, one.heads[0].fc.weight)
    other = next(EnsembleModel(model_type, 1, 4, seed=8).trunk.parameters())
    assert not torch.equal(other, next(one.trunk.parameters()))


# Model files


@pytest.mark.parametrize('dimensions', [0, 4])
def test_a_trained_model_embeds_as_the_model_that_was_saved(tmp_path, dimensions):
    options = {'shared_stages': 2, 'embedding': 'features', 'mirror': True}
    model_args = {**MODEL_ARGS, **options, 'neutral_se': True}
    source = EnsembleModel(**model_args, seed=4).eval()
    pixels = torch.randint(0, 256, (9, 3, SIDE, SIDE), dtype=torch.uint8)
    images = PIXEL_FORMAT.normalise(pixels)
    changed = {'state_dict': source.state_dict(), 'model_args': model_args}
    if dimensions:
        projection = fit_projection(source.embed(images), dimensions, whitening=0.75)
        source.projection, changed['projection'] = (
            projection,
            dict(projection.named_buffers()),
        )
    path = str(tmp_path / 'run_model.pth')
    saved = save_model(path, **changed)
    trained = TrainedModel(path)
    assert (trained.path, trained.version) == (path, 'v0')
    assert trained.pixel_format == PIXEL_FORMAT
    assert trained.dimensions == (dimensions or source.length)
    assert trained.calibration == saved['calibration']
    assert not trained.model.training
    assert not any(weight.requires_grad for weight in trained.model.parameters())

    wanted = source.embed(images)
    torch.testing.assert_close(trained.model.embed(images), wanted)
    embeddings = trained.embedder(torch.device('cpu'))(pixels)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(9), atol=1e-5)
    assert F.cosine_similarity(embeddings, wanted).min() > 0.99


class RunsWhenUnpickled:
    def __reduce__(self):
        return pytest.fail, ('a pickled object was executed',)


def test_objects_in_a_model_file_are_not_executed(tmp_path):
    path = tmp_path / 'bad_model.pth'
    saved = {'format': 1, **save_model(path)}
    torch.save({**saved, 'calibration': RunsWhenUnpickled()}, path)
    for content in (path.read_bytes(), pickle.dumps(RunsWhenUnpickled())):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r'bad_model\.pth'):
            TrainedModel(str(path))

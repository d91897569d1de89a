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
from trained import MEAN, MODEL_ARGS, SIDE, STD, save_model

import model as model_module
import utils
from areir.data.images import normalise
from areir.errors import UserError
from areir.hardware import has_native_bf16
from model import (
    MODEL_TYPES,
    EnsembleModel,
    SqueezeExcitation,
    TrainedModel,
    assign_meta_classes,
    count_parameters,
    ensemble_loss,
    folded,
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


@pytest.mark.slow
def test_the_script_prints_the_table(monkeypatch, capsys):
    rows = printed_rows(monkeypatch, capsys)
    assert len(rows) == 3 * 2 * len(MODEL_TYPES)
    for (model_type, with_se, meta_class_size), expected in PARAMETERS.items():
        name = f'se-{model_type}' if with_se else model_type
        assert rows[name, 48, meta_class_size] == expected


def test_the_script_prints_the_variants_that_flags_choose(monkeypatch, capsys):
    flags = ['--model_type', 'resnet18', '--with_se', 'yes']
    flags += ['--ensemble_size', '8', '--meta_class_size', '5', '7']
    rows = printed_rows(monkeypatch, capsys, *flags)
    assert [*rows] == [('se-resnet18', 8, 5), ('se-resnet18', 8, 7)]


def test_the_script_refuses_other_networks(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['model.py', '--model_type', 'vgg16'])
    with pytest.raises(SystemExit) as end:
        utils.run_script(model_module.main)
    assert end.value.code == 2 and '--model_type' in capsys.readouterr().err


@pytest.mark.parametrize('model_type', MODEL_TYPES)
@pytest.mark.parametrize('with_se', [True, False])
def test_shapes_of_all_variants(model_type, with_se):
    model = EnsembleModel(model_type, 2, 5, with_se)
    images = random_images(2, 32)
    with torch.no_grad():
        assert model(images).shape == (2, 2, 5)
    assert model.embed(images).shape == (2, 10)
    blocks = [isinstance(module, SqueezeExcitation) for module in model.modules()]
    assert any(blocks) == with_se


@pytest.mark.parametrize(
    'arguments', [('vgg16', 2, 3), ('resnet18', 0, 3), ('resnet18', 2, 0)]
)
def test_impossible_models_are_refused(arguments):
    with pytest.raises(UserError, match=r'vgg16|ensemble_size|meta_class_size'):
        EnsembleModel(*arguments)


@torch.no_grad()
def test_squeeze_excitation_by_hand():
    block = SqueezeExcitation(16)
    features = torch.randn(3, 16, 5, 7)
    output = block(features)
    for n in range(3):
        means = [features[n, c].sum() / 35 for c in range(16)]
        hidden = []
        for row in block.squeeze.weight:
            value = sum(weight * mean for weight, mean in zip(row, means))
            hidden.append(value.clamp(min=0))
        for c, row in enumerate(block.excite.weight):
            value = sum(weight * number for weight, number in zip(row, hidden))
            gate = 1 / (1 + math.exp(-value))
            assert torch.allclose(output[n, c], features[n, c] * gate, atol=1e-5)
    assert block.squeeze.bias is None and block.excite.bias is None


@torch.no_grad()
def test_head_and_trunk_by_hand(model):
    """They are a torchvision network with the block put in after layer2."""
    reference = torchvision.models.resnet18(num_classes=4)
    head = model.heads[1]
    for name in ('conv1', 'bn1', 'layer1'):
        weights = getattr(model.trunk, name).state_dict()
        getattr(reference, name).load_state_dict(weights)
    for name in ('layer2', 'layer3', 'layer4', 'fc'):
        getattr(reference, name).load_state_dict(getattr(head, name).state_dict())
    reference.layer2 = nn.Sequential(reference.layer2, head.se)
    images = random_images(2)
    assert torch.allclose(model(images)[:, 1], reference.eval()(images), atol=1e-5)
    assert head.se.squeeze.weight.shape == (16, 128)  # 128 channels, reduction 8


# Loss and embedding


def test_loss_by_hand():
    logits, meta_labels = torch.randn(5, 3, 4), torch.randint(0, 4, (5, 3))
    losses = []
    for n in range(5):
        for e in range(3):
            exponentials = logits[n, e].exp()
            share = exponentials[meta_labels[n, e]] / exponentials.sum()
            losses.append(-math.log(share))
    loss = ensemble_loss(logits, meta_labels).item()
    assert loss == pytest.approx(sum(losses) / 15, rel=1e-5)


@torch.no_grad()
def test_embedding_by_hand(model):
    images = random_images(3)
    logits, embeddings = model(images), model.embed(images)
    for n in range(3):
        heads = []
        for e in range(3):
            length = logits[n, e].pow(2).sum().sqrt()
            heads.append(logits[n, e] / length / math.sqrt(3))
        assert torch.allclose(embeddings[n], torch.cat(heads), atol=1e-6)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3), atol=1e-6)
    cosines = [F.cosine_similarity(logits[0, e], logits[1, e], dim=0) for e in range(3)]
    product = embeddings[0] @ embeddings[1]
    assert torch.allclose(product, sum(cosines) / 3, atol=1e-6)


def test_an_embedding_depends_on_its_image_alone(model):
    images = random_images(12)
    alone = torch.cat([model.embed(image[None]) for image in images])
    order = torch.randperm(12)
    parts = torch.cat([model.embed(part) for part in images.split(5)])
    shuffled = model.embed(images[order])[order.argsort()]
    for others in (model.embed(images), parts, shuffled):
        assert torch.allclose(alone, others, atol=1e-5)


def test_a_model_in_training_mode_embeds_with_the_same_statistics(model):
    images = random_images(4)
    wanted = model.embed(images)
    trained = copy.deepcopy(model).train()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    assert torch.allclose(trained.embed(images), wanted, atol=1e-5)
    assert trained.training
    for name, value in trained.state_dict().items():
        assert torch.equal(before[name], value), name


def test_some_members_embed_their_columns():
    whole = EnsembleModel('resnet18', 4, 3, seed=5)
    some = EnsembleModel('resnet18', 4, 3, seed=5, members=[1, 3])
    images = random_images(2, 32)
    columns = whole.embed(images).view(2, 4, 3)[:, [1, 3]].flatten(1)
    assert torch.equal(some.embed(images), columns)


@pytest.mark.parametrize('with_se', [True, False])
@pytest.mark.parametrize('model_type', ['resnet18', 'resnext50_32x4d'])
def test_folded_models_embed_alike(model_type, with_se):
    model = EnsembleModel(model_type, 2, 5, with_se).train()
    images = random_images(4, 32)
    with torch.no_grad():
        for _ in range(3):  # other statistics than the initial ones
            model(images)
    wanted = model.embed(images)
    assert torch.allclose(folded(model, torch.float32).embed(images), wanted, atol=1e-5)
    narrow = folded(model, torch.bfloat16)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in narrow.modules())
    embeddings = narrow.embed(images)
    assert embeddings.dtype == torch.float32
    assert F.cosine_similarity(embeddings, wanted).min() > 0.999
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    assert model.training


# Meta-classes and seeds


@pytest.mark.parametrize(
    ('classes', 'meta_classes'),
    [(98, 12), (100, 12), (11318, 500), (7, 7), (5, 1), (13, 4)],
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
    state = torch.random.get_rng_state()
    assign_meta_classes(98, 12, 4, seed=1)
    assert state.equal(torch.random.get_rng_state())


@pytest.mark.parametrize('sizes', [(10, 11, 2), (10, 0, 2), (10, 5, 0)])
def test_impossible_meta_classes_are_refused(sizes):
    with pytest.raises(UserError, match=r'meta_class_size|ensemble_size'):
        assign_meta_classes(*sizes, seed=0)


def test_heads_are_drawn_one_by_one():
    three, five = (EnsembleModel('resnet18', size, 4, seed=7) for size in (3, 5))
    weights = five.state_dict()
    for name, value in three.state_dict().items():
        assert torch.equal(value, weights[name]), name
    heads = [head.layer3[0].conv1.weight for head in five.heads]
    assert not torch.equal(heads[0], heads[1])
    plain = EnsembleModel('resnet18', 3, 4, with_se=False, seed=7)
    assert torch.equal(plain.heads[2].fc.weight, three.heads[2].fc.weight)
    other = EnsembleModel('resnet18', 1, 4, seed=8)
    assert not torch.equal(three.trunk.conv1.weight, other.trunk.conv1.weight)


def test_drawing_leaves_the_global_state_alone():
    state = torch.random.get_rng_state()
    EnsembleModel('resnet18', 1, 4, seed=8)
    assert state.equal(torch.random.get_rng_state())


# Model files


def test_a_trained_model_embeds_as_the_model_that_was_saved(tmp_path):
    saved = save_model(tmp_path / 'run_model.pth')
    trained = TrainedModel(str(tmp_path / 'run_model.pth'))
    assert (trained.path, trained.version) == (str(tmp_path / 'run_model.pth'), 'v0')
    assert (trained.image_size, trained.dimensions) == (SIDE, 6)
    assert (trained.mean, trained.std) == (MEAN, STD)
    assert trained.calibration == saved['calibration']
    assert not trained.model.training
    assert not any(weight.requires_grad for weight in trained.model.parameters())

    pixels = torch.randint(0, 256, (5, 3, SIDE, SIDE), dtype=torch.uint8)
    source = EnsembleModel(**MODEL_ARGS, seed=0)
    wanted = source.embed(normalise(pixels, MEAN, STD))
    embedder = trained.embedder(torch.device('cpu'))
    assert embedder.image_size == SIDE
    embeddings = embedder(pixels)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(5), atol=1e-5)
    dtype = torch.bfloat16 if has_native_bf16(torch.device('cpu')) else torch.float32
    same = folded(source, dtype).embed(normalise(pixels, MEAN, STD))
    assert torch.equal(embeddings, same)
    assert F.cosine_similarity(embeddings, wanted).min() > 0.999


def test_a_model_without_calibration_is_read(tmp_path):
    save_model(tmp_path / 'run_model.pth', calibration=None)
    assert TrainedModel(str(tmp_path / 'run_model.pth')).calibration is None


TAMPERED = {
    'list': lambda saved: [1, 2],
    'empty': lambda saved: {},
    'another format': lambda saved: {**saved, 'format': 0},
    'no weights': lambda saved: {k: v for k, v in saved.items() if k != 'state_dict'},
}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """The contents of a model file."""
    return save_model(tmp_path_factory.mktemp('saved') / 'run_model.pth')


@pytest.mark.parametrize('kind', [*TAMPERED])
def test_files_that_are_no_model_are_refused_by_name(tmp_path, saved, kind):
    torch.save(TAMPERED[kind](saved), tmp_path / 'bad_model.pth')
    with pytest.raises(UserError, match=r'bad_model\.pth .*train\.py') as refused:
        TrainedModel(str(tmp_path / 'bad_model.pth'))
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize('content', [b'', b'import os', None])
def test_files_that_cannot_be_read_are_refused_by_name(tmp_path, saved, content):
    path = tmp_path / 'bad_model.pth'
    torch.save(saved, path)
    path.write_bytes(path.read_bytes()[:100_000] if content is None else content)
    with pytest.raises(UserError, match=r'bad_model\.pth'):
        TrainedModel(str(path))
    with pytest.raises(UserError, match=r'absent_model\.pth'):
        TrainedModel(str(tmp_path / 'absent_model.pth'))


class RunsWhenUnpickled:
    def __reduce__(self):
        return pytest.fail, ('a pickled object was executed',)


def test_a_model_that_would_execute_something_is_refused(tmp_path, saved):
    with open(tmp_path / 'evil_model.pth', 'wb') as file:
        pickle.dump({'state_dict': RunsWhenUnpickled()}, file)
    evil = {**saved, 'calibration': RunsWhenUnpickled()}
    torch.save(evil, tmp_path / 'evil_too_model.pth')
    for name in ('evil_model.pth', 'evil_too_model.pth'):
        with pytest.raises(UserError, match=name):
            TrainedModel(str(tmp_path / name))

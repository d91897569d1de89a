"""The method, number by number: parameters, meta-classes, blocks, loss, embedding, weights."""
import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from model import (
    MODEL_TYPES,
    EnsembleModel,
    SqueezeExcitation,
    assign_meta_classes,
    count_parameters,
    ensemble_loss,
    imagenet_weights,
    load_weights,
)

# trainable parameters of 48 heads, as published: (model_type, with_se, meta_class_size)
PARAMETERS = {
    ('resnet18', False, 12): 529_365_376, ('resnet18', True, 12): 529_561_984,
    ('resnet34', False, 12): 1_011_079_808, ('resnet34', True, 12): 1_011_276_416,
    ('resnet50', False, 12): 1_118_974_592, ('resnet50', True, 12): 1_122_120_320,
    ('resnext50_32x4d', False, 12): 1_094_093_696, ('resnext50_32x4d', True, 12): 1_097_239_424,
    ('resnet18', False, 192): 533_797_696,
}


@pytest.fixture(scope='module')
def model():
    """Three heads whose batch statistics are not the initial ones, so that evaluation mode matters."""
    model = EnsembleModel('resnet18', 3, 4)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64) * 3 + 1)
    return model.eval()


@pytest.mark.parametrize(('variant', 'expected'), PARAMETERS.items())
def test_parameter_table(variant, expected):
    model_type, with_se, meta_class_size = variant
    with torch.device('meta'):
        model = EnsembleModel(model_type, 48, meta_class_size, with_se)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    trunk, head, total = count_parameters(model_type, 48, meta_class_size, with_se)
    assert (total, total - 48 * head) == (expected, trunk)


@pytest.mark.parametrize('model_type', MODEL_TYPES)
@pytest.mark.parametrize('with_se', [True, False])
def test_shapes_of_all_variants(model_type, with_se):
    model = EnsembleModel(model_type, 2, 5, with_se)
    images = torch.randn(2, 3, 64, 64)
    assert model(images).shape == (2, 2, 5)
    assert model.embed(images).shape == (2, 10)
    assert any(isinstance(module, SqueezeExcitation) for module in model.modules()) == with_se


@pytest.mark.parametrize('arguments', [('vgg16', 2, 3), ('resnet18', 0, 3), ('resnet18', 2, 0)])
def test_impossible_models_are_refused(arguments):
    with pytest.raises(ValueError, match=r'vgg16|at least 1'):
        EnsembleModel(*arguments)


@torch.no_grad()
def test_squeeze_excitation_by_hand():
    block = SqueezeExcitation(16)
    features = torch.randn(3, 16, 5, 7)
    output = block(features)
    for n in range(3):
        means = [features[n, c].sum() / 35 for c in range(16)]
        hidden = [sum(block.squeeze.weight[j, c] * means[c] for c in range(16)).clamp(min=0) for j in range(2)]
        for c in range(16):
            gate = 1 / (1 + math.exp(-sum(block.excite.weight[c, j] * hidden[j] for j in range(2))))
            assert torch.allclose(output[n, c], features[n, c] * gate, atol=1e-5)
    assert block.squeeze.bias is None and block.excite.bias is None


def test_head_and_trunk_by_hand(model):
    """The same layers in the same order as a torchvision network with the block put in after layer2."""
    reference = torchvision.models.resnet18(num_classes=4)
    head = model.heads[1]
    for name in ('conv1', 'bn1', 'layer1'):
        getattr(reference, name).load_state_dict(getattr(model.trunk, name).state_dict())
    for name in ('layer2', 'layer3', 'layer4', 'fc'):
        getattr(reference, name).load_state_dict(getattr(head, name).state_dict())
    reference.layer2 = nn.Sequential(reference.layer2, head.se)
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(model(images)[:, 1], reference.eval()(images), atol=1e-5)
    assert head.se.squeeze.weight.shape == (16, 128)  # 128 channels, reduction 8


def test_loss_by_hand():
    logits, meta_labels = torch.randn(5, 3, 4), torch.randint(0, 4, (5, 3))
    expected = sum(-math.log(logits[n, e].exp()[meta_labels[n, e]] / logits[n, e].exp().sum())
                   for n in range(5) for e in range(3)) / 15
    assert ensemble_loss(logits, meta_labels).item() == pytest.approx(expected, rel=1e-5)


def test_embedding_by_hand(model):
    images = torch.randn(3, 3, 64, 64)
    logits, embeddings = model(images), model.embed(images)
    for n in range(3):
        heads = [logits[n, e] / logits[n, e].pow(2).sum().sqrt() / math.sqrt(3) for e in range(3)]
        assert torch.allclose(embeddings[n], torch.cat(heads), atol=1e-6)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3), atol=1e-6)
    cosines = [F.cosine_similarity(logits[0, e], logits[1, e], dim=0) for e in range(3)]
    assert torch.allclose(embeddings[0] @ embeddings[1], sum(cosines) / 3, atol=1e-6)


def test_embedding_depends_on_nothing_but_the_image(model):
    images = torch.randn(12, 3, 64, 64)
    alone = torch.cat([model.embed(image[None]) for image in images])
    order = torch.randperm(12)
    for others in (model.embed(images), torch.cat([model.embed(part) for part in images.split(5)]),
                   model.embed(images[order])[order.argsort()]):
        assert torch.allclose(alone, others, atol=1e-5)
    model.train()  # a model left in training mode must not use or change batch statistics either
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.allclose(alone, model.embed(images), atol=1e-5)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()


@pytest.mark.parametrize(('classes', 'meta_classes'), [(98, 12), (100, 12), (11318, 500), (7, 7), (5, 1), (13, 4)])
def test_meta_classes_are_balanced(classes, meta_classes):
    table = assign_meta_classes(classes, meta_classes, 6, seed=3)
    assert table.shape == (6, classes) and table.dtype == torch.int64
    for row in table:
        sizes = torch.bincount(row, minlength=meta_classes)
        assert len(sizes) == meta_classes and sizes.min() >= 1 and sizes.max() - sizes.min() <= 1


def test_meta_classes_come_from_the_seed():
    table = assign_meta_classes(98, 12, 48, seed=1)
    assert torch.equal(table, assign_meta_classes(98, 12, 48, seed=1))
    assert not torch.equal(table, assign_meta_classes(98, 12, 48, seed=2))
    assert len({tuple(row.tolist()) for row in table}) == 48
    # one head alone: head 5 is the same whatever the number of heads
    assert torch.equal(table[5], assign_meta_classes(98, 12, 6, seed=1)[5])
    state = torch.random.get_rng_state()
    assign_meta_classes(98, 12, 4, seed=1)
    assert state.equal(torch.random.get_rng_state())


@pytest.mark.parametrize('sizes', [(10, 11, 2), (10, 0, 2), (10, 5, 0)])
def test_impossible_meta_classes_are_refused(sizes):
    with pytest.raises(ValueError, match=r'meta_class_size|ensemble_size'):
        assign_meta_classes(*sizes, seed=0)


def test_heads_are_drawn_one_by_one():
    three, five = (EnsembleModel('resnet18', size, 4, seed=7) for size in (3, 5))
    for name, value in three.state_dict().items():
        assert torch.equal(value, five.state_dict()[name]), name
    heads = [head.layer3[0].conv1.weight for head in five.heads]
    assert not torch.equal(heads[0], heads[1])
    plain = EnsembleModel('resnet18', 3, 4, with_se=False, seed=7)  # the same without blocks
    assert torch.equal(plain.heads[2].fc.weight, three.heads[2].fc.weight)
    assert not torch.equal(three.trunk.conv1.weight, EnsembleModel('resnet18', 1, 4, seed=8).trunk.conv1.weight)


@pytest.mark.parametrize('with_se', [True, False])
def test_torchvision_weights_go_to_trunk_and_every_head(with_se):
    state = torchvision.models.resnet18(num_classes=1000).state_dict()
    model = EnsembleModel('resnet18', 2, 4, with_se)
    fc = model.heads[1].fc.weight.clone()
    load_weights(model, state)
    assert torch.equal(model.trunk.layer1[1].conv2.weight, state['layer1.1.conv2.weight'])
    for head in model.heads:
        assert torch.equal(head.layer2[0].downsample[0].weight, state['layer2.0.downsample.0.weight'])
        assert torch.equal(head.layer4[1].bn2.running_var, state['layer4.1.bn2.running_var'])
    assert torch.equal(model.heads[1].fc.weight, fc)


def test_own_weights_are_taken_whole():
    source = EnsembleModel('resnet18', 3, 4, seed=1)
    checkpoint = {'state_dict': source.state_dict()}
    target = EnsembleModel('resnet18', 2, 4, seed=2)
    load_weights(target, checkpoint)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    other_size = EnsembleModel('resnet18', 2, 6, seed=2)
    load_weights(other_size, checkpoint)
    assert torch.equal(other_size.heads[1].se.excite.weight, source.heads[1].se.excite.weight)
    assert other_size.heads[1].fc.weight.shape[0] == 6


def test_weights_that_do_not_fit_are_refused():
    own = {'state_dict': EnsembleModel('resnet18', 2, 4).state_dict()}
    for model, weights in ((EnsembleModel('resnet18', 3, 4), own),                       # too few heads
                           (EnsembleModel('resnet18', 2, 4, with_se=False), own),        # blocks without a place
                           (EnsembleModel('resnet50', 1, 4), own),
                           (EnsembleModel('resnet18', 1, 4), torchvision.models.resnet50().state_dict()),
                           (EnsembleModel('resnet18', 1, 4), torchvision.models.resnet34().state_dict()),  # deeper
                           (EnsembleModel('resnet18', 1, 4), {}),
                           (EnsembleModel('resnet18', 1, 4), [1, 2])):
        with pytest.raises(ValueError, match='weights do not fit the model: '):
            load_weights(model, weights)


def test_imagenet_weights_come_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    state = torchvision.models.resnet18().state_dict()
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    torch.save(state, cache / 'resnet18-f37072fd.pth')
    assert torch.equal(imagenet_weights('resnet18')['conv1.weight'], state['conv1.weight'])


def test_imagenet_weights_offline_say_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # nothing listens there
    with pytest.raises(ValueError) as refused:
        imagenet_weights('resnet50')
    text = str(refused.value)
    assert 'https://download.pytorch.org/models/resnet50-' in text and str(tmp_path) in text
    assert '--weights none' in text and '\n' not in text

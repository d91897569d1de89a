"""Networks cut into stages: shapes, equality with torchvision's own, weights."""

import pytest
import torch
import torchvision

from areir.errors import UserError
from areir.networks.backbones import (
    FAMILIES,
    build_backbone,
    cut,
    find_family,
    has_depthwise,
    model_types,
)
from areir.networks.layers import Chain, folded
from areir.networks.pretrained import find_weights, load_weights
from model import EnsembleModel

SMALL = (  # one of each way to be cut
    *('resnet18', 'convnext_tiny', 'efficientnet_b0', 'efficientnet_v2_s'),
    *('mobilenet_v3_large', 'mobilenet_v3_small', 'regnet_y_400mf', 'swin_t'),
)
OTHERS = ('resnext50_32x4d', 'wide_resnet50_2', 'regnet_x_400mf', 'swin_v2_t')
CLASSIFIERS = {  # torchvision's layer that follows the pooled features
    'resnet18': 'fc',
    'convnext_tiny': 'classifier.2',
    'efficientnet_b0': 'classifier',
    'mobilenet_v3_small': 'classifier',
    'regnet_y_400mf': 'fc',
    'swin_t': 'head',
}
FEATURES = {'embedding': 'features', 'mirror': True, 'neutral_se': True}


def random_images(count=2, size=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator)


def run_stages(network, model_type, images):
    """Return the output of each stage."""
    outputs = [images]
    for stage in cut(network, find_family(model_type)).stages:
        outputs.append(Chain(stage).eval()(outputs[-1]))
    return outputs[1:]


@pytest.mark.parametrize('model_type', SMALL)
@torch.no_grad()
def test_stages_halve_the_size_and_end_as_the_network_does(model_type):
    network = build_backbone(model_type, 7).eval()
    outputs = run_stages(network, model_type, random_images())
    assert [output.shape[2] for output in outputs] == [16, 8, 4, 2]
    # the network itself, up to its pooling
    seen = []
    network.avgpool.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs))
    network(random_images())
    torch.testing.assert_close(outputs[-1], seen[0][0])


@pytest.mark.parametrize('model_type', OTHERS)
def test_networks_of_the_same_family_are_cut_alike(model_type):
    """Shapes alone, on the device that computes nothing."""
    with torch.device('meta'):
        network = build_backbone(model_type, 7)
        outputs = run_stages(network, model_type, torch.empty(2, 3, 96, 96))
        shapes = [tuple(output.shape[2:]) for output in outputs]
    assert shapes == [(24, 24), (12, 12), (6, 6), (3, 3)]


@pytest.mark.parametrize('model_type', CLASSIFIERS)
@pytest.mark.parametrize('shared', [1, 2, 3])
@torch.no_grad()
def test_pooled_features_are_what_torchvision_classifies(model_type, shared):
    network = build_backbone(model_type, 7).eval()
    network.train()(random_images(4))  # other statistics than the initial ones
    network.eval()
    seen = []
    layer = network.get_submodule(CLASSIFIERS[model_type])
    layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    network(random_images())
    model = EnsembleModel(
        model_type, 1, 3, with_se=False, shared_stages=shared, embedding='features'
    ).eval()
    load_weights(model, network.state_dict(), 'FILE')
    pooled = model.describe(random_images())
    assert len(pooled) == 5 - shared  # of the trunk and of each stage of the head
    torch.testing.assert_close(pooled[-1], seen[0].flatten(1), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_head_ends_as_convnext_does():
    """Its layer norm follows the pooling."""
    network = build_backbone('convnext_tiny', 3).eval()
    model = EnsembleModel('convnext_tiny', 1, 3, with_se=False).eval()
    load_weights(model, network.state_dict(), 'FILE')
    head = model.heads[0]
    network.classifier[2] = head.fc
    torch.testing.assert_close(model(random_images())[:, 0], network(random_images()))


@pytest.mark.parametrize('model_type', SMALL)
@pytest.mark.parametrize('shared', [1, 2, 3])
def test_weights_of_torchvision_fit(model_type, shared):
    state = build_backbone(model_type, 5).state_dict()
    model = EnsembleModel(model_type, 2, 3, shared_stages=shared)
    load_weights(model, state, 'FILE')
    whole = dict(model.trunk.state_dict())
    whole.update(model.heads[1].state_dict())
    taken = [name for name in state if name in whole and 'num_batches' not in name]
    taken = [name for name in taken if not name.startswith(('fc.', 'head.'))]
    assert len(taken) > 50
    assert all(torch.equal(whole[name], state[name]) for name in taken)


def test_every_family_has_a_network():
    for family in FAMILIES:
        assert any(name.startswith(family) for name in model_types())
    assert len(model_types()) > 40


@pytest.mark.parametrize('name', ['vgg16', 'resnet19', '', 'vit_b_16'])
def test_other_networks_are_refused(name):
    with pytest.raises(UserError, match='choose a ResNet'):
        EnsembleModel(name, 1, 2)


@pytest.mark.parametrize('shared', [0, 4])
def test_a_head_needs_a_stage(shared):
    with pytest.raises(UserError, match='shared_stages'):
        EnsembleModel('resnet18', 1, 2, shared_stages=shared)


@torch.no_grad()
def test_a_list_of_stages_gives_every_head_the_same_weights():
    network = build_backbone('resnet18', 1)
    stages = [Chain(stage) for stage in cut(network, find_family('resnet18')).stages]
    model = EnsembleModel(stages, 2, 4, shared_stages=2, with_se=False).eval()
    features = model.trunk(random_images())
    first, second = (head.pooled(head.outputs(features))[-1] for head in model.heads)
    assert torch.equal(first, second)
    wanted = torch.nn.Sequential(*stages).eval()(random_images()).mean(dim=(2, 3))
    torch.testing.assert_close(first, wanted)
    assert model.heads[0].stage4 is not model.heads[1].stage4


def test_depthwise_networks_are_recognised():
    assert has_depthwise('mobilenet_v3_small') and has_depthwise('convnext_tiny')
    assert not has_depthwise('resnet18') and not has_depthwise('resnext50_32x4d')


def test_versions_of_weights():
    assert 'V1' in find_weights('resnet50', 'imagenet').name
    assert 'V2' in find_weights('resnet50', 'imagenet_v2').name
    newest = torchvision.models.ConvNeXt_Tiny_Weights.DEFAULT
    assert find_weights('convnext_tiny', 'imagenet') is newest
    with pytest.raises(UserError, match='imagenet_v2'):
        find_weights('resnet18', 'imagenet_v2')


# Embeddings by features


@pytest.fixture(scope='module')
def describer():
    """A network of two heads, embedding by features and mirror images."""
    options = {'embedding': 'features', 'mirror': True, 'neutral_se': True}
    model = EnsembleModel('resnet18', 2, 3, seed=2, **options)
    model.train()
    for size in range(3):  # move the statistics of batch norm
        model(random_images(4) + size / 10)
    return model.eval()


def test_features_are_those_of_trunk_and_stages(describer):
    images = random_images(3)
    embeddings = describer.embed(images)
    assert embeddings.shape == (3, 2 * (64 + 128 + 256 + 512)) == (3, 1920)
    assert describer.dimensions == 1920
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3), atol=1e-5)
    # by hand, head by head
    score = 0
    with torch.no_grad():
        for head in describer.heads:
            pooled = []
            for view in (images, images.flip(3)):
                outputs = [describer.trunk(view)]
                for names in head.stages:
                    outputs.append(head.run(names, outputs[-1]))
                pooled.append([output.mean(dim=(2, 3)) for output in outputs])
            for one, other in zip(*pooled):
                vector = one + other
                score += torch.cosine_similarity(vector[0], vector[1], dim=0) / 8
    assert (embeddings[0] @ embeddings[1]).item() == pytest.approx(
        score.item(), abs=1e-5
    )


@torch.no_grad()
def test_stages_are_described_within_the_trunk_as_well():
    """With three shared stages, as if the first two were not shared."""
    options = {'with_se': False, 'shared_stages': 3}
    model = EnsembleModel('resnet18', 2, 3, embedding='stages', **options).eval()
    images = random_images(3)
    pooled, features = [], images
    for names in (
        ['conv1', 'bn1', 'relu', 'maxpool', 'layer1'],
        ['layer2'],
        ['layer3'],
    ):
        features = model.trunk.run(names, features)
        pooled.append(features.mean(dim=(2, 3)))
    wanted = []
    for head in model.heads:
        last = head.run(['layer4'], features).mean(dim=(2, 3))
        wanted += [*pooled, last]
    parts = model.describe(images)
    assert [part.shape[1] for part in parts] == 2 * [64, 128, 256, 512]
    assert model.dimensions == 1920
    for part, vector in zip(parts, wanted):
        torch.testing.assert_close(part, vector)


def test_one_shared_stage_has_no_stages_before_it():
    models = [
        EnsembleModel('resnet18', 2, 3, embedding=embedding).eval()
        for embedding in ('features', 'stages')
    ]
    assert torch.equal(*(model.embed(random_images(2)) for model in models))


def test_a_mirror_image_has_the_same_embedding(describer):
    images = random_images(3)
    torch.testing.assert_close(describer.embed(images), describer.embed(images.flip(3)))


def test_an_embedding_does_not_depend_on_its_batch(describer):
    images = random_images(5)
    alone = torch.cat([describer.embed(image[None]) for image in images])
    torch.testing.assert_close(describer.embed(images), alone, atol=1e-5, rtol=1e-4)


def test_the_folded_copy_embeds_alike(describer):
    images = random_images(3)
    fast = folded(describer, torch.float32).embed(images)
    torch.testing.assert_close(fast, describer.embed(images), atol=1e-5, rtol=1e-3)
    half = folded(describer, torch.bfloat16).embed(images)
    assert torch.cosine_similarity(half, fast).min() > 0.999


def test_neutral_attention_passes_features_unchanged():
    plain = EnsembleModel('resnet18', 1, 3, with_se=False, seed=4).eval()
    neutral = EnsembleModel('resnet18', 1, 3, neutral_se=True, seed=4).eval()
    with torch.no_grad():
        outputs = [model(random_images()) for model in (plain, neutral)]
    torch.testing.assert_close(*outputs)

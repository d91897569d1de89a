"""Ensembles of every family of networks, against torchvision's own and by hand."""

import pytest
import torch
from torch.nn import functional as F
from trained import take_statistics

from areir.errors import UserError
from areir.networks.backbones import (
    build_backbone,
    cut,
    find_family,
)
from areir.networks.layers import MeanPool, Stages, folded
from areir.networks.pretrained import load_weights
from areir.networks.projection import fit_projection
from model import EnsembleModel, count_parameters

CLASSIFIERS = {  # a network of each family: the layer that follows the pooled features
    'resnet18': 'fc',
    'convnext_tiny': 'classifier.2',
    'efficientnet_b0': 'classifier',
    'mobilenet_v3_small': 'classifier',
    'regnet_y_400mf': 'fc',
    'swin_t': 'head',
}
OPTIONS = {'embedding': 'features', 'mirror': True, 'neutral_se': True}
families = pytest.mark.parametrize('model_type', CLASSIFIERS)


def random_images(count=2, side=64, seed=0):
    """Return images of large spots, which an untrained network tells apart."""
    generator = torch.Generator().manual_seed(seed)
    spots = 3 * torch.randn(count, 3, 4, 4, generator=generator)
    return F.interpolate(spots, (side, side), mode='bicubic')


def run_stages(network, model_type, images):
    """Return the output of each stage."""
    stages = cut(network, find_family(model_type)).stages
    return Stages(stages).eval().outputs(images)


@families
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


@families
@torch.no_grad()
def test_pooled_features_are_what_torchvision_classifies(model_type):
    network = build_backbone(model_type, 7)
    network.train()(random_images(4))  # other statistics than the initial ones
    network.eval()
    seen = []
    layer = network.get_submodule(CLASSIFIERS[model_type])
    layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    network(random_images())
    options = {'with_se': False, 'embedding': 'features', 'shared_stages': 2}
    model = EnsembleModel(model_type, 2, 3, **options).eval()
    load_weights(model, network.state_dict(), 'FILE')
    pooled = model.describe(random_images())
    assert len(pooled) == 2 * 3  # of each head: the trunk, and its two stages
    for part in (pooled[2], pooled[5]):
        torch.testing.assert_close(part, seen[0].flatten(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('name', 'shared'), [('vgg16', 1), ('resnet18', 0), ('resnet18', 4)]
)
def test_impossible_networks_are_refused(name, shared):
    with pytest.raises(UserError, match=r'model_type|shared_stages'):
        EnsembleModel(name, 1, 2, shared_stages=shared)


@torch.no_grad()
def test_a_list_of_stages_gives_every_head_the_same_weights():
    network = build_backbone('resnet18', 1)
    stages = [Stages([stage]) for stage in cut(network, find_family('resnet18')).stages]
    model = EnsembleModel(stages, 2, 4, shared_stages=2, with_se=False).eval()
    features = model.trunk(random_images())
    first, second = (head.pooled(head.outputs(features))[-1] for head in model.heads)
    assert torch.equal(first, second)
    wanted = torch.nn.Sequential(*stages).eval()(random_images()).mean(dim=(2, 3))
    torch.testing.assert_close(first, wanted)
    assert model.heads[0].stage4 is not model.heads[1].stage4


# Embeddings


@pytest.fixture(scope='module', params=CLASSIFIERS)
def model(request):
    """Two heads on three shared stages, with the statistics of a batch."""
    model = EnsembleModel(request.param, 2, 5, shared_stages=3, seed=3, **OPTIONS)
    return take_statistics(model, random_images(8, seed=1))


def test_embeddings_are_unit_vectors_of_the_image_alone(model):
    images = random_images(5)
    whole = model.embed(images)
    assert whole.shape == (5, model.dimensions)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))
    alone = torch.cat([model.embed(image[None]) for image in images])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)
    assert (whole @ whole.T).fill_diagonal_(0).max() < 0.9999  # they tell images apart
    mirrored = model.embed(images.flip(3))
    torch.testing.assert_close(mirrored, whole, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_dot_product_is_the_mean_of_the_cosines(model):
    """A head has several parts; each sums the features of an image and its mirror.

    The parts are computed here from the blocks of trunk and head.
    """
    images = random_images(2)
    cosines = []
    for head in model.heads:
        views = []
        for view in (images, images.flip(3)):
            outputs = [model.trunk(view)]
            for names in head.stages:
                outputs.append(head.run(names, outputs[-1]))
            pooled = [output.mean(dim=(2, 3)) for output in outputs]
            if 'classifier.0' in head.tail:  # the layer norm of ConvNeXt
                norm = head.get_submodule('classifier.0')
                pooled[-1] = norm(pooled[-1][:, :, None, None]).flatten(1)
            views.append(pooled)
        for one, other in zip(*views):
            first, second = one + other
            cosines.append(F.cosine_similarity(first, second, dim=0).item())
    assert len(cosines) == 4
    query, retrieved = model.embed(images)
    assert (query @ retrieved).item() == pytest.approx(sum(cosines) / 4, abs=1e-5)


def test_the_folded_copy_embeds_alike(model):
    images = random_images(3)
    wanted = model.embed(images)
    exact = folded(model, torch.float32).embed(images)
    torch.testing.assert_close(exact, wanted, atol=1e-5, rtol=1e-3)
    narrow = folded(model, torch.bfloat16).embed(images)
    assert narrow.dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        rounded = model.embed(images)  # as training computes
    narrow, rounded = (F.cosine_similarity(x, wanted).min() for x in (narrow, rounded))
    assert narrow > max(0.98, 1 - 1.5 * (1 - rounded))


def test_a_projection_follows(model):
    images = random_images(6)
    long = model.embed(images)
    projection = fit_projection(long, 3, whitening=0.5)
    model.projection = projection
    short = model.embed(images)
    assert model.dimensions == 3
    copied = folded(model, torch.float32).embed(images)
    model.projection = None
    assert torch.equal(short, projection(long))
    torch.testing.assert_close(copied, short, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_stages_are_described_within_the_trunk_as_well():
    """With three shared stages, as if the first two were not shared."""
    options = {'with_se': False, 'shared_stages': 3}
    model = EnsembleModel('resnet18', 2, 3, embedding='stages', **options).eval()
    images = random_images(3)
    pooled, features = [], images
    first = ['conv1', 'bn1', 'relu', 'maxpool', 'layer1']
    for names in (first, ['layer2'], ['layer3']):
        features = model.trunk.run(names, features)
        pooled.append(features.mean(dim=(2, 3)))
    wanted = []
    for head in model.heads:
        wanted += [*pooled, head.run(['layer4'], features).mean(dim=(2, 3))]
    parts = model.describe(images)
    assert [part.shape[1] for part in parts] == 2 * [64, 128, 256, 512]
    assert model.dimensions == 1920
    for part, vector in zip(parts, wanted):
        torch.testing.assert_close(part, vector)


@pytest.mark.parametrize('embedding', ['logits', 'features', 'stages'])
def test_some_members_embed_their_columns(slim_backbone, embedding):
    options = {'seed': 5, 'embedding': embedding, 'mirror': True, 'shared_stages': 2}
    whole = EnsembleModel('resnet18', 4, 3, **options)
    some = EnsembleModel('resnet18', 4, 3, members=[1, 3], **options)
    images = random_images(2, 32)
    columns = whole.embed(images).unflatten(1, (4, -1))[:, [1, 3]].flatten(1)
    torch.testing.assert_close(some.embed(images), columns)


def test_neutral_attention_passes_features_unchanged():
    plain = EnsembleModel('resnet18', 1, 3, with_se=False, seed=4).eval()
    neutral = EnsembleModel('resnet18', 1, 3, neutral_se=True, seed=4).eval()
    with torch.no_grad():
        outputs = [model(random_images()) for model in (plain, neutral)]
    torch.testing.assert_close(*outputs)


def test_pooling_is_at_least_float32():
    features = torch.full((1, 2, 64, 64), 1.001, dtype=torch.bfloat16)
    pooled = MeanPool()(features)
    assert pooled.dtype == torch.float32 and pooled.shape == (1, 2, 1, 1)
    assert MeanPool()(features.double()).dtype == torch.float64


# Sizes

# of a ResNet-18: stem and layer1, layer2, layer3, layer4
STAGES = (9_536 + 147_968, 525_568, 2_099_712, 8_393_728)


@pytest.mark.parametrize('shared', [1, 2, 3])
def test_stages_are_counted_in_the_trunk_or_in_each_head(shared):
    trunk, head, total = count_parameters(
        'resnet18', 48, 12, with_se=False, shared_stages=shared
    )
    assert trunk == sum(STAGES[:shared])
    assert head == sum(STAGES[shared:]) + 512 * 12 + 12
    assert total == trunk + 48 * head
    attention = count_parameters('resnet18', 1, 12, shared_stages=shared)[1] - head
    channels = (128, 256, 512)[shared - 1]  # of the head's first stage
    assert attention == 2 * channels * channels // 8

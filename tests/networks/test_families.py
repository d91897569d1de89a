"""Ensembles of every family of backbones: their embeddings, seeds and sizes."""

import math

import pytest
import torch
from torch.nn import functional as F
from trained import take_statistics

from areir.networks.backbones import build_backbone, cut, find_family
from areir.networks.layers import Chain, MeanPool, folded
from areir.networks.projection import fit_projection
from model import EnsembleModel, count_parameters

FAMILIES = (
    *('resnet18', 'convnext_tiny', 'efficientnet_b0', 'mobilenet_v3_small'),
    *('regnet_y_400mf', 'swin_t'),
)
OPTIONS = {'embedding': 'features', 'mirror': True, 'neutral_se': True}


def random_images(count, side=64, seed=0):
    """Return images of large spots, which an untrained network tells apart."""
    generator = torch.Generator().manual_seed(seed)
    spots = 3 * torch.randn(count, 3, 4, 4, generator=generator)
    return F.interpolate(spots, (side, side), mode='bicubic')


@pytest.fixture(scope='module', params=FAMILIES)
def model(request):
    """Two heads on three shared stages, with the statistics of a batch."""
    model = EnsembleModel(request.param, 2, 5, shared_stages=3, seed=3, **OPTIONS)
    return take_statistics(model, random_images(8, seed=1))


# Embeddings


def test_embeddings_are_unit_vectors_of_the_image_alone(model):
    images = random_images(5)
    whole = model.embed(images)
    assert whole.shape == (5, model.dimensions)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))
    alone = torch.cat([model.embed(image[None]) for image in images])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)
    assert (whole @ whole.T).fill_diagonal_(0).max() < 0.9999  # they tell images apart


def test_a_mirror_image_has_the_same_embedding(model):
    images = random_images(3)
    mirrored = model.embed(images.flip(3))
    torch.testing.assert_close(mirrored, model.embed(images), atol=1e-5, rtol=1e-4)


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


@pytest.mark.parametrize('embedding', ['logits', 'features', 'stages'])
def test_some_members_embed_their_columns(slim_backbone, embedding):
    options = {'seed': 5, 'embedding': embedding, 'mirror': True, 'shared_stages': 2}
    whole = EnsembleModel('resnet18', 4, 3, **options)
    some = EnsembleModel('resnet18', 4, 3, members=[1, 3], **options)
    images = random_images(2, 32)
    columns = whole.embed(images).unflatten(1, (4, -1))[:, [1, 3]].flatten(1)
    torch.testing.assert_close(some.embed(images), columns)


def test_without_mirror_an_image_and_its_mirror_differ(slim_backbone):
    model = EnsembleModel('resnet18', 2, 3, embedding='features')
    images = random_images(2, 32)
    assert not torch.allclose(model.embed(images), model.embed(images.flip(3)))
    mirrored = EnsembleModel('resnet18', 2, 3, embedding='features', mirror=True)
    with torch.no_grad():
        model.eval()
        views = [model.describe(view) for view in (images, images.flip(3))]
    parts = [F.normalize(one + other, dim=1) for one, other in zip(*views)]
    wanted = torch.cat(parts, dim=1) / math.sqrt(len(parts))
    torch.testing.assert_close(mirrored.embed(images), wanted)


def test_pooling_is_at_least_float32():
    features = torch.full((1, 2, 64, 64), 1.001, dtype=torch.bfloat16)
    pooled = MeanPool()(features)
    assert pooled.dtype == torch.float32 and pooled.shape == (1, 2, 1, 1)
    assert MeanPool()(features.double()).dtype == torch.float64


# Seeds


@pytest.mark.parametrize('model_type', ['efficientnet_b0', 'regnet_y_400mf'])
def test_seeds_alone_decide_the_weights(model_type):
    state = torch.random.get_rng_state()
    two = EnsembleModel(model_type, 2, 4, seed=7, shared_stages=2)
    assert state.equal(torch.random.get_rng_state())
    torch.rand(3)
    one = EnsembleModel(model_type, 1, 4, seed=7, shared_stages=2)
    weights = two.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, weights[name]), name
    heads = [head.fc.weight for head in two.heads]
    assert not torch.equal(*heads)


def test_the_trunk_of_more_stages_begins_with_that_of_fewer():
    one, three = (EnsembleModel('resnet18', 1, 4, shared_stages=n) for n in (1, 3))
    weights = three.trunk.state_dict()
    for name, value in one.trunk.state_dict().items():
        assert torch.equal(value, weights[name]), name
    # and a head ends with the same layers
    last = one.heads[0].layer4.state_dict()
    for name, value in three.heads[0].layer4.state_dict().items():
        assert torch.equal(value, last[name]), name


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


@pytest.mark.parametrize('model_type', FAMILIES)
def test_shared_stages_only_move_parameters(model_type):
    with torch.device('meta'):
        stages = cut(build_backbone(model_type, 1), find_family(model_type)).stages
    sizes = [sum(weight.numel() for weight in Chain(s).parameters()) for s in stages]
    rest = set()
    for shared in (1, 2, 3):
        trunk, head, _ = count_parameters(
            model_type, 1, 4, with_se=False, shared_stages=shared
        )
        assert trunk == sum(sizes[:shared])
        rest.add(trunk + head - sum(sizes))  # neck and classifier
    assert len(rest) == 1 and rest.pop() > 0

"""Ensembles of networks of each kind, against timm's own networks and by hand."""

import copy
import sys
from functools import partial

import pytest
import timm
import torch
from slim import SlimBackbone
from timm.models import _registry
from torch.nn import functional as F
from trained import take_statistics

from areir.errors import UserError
from areir.networks.backbones import build_network, check_image_size
from areir.networks.cutting import cut
from areir.networks.layers import (
    Layout,
    Pool,
    fold_batch_norms,
    folded,
    run_stages,
)
from areir.networks.projection import fit_projection
from areir.networks.weight_files import fill
from areir.scripts.model import EnsembleModel, count_parameters, rebuild

# one of each kind: pixels per side, and what makes it tiny
SMALL = {'depth': 8, 'embed_dim': 48, 'num_heads': 2}
SWIN = {'depths': (2, 2, 2, 2), 'embed_dim': 16, 'num_heads': (1, 2, 4, 8)}
NETWORKS = {
    'vit_tiny_patch16_224': (64, SMALL),
    'vit_small_patch14_reg4_dinov2': (56, SMALL),  # registers, layer scale
    'vit_small_patch16_dinov3': (64, SMALL),  # rotary positions
    'vit_small_patch16_rope_mixed_224': (64, SMALL),  # other ones in each block
    'vit_base_patch32_siglip_256': (64, SMALL),  # attention pooling, no class token
    'xcit_nano_12_p16_224': (64, SMALL),  # a class token that joins late
    'levit_128s': (64, {}),  # three stages
    'swin_tiny_patch4_window7_224': (64, SWIN),  # (N, H, W, C)
    'test_convnext': (64, {}),
    'test_efficientnet': (64, {}),
    'test_resnet': (64, {}),
}
OPTIONS = {'embedding': 'features', 'mirror': True, 'with_se': True}
networks = pytest.mark.parametrize('name', NETWORKS)


@pytest.fixture(scope='module', autouse=True)
def tiny():
    """Make the networks tiny, by options of timm."""
    with pytest.MonkeyPatch.context() as patch:
        for name, (_, options) in NETWORKS.items():
            build = partial(timm.models.model_entrypoint(name), **options)
            patch.setitem(_registry._model_entrypoints, name, build)
        yield


def random_images(count=2, side=64, seed=0):
    """Return images of large spots, which an untrained network tells apart."""
    generator = torch.Generator().manual_seed(seed)
    spots = 3 * torch.randn(count, 3, 4, 4, generator=generator)
    return F.interpolate(spots, (side, side), mode='bicubic')


@torch.no_grad()
def shaken(network, seed=0):
    """Return a network after changing all its weights, in eval mode.

    Some are 0 at first, and layer scale is nearly so.
    """
    torch.manual_seed(seed)
    for weight in network.parameters():
        weight += 0.1 * torch.randn_like(weight)
    return network.eval()


def cosines(vectors, wanted):
    """Return the least cosine of two lists of vectors, in float64."""
    return F.cosine_similarity(vectors.double(), wanted.double()).min()


# The network itself


@networks
@torch.no_grad()
def test_stages_and_pooled_features_are_those_of_timm(name):
    """For each size of the trunk, and with attention that has not been trained.

    What stages return is compared with timm's own list of intermediate features, as
    maps: of the eight blocks of a transformer, a stage has two.
    """
    side, _ = NETWORKS[name]
    whole, images = shaken(build_network(name, side)), random_images(side=side)
    pooled = whole(images)
    assert F.cosine_similarity(*pooled, dim=0) < 0.99  # it tells images apart
    features = whole.forward_intermediates(images, intermediates_only=True, norm=False)
    if len(features) > 5:
        features = features[len(features) // 4 - 1 :: len(features) // 4]
    for shared in (1, 2, 3):
        options = {'embedding': 'stages', 'shared_stages': shared, 'image_size': side}
        se = {'with_se': shared > 1, 'neutral_se': True}
        options |= {'network': copy.deepcopy(whole)}
        model = EnsembleModel(name, 2, 3, **options, **se).eval()
        parts = model.describe(images)
        assert len(parts) == 2 * min(4, len(features))
        for head in (parts[: len(parts) // 2], parts[len(parts) // 2 :]):
            assert cosines(head[-1], pooled) > 0.999999
            for part, maps in zip(head[:-1], features[-len(head) :]):
                torch.testing.assert_close(part, maps.mean(dim=(2, 3)))


@pytest.mark.parametrize('shared', [1, 2, 3])
def test_the_trunk_has_quarters_of_the_blocks(shared):
    """Patches, positions and class token are in the trunk, the last norm in the heads.

    DINOv2 and its four registers, with layer scale.
    """
    block = 2 * 2 * 48 + 2 * 48 + (48 + 1) * 3 * 48 + (48 + 1) * 48
    block += (48 + 1) * 4 * 48 + (4 * 48 + 1) * 48
    stem = (14 * 14 * 3 + 1) * 48 + 16 * 48 + 5 * 48
    name, sizes = 'vit_small_patch14_reg4_dinov2', {'with_se': False, 'image_size': 56}
    trunk, head, total = count_parameters(name, 9, 7, shared_stages=shared, **sizes)
    assert trunk == stem + 2 * shared * block
    assert head == (8 - 2 * shared) * block + 2 * 48 + (48 + 1) * 7
    assert total == trunk + 9 * head


@pytest.mark.parametrize('name', ['pit_ti_224', 'crossvit_tiny_240', 'cait_xxs24_224'])
def test_what_is_no_chain_is_refused(name):
    with torch.device('meta'), pytest.raises(UserError, match=f'{name}.*divided'):
        EnsembleModel(name, 1, 2)


@pytest.mark.parametrize(
    ('name', 'shared', 'told'),
    [
        ('resnet19', 1, 'resnet18'),
        ('resnet18.mine_in1k', 1, 'mine_in1k'),
        ('resnet18', 0, 'shared_stages'),
        ('resnet18', 4, 'shared_stages'),
    ],
)
def test_what_does_not_exist_is_refused(name, shared, told):
    with torch.device('meta'), pytest.raises(UserError, match=told):
        EnsembleModel(name, 1, 2, shared_stages=shared)


# Layouts


def test_layouts_by_hand():
    maps = torch.arange(48.0).view(2, 6, 2, 2)  # (N, C, H, W)
    mean = maps.sum(dim=3).sum(dim=2) / 4
    tokens = torch.tensor([1e3, 1e4]).view(1, 2, 1).expand(2, 2, 6)
    tokens = torch.cat([tokens, maps.flatten(2).mT], dim=1)  # (N, L, C)
    for layout, features in (
        (Layout(6), maps),
        (Layout(6, (1, 2)), maps.permute(0, 2, 3, 1)),
        (Layout(6, (1,), prefix=2), tokens),
    ):
        assert torch.equal(layout.maps(features), maps)
        assert torch.equal(layout.mean(features), mean)
        assert layout.mean(features.bfloat16()).dtype == torch.float32


def test_pooling_is_at_least_float32():
    network = build_network('resnet18')
    features = torch.full((1, 512, 8, 8), 1.001, dtype=torch.bfloat16)
    assert Pool(network)(features).dtype == torch.float32
    assert Pool(network)(features.double()).dtype == torch.float64


# Other sizes of images


@torch.no_grad()
@pytest.mark.parametrize('name', [*NETWORKS][:3] + ['swin_tiny_patch4_window7_224'])
def test_weights_of_another_size_are_resampled(name):
    """As timm does when it loads them."""
    whole = shaken(build_network(name))
    wanted = timm.create_model(name, num_classes=0, img_size=112).eval()
    convert = sys.modules[type(whole).__module__].checkpoint_filter_fn
    wanted.load_state_dict(convert(whole.state_dict(), wanted), strict=False)
    network = fill(name, whole.state_dict(), 'FILE', 112)
    options = {'with_se': False, 'embedding': 'pooled', 'image_size': 112}
    model = EnsembleModel(name, 1, 2, **options, network=network).eval()
    images = random_images(side=112)
    assert cosines(model.describe(images)[0], wanted(images)) > 0.999999


@pytest.mark.parametrize(
    ('name', 'size', 'nearest'),
    [
        ('vit_tiny_patch16_224', 70, 64),
        ('vit_base_patch32_siglip_256', 8, 32),
        ('xcit_nano_12_p16_224', 100, 96),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest(name, size, nearest):
    check_image_size(nearest, name)
    with pytest.raises(UserError, match=f'{size}.*{name}.* {nearest}$'):
        check_image_size(size, name)


# Embeddings


@pytest.fixture(scope='module', params=NETWORKS)
def model(request):
    """Two heads, with the statistics of a batch."""
    size = {'image_size': NETWORKS[request.param][0], 'shared_stages': 2}
    model = EnsembleModel(request.param, 2, 5, seed=3, **size, **OPTIONS)
    shaken(model)
    return take_statistics(model, images_of(model, 8, seed=1))


def images_of(model, count, seed=0):
    return random_images(count, model.image_size, seed)


def test_embeddings_are_unit_vectors_of_the_image_alone(model):
    images = images_of(model, 4)
    whole = model.embed(images)
    assert whole.shape == (4, model.dimensions)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(4))
    alone = torch.cat([model.embed(image[None]) for image in images])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)
    assert (whole @ whole.T).fill_diagonal_(0).max() < 0.9999  # they tell images apart
    mirrored = model.embed(images.flip(3))
    torch.testing.assert_close(mirrored, whole, atol=1e-5, rtol=1e-4)
    counts = count_parameters(
        model.model_type, 2, 5, shared_stages=2, image_size=model.image_size
    )
    assert counts[2] == sum(weight.numel() for weight in model.parameters())


def test_the_folded_copy_embeds_alike(model):
    images = images_of(model, 3)
    wanted = model.embed(images)
    exact = folded(model, torch.float32).embed(images)
    torch.testing.assert_close(exact, wanted, atol=1e-5, rtol=1e-3)
    narrow = folded(model, torch.bfloat16).embed(images)
    assert narrow.dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        rounded = model.embed(images)  # as training computes
    assert cosines(narrow, wanted) > 1 - 1.5 * (1 - cosines(rounded, wanted)) - 1e-3


def test_a_model_built_from_its_weights_embeds_the_same_bits(model):
    """The tables of Swin and of rotary positions are computed, not saved."""
    size = {'image_size': model.image_size, 'shared_stages': model.shared_stages}
    model_args = {'model_type': model.model_type, 'ensemble_size': 2, **size, **OPTIONS}
    copied = rebuild({**model_args, 'meta_class_size': 5}, model.state_dict())
    images, found = images_of(model, 2), dict(copied.named_buffers())
    assert torch.equal(copied.embed(images), model.embed(images))
    for name, value in model.named_buffers():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize('embedding', ['logits', 'pooled', 'features', 'stages'])
def test_some_members_embed_their_columns(slim_backbone, embedding):
    options = {'seed': 5, 'embedding': embedding, 'mirror': True, 'shared_stages': 2}
    whole = EnsembleModel('resnet18', 4, 3, **options)
    some = EnsembleModel('resnet18', 4, 3, members=[1, 3], **options)
    images = random_images(2, 32)
    columns = whole.embed(images).unflatten(1, (4, -1))[:, [1, 3]].flatten(1)
    torch.testing.assert_close(some.embed(images), columns)


def test_a_dot_product_is_the_mean_of_the_cosines_and_a_projection_follows(
    slim_backbone,
):
    """A head has several parts; each sums the features of an image and its mirror."""
    model = EnsembleModel('resnet18', 2, 3, **OPTIONS, shared_stages=3, seed=1).eval()
    images, similarities = random_images(6), []
    for one, other in zip(model.describe(images), model.describe(images.flip(3))):
        similarities.append(F.cosine_similarity(*(one + other)[:2], dim=0).item())
    assert len(similarities) == 4
    embeddings = model.embed(images)
    product = (embeddings[0] @ embeddings[1]).item()
    assert product == pytest.approx(sum(similarities) / 4, abs=1e-5)

    model.projection = fit_projection(embeddings, 3, whitening=0.5)
    assert model.dimensions == 3
    wanted = model.projection(embeddings)
    assert torch.equal(model.embed(images), wanted)
    copied = folded(model, torch.float32).embed(images)
    torch.testing.assert_close(copied, wanted, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_network_is_cut_only_after_what_is_added_between_its_modules():
    class Adding(SlimBackbone):
        def forward_features(self, images):
            features = self.layer2(self.layer1(self.stem(images)))
            features += 1  # in place: the same tensor goes on
            return self.layer4(self.layer3(features))

    network, images = Adding().eval(), random_images()
    wanted = network(images)
    backbone = cut(network)
    assert len(backbone.stages) == 2  # the second is layer4
    outputs = run_stages([stage.eval() for stage in backbone.stages], images)
    torch.testing.assert_close(backbone.pool(outputs[-1]), wanted)


@torch.no_grad()
def test_a_batch_norm_stays_if_other_layers_take_what_it_takes():
    class Shortcut(torch.nn.Module):
        image_size = 8

        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 3, 3)
            self.norm = torch.nn.BatchNorm2d(3)

        def describe(self, images):
            features = self.convolution(images)
            return [features + self.norm(features)]

    model, images = shaken(Shortcut()), random_images(side=8)
    wanted = model.describe(images)
    torch.testing.assert_close(fold_batch_norms(model).describe(images), wanted)

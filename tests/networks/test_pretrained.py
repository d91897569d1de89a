"""Weights of torchvision's networks and of ensembles, and the names of their files."""

import math
import re

import pytest
import torch
import torchvision

from areir.errors import UserError
from areir.networks.backbones import model_types
from areir.networks.pretrained import (
    find_weights,
    imagenet_weights,
    load_weights,
    read,
)
from model import EnsembleModel


@pytest.fixture(scope='module')
def resnet18():
    """The state dict of a torchvision network."""
    return torchvision.models.resnet18(num_classes=4).state_dict()


@pytest.fixture(scope='module')
def ensemble():
    """An ensemble of three heads."""
    return EnsembleModel('resnet18', 3, 4, seed=1)


def refusal(model, weights):
    with pytest.raises(UserError, match='FILE: weights do not fit') as refused:
        load_weights(model, weights, 'FILE')
    line = str(refused.value)
    assert '\n' not in line
    return line


# Weights of torchvision


@pytest.mark.parametrize('with_se', [True, False])
@pytest.mark.parametrize('members', [[0, 1], [1, 4]])
def test_torchvision_weights_go_to_trunk_and_every_head(resnet18, with_se, members):
    """The classifier is not used, even if it has as many classes as meta-classes."""
    model = EnsembleModel('resnet18', 5, 4, with_se, members=members)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    load_weights(model, resnet18, 'FILE')
    for name, value in model.state_dict().items():
        if '.fc.' in name or '.se.' in name:
            assert torch.equal(value, own[name]), name
        else:
            original = name.removeprefix('trunk.')
            original = re.sub(r'^heads\.\d\.', '', original)
            assert torch.equal(value, resnet18[original]), name


def test_other_networks_are_refused(tmp_path, resnet18):
    deeper = torchvision.models.resnet34().state_dict()
    line = refusal(EnsembleModel('resnet18', 1, 4), deeper)
    assert 'resnet18' in line and 'layer' in line
    path = tmp_path / 'efficientnet_lite0-57934424.pth'  # torchvision has no Lite0
    torch.save(resnet18, path)
    with pytest.raises(UserError, match="'efficientnet_lite0'"):
        read(str(path))


def test_odd_weights_are_refused(resnet18):
    model = EnsembleModel('resnet18', 1, 4)
    nan, sparse = torch.full((64,), math.nan), torch.ones(64).to_sparse()
    for weight in (nan, sparse, torch.ones(63), None):
        refusal(model, {**resnet18, 'bn1.weight': weight})
    for weights in ({}, [1, 2], {1: torch.zeros(3)}, {'state_dict': [1]}):
        refusal(model, weights)


# Weights of an ensemble


@pytest.mark.parametrize('members', [None, [1]])
def test_weights_of_an_ensemble_are_taken_whole(ensemble, members):
    target = EnsembleModel('resnet18', 2, 4, seed=2, members=members)
    load_weights(target, {'state_dict': ensemble.state_dict()}, 'FILE')
    assert torch.equal(target.trunk.conv1.weight, ensemble.trunk.conv1.weight)
    for member, head in zip(target.members, target.heads):
        wanted = ensemble.heads[member].state_dict()
        for name, value in head.state_dict().items():
            assert torch.equal(value, wanted[name]), name


def test_classifiers_of_another_size_stay_random(ensemble):
    target = EnsembleModel('resnet18', 2, 6, seed=2)
    own = target.heads[1].fc.weight.clone()
    load_weights(target, {'state_dict': ensemble.state_dict()}, 'FILE')
    taken = target.heads[1].se.excite.weight
    assert torch.equal(taken, ensemble.heads[1].se.excite.weight)
    assert torch.equal(target.heads[1].fc.weight, own)


@pytest.mark.parametrize(
    ('arguments', 'name'),
    [
        (('resnet18', 4, 4), 'heads.3.'),
        (('resnet18', 2, 4, False), '.se.'),
        (('resnet50', 1, 4), 'trunk.layer1'),
        (('resnet18', 2, 4, True, 0, None, 2), 'trunk.layer2'),  # another trunk
    ],
)
def test_ensembles_that_do_not_fit_are_refused(ensemble, arguments, name):
    state = {'state_dict': ensemble.state_dict()}
    assert name in refusal(EnsembleModel(*arguments), state)


# ImageNet


def test_every_network_has_weights():
    """The first version for the four of the tables, the newest for all others."""
    published = {'resnet18', 'resnet34', 'resnet50', 'resnext50_32x4d'}
    for model_type in model_types():
        entry = find_weights(model_type, 'imagenet')
        newest = torchvision.models.get_model_weights(model_type).DEFAULT
        if model_type in published:
            assert entry.name == 'IMAGENET1K_V1'
        else:
            assert entry is newest
    assert 'V2' in find_weights('resnet50', 'imagenet_v2').name
    with pytest.raises(UserError, match='imagenet_v2'):
        find_weights('resnet18', 'imagenet_v2')


def test_imagenet_weights_come_from_the_cache(tmp_path, monkeypatch, resnet18):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cached = tmp_path / 'hub' / 'checkpoints' / 'resnet18-f37072fd.pth'
    cached.parent.mkdir(parents=True)
    torch.save(resnet18, cached)
    weights = imagenet_weights('resnet18')
    assert torch.equal(weights['conv1.weight'], resnet18['conv1.weight'])
    cached.write_bytes(b'half')
    with pytest.raises(UserError) as refused:
        imagenet_weights('resnet18')
    assert str(cached) in str(refused.value) and '\n' not in str(refused.value)


def test_imagenet_weights_offline_name_address_cache_and_flag(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # nothing listens there
    with pytest.raises(UserError) as refused:
        imagenet_weights('resnet50')
    text = str(refused.value)
    assert 'https://download.pytorch.org/models/resnet50-' in text
    assert str(tmp_path) in text
    assert '--weights none' in text and '\n' not in text


# What is read for a search without training


def test_a_file_of_weights_is_read_with_its_hash(tmp_path, resnet18):
    path = str(tmp_path / 'resnet18-f37072fd.pth')
    torch.save(resnet18, path)
    network, weights, version = read(path)
    assert network == 'resnet18'
    assert torch.equal(weights['fc.bias'], resnet18['fc.bias'])
    torch.save({**resnet18, 'fc.bias': torch.ones(4)}, path)
    assert read(path)[2] != version
    unknown = str(tmp_path / 'my-resnet18.pth')
    torch.save(resnet18, unknown)
    with pytest.raises(UserError, match='my-resnet18'):
        read(unknown)

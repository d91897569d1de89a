"""Weights of torchvision's networks and of ensembles, and the names of their files."""

import copy

import pytest
import torch
import torchvision

from areir.errors import UserError
from areir.networks.backbones import model_types
from areir.networks.pretrained import (
    find_weights,
    imagenet_weights,
    load_weights,
    network_name,
    preprocessing,
    read,
)
from model import EnsembleModel


@pytest.fixture(scope='module')
def resnet18():
    """The state dict of a torchvision network."""
    return torchvision.models.resnet18(num_classes=1000).state_dict()


# Weights of torchvision


@pytest.mark.parametrize('with_se', [True, False])
def test_torchvision_weights_go_to_trunk_and_every_head(resnet18, with_se):
    model = EnsembleModel('resnet18', 2, 4, with_se)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    load_weights(model, resnet18, 'FILE')
    for name, value in model.state_dict().items():
        if '.fc.' in name or '.se.' in name:
            assert torch.equal(value, own[name]), name
        else:
            original = name.removeprefix('trunk.')
            original = original.removeprefix('heads.0.').removeprefix('heads.1.')
            assert torch.equal(value, resnet18[original]), name


def test_classifiers_of_torchvision_are_never_taken():
    """Not even if there are as many meta-classes as ImageNet has classes."""
    state = torchvision.models.resnet18(num_classes=6).state_dict()
    model = EnsembleModel('resnet18', 1, 6, seed=3)
    own = copy.deepcopy(model.heads[0].fc)
    load_weights(model, state, 'FILE')
    head = model.heads[0]
    assert torch.equal(head.layer4[0].conv1.weight, state['layer4.0.conv1.weight'])
    assert torch.equal(head.fc.weight, own.weight)
    assert torch.equal(head.fc.bias, own.bias)


@pytest.mark.parametrize('shared', [2, 3])
def test_weights_of_an_ensemble_with_another_trunk_are_refused(ensemble, shared):
    model = EnsembleModel('resnet18', 2, 4, shared_stages=shared)
    with pytest.raises(UserError, match=r'weights do not fit the model: trunk\.layer2'):
        load_weights(model, {'state_dict': ensemble.state_dict()}, 'FILE')


def test_torchvision_weights_go_to_some_members(resnet18):
    model = EnsembleModel('resnet18', 5, 4, members=[1, 4])
    load_weights(model, resnet18, 'FILE')
    for head in model.heads:
        wanted = resnet18['layer4.1.bn2.running_var']
        assert torch.equal(head.layer4[1].bn2.running_var, wanted)


def test_old_files_without_counts_of_batches_are_read(resnet18):
    state = {
        name: value
        for name, value in resnet18.items()
        if not name.endswith('num_batches_tracked')
    }
    model = EnsembleModel('resnet18', 1, 4)
    load_weights(model, state, 'FILE')
    assert torch.equal(model.trunk.conv1.weight, state['conv1.weight'])


# Weights of an ensemble


@pytest.fixture(scope='module')
def ensemble():
    """An ensemble of three heads."""
    return EnsembleModel('resnet18', 3, 4, seed=1)


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


def test_a_classifier_of_another_size_may_lack_its_bias(ensemble):
    state = ensemble.state_dict()
    del state['heads.0.fc.bias']
    target = EnsembleModel('resnet18', 1, 6)
    load_weights(target, {'state_dict': state}, 'FILE')
    assert target.heads[0].fc.weight.shape[0] == 6


MISFITS = {
    'too few heads': (('resnet18', 4, 4), 'heads.3.'),
    'blocks without a place': (('resnet18', 2, 4, False), '.se.'),
    'another network': (('resnet50', 1, 4), 'trunk.layer1'),
}


@pytest.mark.parametrize('kind', MISFITS)
def test_ensembles_that_do_not_fit_are_refused(ensemble, kind):
    arguments, name = MISFITS[kind]
    model = EnsembleModel(*arguments)
    with pytest.raises(UserError, match=r'weights do not fit the model: ') as refused:
        load_weights(model, {'state_dict': ensemble.state_dict()}, 'FILE')
    assert name in str(refused.value)


@pytest.mark.parametrize('model_type', ['resnet50', 'resnet34'])  # wider, deeper
def test_other_torchvision_networks_are_refused(model_type):
    weights = getattr(torchvision.models, model_type)().state_dict()
    with pytest.raises(UserError, match=r'weights do not fit the model: .*layer'):
        load_weights(EnsembleModel('resnet18', 1, 4), weights, 'FILE')


@pytest.mark.parametrize(
    'weights',
    [
        {},
        [1, 2],
        torch.zeros(3),
        {1: torch.zeros(3)},
        {'state_dict': [1]},
        {'state_dict': {1: torch.zeros(3)}},
        {'conv1.weight': 1},
    ],
)
def test_what_is_no_state_dict_is_refused(weights):
    with pytest.raises(UserError, match=r'weights do not fit the model: '):
        load_weights(EnsembleModel('resnet18', 1, 4), weights, 'FILE')


# ImageNet


def test_imagenet_weights_come_from_the_cache(tmp_path, monkeypatch, resnet18):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    torch.save(resnet18, cache / 'resnet18-f37072fd.pth')
    weights = imagenet_weights('resnet18')
    assert torch.equal(weights['conv1.weight'], resnet18['conv1.weight'])


def test_every_network_has_weights():
    """The first version for the four of the tables, the newest for all others."""
    published = {'resnet18', 'resnet34', 'resnet50', 'resnext50_32x4d'}
    for model_type in model_types():
        entry = find_weights(model_type, 'imagenet')
        assert entry.url.startswith('https://download.pytorch.org/models/')
        newest = torchvision.models.get_model_weights(model_type).DEFAULT
        assert entry.name == 'IMAGENET1K_V1' or entry is newest
        if model_type not in published:
            assert entry is newest


def test_imagenet_weights_offline_name_address_cache_and_flag(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # nothing listens there
    with pytest.raises(UserError) as refused:
        imagenet_weights('resnet50')
    text = str(refused.value)
    assert 'https://download.pytorch.org/models/resnet50-' in text
    assert str(tmp_path) in text
    assert '--weights none' in text and '\n' not in text


def test_a_damaged_cache_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    (cache / 'resnet18-f37072fd.pth').write_bytes(b'half')
    with pytest.raises(UserError) as refused:
        imagenet_weights('resnet18')
    assert str(cache / 'resnet18-f37072fd.pth') in str(refused.value)
    assert '\n' not in str(refused.value)


# What is read for a search without training


def test_the_name_of_a_file_begins_with_its_network(tmp_path, resnet18):
    for name in ('resnet18-f37072fd.pth', 'resnet18.pth', 'resnet18-my.own.pth'):
        assert network_name(str(tmp_path / name)) == 'resnet18'
    for name in ('mine.pth', 'resnet19-a.pth', 'my-resnet18.pth'):
        with pytest.raises(UserError, match=f'{name}: for which network'):
            network_name(name)


def test_a_file_of_weights_is_read_with_its_hash(tmp_path, resnet18):
    first, second = (str(tmp_path / f'resnet18-{i}.pth') for i in range(2))
    torch.save(resnet18, first)
    torch.save({**resnet18, 'fc.bias': torch.ones(1000)}, second)
    network, weights, version = read(first)
    assert network == 'resnet18' and len(version) == 64
    assert torch.equal(weights['conv1.weight'], resnet18['conv1.weight'])
    assert read(first)[2] == version != read(second)[2]


def test_images_are_preprocessed_as_the_weights_were_trained():
    mean, std, size = preprocessing('resnet18')
    assert mean == [0.485, 0.456, 0.406] and std == [0.229, 0.224, 0.225]
    assert size == 224
    assert preprocessing('efficientnet_v2_s')[2] == 384

"""Networks with their weights: downloaded, or of a file."""

import math

import pytest
import timm
import torch
import torchvision
from conftest import TINY

from areir.errors import UserError
from areir.networks.pretrained import download, network_of, read
from areir.networks.weight_files import fill, read_state_dict
from areir.scripts.model import EnsembleModel


@pytest.fixture(scope='module')
def vit():
    """The state dict of a transformer of timm, with four classes."""
    return timm.create_model('test_vit', num_classes=4).state_dict()


def check_equal(network, state):
    """Check that a network has these weights, except those that classify."""
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


def refusal(call, *arguments):
    """Return the one line with which a call is refused."""
    with pytest.raises(UserError) as refused:
        call(*arguments)
    line = str(refused.value)
    assert '\n' not in line and 'damaged' not in line
    return line


# A state dict


@pytest.mark.parametrize(
    'name', ['test_vit', 'resnet18', 'test_efficientnet', 'test_convnext', 'levit_128s']
)
def test_a_fine_tuned_network_loads_without_its_classifier(name):
    state = timm.create_model(name, num_classes=4).state_dict()
    check_equal(fill(name, state, 'FILE'), state)


@pytest.mark.parametrize('members', [[0, 1], [1, 4]])
def test_weights_go_to_trunk_and_every_head_but_not_to_classifiers(vit, members):
    """Not even if there are as many classes."""
    network = fill('test_vit', vit, 'FILE')
    model = EnsembleModel('test_vit', 5, 4, members=members, network=network)
    for name, value in model.state_dict().items():
        alike = [other for other in vit.values() if other.shape == value.shape]
        taken = any(torch.equal(value, other) for other in alike)
        assert taken != any(new in name for new in ('.fc.', 'squeeze', 'excite')), name
    first, second = model.heads
    assert not torch.equal(first.fc.weight, second.fc.weight)
    for one, other in zip(first.stages.parameters(), second.stages.parameters()):
        assert one is not other


def test_weights_that_do_not_fit_are_refused_by_name(vit):
    block = {name: value for name, value in vit.items() if '.3.' not in name}
    line = refusal(fill, 'test_vit', block, 'FILE')
    assert 'FILE' in line and 'test_vit' in line
    assert 'missing: blocks.3.norm1.weight' in line and 'left over' not in line
    line = refusal(fill, 'test_vit', {**vit, 'blocks.9.x': torch.ones(2)}, 'FILE')
    assert 'left over: blocks.9.x' in line and 'missing' not in line
    line = refusal(fill, 'resnet18', vit, 'FILE')
    assert 'missing: conv1.weight' in line and 'left over: cls_token' in line
    assert 'norm.weight' in refusal(
        fill, 'test_vit', {**vit, 'norm.weight': torch.ones(63)}, 'FILE'
    )


@pytest.mark.parametrize('number', [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(vit, number):
    weight = vit['norm.weight'].clone()
    weight[7] = number
    assert 'norm.weight' in refusal(
        fill, 'test_vit', {**vit, 'norm.weight': weight}, 'FILE'
    )


# Downloads


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Empty caches, and no network."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # nothing listens there
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))


def test_published_weights_come_from_the_cache_of_torch(tmp_path, offline):
    state = torchvision.models.resnet18().state_dict()
    cached = tmp_path / 'hub' / 'checkpoints' / 'resnet18-f37072fd.pth'
    cached.parent.mkdir(parents=True)
    torch.save(state, cached)
    check_equal(download('resnet18'), state)
    cached.write_bytes(b'half')
    with pytest.raises(UserError) as refused:
        download('resnet18')
    assert str(cached) in str(refused.value) and '\n' not in str(refused.value)


def test_weights_of_timm_come_from_the_cache_of_its_hub(hub):
    for name in (TINY, TINY.partition('.')[0]):
        check_equal(download(name), hub.state_dict())
    assert len(download(TINY, 96).pos_embed[0]) == 6 * 6 + 1


@pytest.mark.parametrize(
    ('name', 'address'),
    [
        ('resnet50', 'https://download.pytorch.org/models/resnet50-0676ba61.pth'),
        (TINY, f'https://huggingface.co/timm/{TINY}/resolve/main/model.safetensors'),
        ('test_vit4', 'timm has none'),
    ],
)
def test_without_weights_a_line_says_where_they_are(tmp_path, offline, name, address):
    line = refusal(download, name)
    assert f'no weights for {name}' in line and address in line
    assert '--weights none' in line
    if name == 'resnet50':
        assert str(tmp_path / 'hub' / 'checkpoints') in line


# What is read for a search without training


def test_a_file_is_read_by_its_name(tmp_path, vit):
    path = str(tmp_path / 'test_vit-mine.pth')
    torch.save({'state_dict': vit}, path)
    network, model_type, version = read(path, read_state_dict(path))
    assert model_type == 'test_vit'
    check_equal(network, vit)
    torch.save({'state_dict': {**vit, 'norm.bias': torch.ones(64)}}, path)
    assert read(path, read_state_dict(path))[2] != version
    unknown = str(tmp_path / 'my-test_vit.pth')
    torch.save(vit, unknown)
    assert 'my-test_vit' in refusal(read, unknown, vit)
    # a tag says how images are normalised
    assert network_of(f'{tmp_path}/{TINY}.safetensors') == TINY
    assert network_of(f'{tmp_path}/{TINY}-mine.pth') == TINY
    assert network_of(f'{tmp_path}/test_vit.mine.pth') == 'test_vit'

"""Initial weights: ImageNet's, a file's, and those of a smaller ensemble."""

import copy
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
import torchvision

from areir.backbones import model_types
from areir.errors import UserError
from areir.files import write_tensors
from areir.training.recipes import RECIPES
from areir.training.run import MODEL_ARGS_BEFORE
from areir.training.weights import (
    find_weights,
    freeze_first_heads,
    imagenet_weights,
    initial_weights,
    load_weights,
    read_base,
)
from model import EnsembleModel, assign_meta_classes

CLASSES = [f'class {i}' for i in range(10)]


@pytest.fixture(scope='module')
def resnet18():
    """The state dict of a torchvision network."""
    return torchvision.models.resnet18(num_classes=1000).state_dict()


# Weights of torchvision


@pytest.mark.parametrize('with_se', [True, False])
def test_torchvision_weights_go_to_trunk_and_every_head(resnet18, with_se):
    model = EnsembleModel('resnet18', 2, 4, with_se)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    load_weights(model, resnet18)
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
    load_weights(model, state)
    head = model.heads[0]
    assert torch.equal(head.layer4[0].conv1.weight, state['layer4.0.conv1.weight'])
    assert torch.equal(head.fc.weight, own.weight)
    assert torch.equal(head.fc.bias, own.bias)


@pytest.mark.parametrize('shared', [2, 3])
def test_weights_of_an_ensemble_with_another_trunk_are_refused(ensemble, shared):
    model = EnsembleModel('resnet18', 2, 4, shared_stages=shared)
    with pytest.raises(UserError, match=r'weights do not fit the model: trunk\.layer2'):
        load_weights(model, {'state_dict': ensemble.state_dict()})


def test_a_weight_file_is_loaded(tmp_path, resnet18):
    torch.save(resnet18, tmp_path / 'own.pth')
    args = Namespace(weights=str(tmp_path / 'own.pth'), model_type='resnet18')
    for name, value in initial_weights(args).items():
        assert torch.equal(value, resnet18[name])
    assert initial_weights(Namespace(weights='none')) is None


def test_torchvision_weights_go_to_some_members(resnet18):
    model = EnsembleModel('resnet18', 5, 4, members=[1, 4])
    load_weights(model, resnet18)
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
    load_weights(model, state)
    assert torch.equal(model.trunk.conv1.weight, state['conv1.weight'])


# Weights of an ensemble


@pytest.fixture(scope='module')
def ensemble():
    """An ensemble of three heads."""
    return EnsembleModel('resnet18', 3, 4, seed=1)


@pytest.mark.parametrize('members', [None, [1]])
def test_weights_of_an_ensemble_are_taken_whole(ensemble, members):
    target = EnsembleModel('resnet18', 2, 4, seed=2, members=members)
    load_weights(target, {'state_dict': ensemble.state_dict()})
    assert torch.equal(target.trunk.conv1.weight, ensemble.trunk.conv1.weight)
    for member, head in zip(target.members, target.heads):
        wanted = ensemble.heads[member].state_dict()
        for name, value in head.state_dict().items():
            assert torch.equal(value, wanted[name]), name


def test_classifiers_of_another_size_stay_random(ensemble):
    target = EnsembleModel('resnet18', 2, 6, seed=2)
    own = target.heads[1].fc.weight.clone()
    load_weights(target, {'state_dict': ensemble.state_dict()})
    taken = target.heads[1].se.excite.weight
    assert torch.equal(taken, ensemble.heads[1].se.excite.weight)
    assert torch.equal(target.heads[1].fc.weight, own)


def test_a_classifier_of_another_size_may_lack_its_bias(ensemble):
    state = ensemble.state_dict()
    del state['heads.0.fc.bias']
    target = EnsembleModel('resnet18', 1, 6)
    load_weights(target, {'state_dict': state})
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
    with pytest.raises(UserError, match='weights do not fit the model: ') as refused:
        load_weights(model, {'state_dict': ensemble.state_dict()})
    assert name in str(refused.value)


@pytest.mark.parametrize('model_type', ['resnet50', 'resnet34'])  # wider, deeper
def test_other_torchvision_networks_are_refused(model_type):
    weights = getattr(torchvision.models, model_type)().state_dict()
    with pytest.raises(UserError, match=r'weights do not fit the model: .*layer'):
        load_weights(EnsembleModel('resnet18', 1, 4), weights)


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
    with pytest.raises(UserError, match='weights do not fit the model: '):
        load_weights(EnsembleModel('resnet18', 1, 4), weights)


# ImageNet


def test_imagenet_weights_come_from_the_cache(tmp_path, monkeypatch, resnet18):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    torch.save(resnet18, cache / 'resnet18-f37072fd.pth')
    weights = imagenet_weights('resnet18')
    assert torch.equal(weights['conv1.weight'], resnet18['conv1.weight'])


@pytest.mark.parametrize(
    ('name', 'file'),
    [('imagenet', 'resnet50-0676ba61.pth'), ('imagenet_v2', 'resnet50-11ad3fa6.pth')],
)
def test_both_versions_of_weights_come_from_the_cache(
    tmp_path, monkeypatch, name, file
):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    torch.save({'name': torch.tensor(len(name))}, cache / file)
    args = Namespace(weights=name, model_type='resnet50')
    assert initial_weights(args) == {'name': torch.tensor(len(name))}


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


# --extend


def test_the_first_heads_are_copied_and_frozen(ensemble):
    model = EnsembleModel('resnet18', 5, 4, seed=2, members=[1, 3])
    new = {name: value.clone() for name, value in model.heads[1].state_dict().items()}
    freeze_first_heads(model, ensemble.state_dict(), 1)
    pairs = [(model.trunk, ensemble.trunk), (model.heads[0], ensemble.heads[1])]
    for part, original in pairs:
        wanted = original.state_dict()
        for name, value in part.state_dict().items():
            assert torch.equal(value, wanted[name]), name
        assert not any(weight.requires_grad for weight in part.parameters())
    for name, value in model.heads[1].state_dict().items():
        assert torch.equal(value, new[name]), name
    assert all(weight.requires_grad for weight in model.heads[1].parameters())


BASE = {
    'model_args': {
        'model_type': 'resnet18',
        'ensemble_size': 3,
        'meta_class_size': 4,
        'with_se': True,
    },
    'image_size': 32,
    'protocol': 'strict',
    'partition': assign_meta_classes(10, 4, 3, seed=1),
    'classes': CLASSES,
    'state_dict': {},
}


def extend(path, seed=1, classes=CLASSES, **changed):
    """Call read_base for a run of 5 heads that extends the model file at path."""
    flags = {
        **RECIPES['2019'],
        'recipe': '2019',
        'model_type': 'resnet18',
        'ensemble_size': 5,
        'meta_class_size': 4,
        'with_se': 'yes',
        'image_size': 32,
        'protocol': 'strict',
    }
    args = Namespace(**{**flags, 'extend': str(path), **changed})
    split = SimpleNamespace(train=SimpleNamespace(classes=classes))
    partition = assign_meta_classes(10, args.meta_class_size, args.ensemble_size, seed)
    return read_base(args, split, partition)


@pytest.fixture
def base(tmp_path):
    """The path of a model file of three heads, without their weights."""
    path = tmp_path / 'base_model.pth'
    write_tensors({str(path): BASE})
    return path


def test_without_extend_there_is_no_base(base):
    assert extend(base, extend=None) is None
    assert extend(base, extend='') is None


def test_a_base_from_before_the_recipes_is_read(base, tmp_path):
    """Its model had what the recipe of 2019 has."""
    saved = extend(base)
    assert not saved['model_args'].keys() & MODEL_ARGS_BEFORE.keys()
    for name, value in {
        'shared_stages': 2,
        'embedding': 'features',
        'mirror': 'yes',
        'recipe': 'current',
    }.items():
        with pytest.raises(UserError, match=r'base_model\.pth: --'):
            extend(base, **{name: value})


def test_a_base_with_components_is_read_by_its_heads(tmp_path):
    """The model file says one head of embeddings that are mixed."""
    options = {'shared_stages': 2, 'embedding': 'features', 'mirror': True}
    model_args = {**BASE['model_args'], **options, 'neutral_se': True}
    path = tmp_path / 'base_model.pth'
    write_tensors({str(path): {**BASE, 'ensemble_size': 1, 'model_args': model_args}})
    flags = {'recipe': 'current', 'shared_stages': 2, 'embedding': 'features'}
    saved = extend(path, mirror='yes', **flags)
    assert saved['model_args']['ensemble_size'] == 3
    with pytest.raises(UserError, match='3 heads'):
        extend(path, mirror='yes', ensemble_size=3, **flags)


def test_a_base_that_fits_is_read(base):
    saved = extend(base)
    assert saved['model_args'] == BASE['model_args']
    assert torch.equal(saved['partition'], BASE['partition'])


@pytest.mark.parametrize(
    ('flag', 'value'),
    [
        ('with_se', 'no'),
        ('model_type', 'resnet50'),
        ('meta_class_size', 5),
        ('image_size', 64),
        ('protocol', 'published'),
    ],
)
def test_a_base_of_other_settings_is_refused_by_flag(base, flag, value):
    with pytest.raises(UserError, match=rf'base_model\.pth: --{flag} is'):
        extend(base, **{flag: value})


@pytest.mark.parametrize('ensemble_size', [2, 3])
def test_a_base_of_as_many_heads_is_refused(base, ensemble_size):
    with pytest.raises(UserError, match=r'--extend .*base_model\.pth: .*3 heads'):
        extend(base, ensemble_size=ensemble_size)


def test_a_base_of_another_seed_or_other_classes_is_refused(base):
    with pytest.raises(UserError, match=r'base_model\.pth: .*--seed'):
        extend(base, seed=2)
    with pytest.raises(UserError, match=r'base_model\.pth: .*classes'):
        extend(base, classes=CLASSES[::-1])


NO_BASES = [
    [1, 2],
    {'state_dict': {}},
    {**BASE, 'model_args': 5},
    {**BASE, 'model_args': {}},
    {name: value for name, value in BASE.items() if name != 'partition'},
    {name: value for name, value in BASE.items() if name != 'classes'},
]


@pytest.mark.parametrize('content', NO_BASES)
def test_a_base_that_is_no_model_file_is_refused(tmp_path, content):
    path = tmp_path / 'other.pth'
    write_tensors({str(path): content})
    with pytest.raises(UserError, match=r'--extend .*other\.pth: .*train\.py'):
        extend(path)
    with pytest.raises(UserError, match=r'absent\.pth'):
        extend(tmp_path / 'absent.pth')

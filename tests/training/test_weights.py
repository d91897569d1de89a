"""What training starts with: the format of its images, and the model of --extend."""

from argparse import Namespace
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from areir.cli.recipes import RECIPES
from areir.data.images import PixelFormat
from areir.data.splits import Split
from areir.errors import UserError
from areir.files import write_tensors
from areir.scripts.model import EnsembleModel, assign_meta_classes
from areir.training.weights import (
    initial_format,
    initial_weights,
    load_ensemble,
    read_base,
)

CLASSES = [f'class {i}' for i in range(10)]


def test_images_have_the_format_of_what_is_loaded():
    own, half = PixelFormat(64, (0.1,) * 3, (0.2,) * 3), (0.5,) * 3
    of_weights = PixelFormat(64, half, half, 'bicubic')
    of_base = PixelFormat(64, half, half, 'lanczos')
    split = Split('', {'mean': own.mean, 'std': own.std}, '', {})
    for model_type, weights, base, wanted in (
        ('resnet18', 'pretrained', None, own),
        ('vit_tiny_patch16_224', 'none', None, own),
        ('vit_tiny_patch16_224', 'pretrained', None, of_weights),
        ('vit_tiny_patch16_224', 'none', {'pixel_format': asdict(of_base)}, of_base),
    ):
        args = Namespace(model_type=model_type, weights=weights, image_size=64)
        assert initial_format(args, split, base) == wanted


# An ensemble


@pytest.fixture
def ensemble(slim_backbone):
    """An ensemble of three heads, of networks of a few numbers."""
    return EnsembleModel('resnet18', 3, 4, seed=1)


@pytest.mark.parametrize('members', [None, [1]])
def test_weights_of_an_ensemble_are_taken_whole(ensemble, tmp_path, members):
    """From a file of more heads; classifiers of another size stay random."""
    path = str(tmp_path / 'run_model.pth')
    saved = {'state_dict': ensemble.state_dict(), 'pixel_format': {'image_size': 32}}
    write_tensors({path: saved})
    args = Namespace(weights=path, model_type='resnet18', image_size=64)
    _, state = initial_weights(args)
    for meta_classes in (4, 6):
        target = EnsembleModel('resnet18', 2, meta_classes, seed=2, members=members)
        own = {name: value.clone() for name, value in target.state_dict().items()}
        load_ensemble(target, state, 'FILE')
        for name, value in target.trunk.state_dict().items():
            assert torch.equal(value, state[f'trunk.{name}']), name
        for place, (member, head) in enumerate(zip(target.members, target.heads)):
            for name, value in head.state_dict().items():
                wanted = state[f'heads.{member}.{name}']
                if value.shape != wanted.shape:
                    assert name in ('fc.weight', 'fc.bias') and meta_classes == 6
                    wanted = own[f'heads.{place}.{name}']
                assert torch.equal(value, wanted), name


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        ((4, 4), r'heads.3: missing: stages\.0\.0'),  # the fourth head
        ((2, 4, False), r'heads.0: left over: .*squeeze'),
        ((2, 4, True, 0, None, 2), r'trunk: missing: 1\.0\.0'),  # another trunk
    ],
)
def test_ensembles_that_do_not_fit_are_refused(ensemble, arguments, told):
    target, state = EnsembleModel('resnet18', *arguments), ensemble.state_dict()
    with pytest.raises(UserError, match=f'FILE: not weights of resnet18: {told}'):
        load_ensemble(target, state, 'FILE')
    state['heads.0.fc.bias'][1] = torch.nan
    with pytest.raises(UserError, match=r'heads\.0\.fc\.bias holds NaN'):
        load_ensemble(target, state, 'FILE')


def test_a_database_is_not_taken_for_weights(tmp_path):
    path = str(tmp_path / 'data_base.pth')
    write_tensors({path: {'embeddings': torch.zeros(1, 1)}})
    with pytest.raises(UserError, match='--weights needs a model file'):
        initial_weights(Namespace(weights=path, model_type='resnet18', image_size=96))


@pytest.mark.parametrize(('network', 'fits'), [('resnet18', True), ('test_vit', False)])
def test_a_model_of_other_images_fits_if_its_network_takes_any(tmp_path, network, fits):
    path, formats = str(tmp_path / 'model.pth'), {'image_size': 160}
    write_tensors({path: {'state_dict': {}, 'pixel_format': formats}})
    args = Namespace(weights=path, model_type=network, image_size=96)
    if fits:
        assert initial_weights(args) == (None, {})
    else:
        with pytest.raises(UserError, match='--image_size 160'):
            initial_weights(args)


def test_the_old_heads_are_copied_and_frozen(ensemble):
    model = EnsembleModel('resnet18', 5, 4, seed=2, members=[1, 3])
    new = {name: value.clone() for name, value in model.heads[1].state_dict().items()}
    load_ensemble(model, ensemble.state_dict(), 'FILE', old_heads=3)
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
        'shared_stages': 1,
        'embedding': 'logits',
        'mirror': False,
        'neutral_se': False,
    },
    'pixel_format': {'image_size': 32},
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


@pytest.mark.parametrize(
    ('flag', 'value'),
    [
        ('with_se', 'no'),
        ('model_type', 'resnet50'),
        ('meta_class_size', 5),
        ('image_size', 64),
        ('protocol', 'published'),
        ('shared_stages', 2),
        ('embedding', 'features'),
    ],
)
def test_a_base_of_other_settings_is_refused_by_flag(base, flag, value):
    with pytest.raises(UserError, match=rf'base_model\.pth: --{flag} is'):
        extend(base, **{flag: value})

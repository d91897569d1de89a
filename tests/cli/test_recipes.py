"""Recipes: what they set, crops, views and the learning rate."""

import argparse

import pytest

import train
from areir.cli.recipes import (
    FROM_SCRATCH,
    RECIPES,
    default_meta_classes,
    fill_in_defaults,
)
from areir.errors import UserError


def completed(*flags, classes=98, weights='none'):
    words = ['--data_name', 'shop', '--weights', weights, *map(str, flags)]
    args = train.get_args(words)
    fill_in_defaults(args, classes, from_scratch=weights == 'none')
    return args


def test_other_data_takes_the_current_recipe():
    scratch, loaded = completed(), completed(weights='imagenet')
    for args in (scratch, loaded):
        assert args.recipe == 'current'
        wanted = dict(RECIPES['current'])
        if args is scratch:
            wanted |= FROM_SCRATCH
        assert {name: getattr(args, name) for name in wanted} == wanted
        assert args.meta_class_size == 98


@pytest.mark.parametrize(
    ('flags', 'wanted'),
    [
        ([], 4),
        (['--num_epochs', 3], 1),
        (['--num_epochs', 50], 10),
        (['--select', 'val'], 1),
        (['--recipe', '2019'], 1),
        (['--test_every', 3], 3),
    ],
)
def test_epochs_between_tests(flags, wanted):
    assert completed(*flags).test_every == wanted


def test_flags_that_are_given_stay():
    args = completed('--lr', 3e-3, '--dimensions', 0, '--mirror', 'no', '--warmup', 0)
    assert (args.lr, args.dimensions, args.mirror, args.warmup) == (3e-3, 0, 'no', 0)
    assert args.batch_size == FROM_SCRATCH['batch_size']


@pytest.mark.parametrize(
    ('name', 'size'), [('car', 12), ('cub', 12), ('sop', 500), ('isc', 192)]
)
def test_the_recipe_of_2019_is_that_of_the_tables(name, size):
    args = train.get_args(['--data_name', name])
    fill_in_defaults(args, 11318, from_scratch=False)
    wanted = {
        'recipe': '2019',
        'meta_class_size': size,
        'ensemble_size': 48,
        'batch_size': 8,
        'lr': 1e-4,
        'num_epochs': 20,
        'image_size': 256,
        'shared_stages': 1,
        'freeze_trunk': 'no',
        'freeze_bn': 'no',
        'schedule': 'step',
        'warmup': 0,
        'crop_area': 1,
        'label_smoothing': 0,
        'embedding': 'logits',
        'mirror': 'no',
        'dimensions': 0,
        'weights': 'imagenet',
    }
    assert {flag: getattr(args, flag) for flag in wanted} == wanted
    assert {*RECIPES['2019']} == {*RECIPES['current']}


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('scratch', [True, False])
def test_only_flags_that_are_not_given_are_set(recipe, scratch):
    weights = 'none' if scratch else 'imagenet'
    args = train.get_args(
        ['--data_name', 'shop', '--recipe', recipe, '--weights', weights]
    )
    before = dict(vars(args))
    missing = {name for name in RECIPES[recipe] if before[name] is None}
    assert missing == {*RECIPES[recipe]} and before['meta_class_size'] is None
    fill_in_defaults(args, 50, scratch)
    after = dict(vars(args))
    assert None not in [after[name] for name in missing]
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {*missing, 'meta_class_size', 'test_every'}
    # what is complete stays as it is
    fill_in_defaults(args, 20, scratch)
    assert vars(args) == after


@pytest.mark.parametrize(('recipe', 'wanted'), [('2019', 5), ('current', 40)])
def test_meta_classes_of_other_data(recipe, wanted):
    args = argparse.Namespace(data_name='shop', recipe=recipe)
    assert default_meta_classes(args, 40) == wanted
    assert default_meta_classes(args, 2) == 2


@pytest.mark.parametrize('recipe', RECIPES)
def test_meta_classes_are_never_more_than_classes(recipe):
    args = argparse.Namespace(data_name='shop', recipe=recipe)
    for classes in range(2, 41):
        assert 2 <= default_meta_classes(args, classes) <= classes


def test_the_published_protocol_has_its_recipe(capsys):
    args = completed('--protocol', 'published')
    assert args.recipe == '2019'
    with pytest.raises(SystemExit):
        completed('--protocol', 'published', '--recipe', 'current')
    assert '--recipe 2019' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('flag', 'value'),
    [
        ('--crop_area', 0),
        ('--crop_area', 1.5),
        ('--crop_area', 'nan'),
        ('--label_smoothing', 1),
        ('--dimensions', -1),
        ('--whitening', 2),
        ('--warmup', 1),
        ('--shared_stages', 4),
    ],
)
def test_bad_values_are_refused(capsys, flag, value):
    with pytest.raises(SystemExit):
        completed(flag, value)
    assert flag in capsys.readouterr().err


@pytest.mark.parametrize('flag', ['--freeze_trunk', '--freeze_bn'])
def test_random_weights_are_not_frozen(flag):
    with pytest.raises(UserError, match=flag):
        completed(flag, 'yes')

"""Recipes: what they set, crops, views and the learning rate."""

import argparse
from itertools import pairwise

import pytest

import train
from areir.cli.recipes import (
    FROM_SCRATCH,
    META_CLASSES,
    RECIPES,
    default_meta_classes,
    fill_in_defaults,
)
from areir.errors import UserError
from areir.training.trainer import learning_rate


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
def test_published_datasets_have_their_own_sizes(name, size):
    args = train.get_args(['--data_name', name])
    fill_in_defaults(args, 11318, from_scratch=False)
    assert (args.recipe, args.meta_class_size) == ('2019', size)
    assert (args.ensemble_size, args.batch_size, args.lr) == (48, 8, 1e-4)


@pytest.mark.parametrize('name', ['car', 'cub', 'sop', 'isc'])
def test_the_recipe_of_2019_is_that_of_the_tables(name):
    args = train.get_args(['--data_name', name])
    fill_in_defaults(args, 11318, from_scratch=False)
    wanted = {
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


@pytest.mark.parametrize('name', ['car', 'sop'])
def test_published_data_by_the_current_recipe(name):
    """Their meta-classes are those of the tables."""
    args = train.get_args(['--data_name', name, '--recipe', 'current'])
    fill_in_defaults(args, 11318, from_scratch=False)
    assert args.meta_class_size == META_CLASSES[name]
    wanted = RECIPES['current']
    assert {flag: getattr(args, flag) for flag in wanted} == wanted


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


# The learning rate


def test_the_cosine_schedule_by_hand():
    def rate(done, warmup=0.0):
        return learning_rate('cosine', 2.0, 10, warmup, done)

    assert rate(0) == pytest.approx(2)
    assert rate(5) == pytest.approx(1)
    assert rate(10) == pytest.approx(0)
    assert rate(0.5, warmup=0.1) == pytest.approx(1)
    assert rate(1, warmup=0.1) == pytest.approx(2)
    assert rate(5.5, warmup=0.1) == pytest.approx(1)


def test_the_rate_rises_and_falls_within_an_epoch():
    done = [number / 10 for number in range(101)]
    rates = [learning_rate('cosine', 2.0, 10, 0.2, share) for share in done]
    assert rates[0] == 0 and max(rates) == rates[20] == 2
    pairs = list(pairwise(rates))
    assert all(one < other for one, other in pairs[:20])
    assert all(one > other for one, other in pairs[20:])
    assert rates[60] == pytest.approx(1)  # the middle of the fall
    assert rates[40] == pytest.approx(1 + 0.5**0.5)  # a quarter: cos(45 degrees)


def test_the_step_schedule_changes_between_epochs_only():
    for num_epochs in (1, 2, 3, 7, 20):
        for epoch in range(1, num_epochs + 1):
            rates = {
                learning_rate('step', 1.0, num_epochs, 0.05, epoch - 1 + share)
                for share in (0.001, 0.3, 0.999)
            }
            assert len(rates) == 1
    rates = [learning_rate('step', 1.0, 20, 0, epoch) for epoch in (9.9, 10, 13.9, 14)]
    assert rates == [1, 0.1, 0.1, 0.01]

"""Recipes: which one a run takes, what it sets, and its meta-classes."""

import argparse

import pytest

from areir.cli.recipes import (
    FROM_SCRATCH,
    RECIPES,
    TRANSFORMER,
    TRANSFORMER_FROM_SCRATCH,
    default_meta_classes,
    fill_in_defaults,
)
from areir.errors import UserError
from areir.scripts import train


def completed(
    *flags, data_name='shop', images=4000, classes=98, weights='none', transformer=False
):
    words = ['--data_name', data_name, '--weights', weights, *map(str, flags)]
    args = train.get_args(words)
    fill_in_defaults(args, images, classes, weights == 'none', transformer)
    return args


@pytest.mark.parametrize(
    ('weights', 'more'), [('none', FROM_SCRATCH), ('pretrained', {})]
)
def test_other_data_takes_the_current_recipe_but_for_flags_given(weights, more):
    args = completed('--lr', 3e-3, '--mirror', 'no', '--warmup', 0, weights=weights)
    wanted = {**RECIPES['current'], **more, 'lr': 3e-3, 'mirror': 'no', 'warmup': 0}
    assert {name: getattr(args, name) for name in wanted} == wanted
    assert args.recipe == 'current' and args.meta_class_size == 98


@pytest.mark.parametrize(
    ('weights', 'more'), [('none', TRANSFORMER_FROM_SCRATCH), ('pretrained', {})]
)
def test_transformers_have_their_own_values(weights, more):
    wanted = {**TRANSFORMER, **more}
    args = completed(weights=weights, transformer=True)
    assert {name: getattr(args, name) for name in wanted} == wanted
    assert args.frozen_stages == (0 if more else 2)
    assert completed('--lr', 1, transformer=True).lr == 1


def test_a_transformer_takes_the_current_recipe_for_every_dataset():
    args = completed(data_name='cub', transformer=True)
    assert (args.recipe, args.meta_class_size) == ('current', 98)
    args = completed('--recipe', '2019', data_name='cub', transformer=True)
    assert (args.lr, args.weight_decay, args.meta_class_size) == (1e-4, 0, 12)


@pytest.mark.parametrize(
    ('name', 'size'), [('car', 12), ('cub', 12), ('sop', 500), ('isc', 192)]
)
def test_datasets_of_the_tables_take_the_recipe_of_2019(name, size):
    args = completed(data_name=name, classes=11318, weights='pretrained')
    wanted = {**RECIPES['2019'], 'recipe': '2019', 'meta_class_size': size}
    assert {flag: getattr(args, flag) for flag in wanted} == wanted


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


@pytest.mark.parametrize(('recipe', 'wanted'), [('2019', 5), ('current', 40)])
def test_meta_classes_of_other_data(recipe, wanted):
    args = argparse.Namespace(data_name='shop', recipe=recipe)
    assert default_meta_classes(args, 40) == wanted
    for classes in range(2, 41):
        assert 2 <= default_meta_classes(args, classes) <= classes


def test_the_published_protocol_has_its_recipe():
    assert completed('--protocol', 'published').recipe == '2019'
    with pytest.raises(UserError, match='--recipe 2019'):
        completed('--protocol', 'published', '--recipe', 'current')


@pytest.mark.parametrize('flag', [('--frozen_stages', 1), ('--freeze_bn', 'yes')])
def test_random_weights_are_not_frozen(flag):
    with pytest.raises(UserError, match=flag[0]):
        completed(*flag)


def test_frozen_stages_are_some_of_the_trunk():
    args = completed('--shared_stages', 2, weights='pretrained')
    assert args.frozen_stages == 1
    with pytest.raises(UserError, match='--frozen_stages 3'):
        completed('--frozen_stages', 3, '--shared_stages', 2, weights='pretrained')


def test_the_projection_follows_from_the_training_images():
    few, many = completed(images=190, classes=10), completed(images=4000, classes=100)
    assert (few.dimensions, few.whitening) == (0, round(180 / 580, 2))
    assert (many.dimensions, many.whitening) == (1024, round(3900 / 4300, 2))
    given = completed('--dimensions', 64, '--whitening', 0.5)
    assert (given.dimensions, given.whitening) == (64, 0.5)
    lone = completed(images=10, classes=10)
    assert (lone.dimensions, lone.whitening) == (0, 0)

"""Images of a run: what is loaded, in which batches, and how they are embedded."""

import argparse

import pytest
import torch
from torch.nn import functional as F

from areir.cli.recipes import RECIPES
from areir.data.images import load_image, normalise, to_pixels
from areir.data.sample import draw_sample
from areir.data.splits import Part, Split
from areir.errors import UserError
from areir.networks.projection import fit_projection
from areir.training import loaders
from areir.training.batches import EpochSampler, to_images, training_batches
from areir.training.loaders import (
    draw_images,
    embed_part,
    embed_with_all_heads,
    load_data,
    make_loaders,
    progress_bar,
    usable_recalls,
)
from model import EnsembleModel

SIDE = 32
CPU = torch.device('cpu')
INFO = {'mean': [0.5, 0.4, 0.3], 'std': [0.25, 0.2, 0.3]}


def arguments(**changed):
    values = {
        **RECIPES['2019'],
        'data_name': 'shoes',
        'crop_type': 'uncropped',
        'data_root': 'data',
        'select': 'last',
        'protocol': 'strict',
        'batch_size': 4,
        'image_size': SIDE,
        'num_workers': 0,
        'seed': 3,
    }
    return argparse.Namespace(**{**values, **changed})


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    """A Split of 10 training and 10 test images of two classes each."""
    folder = tmp_path_factory.mktemp('images') / 'photos'
    sizes = {'train_classes': 2, 'test_classes': 2, 'images_per_class': 5}
    draw_sample(str(folder), **sizes, side=SIDE)
    parts = {}
    for name in ('train', 'test'):
        images = sorted((folder / name).rglob('*.png'))
        names = [str(image.relative_to(folder)) for image in images]
        labels = torch.arange(2).repeat_interleave(5)
        parts[name] = Part(names, labels, ['a', 'b'])
    return Split(str(folder), INFO, 'abc', parts)


def pixels_of(split, name):
    """Return the pixels (N, 3, S, S) of a part."""
    paths = [f'{split.folder}/{image}' for image in split.parts[name].images]
    return torch.stack([to_pixels(load_image(path), SIDE) for path in paths])


# What is loaded


def test_the_split_of_the_flags_is_loaded(monkeypatch, split, capsys):
    calls = []
    monkeypatch.setattr(
        loaders, 'load_split', lambda *names: calls.append(names) or split
    )
    prepared = {'shoes': ['uncropped'], 'cub': ['uncropped', 'cropped']}
    monkeypatch.setattr(loaders, 'prepared_names', lambda root: prepared)
    assert load_data(arguments()) is split
    args = arguments(crop_type='cropped')
    assert load_data(args) is split and args.crop_type == 'uncropped'
    assert '--crop_type' in capsys.readouterr().out
    assert load_data(arguments(data_name='cub', crop_type='cropped')) is split
    assert capsys.readouterr().out == ''
    assert calls == [
        ('data', 'shoes', 'uncropped'),
        ('data', 'shoes', 'uncropped'),
        ('data', 'cub', 'cropped'),
    ]


def many_classes(images_per_class, classes=10):
    """Return a Split of some training classes."""
    labels = torch.arange(classes).repeat_interleave(images_per_class)
    names = [f'{number}.png' for number in range(len(labels))]
    part = Part(names, labels, [f'class {number}' for number in range(classes)])
    return Split('photos', INFO, 'abc', {'train': part, 'test': part})


def test_classes_are_held_out_for_validation(monkeypatch):
    monkeypatch.setattr(loaders, 'load_split', lambda *names: many_classes(2))
    held = load_data(arguments(select='val'))
    assert len(held.parts['val'].classes) == 2 and len(held.train.classes) == 8
    assert not set(held.train.images) & set(held.parts['val'].images)


@pytest.mark.parametrize(
    'select, classes, message',
    [
        ('last', 1, 'has 1: add'),
        ('val', 1, 'has 0 beside those that --select val holds out: add'),
        ('val', 2, 'has 0 beside those that --select val holds out: add'),
        ('val', 3, 'has 1 beside those that --select val holds out: add'),
    ],
)
def test_a_single_class_teaches_nothing(monkeypatch, select, classes, message):
    split = many_classes(2, classes)
    monkeypatch.setattr(loaders, 'load_split', lambda *names: split)
    with pytest.raises(UserError, match=f'shoes: training needs .* {message}'):
        load_data(arguments(select=select))


def test_too_few_images_to_validate_are_refused(monkeypatch):
    part = Part(['1.png', '2.png'], torch.tensor([2, 2]), ['a', 'b', 'c'])
    few = Split('photos', INFO, 'abc', {'train': part, 'test': part})
    monkeypatch.setattr(loaders, 'load_split', lambda *names: few)
    monkeypatch.setattr(
        loaders,
        'hold_out',
        lambda split, seed: Split('', INFO, '', {'val': part.of_classes(['a'])}),
    )
    with pytest.raises(UserError, match='--select val'):
        load_data(arguments(select='val'))


def test_recalls_beyond_the_gallery_are_dropped(capsys):
    assert usable_recalls([1, 8, 29], 29) == [1, 8, 29]
    assert capsys.readouterr().out == ''
    assert usable_recalls([4, 1000, 1, 30], 29) == [4, 1]
    assert 'recall@1000,30' in capsys.readouterr().out
    with pytest.raises(UserError, match=r'--recalls.* 29'):
        usable_recalls([30, 40], 29)


# Batches


def test_training_images_are_drawn_and_the_others_in_order(split):
    made = make_loaders(split, arguments(), CPU)
    assert list(made) == ['train', 'test']
    sampler = made['train'].batch_sampler
    assert isinstance(sampler, EpochSampler)
    assert made['test'].batch_sampler.remaining()[0].tolist() == list(range(10))
    images = [images for images, _, _ in made['test']]
    assert torch.equal(torch.cat(images), pixels_of(split, 'test'))


def test_the_published_protocol_embeds_8_images_at_a_time(split):
    made = make_loaders(split, arguments(protocol='published'), CPU)
    sizes = [len(batch) for batch in made['test'].batch_sampler.remaining()]
    assert sizes == [8, 2]


def test_components_come_from_training_images_as_they_are(split):
    made = make_loaders(split, arguments(dimensions=8, crop_area=0.4), CPU)
    assert list(made) == ['train', 'test', 'fit']
    images = torch.cat([images for images, _, _ in made['fit']])
    assert torch.equal(images, pixels_of(split, 'train'))  # in order, not cropped
    transform = made['train'].dataset.transform
    assert transform.least_area == 0.4 and transform.count == 10


def test_many_images_are_drawn_once_for_a_seed():
    images = [f'{number}.png' for number in range(50)]
    assert draw_images(images, 50, seed=1) is images
    drawn = draw_images(images, 20, seed=1)
    assert len(set(drawn)) == 20 and drawn == draw_images(images, 20, seed=1)
    assert [images.index(image) for image in drawn] == sorted(map(images.index, drawn))
    assert drawn != draw_images(images, 20, seed=2)
    assert drawn != images[:20]


def test_a_batch_is_at_most_the_training_images(split):
    made = make_loaders(split, arguments(batch_size=64), CPU)
    assert len(next(iter(made['train'].batch_sampler))) == 10


def test_images_are_normalised_for_convolutions(split):
    pixels = pixels_of(split, 'test')
    images = to_images(pixels, INFO)
    assert torch.equal(images, normalise(pixels, **INFO))
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('start', [0, 1])
def test_images_and_meta_labels_of_a_batch_belong_together(split, start):
    loader = make_loaders(split, arguments(), CPU)['train']
    loader.batch_sampler.set_epoch(2, start)
    meta_labels = torch.arange(30).view(10, 3)
    batches = list(training_batches(loader, meta_labels, INFO, CPU))
    rows = loader.batch_sampler.remaining()
    assert len(batches) == len(rows) == 2 - start
    for (images, labels), row in zip(batches, rows):
        assert torch.equal(labels, meta_labels[row])
        items = [loader.dataset[index, 2][0] for index in row.tolist()]
        assert torch.equal(images, normalise(torch.stack(items), **INFO))


def test_the_bar_counts_the_images_of_the_whole_epoch():
    sampler = EpochSampler(20, 4, seed=3)
    sampler.set_epoch(1, start=2)
    bar = progress_bar(iter(range(3)), sampler, 'epoch 1/3')
    assert (bar.total, bar.initial, bar.unit_scale) == (5, 2, 4)
    assert list(bar) == [0, 1, 2]


# Embedding


@pytest.fixture
def net(slim_backbone):
    return EnsembleModel('resnet18', 3, 4, seed=1)


def embed(net, split, signals=(), dtype=torch.float32):
    loader = make_loaders(split, arguments(protocol='published'), CPU)['test']
    return embed_part(net, loader, INFO, dtype, signals, 'embedding test')


def test_all_images_are_embedded_in_their_order(net, split):
    images = normalise(pixels_of(split, 'test'), **INFO)
    embeddings = embed(net, split)
    assert embeddings.shape == (10, 12) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, net.embed(images))
    half = embed(net, split, dtype=torch.float16)
    assert torch.equal(half, embeddings.half())


def test_embeddings_are_projected(net, split):
    long = embed(net, split)
    projection = fit_projection(long, 3, 0.5)
    loader = make_loaders(split, arguments(), CPU)['test']
    short = embed_part(net, loader, INFO, torch.float16, [], 'test', projection)
    assert short.dtype == torch.float16
    torch.testing.assert_close(short.float(), projection(long), rtol=1e-3, atol=1e-3)


def test_a_signal_stops_embedding(net, split):
    with pytest.raises(KeyboardInterrupt, match='--resume'):
        embed(net, split, signals=[15])


def test_an_image_that_is_gone_is_named(net, split):
    part = Part(['train/gone.png'], torch.tensor([0]), ['a', 'b'])
    gone = Split(split.folder, INFO, 'abc', {'test': part})
    with pytest.raises(UserError, match=r'gone\.png'):
        embed(net, gone)


def test_other_processes_return_no_embeddings(net, split, monkeypatch):
    monkeypatch.setattr(loaders, 'is_first', lambda: False)
    assert len(embed(net, split)) == 0


@pytest.mark.parametrize('embedding', ['logits', 'features'])
@pytest.mark.parametrize('processes', [1, 2, 3])
def test_heads_of_all_processes_are_put_in_their_order(
    slim_backbone, split, monkeypatch, processes, embedding
):
    options = {'seed': 1, 'embedding': embedding, 'mirror': embedding == 'features'}
    net = EnsembleModel('resnet18', 3, 4, **options)
    pixels = pixels_of(split, 'test')
    whole = net.embed(to_images(pixels, INFO))
    sent = []
    for rank in range(processes):
        members = range(rank, 3, processes)
        own = EnsembleModel('resnet18', 3, 4, members=members, **options)
        columns = own.embed(to_images(pixels, INFO)).unflatten(1, (len(members), -1))
        missing = -(-3 // processes) - len(members)
        sent.append((own, F.pad(columns, (0, 0, 0, missing))))
    for rank, (own, share) in enumerate(sent):
        monkeypatch.setattr(
            loaders, 'rank_and_count', lambda rank=rank: (rank, processes)
        )

        def gather(tensor, share=share):
            torch.testing.assert_close(tensor, share)
            return [tensor for _, tensor in sent]

        monkeypatch.setattr(loaders, 'gather', gather)
        torch.testing.assert_close(embed_with_all_heads(own, INFO, pixels), whole)

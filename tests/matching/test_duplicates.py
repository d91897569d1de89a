"""The copies of images in a folder, and the groups of them."""

import os
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps
from toy import ToyCollection, draw_noise, on_circle, photo_pairs

from areir.cli.types import STRICTNESS
from areir.gallery import queries
from areir.matching.duplicates import (
    find_groups,
    find_identical,
    find_pairs,
    same_items,
)


def groups_of(folder, pictures, strictness='normal'):
    """Return the groups, [the file to keep, the others], of pictures by file name."""
    collection, groups = compare_all(folder, pictures, strictness)
    names = collection.images
    return [
        [names[group.keep], *(names[other] for other in sorted(group.others))]
        for group in groups
    ]


def compare_all(folder, pictures, strictness='normal'):
    """Save pictures by file name and return (Collection, their Groups).

    All are compared with each other. A value may be (picture, quality of the JPEG).
    """
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        picture, quality = picture if isinstance(picture, tuple) else (picture, 90)
        picture.save(folder / name, quality=quality)
    count = len(pictures)
    collection = ToyCollection(folder, list(pictures), torch.ones(count, 1))
    pairs = [(one, other) for other in range(count) for one in range(other)]
    least = STRICTNESS[strictness]
    return collection, find_groups(pairs, find_identical(collection), collection, least)


def search_all(collection, k):
    """Return (pairs among the k nearest, Groups) of a Collection."""
    identical = find_identical(collection)
    pairs = find_pairs(collection, k, identical)
    return pairs, find_groups(pairs, identical, collection, STRICTNESS['normal'])


def scene(seed=0, size=(240, 180)):
    """Draw a picture with large and small parts, as photographs have."""
    generator = np.random.default_rng(seed)
    picture = Image.new('RGB', size)
    draw = ImageDraw.Draw(picture)
    for largest in (1, 1, 1, *[3] * 20, *[10] * 300):
        x, y = generator.integers(-20, size)
        width, height = generator.integers(4, np.array(size) // largest + 5)
        colour = tuple(generator.integers(30, 190, 3).tolist())
        draw.ellipse((x, y, x + width, y + height), fill=colour)
    return picture


def crop(picture, share):
    width, height = picture.size
    box = share * width, share * height, (1 - share) * width, (1 - share) * height
    return picture.crop([round(edge) for edge in box])


def brighten(picture, by):
    return ImageEnhance.Brightness(picture).enhance(by)


COPIES = {
    'saved again': lambda picture: (picture, 50),
    'half the size': lambda picture: picture.reduce(2),
    '75 %': lambda picture: picture.resize((picture.width * 3 // 4, 135)),
    'cropped': lambda picture: crop(picture, 0.05),
    'mirrored': ImageOps.mirror,
    'brighter': lambda picture: brighten(picture, 1.4),
    'darker': lambda picture: brighten(picture, 0.7),
    'all': lambda picture: (
        brighten(crop(ImageOps.mirror(picture), 0.03).reduce(2), 1.2),
        75,
    ),
}


@pytest.mark.parametrize('change', COPIES)
def test_a_changed_copy_is_a_near_duplicate(tmp_path, change):
    pictures = {'a.png': scene(), 'b.jpg': COPIES[change](scene()), 'c.png': scene(1)}
    (group,) = groups_of(tmp_path, pictures)
    assert sorted(group) == ['a.png', 'b.jpg']


# Pictures with much in common


def blank(size=(400, 400), colour='white'):
    picture = Image.new('RGB', size, colour)
    return picture, ImageDraw.Draw(picture)


def outline(number):
    picture, draw = blank()
    box, colour = (80, 80, 320, 320), (190, 160, 60)
    triangle = [(200, 80), (320, 320), (80, 320)]
    [
        lambda: draw.ellipse(box, outline=colour, width=5),
        lambda: draw.rectangle(box, outline=colour, width=5),
        lambda: draw.polygon(triangle, outline=colour, width=5),
        lambda: draw.line(box, fill=colour, width=5),
        lambda: draw.rectangle((190, 150, 205, 250), fill='gray'),
        lambda: draw.arc((150, 150, 250, 250), 0, 180, fill='black', width=6),
    ][number]()
    return picture


def logo(number):
    picture, draw = blank((96, 96), 'black')
    generator = np.random.default_rng(number)
    for _ in range(6):
        draw.line(generator.integers(0, 96, 4).tolist(), fill='white', width=5)
    return picture


def page(number, colour='black', other_line=None):
    picture, draw = blank((700, 900))
    font = ImageFont.load_default(16)
    for line in range(30):
        seed = f'{number} {line} {line == other_line}'
        letters = random.Random(seed).choices('abdegmnopqst    ', k=60)
        draw.text((60, 50 + 26 * line), ''.join(letters), colour, font)
    return picture


def screenshot(number):
    """Draw a window with a page whose line differs by number."""
    picture, draw = blank((1000, 1000), '#f6f6f6')
    draw.rectangle((0, 0, 1000, 40), fill='#3c5a99')
    draw.rectangle((0, 40, 200, 1000), fill='#dddddd')
    picture.paste(page(0, other_line=5 * number), (240, 60))
    return picture


def shirt(number):
    """Draw a pale shirt of a colour, or with a mark as pale at a place."""
    colours = [
        (250, 225, 230),
        (225, 230, 250),
        (228, 250, 228),
        *[(246, 243, 240)] * 3,
    ]
    picture, draw = blank((800, 800))
    half = [(330, 150), (250, 120), (100, 260), (180, 340), (230, 290), (230, 680)]
    other = [(800 - x, y) for x, y in reversed(half)]
    draw.polygon(half + other, colours[number], (225, 220, 215), 3)
    if number > 2:
        x, y = 200 + 40 * number, 400
        draw.rectangle((x, y, x + 60, y + 60), fill=(234, 231, 228))
    return picture


@pytest.mark.parametrize('draw', [outline, logo, page, screenshot, shirt])
def test_other_pictures_are_no_near_duplicates(tmp_path, draw):
    pictures = {f'{number}.png': draw(number) for number in range(6)}
    copies = {f'copy{number}.jpg': (draw(number), 60) for number in range(3)}
    wanted = [{f'{number}.png', f'copy{number}.jpg'} for number in range(3)]
    found = [set(group) for group in groups_of(tmp_path, pictures | copies)]
    assert sorted(found, key=min) == wanted


def test_pale_text_and_pictures_of_one_colour(tmp_path):
    pictures = {f'{number}.png': page(number, '#dddddd') for number in range(3)}
    pictures |= {'white.png': blank()[0], 'white.bmp': blank()[0]}
    assert groups_of(tmp_path, pictures) == []


def test_strictness_moves_the_cut(tmp_path):
    pictures = {'a.png': scene(), 'b.jpg': (scene(), 20)}
    assert [
        len(groups_of(tmp_path, pictures, strictness)) for strictness in STRICTNESS
    ] == [1, 1, 0]  # loose, normal, strict


# Other products


@pytest.mark.parametrize('kind', ['mirrored', 'recoloured', 'near-duplicate'])
def test_what_may_be_another_product_is_told_apart(tmp_path, kind):
    def draw(colour):
        picture, pen = blank((300, 300))
        pen.polygon([(40, 60), (250, 90), (220, 260), (90, 200)], colour)
        pen.ellipse((90, 100, 130, 140), 'white')
        return picture

    changes = {
        'mirrored': [ImageOps.mirror(draw('black'))],
        'recoloured': [draw('#12163c'), draw('gray'), draw('#331100')],
        'near-duplicate': [draw('black').reduce(2), (draw('black'), 40)],
    }
    for number, other in enumerate(changes[kind]):
        pictures = {'a.png': draw('black'), 'b.jpg': other}
        _, (group,) = compare_all(tmp_path / str(number), pictures)
        assert group.kind() == kind


def test_copies_of_other_colours_are_found_beside_them(tmp_path):
    def draw(colour):
        picture, pen = blank((300, 300))
        pen.polygon([(40, 60), (250, 90), (220, 260), (90, 200)], colour)
        return picture

    pictures = {
        'black.png': draw('black'),
        'red.png': draw('#aa0000'),
        'red.jpg': (draw('#aa0000').reduce(2), 80),
        'black.jpg': (draw('black').reduce(2), 80),
    }
    _, groups = compare_all(tmp_path, pictures)
    found = [(group.kind(), {group.keep, *group.others}) for group in groups]
    assert found[:2] == [('near-duplicate', {0, 3}), ('near-duplicate', {1, 2})]
    assert found[2:] == [('recoloured', {0, 1})]


def test_a_small_digit_is_a_difference(tmp_path):
    pictures = {}
    for number in (330, 380):
        picture, pen = blank((700, 1000))
        pen.rectangle((100, 100, 600, 900), 'navy')
        pen.text((300, 500), 'FIZZY', 'white', ImageFont.load_default(90))
        pen.text((200, 800), f'{number} ml', 'white', ImageFont.load_default(26))
        pictures[f'{number}.png'] = picture
    assert groups_of(tmp_path, pictures) == []


def test_frames_behind_the_first_are_no_copies(tmp_path):
    for number in (1, 2):
        further = {'save_all': True, 'append_images': [scene(number)]}
        scene().save(tmp_path / f'{number}.tif', **further)
    pictures = {'a.png': scene(), 'b.png': scene()}
    names = [*pictures, '1.tif', '2.tif']
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    os.utime(tmp_path / 'a.png', (1, 1))
    collection = ToyCollection(tmp_path, names, torch.ones(4, 1))
    _, (group,) = search_all(collection, 3)
    assert (group.keep, set(group.others)) == (0, {1})


def test_links_are_no_copies(tmp_path):
    (tmp_path / 'z').mkdir()
    draw_noise(tmp_path / 'z/file.png', 0)
    shutil.copy(tmp_path / 'z/file.png', tmp_path / 'z/copy.png')
    os.utime(tmp_path / 'z/file.png', (1, 1))
    os.symlink('z', tmp_path / 'a')
    os.symlink('z/file.png', tmp_path / 'b.png')
    os.link(tmp_path / 'z/file.png', tmp_path / 'z/hard.png')
    names = ['a/copy.png', 'a/file.png', 'b.png']
    names += ['z/copy.png', 'z/file.png', 'z/hard.png']
    collection = ToyCollection(tmp_path, names, torch.ones(6, 1))
    _, (group,) = search_all(collection, 5)
    assert (group.keep, set(group.others)) == (4, {3})


# Groups


def test_identical_files_are_one_group_and_the_oldest_is_kept(tmp_path):
    paths = [f'{number:02d}.png' for number in range(21)]
    draw_noise(tmp_path / paths[0], 0)
    for path in paths[1:20]:
        shutil.copy(tmp_path / paths[0], tmp_path / path)
    os.utime(tmp_path / paths[7], (1, 1))
    collection = ToyCollection(tmp_path, paths, on_circle(*[0] * 20, 3))
    identical = find_identical(collection)
    assert [sorted(indices) for indices in identical] == [list(range(20))]
    pairs = find_pairs(collection, 1, identical)
    assert list(pairs) == [(7, 20)]  # each other file found the one that is kept
    (group,) = find_groups(pairs, identical, collection, 0.75)
    assert group.kind() == 'identical' and group.keep == 7
    assert set(group.others) == set(range(20)) - {7}
    assert not same_items(pairs, [group], collection)  # there is no threshold


def test_the_largest_is_kept_and_identical_files_join_its_group(tmp_path):
    pictures = {
        'small.png': scene().reduce(2),
        'large.png': scene(),
        'large.jpg': scene(),  # more bytes than the PNG
    }
    groups_of(tmp_path, pictures)
    shutil.copy(tmp_path / 'small.png', tmp_path / 'again.png')
    pictures['again.png'] = Image.open(tmp_path / 'small.png')
    wanted = ['large.jpg', 'small.png', 'large.png', 'again.png']
    assert groups_of(tmp_path, pictures) == [wanted]


def test_a_chain_is_cut(tmp_path):
    wide = scene(size=(400, 180))
    pictures = {  # each shifted by 8 % of its width
        f'{place}.png': wide.crop((20 * place, 0, 20 * place + 240, 180))
        for place in range(6)
    }
    groups = groups_of(tmp_path, pictures)
    assert sum(map(len, groups)) <= 6 and max(map(len, groups)) >= 2
    for group in groups:
        places = [int(name[0]) for name in group]
        assert max(abs(place - places[0]) for place in places) <= 2


def test_files_that_are_gone_and_pairs_of_the_same_item(tmp_path):
    collection = photo_pairs(tmp_path / 'photos')  # see there
    identical = find_identical(collection)
    pairs = find_pairs(collection, 5, identical)
    groups = find_groups(pairs, identical, collection, 0.75)
    assert [group.keep for group in groups] == [4, 1]
    assert same_items(pairs, groups, collection) == {(4, 5): pairs[4, 5]}
    os.remove(collection.path_of(0))
    groups = find_groups(pairs, identical, collection, 0.75)
    assert [group.keep for group in groups] == [4]


def test_pairs_are_those_of_the_nearest(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(queries, 'TOGETHER', 7)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator))
    paths = [f'{number}.png' for number in range(20)]
    collection = ToyCollection(tmp_path, paths, vectors)
    scores = vectors.double() @ vectors.double().T
    scores.fill_diagonal_(-2)
    wanted = {
        tuple(sorted((row, column)))
        for row, columns in enumerate(scores.topk(3).indices.tolist())
        for column in columns
    }
    found = find_pairs(collection, 3, [])
    assert set(found) == wanted
    for pair, score in found.items():
        assert score == pytest.approx(scores[pair].item(), abs=1e-6)

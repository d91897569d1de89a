"""Transparency, colour profiles and depths: what people see is what is read."""

import struct
import zlib

import numpy as np
import pytest
from official import noise, to_pixels, write_image
from PIL import Image, ImageDraw
from profiles import PRIMARIES, cmyk_profile, encode, grey_profile, rgb_profile

from areir.data.images import PixelFormat, load_image, srgb_transform

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def art(mode, colour, ground):
    """Return an image (32, 24) of a disc on a ground."""
    image = Image.new(mode, (32, 24), ground)
    ImageDraw.Draw(image).ellipse((8, 4, 24, 20), fill=colour)
    return image


def palette(colour):
    """Return a palette image of a disc in a colour; the ground is number 0, black."""
    image = art('P', 1, 0)
    image.putpalette([0, 0, 0, *colour])
    return image


def shaded(low, high):
    """Return a disc from one grey to another, as a photographed product is shaded."""
    ramp = Image.linear_gradient('L').resize((32, 24))
    ramp = ramp.point(lambda value: low + value * (high - low) // 255)
    return Image.merge('LA', (ramp, art('L', 255, 0)))


def soft(grey):
    """Return a grey whose edges fade."""
    alpha = (
        Image.radial_gradient('L').resize((32, 24)).point(lambda far: max(240 - far, 0))
    )
    return Image.merge('LA', (Image.new('L', (32, 24), grey), alpha))


def page():
    """Return a white page of text with transparent corners."""
    image = Image.new('RGBA', (32, 24), 'white')
    for y in range(3, 21, 3):
        image.paste('black', (4, y, 28, y + 1))
    image.putalpha(art('L', 255, 255))
    for corner in ((0, 0), (31, 0), (0, 23), (31, 23)):
        image.putpixel(corner, (0, 0, 0, 0))
    return image


def animated(colour):
    """Return the options of saving a first frame with another behind it."""
    return {'save_all': True, 'append_images': [art('RGBA', colour, (0, 0, 0, 0))]}


CLEAR = (0, 0, 0, 0)
ART = art('RGBA', 'white', CLEAR)


# file, image, options of saving, backdrop
@pytest.mark.parametrize(
    ('name', 'image', 'options', 'backdrop'),
    [
        ('white.png', ART, {}, BLACK),
        ('clear_white.png', art('RGBA', 'white', (255, 255, 255, 0)), {}, BLACK),
        ('veil.png', art('RGBA', (255, 255, 255, 90), CLEAR), {}, BLACK),
        ('ivory.png', art('RGBA', 'ivory', CLEAR), {}, BLACK),
        ('pale.png', art('LA', (240, 255), (0, 0)), {}, BLACK),
        ('soft.png', soft(255), {}, BLACK),
        ('la.tif', art('LA', (255, 255), (0, 0)), {}, BLACK),
        ('palette.png', palette(WHITE), {'transparency': 0}, BLACK),
        ('bit.png', art('1', 1, 0), {'transparency': 0}, BLACK),
        ('key.png', art('L', 255, 7), {'transparency': 7}, BLACK),
        ('moving.gif', ART, animated('red'), BLACK),
        ('moving.webp', ART, {**animated('red'), 'lossless': True}, BLACK),
        ('black.png', art('RGBA', 'black', (255, 255, 255, 0)), {}, WHITE),
        ('yellow.png', art('RGBA', 'yellow', CLEAR), {}, WHITE),
        ('red.gif', palette((255, 0, 0)), {'transparency': 0}, WHITE),
        ('shirt.png', shaded(190, 255), {}, WHITE),
        ('soft_black.png', soft(0), {}, WHITE),
        ('page.png', page(), {}, WHITE),
        ('nothing.png', Image.new('RGBA', (32, 24), CLEAR), {}, WHITE),
    ],
)
def test_a_backdrop_hides_nothing(tmp_path, name, image, options, backdrop):
    write_image(tmp_path / name, image, **options)
    loaded = load_image(tmp_path / name)
    assert loaded.mode == 'RGB' and loaded.getpixel((0, 0)) == backdrop
    if name != 'nothing.png':
        assert to_pixels(loaded).std() > 15


def test_a_large_image_has_the_backdrop_of_the_whole(tmp_path):
    """It is reduced after its transparency is gone."""
    write_image(tmp_path / 'it.png', ART.resize((640, 480)))
    whole, reduction = load_image(tmp_path / 'it.png'), PixelFormat(16).reduction()
    assert load_image(tmp_path / 'it.png', reduce=reduction) == reduction(whole)


# Colour profiles


def photograph(size=(64, 48)):
    """Return a smooth picture of many colours, as photographs have."""
    pixels = to_pixels(noise((6, 5)).resize(size, Image.Resampling.BICUBIC))
    return Image.fromarray((50 + pixels * 0.6).astype(np.uint8))


def differences(one, other):
    """Return how much the channels of two images of equal size differ."""
    assert one.size == other.size
    return np.abs(np.subtract(one, other, dtype=int))


@pytest.mark.parametrize('name', [*PRIMARIES, 'sRGB'])
@pytest.mark.parametrize('kind', ['png', 'tif', 'webp', 'jpg'])
def test_a_photograph_saved_with_another_profile_is_the_same(tmp_path, name, kind):
    """What 8 bits of ProPhoto or a JPEG's rounding have lost cannot be had again."""
    picture, content, path = photograph(), rgb_profile(name), tmp_path / f'it.{kind}'
    encoded = encode(picture, content)
    assert (differences(encoded, picture).max() > 12) == (name != 'sRGB')
    options = {'webp': {'lossless': True}, 'jpg': {'quality': 100, 'subsampling': 0}}
    encoded.save(path, icc_profile=content, **options.get(kind, {}))
    found = differences(load_image(path), picture)
    assert found.mean() <= 1 and np.quantile(found, 0.9) <= 2
    assert kind == 'jpg' or found.max() <= 2 + (name == 'ProPhoto')


def test_the_profile_of_srgb_costs_nothing():
    assert srgb_transform(rgb_profile('sRGB')) is None
    content = rgb_profile('Display P3')
    again = bytes(bytearray(content))
    assert srgb_transform(content) is srgb_transform(again) is not None


def test_transparency_outlasts_a_profile(tmp_path):
    picture, content = photograph(), rgb_profile('Display P3')
    encoded = encode(picture, content)
    for image in (picture, encoded):
        image.putalpha(Image.linear_gradient('L').resize(image.size))
    picture.save(tmp_path / 'srgb.png')
    encoded.save(tmp_path / 'p3.png', icc_profile=content)
    loaded = load_image(tmp_path / 'p3.png')
    assert loaded.mode == 'RGB'
    assert differences(loaded, load_image(tmp_path / 'srgb.png')).max() <= 2


def test_a_reduced_photograph_has_its_colours_converted(tmp_path):
    picture, content = photograph((640, 480)), rgb_profile('Display P3')
    expected = picture.resize((32, 32), Image.Resampling.BILINEAR)
    for name in ('it.png', 'it.jpg'):
        encode(picture, content).save(tmp_path / name, icc_profile=content, quality=95)
        reduction = PixelFormat(32).reduction()
        reduced = load_image(tmp_path / name, least=32, reduce=reduction)
        assert differences(reduced, expected).max() <= 4


def test_profiles_of_grey_and_of_inks(tmp_path):
    ramp = Image.linear_gradient('L').point(lambda value: 60 + value // 2)
    content = grey_profile(1.0)
    grey = encode(ramp.convert('RGB'), content)
    grey.save(tmp_path / 'grey.png', icc_profile=content)
    assert (
        differences(load_image(tmp_path / 'grey.png'), ramp.convert('RGB')).max() <= 2
    )
    # Lab (55, -37, -50) is about (0, 148, 216) in sRGB; pillow's cyan is (0, 255, 255)
    for name in ('inks.tif', 'inks.jpg'):
        inks = Image.new('CMYK', (16, 16), (255, 0, 0, 0))
        inks.save(tmp_path / name, icc_profile=cmyk_profile((55, -37, -50)))
        red, green, blue = load_image(tmp_path / name).getpixel((8, 8))
        assert red < 5 and 140 < green < 160 and 205 < blue < 228


@pytest.mark.parametrize(
    ('mode', 'content'),
    [
        ('RGB', b'no profile at all'),
        ('RGB', rgb_profile('ProPhoto')[:200]),
        ('RGB', rgb_profile('ProPhoto').replace(b'RGB ', b'RG\xee ')),
        ('RGB', grey_profile(1.0)),
        ('CMYK', rgb_profile('ProPhoto')),
        ('L', cmyk_profile((55, -37, -50))),
    ],
)
def test_an_odd_profile_counts_for_nothing(tmp_path, mode, content):
    image = photograph().convert(mode)
    image.save(tmp_path / 'without.tif')
    image.save(tmp_path / 'with.tif', icc_profile=content)
    loaded = [load_image(tmp_path / name) for name in ('with.tif', 'without.tif')]
    assert not differences(*loaded).any()


# Depth


def write_png(path, rows, kind, key=b''):
    """Write a PNG of 16 bits; rows: (H, W, channels); kind: its colour type."""

    def chunk(name, content):
        whole = name + content
        return (
            struct.pack('>I', len(content))
            + whole
            + struct.pack('>I', zlib.crc32(whole))
        )

    rows = np.asarray(rows, dtype='>u2')
    header = struct.pack('>IIBBBBB', rows.shape[1], len(rows), 16, kind, 0, 0, 0)
    pixels = zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))
    content = chunk(b'IHDR', header) + (chunk(b'tRNS', key) if key else b'')
    content += chunk(b'IDAT', pixels) + chunk(b'IEND', b'')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + content)


@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
@pytest.mark.parametrize('name', ['it.png', 'it.tif'])
def test_fewer_bits_in_16_are_scaled(tmp_path, bits, name):
    """The crop of an image is as bright as the whole."""
    unit = 2 ** (bits - 8)
    rows = np.array([[0, 1, 70, 255]] * 3, dtype=np.uint16) * unit + unit // 2
    write_image(tmp_path / name, Image.fromarray(rows))
    for box in (None, (0, 0, 3, 2)):
        loaded = to_pixels(load_image(tmp_path / name, box))[0, :, 1]
        assert loaded.tolist() == [0, 1, 70, 255][: 3 if box else 4]


@pytest.mark.parametrize('bits', [12, 16])
def test_fewer_bits_of_colour_are_scaled(tmp_path, bits):
    """pillow reads the higher bytes alone: 12 bits would be 15 of 255 at most."""
    unit, path = 2 ** (bits - 8), tmp_path / 'it.png'
    colours = np.array([[[255, 128, 6], [1, 0, 77]]] * 2)
    write_png(path, colours * unit, 2)
    assert (to_pixels(load_image(path)) == colours).all()
    alpha = np.array([[[65535], [0]]] * 2)
    write_png(path, np.concatenate([colours * unit, alpha], axis=2), 6)
    assert to_pixels(load_image(path))[0].tolist() == [[255, 128, 6], [255] * 3]
    write_png(path, np.concatenate([colours[..., 1:2] * unit, alpha], axis=2), 4)
    assert to_pixels(load_image(path))[0].tolist() == [[128] * 3, [255] * 3]


def test_a_transparent_colour_of_16_bits(tmp_path):
    path = tmp_path / 'it.png'
    write_png(
        path, [[[65535, 0, 0], [65534, 0, 0]]], 2, struct.pack('>3H', 65534, 0, 0)
    )
    assert to_pixels(load_image(path))[0].tolist() == [[255, 0, 0], [255] * 3]
    write_png(path, [[[0], [4095]]], 0, struct.pack('>H', 4095))
    assert to_pixels(load_image(path))[0].tolist() == [[0] * 3, [255] * 3]

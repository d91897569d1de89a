"""Images of every mode and state become RGB, or are refused by name."""

import numpy as np
import pytest
import torch
from official import noise, to_pixels, write_classes, write_image, write_lines
from PIL import ExifTags, Image
from profiles import rgb_profile

from areir.data.images import (
    PixelFormat,
    check_pixels,
    is_image,
    list_files,
    load_image,
    to_pictures,
)
from areir.data.sample import Figure, draw_image
from areir.errors import UserError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def halves(mode, left, right, palette=None):
    """Return an image (4, 3) of two colours."""
    image = Image.new(mode, (4, 3), right)
    image.paste(left, (0, 0, 2, 3))
    if palette:
        image.putpalette(palette)
    return image


PALETTE = halves('P', 0, 1, [255, 0, 0, 0, 0, 255])
TRANSPARENT = halves('RGBA', (255, 0, 0, 255), (255, 0, 0, 0))


# file, image, options of saving, colour at the left, colour at the right
@pytest.mark.parametrize(
    ('name', 'image', 'options', 'left', 'right'),
    [
        ('grey.png', Image.new('L', (4, 3), 77), {}, (77, 77, 77), (77, 77, 77)),
        ('palette.png', PALETTE, {}, RED, BLUE),
        ('hole.png', PALETTE, {'transparency': 1}, RED, WHITE),
        ('rgba.png', TRANSPARENT, {}, RED, WHITE),
        ('la.png', halves('LA', (77, 255), (77, 0)), {}, (77, 77, 77), WHITE),
        ('cmyk.jpg', halves('CMYK', (0, 255, 255, 0), (0, 255, 255, 0)), {}, RED, RED),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, name, image, options, left, right):
    write_image(tmp_path / name, image, **options)
    loaded = load_image(tmp_path / name)
    assert (loaded.mode, loaded.size) == ('RGB', (4, 3))
    tolerance = 3 if name == 'cmyk.jpg' else 0
    for place, wanted in (((0, 1), left), ((3, 1), right)):
        difference = np.subtract(loaded.getpixel(place), wanted)
        assert np.abs(difference).max() <= tolerance


@pytest.mark.parametrize('name', ['deep.png', 'deep.tif', 'deep.pgm'])
def test_16_bits_of_every_format_are_divided(tmp_path, name):
    rows = np.array([[0, 2560, 32768, 65535]] * 3, dtype=np.uint16)
    if name.endswith('pgm'):
        content = b'P5 4 3 65535\n' + rows.astype('>u2').tobytes()
        (tmp_path / name).write_bytes(content)
    else:
        write_image(tmp_path / name, Image.fromarray(rows))
    values = to_pixels(load_image(tmp_path / name))[1, :, 0]
    assert values.tolist() == [0, 10, 128, 255]


@pytest.mark.parametrize(
    ('values', 'kind', 'expected'),
    [
        ([-1000, 0, 1000, 500], np.int32, [0, 128, 255, 191]),
        ([7, 7, 7, 7], np.int32, [0, 0, 0, 0]),
        ([-3e38, 0, 3e38, 0], np.float32, [0, 128, 255, 128]),
        ([1000, np.nan, 2000, np.inf], np.float32, [0, 0, 255, 255]),
    ],
)
def test_numbers_of_a_tiff_are_scaled_by_their_range(tmp_path, values, kind, expected):
    rows = np.array([values] * 3, dtype=kind)
    write_image(tmp_path / 'it.tif', Image.fromarray(rows))
    for box in (None, (0, 1, 4, 3)):
        loaded = load_image(tmp_path / 'it.tif', box)
        assert to_pixels(loaded)[1].tolist() == [[value] * 3 for value in expected]


def test_orientation_is_applied_after_the_box_is_cut(tmp_path):
    image, exif = noise((6, 4)), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    path = tmp_path / 'turned.png'
    write_image(path, image, exif=exif)
    stored = to_pixels(image)
    assert (to_pixels(load_image(path)) == np.rot90(stored, -1)).all()
    cut = to_pixels(load_image(path, (1, 0, 6, 2)))
    assert (cut == np.rot90(stored[0:2, 1:6], -1)).all()


@pytest.mark.parametrize('name', ['cut.jpg', 'cut.png', 'cut.gif', 'empty.jpg', 'gone'])
def test_an_incomplete_file_is_refused_by_name(tmp_path, name):
    path = tmp_path / name
    if name != 'gone':
        write_image(path, noise((64, 64)))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2 * name.startswith('cut')])
    with pytest.raises(UserError, match=name):
        load_image(path)


def test_a_damaged_png_is_refused_although_it_can_be_decoded(tmp_path):
    """pillow does not look at the checksum of the pixels."""
    path = tmp_path / 'it.png'
    Image.radial_gradient('L').resize((32, 32)).save(path)
    content = path.read_bytes()
    for place in range(content.index(b'IDAT') + 4, content.index(b'IEND') - 8, 3):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r'it\.png: '):
            load_image(str(path))


def test_a_jpeg_may_be_decoded_smaller_but_not_too_small(tmp_path):
    path = tmp_path / 'it.jpg'
    Image.linear_gradient('L').resize((400, 240)).rotate(90).save(path, quality=95)
    whole, small = load_image(path), load_image(path, least=25)
    assert (whole.size, small.size) == ((400, 240), (100, 60))
    again = small.resize((10, 6), Image.Resampling.BOX)
    expected = whole.resize((10, 6), Image.Resampling.BOX)
    assert np.abs(np.subtract(again, expected, dtype=float)).max() < 12


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_jpeg_decoded_smaller_gives_almost_the_same_pixels(tmp_path, orientation):
    """Also where its sides cannot be divided by 8, and where its colours are grey."""
    path, pixel_format = tmp_path / 'it.jpg', PixelFormat(16)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for mode, size in (('RGB', (277, 259)), ('L', (303, 517)), ('CMYK', (263, 271))):
        smooth = noise((9, 7)).resize(size, Image.Resampling.BICUBIC).convert(mode)
        smooth.save(path, quality=95, exif=exif)
        reduction = pixel_format.reduction()
        drafted = load_image(path, least=16, reduce=reduction)
        assert (drafted.mode, drafted.size) == ('RGB', (16, 16))
        assert reduction.happened
        whole = pixel_format.to_pixels(load_image(path)).int()
        difference = (pixel_format.to_pixels(drafted).int() - whole).abs()
        assert difference.max() <= 4 and difference.double().mean() < 1


def test_an_incomplete_jpeg_is_refused_at_every_size(tmp_path):
    path = tmp_path / 'it.jpg'
    noise((400, 300)).save(path)
    content = path.read_bytes()
    for size in (len(content) - 400, len(content) // 2, 700):
        path.write_bytes(content[:size])
        for least in (None, 100, 40, 1):
            with pytest.raises(UserError, match=r'it\.jpg'):
                load_image(path, least=least)


def test_only_images_of_four_times_the_pixels_are_reduced(tmp_path):
    for size, expected in (((16, 16), (8, 8)), ((17, 15), (17, 15)), ((90, 5), (8, 5))):
        noise(size).save(tmp_path / 'it.png')
        reduction = PixelFormat(8).reduction()
        assert load_image(tmp_path / 'it.png', reduce=reduction).size == expected
        assert reduction.happened == (size != expected)


def test_formats_that_run_another_program_are_refused(tmp_path):
    noise().save(tmp_path / 'page.eps')
    (tmp_path / 'page.eps').rename(tmp_path / 'page.png')
    with pytest.raises(UserError, match=r'page\.png'):
        load_image(tmp_path / 'page.png')
    assert not is_image(tmp_path / 'page.eps')


def test_too_many_pixels_are_refused_in_plain_words(tmp_path, monkeypatch):
    """A JPEG is decoded at a fraction, so four times as many may be uploaded."""
    for name, options in (('a.png', {}), ('a.jpg', {}), ('b.jpg', {'progressive': 1})):
        Image.new('1', (2000, 1500)).convert('L').save(tmp_path / name, **options)
    for name, most in (('a.png', 3_000_000), ('a.jpg', 750_000), ('b.jpg', 3_000_000)):
        check_pixels(tmp_path / name, most)
        with pytest.raises(UserError, match=f'{name}: 3 million pixels, .* at most 2 '):
            check_pixels(tmp_path / name, most - 1)
    write_lines(tmp_path / 'text.png', ['x'])
    with pytest.raises(UserError, match=r'text\.png'):
        check_pixels(tmp_path / 'text.png', 1200)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1_400_000)
    with pytest.raises(UserError, match=r'a\.png: 3 million pixels, .* at most 250 '):
        load_image(tmp_path / 'a.png')


def test_pixels_are_squashed_to_a_square_and_normalised():
    pixel_format = PixelFormat(8, (0.5, 0.1, 0.25), (0.25, 0.2, 0.5))
    pixels = pixel_format.to_pixels(Image.new('RGB', (30, 10), (0, 51, 255)))
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 8, 8))
    assert (pixels == torch.tensor([0, 51, 255]).view(3, 1, 1)).all()
    images = pixel_format.normalise(pixels[None])
    assert (images.shape, images.dtype) == ((1, 3, 8, 8), torch.float32)
    torch.testing.assert_close(images[0, :, 0, 0], torch.tensor([-2.0, 0.5, 1.5]))


@pytest.mark.parametrize('name', ['bilinear', 'bicubic', 'lanczos'])
def test_images_are_resized_by_pillows_filters(name):
    """Of the whole image, and of a part that lies between its pixels."""
    image = draw_image(Figure(np.random.default_rng(0)), 90, np.random.default_rng(1))
    pixel_format = PixelFormat(33, interpolation=name)
    filters = {filter: image.resize((33, 33), filter) for filter in Image.Resampling}
    whole = pixel_format.to_pixels(image).permute(1, 2, 0)
    equal = [filter for filter in filters if (whole.numpy() == filters[filter]).all()]
    assert [filter.name.lower() for filter in equal] == [name]
    part = image.resize((33, 33), equal[0], (9, 4.5, 81, 90))
    pixels = pixel_format.to_pixels(image, (0.1, 0.05, 0.9, 1)).permute(1, 2, 0)
    assert (pixels.numpy() == part).all()


# Files


def test_is_image_looks_at_the_suffix_and_without_one_at_the_bytes(tmp_path):
    write_image(tmp_path / 'photo.png')
    (tmp_path / 'photo.png').rename(tmp_path / 'photo')
    for name in ('text', 'damaged.JPG', 'notes.txt'):
        (tmp_path / name).write_text('not an image')
    names = ('photo', 'text', 'damaged.JPG', 'notes.txt')
    found = [is_image(str(tmp_path / name)) for name in names]
    assert found == [True, False, True, False]


def test_files_are_listed_in_order_without_hidden_and_system_files(tmp_path):
    names = ['b.png', 'a/z.txt', 'a/y.png', 'Ü ber/x.png']
    hidden = (
        '.DS_Store',
        'a/._y.png',
        '.cache/1.png',
        '__MACOSX/1.png',
        'a/@eaDir/1.png',
    )
    for name in (*names, *hidden):
        write_lines(tmp_path / name, ['x'])
    assert list_files(tmp_path) == sorted(names)


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_classes(tmp_path, ['a', 'b'], images=1)
    (tmp_path / 'a/to_b').symlink_to('../b')
    (tmp_path / 'b/to_a').symlink_to('../a')
    (tmp_path / 'b/top').symlink_to('..')
    files = list_files(tmp_path)
    assert {'a/0.png', 'b/0.png', 'a/to_b/0.png', 'b/to_a/0.png'} <= set(files)
    assert len(files) == 4  # none is a/to_b/to_a/..., which would never end


# Pictures that are no files

TINY = noise((40, 30))
NUMBERS = np.arange(999).reshape(27, 37)


@pytest.mark.parametrize(
    ('name', 'image', 'options'),
    [
        ('a.png', TINY, {'orientation': 6}),
        ('b.jpg', TINY, {'orientation': 3}),
        ('c.tif', TINY, {'orientation': 8}),
        ('d.webp', TINY, {'orientation': 5}),
        ('e.png', TINY, {'icc_profile': rgb_profile('Display P3')}),
        ('f.png', TINY.convert('P'), {'transparency': 3}),
        ('g.gif', TINY.convert('P'), {}),
        ('h.png', TINY.convert('LA'), {}),
        ('i.jpg', TINY.convert('CMYK'), {}),
        ('j.png', Image.fromarray(NUMBERS.astype(np.uint16)), {}),
        ('k.tif', Image.fromarray(NUMBERS.astype(np.int32)), {}),
        ('l.tif', Image.fromarray(NUMBERS.astype(np.float32)), {}),
    ],
)
def test_an_opened_image_gives_the_pixels_of_its_file(tmp_path, name, image, options):
    if 'orientation' in options:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = options['orientation']
        options = {'exif': exif}
    image.save(tmp_path / name, **options)
    expected = load_image(tmp_path / name)
    opened = Image.open(tmp_path / name)
    opened.load()
    before = opened.copy()
    (picture,) = to_pictures(opened)
    assert picture is opened
    assert load_image(picture, least=8, reduce=PixelFormat(99).reduction()) == expected
    assert opened.copy() == before  # still as the caller has it


def test_an_image_that_is_not_read_is_its_file(tmp_path):
    """So a JPEG is decoded at a fraction, and 16 bits of RGB are not lost."""
    path = tmp_path / 'it.jpg'
    TINY.resize((400, 300)).save(path)
    opened = Image.open(path)
    assert to_pictures([opened, path]) == [str(path), str(path)]
    assert opened.size == (400, 300)
    TINY.save(tmp_path / 'it.gif', save_all=True, append_images=[TINY.rotate(90)])
    second = Image.open(tmp_path / 'it.gif')
    second.seek(1)
    path.unlink()
    gone = opened
    assert to_pictures(iter([second, gone])) == [second, gone]

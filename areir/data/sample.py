"""Draw the sample dataset: 40 + 40 classes of 20 pictures, from one seed, in seconds.

A class is a figure: an outline, two colours and stripes. An image shows that figure at
a random place, size, angle and light on a random cluttered background. No figure of the
test classes occurs in training.
"""

import colorsys
import os

import numpy as np
from PIL import Image, ImageDraw

from areir.bars import progress_bar
from areir.files import atomic_folder

OVERSAMPLING = 2  # pictures are drawn this much larger, then reduced for smooth edges
HARMONICS = np.arange(2, 7)  # waves per turn that shape an outline


def random_colour(rng):
    """Return a colour (3,) as floats from 0 to 255."""
    hue = rng.random()
    saturation, value = rng.uniform(0.4, 1), rng.uniform(0.35, 1)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def background_colour(rng):
    """Return a colour paler than the figures' colours, as a tuple for pillow."""
    return tuple((0.6 * random_colour(rng) + 51).astype(int))


class Figure:
    """What all images of a class share, drawn at random."""

    def __init__(self, rng):
        self.amplitude = rng.uniform(-1, 1, 5) * 0.45 / np.sqrt(HARMONICS)
        self.phase = rng.uniform(0, 2 * np.pi, 5)  # (5,), radians
        self.colours = random_colour(rng), random_colour(rng)
        self.stripe_turn = rng.uniform(0, np.pi)  # radians
        self.stripe_period = rng.uniform(0.25, 0.8)  # in radii of the figure
        self.stripe_share = rng.uniform(0.3, 0.7)  # of the first colour


def draw_background(side, rng):
    """Draw ellipses, bars and triangles; return float pixels (side, side, 3)."""
    image = Image.new('RGB', (side, side), background_colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(8, 16)):
        colour = background_colour(rng)
        x, y = rng.uniform(-0.2, 1, 2) * side
        width, height = rng.uniform(0.1, 0.5, 2) * side
        shape = rng.integers(3)
        if shape == 0:
            draw.ellipse((x, y, x + width, y + height), fill=colour)
        elif shape == 1:
            end = rng.uniform(0, 1, 2) * side
            draw.line((x, y, *end), fill=colour, width=int(rng.integers(2, 8)))
        else:
            draw.polygon([(x, y), (x + width, y), (x, y + height)], fill=colour)
    return np.asarray(image, dtype=np.float64)


def draw_figure(pixels, figure, x, y, turn):
    """Draw a figure, turned by `turn` radians, onto pixels (H, W, 3).

    x, y (H, W): each pixel's distance from the figure's centre, in radii.
    """
    u = x * np.cos(turn) + y * np.sin(turn)
    v = y * np.cos(turn) - x * np.sin(turn)
    angle = np.arctan2(v, u)
    waves = sum(
        amplitude * np.cos(order * angle + phase)
        for order, amplitude, phase in zip(HARMONICS, figure.amplitude, figure.phase)
    )
    across = u * np.cos(figure.stripe_turn) + v * np.sin(figure.stripe_turn)
    stripe = (across / figure.stripe_period) % 1 < figure.stripe_share
    body = np.where(stripe[..., None], *figure.colours)
    inside = np.hypot(u, v) < 1 + waves
    return np.where(inside[..., None], body, pixels)


def draw_image(figure, side, rng):
    """Draw one picture of a figure, uint8 (side, side, 3), as a pillow image."""
    fine = side * OVERSAMPLING
    pixels = draw_background(fine, rng)
    turn = rng.uniform(-0.4, 0.4)
    radius = rng.uniform(0.24, 0.36)
    centre_x, centre_y = rng.uniform(radius, 1 - radius, 2)
    grid = (np.arange(fine) + 0.5) / fine
    x, y = np.meshgrid((grid - centre_x) / radius, (grid - centre_y) / radius)
    pixels = draw_figure(pixels, figure, x, y, turn)

    # light: a slope across the picture and a cast of colour
    slope = 1 + rng.uniform(-0.4, 0.4) * (x - x.mean()) * radius
    slope = slope + rng.uniform(-0.4, 0.4) * (y - y.mean()) * radius
    light = slope[..., None] * rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3)
    pixels = pixels * light + rng.normal(0, 8, pixels.shape)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.resize((side, side), Image.Resampling.BOX)


def draw_sample(
    folder, train_classes=40, test_classes=40, images_per_class=20, side=64, seed=0
):
    """Write folder/{train,test}/<class>/<image>.png. UserError if `folder` is there."""
    total = train_classes + test_classes
    digits = len(str(total))
    with atomic_folder(folder) as temporary:
        for index in progress_bar(range(total), 'drawing', unit='class'):
            rng = np.random.default_rng([seed, index])
            figure = Figure(rng)
            name = f'figure_{index + 1:0{digits}d}'
            part = 'train' if index < train_classes else 'test'
            target = os.path.join(temporary, part, name)
            os.makedirs(target)
            for number in range(images_per_class):
                path = os.path.join(target, f'{name}_{number + 1:02d}.png')
                draw_image(figure, side, rng).save(path)

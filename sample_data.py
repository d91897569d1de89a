"""Draw the embedded sample dataset: 40 + 40 classes of 20 pictures, 64 pixels, in seconds, from one seed.

A class is a figure: an outline, two colours, stripes. An image is that figure at its own place, size, turn
and light, on its own cluttered ground. The test classes are figures that training never sees.
"""
import colorsys
import os
import shutil

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

OVERSAMPLING = 2  # figures are drawn larger and reduced, for smooth edges


def random_colour(rng):
    return 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.4, 1), rng.uniform(0.35, 1)))


def ground_colour(rng):
    """Paler than the figures' colours, as a tuple for pillow."""
    return tuple((0.6 * random_colour(rng) + 51).astype(int))


def random_figure(rng):
    """What all images of a class share: outline harmonics, two colours, stripes."""
    order = np.arange(2, 7)
    return {'amplitude': rng.uniform(-1, 1, 5) * 0.45 / np.sqrt(order), 'phase': rng.uniform(0, 2 * np.pi, 5),
            'colours': (random_colour(rng), random_colour(rng)),
            'stripe_turn': rng.uniform(0, np.pi), 'stripe_period': rng.uniform(0.25, 0.8),
            'stripe_share': rng.uniform(0.3, 0.7)}


def draw_ground(side, rng):
    """A cluttered ground: ellipses, bars and triangles."""
    image = Image.new('RGB', (side, side), ground_colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(8, 16)):
        colour = ground_colour(rng)
        x, y = rng.uniform(-0.2, 1, 2) * side
        width, height = rng.uniform(0.1, 0.5, 2) * side
        shape = rng.integers(3)
        if shape == 0:
            draw.ellipse((x, y, x + width, y + height), fill=colour)
        elif shape == 1:
            draw.line((x, y, *(rng.uniform(0, 1, 2) * side)), fill=colour, width=int(rng.integers(2, 8)))
        else:
            draw.polygon([(x, y), (x + width, y), (x, y + height)], fill=colour)
    return np.asarray(image, dtype=np.float64)


def draw_image(figure, side, rng):
    """One picture (side, side, 3) of a figure, uint8."""
    fine = side * OVERSAMPLING
    pixels = draw_ground(fine, rng)
    turn = rng.uniform(-0.4, 0.4)
    radius = rng.uniform(0.24, 0.36)
    centre_x, centre_y = rng.uniform(radius, 1 - radius, 2)
    grid = (np.arange(fine) + 0.5) / fine
    x, y = np.meshgrid((grid - centre_x) / radius, (grid - centre_y) / radius)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)

    angle = np.arctan2(v, u)
    outline = 1 + sum(a * np.cos(k * angle + p) for k, a, p in zip(range(2, 7), figure['amplitude'], figure['phase']))
    across = u * np.cos(figure['stripe_turn']) + v * np.sin(figure['stripe_turn'])
    stripe = (across / figure['stripe_period']) % 1 < figure['stripe_share']
    first, second = figure['colours']
    body = np.where(stripe[..., None], first, second)
    inside = np.hypot(u, v) < outline
    pixels = np.where(inside[..., None], body, pixels)

    # light: a slope across the picture, a cast of colour, noise
    slope = 1 + rng.uniform(-0.4, 0.4) * (x - x.mean()) * radius + rng.uniform(-0.4, 0.4) * (y - y.mean()) * radius
    light = slope[..., None] * rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3)
    pixels = pixels * light + rng.normal(0, 8, pixels.shape)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.resize((side, side), Image.Resampling.BOX)


def draw_sample(folder, train_classes=40, test_classes=40, images_per_class=20, side=64, seed=0):
    """Write folder/{train,test}/<class>/<image>.png; the folder appears under its name only when complete."""
    partial = f'{folder}.part'
    shutil.rmtree(partial, ignore_errors=True)
    total = train_classes + test_classes
    for index in tqdm(range(total), desc='drawing', unit='class'):
        rng = np.random.default_rng([seed, index])
        figure = random_figure(rng)
        name = f'figure_{index + 1:0{len(str(total))}d}'
        target = os.path.join(partial, 'train' if index < train_classes else 'test', name)
        os.makedirs(target)
        for number in range(images_per_class):
            draw_image(figure, side, rng).save(os.path.join(target, f'{name}_{number + 1:02d}.png'))
    os.replace(partial, folder)

"""A map of embeddings: similar images lie near each other, in two dimensions."""

import io

import numpy as np
import pandas as pd
from PIL import Image

from areir.errors import UserError, optional
from areir.output.charts import STYLE, distinct_colours

MOST = 2000  # images on a map; t-SNE takes 5 s for them on one core
EACH = 20  # images of a class at most, or more if the classes are few
WIDTH, HEIGHT, DPI = 5.5, 4.6, 160  # inches, and pixels per inch


def choose_images(labels, first=()):
    """Choose the images of a map, EACH of a class, in random classes.

    labels (N,); first: labels whose images are chosen before others. Returns (n,)
    indices, at most MOST, which are the same in every call.
    """
    images = pd.Series(labels).sample(frac=1, random_state=0)
    order = pd.Index(dict.fromkeys([*first, *images]))
    images = images[images.groupby(images).cumcount() < max(EACH, MOST // len(order))]
    images = images.sort_values(key=order.get_indexer, kind='stable')
    return images.index[:MOST].to_numpy()


def place_images(vectors):
    """Return positions (n, 2) on a map, by t-SNE of unit vectors (n, D).

    Equal vectors give equal positions. Raises UserError without scikit-learn, or if
    all vectors are equal.
    """
    sklearn = optional('t-SNE', 'sklearn.manifold', 'scikit-learn')
    from threadpoolctl import threadpool_limits  # which scikit-learn brings

    if (vectors == vectors[0]).all() or vectors.shape[1] < 2:
        raise UserError('a map needs at least two embeddings that differ')
    perplexity = min(30, (len(vectors) - 1) / 3)
    with threadpool_limits(1):  # the last digits depend on the number of threads
        tsne = sklearn.manifold.TSNE(perplexity=perplexity, init='pca', random_state=0)
        return tsne.fit_transform(vectors)


def draw_map(points, labels, nearest, numbered=()):
    """Draw images as dots in the colours of their classes; return a PIL image.

    If an image's nearest image is of another class, a ring has the colour of that
    class, or is black if the map does not show it. points (n, 2); labels (n,); nearest
    (n,): labels of the nearest images; numbered: labels of classes to mark 1, 2, ...
    """
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    shown = np.random.default_rng(0).permutation(np.unique(labels))
    colours = dict(zip(shown, distinct_colours(len(shown))))
    dots, wrong = [colours[label] for label in labels], labels != nearest
    rings = [colours.get(label, 'black') for label in nearest[wrong]]
    options = {'weight': 'bold', 'ha': 'center', 'va': 'center'}
    options['path_effects'] = [withStroke(linewidth=2.5, foreground='white')]
    file = io.BytesIO()
    with style.context(['default', STYLE]):
        figure = Figure((WIDTH, HEIGHT))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.scatter(*points.T, 7, dots, linewidths=0)
        axes.scatter(*points[wrong].T, 25, 'none', linewidths=0.7, edgecolors=rings)
        marks, least = [], 0.03 * np.ptp(points)  # numbers must not cover each other
        for number, label in enumerate(numbered, 1):
            own = points[labels == label]
            distance = np.abs(own - np.median(own, axis=0)).sum(axis=1)
            for place in marks:
                distance[np.abs(own - place).max(axis=1) < least] = np.inf
            marks.append(own[distance.argmin()])
            axes.text(*marks[-1], str(number), **options)
        axes.set_axis_off()
        figure.savefig(file, dpi=DPI)
    return Image.open(file).convert('RGB').quantize()  # a quarter of the bytes

"""The map of embeddings: which images, where, and how they are drawn."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from areir.errors import UserError
from areir.output.maps import choose_images, draw_map, place_images


def clusters(count, each, size=16, noise=0.1):
    """Return unit vectors (count * each, size) around `count` centres, and labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(count), each)
    vectors = rng.normal(size=(count, size))[labels]
    vectors += noise * rng.normal(size=vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), labels


def nearest(points, labels):
    """Return the label of each point's nearest other point."""
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(distances, np.inf)
    return labels[distances.argmin(axis=1)]


@pytest.mark.parametrize(
    ('sizes', 'counts'),
    [
        ([5, 3], [5, 3]),  # all
        ([5000, 1500], [1000, 1000]),  # a half for each of two classes
        ([50] * 99 + [3], [20] * 99 + [3]),
        ([6] * 1000, [6] * 333 + [2]),  # all of each class, except the last
    ],
)
def test_as_many_of_each_class_as_a_map_can_show(sizes, counts):
    labels = np.repeat([f'class {n}' for n in range(len(sizes))], sizes)
    chosen = choose_images(labels)
    assert len(set(chosen)) == len(chosen) and (chosen == choose_images(labels)).all()
    _, found = np.unique(labels[chosen], return_counts=True)
    assert sorted(found) == sorted(counts)


def test_some_classes_come_first():
    labels = np.repeat(np.arange(1000), 6)
    chosen = labels[choose_images(labels, first=[700, 3])]
    assert chosen[:12].tolist() == [700] * 6 + [3] * 6
    assert len(set(chosen) - set(range(334))) > 200  # the others are drawn at random


def test_clusters_stay_together_whatever_the_threads():
    vectors, labels = clusters(8, 12)
    shuffled = np.random.default_rng(1).permutation(len(labels))
    vectors, labels = vectors[shuffled], labels[shuffled]
    points = place_images(vectors)
    assert points.shape == (96, 2) and (nearest(points, labels) == labels).all()
    with threadpool_limits(1):
        assert (place_images(vectors) == points).all()


@pytest.mark.parametrize('count', [2, 3, 4])
def test_few_images(count):
    assert np.isfinite(place_images(np.eye(4, dtype=np.float32)[:count])).all()


@pytest.mark.parametrize('count', [1, 20])
def test_equal_vectors_have_no_map(count):
    with pytest.raises(UserError, match='two embeddings that differ'):
        place_images(np.eye(4, dtype=np.float32)[[0] * count])


def test_a_ring_has_the_colour_of_the_nearest_class():
    points = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    labels = np.array(['one', 'one', 'two', 'two'])
    blue, red = (0, 114, 178), (213, 94, 0)

    def amounts(*nearest):
        """Return how many pixels are about (blue, red, black)."""
        picture = draw_map(points, labels, np.array(nearest)).convert('RGB')
        pixels = np.asarray(picture).astype(int)
        kinds = [np.abs(pixels - colour).sum(axis=2) for colour in (blue, red, 0)]
        return [(kind < 60).sum() for kind in kinds]

    dots = amounts('one', 'one', 'two', 'two')
    assert dots[0] == dots[1] > 0 == dots[2]
    ringed = amounts('one', 'one', 'two', 'one')
    other = int(ringed[0] == dots[0])
    assert ringed[other] > dots[other] and ringed[1 - other] == dots[1 - other]
    assert amounts('one', 'elsewhere', 'two', 'two')[2] > 0


def test_equal_points_give_equal_bytes_whatever_the_user_has_set():
    import matplotlib

    points, labels = np.eye(4)[:, :2], np.arange(4)
    picture = draw_map(points, labels, labels, [2])
    with matplotlib.rc_context({'font.size': 20, 'figure.facecolor': 'red'}):
        assert draw_map(points, labels, labels, [2]).tobytes() == picture.tobytes()
    assert draw_map(points, labels, labels).tobytes() != picture.tobytes()

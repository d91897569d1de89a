"""The drawn sample dataset depends on its seed alone and is never partial."""

import os

from official import to_pixels

from areir.data import sample


def drawn(folder, **options):
    """Draw 3 + 2 classes of 2 images of 16 pixels; return {path: pixels}."""
    sizes = {'train_classes': 3, 'test_classes': 2, 'images_per_class': 2, 'side': 16}
    sample.draw_sample(str(folder), **sizes, **options)
    paths = sorted(folder.rglob('*.png'))
    return {str(path.relative_to(folder)): to_pixels(path) for path in paths}


def test_the_seed_decides_every_pixel(tmp_path):
    first, second = drawn(tmp_path / 'a'), drawn(tmp_path / 'b')
    other = drawn(tmp_path / 'c', seed=1)
    assert len(first) == 10 and list(first) == list(second) == list(other)
    assert all((first[name] == second[name]).all() for name in first)
    assert all((first[name] != other[name]).any() for name in first)
    assert len({image.tobytes() for image in first.values()}) == 10
    classes = {os.path.dirname(name) for name in first}
    assert classes == {f'train/figure_{n}' for n in (1, 2, 3)} | {
        f'test/figure_{n}' for n in (4, 5)
    }
    # published scores on the sample depend on every pixel
    pixels = first['train/figure_1/figure_1_01.png']
    assert pixels[8, 8].tolist() == [122, 47, 20] and pixels.sum() == 95581

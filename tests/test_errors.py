"""How messages count, and what they suggest."""

import pytest

from areir.errors import counted, did_you_mean


@pytest.mark.parametrize(
    ('count', 'noun', 'text'),
    [
        (0, 'image', '0 images'),
        (1, 'image', '1 image'),
        (2000, 'image', '2,000 images'),
        (1, 'query', '1 query'),
        (2, 'query', '2 queries'),
        (1, 'class', '1 class'),
        (12, 'test class', '12 test classes'),
        (2, 'box', '2 boxes'),
    ],
)
def test_a_count_and_its_noun(count, noun, text):
    assert counted(count, noun) == text


def test_the_most_similar_name_is_suggested():
    assert did_you_mean('photoz', ['photos', 'data']) == '; did you mean photos?'
    assert did_you_mean('photoz', ['data']) == ''

"""How messages count, and what they suggest."""

import pytest

from areir.errors import counted, did_you_mean, missing


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
        (3, 'batch', '3 batches'),
        (8, 'epoch', '8 epochs'),
    ],
)
def test_a_count_and_its_noun(count, noun, text):
    assert counted(count, noun) == text


def test_the_most_similar_name_is_suggested():
    assert did_you_mean('photoz', ['photos', 'data']) == '; did you mean photos?'
    assert did_you_mean('photoz', ['data']) == ''


@pytest.mark.parametrize(
    ('path', 'text'),
    [
        ('{}/photoz', 'no such file or folder; did you mean photos?'),
        ('{}/photoz/', 'no such file or folder; did you mean photos?'),
        ('{}/qqq', 'no such file or folder'),
        (
            '{}/photoz/2024/a.jpg',
            'no such file or folder, nor {}/photoz; did you mean photos?',
        ),
        ('{}/photos/x', 'no such file or folder'),  # below a file
    ],
)
def test_what_is_missing_and_what_is_like_it(tmp_path, path, text):
    (tmp_path / 'photos').write_text('')
    assert missing(path.format(tmp_path)) == text.format(tmp_path)

"""Files that are in several parts of a split are counted, named and numbered."""

from areir.data.leaks import find_leaks
from areir.data.lists import Record


def leaks_of(*rows, ignored=True):
    """As find_leaks, of rows (path, content); part and label are in the path."""
    records = [Record(*path.split('/')[:2], path) for path, _ in rows]
    return find_leaks([content for _, content in rows], records, ignored)


def test_different_pictures_are_no_leak():
    rows = [(f'{part}/a/1', part) for part in ('train', 'query', 'gallery')]
    assert leaks_of(*rows) == ({}, [], {})
    # copies in training, in the gallery or among the queries give no figure away
    rows += [('train/a/2', 'train'), ('gallery/a/2', 'gallery'), ('query/a/2', 'query')]
    counts, sentences, numbers = leaks_of(*rows)
    assert (counts, sentences) == ({}, [])
    assert numbers['gallery/a/1'] == numbers['gallery/a/2'] != numbers['query/a/1']


def test_files_in_two_parts_are_counted_in_the_second():
    rows = [('train/a/1', 'x'), ('train/a/2', 'x'), ('query/a/1', 'x')]
    rows += [('gallery/a/1', 'x'), ('gallery/a/2', 'x'), ('gallery/a/3', 'y')]
    counts, sentences, numbers = leaks_of(*rows)
    assert counts == {'train/query': 1, 'train/gallery': 2, 'query/gallery': 2}
    assert 'query/a/1 and gallery/a/2' in sentences[2]
    assert 'a query ignores' in sentences[2]
    assert 'the benchmark counts' in leaks_of(*rows, ignored=False)[1][2]
    (number,) = set(numbers.values())
    assert numbers == dict.fromkeys([path for path, _ in rows[:-1]], number)


def test_copies_in_a_test_that_searches_itself():
    rows = [('train/a/1', 'x'), ('test/b/1', 'y'), ('test/b/2', 'y'), ('test/b/3', 'z')]
    counts, (sentence,), numbers = leaks_of(*rows)
    assert counts == {'test/test': 2} and 'test/b/1 and test/b/2' in sentence
    assert list(numbers) == ['test/b/1', 'test/b/2']


def test_a_copy_in_training_and_in_the_test_is_told_once():
    counts, sentences, _ = leaks_of(('train/a/1', 'x'), ('test/b/1', 'x'))
    assert counts == {'train/test': 1} and len(sentences) == 1


def test_copies_in_several_classes_are_named():
    rows = [('train/a/1', 'x'), ('train/a/2', 'x'), ('train/b/1', 'x')]
    counts, (sentence,), numbers = leaks_of(*rows)
    assert counts == {} and len(numbers) == 3
    assert 'classes: 3' in sentence and 'train/a/1 and train/b/1' in sentence

"""Images that a query ignores: its copies, and those of its group or file."""

import pytest
import torch
from embedding_files import (
    COUNT,
    EMBEDDINGS,
    GROUPS,
    IMAGES,
    LABELS,
    QUERIES,
    RANDOM,
    folder,
    metrics_of,
    refusal,
    save,
    save_plain,
)
from torch.nn import functional as F

from areir.evaluation.embeddings_file import rank_file
from areir.evaluation.metrics import summary
from areir.retrieval import evaluate

pytestmark = pytest.mark.usefixtures(folder.__name__)


def save_both(names, query_names, **entries):
    own = {'query_embeddings': EMBEDDINGS[:9], 'query_labels': LABELS[:9]}
    names = {'images': names, 'query_images': query_names} if names else {}
    return save_plain('file.npz', **own, **names, **entries)


@pytest.mark.parametrize('form', ['{}', './{}', 'b/../{}', 'b\\..\\{}'])
def test_a_query_does_not_find_its_own_name(form):
    names = [f'a/{name}' for name in IMAGES]
    names[8] = 'a/odd\udcff.png'  # a name that is not UTF-8
    ranked = rank_file(save_both(names, [form.format(n) for n in names[:9]]), 'cpu')
    alone = rank_file(save_plain('alone.npz'), 'cpu').ranks
    for name, values in ranked.ranks.items():
        assert torch.equal(values, alone[name][:9])
    assert ranked.in_gallery == 9
    (notice,) = ranked.notices
    assert '9 queries, such as a/0.png' in notice


def test_equal_names_in_other_folders_are_others():
    gallery = {'embeddings': F.normalize(RANDOM.flatten(1))}
    path = save_both(IMAGES, [f'query/{name}' for name in IMAGES[:9]], **gallery)
    ranked = rank_file(path, 'cpu')
    assert ranked.in_gallery == 0 and not ranked.notices


def test_names_of_several_classes_tell_nothing():
    gallery = {'embeddings': F.normalize(RANDOM.flatten(1))}
    names = [f'{place // 5}.png' for place in range(COUNT)]  # a name in each class
    ranked = rank_file(save_both(names, names[:9], **gallery), 'cpu')
    assert ranked.in_gallery is None
    assert 'names such as 0.png are of several classes' in ranked.notices[0]
    expected = evaluate(EMBEDDINGS[:9], LABELS[:9], [1], gallery['embeddings'], LABELS)
    assert summary(ranked.ranks, [1]) == expected


def test_row_numbers_are_no_names():
    numbers = {'images': list(range(1, COUNT + 1)), 'query_images': list(range(9))}
    ranked = rank_file(save_plain('file.pt', **{**QUERIES, **numbers}), 'cpu')
    assert ranked.in_gallery is None and 'such as 1 are' in ranked.notices[0]


@pytest.mark.parametrize('named', [False, True])
def test_equal_vectors_in_the_gallery_are_noted(named):
    names = (IMAGES, [f'{name}2' for name in IMAGES[:9]]) if named else (None, None)
    ranked = rank_file(save_both(*names), 'cpu')
    assert '9 queries, such as row 0, with the vector' in ranked.notices[-1]
    assert (ranked.ranks['rank'] == 1).all()  # not ignored


@pytest.mark.parametrize('named', [False, True])
def test_repeated_images_do_not_find_themselves(named):
    again = torch.arange(COUNT + 4) % COUNT
    names = {'images': [IMAGES[row] for row in again]} if named else {}
    entries = {'embeddings': EMBEDDINGS[again], 'labels': LABELS[again]}
    ranked = rank_file(save('file.npz', **entries, **names), 'cpu')
    assert ('4 images' if named else '8 queries') in ranked.notices[0]
    assert len(ranked.notices) == 1
    files = again if named else None
    expected = evaluate(entries['embeddings'], entries['labels'], [1, 4], files=files)
    assert summary(ranked.ranks, [1, 4]) == expected


@pytest.mark.parametrize('query', ['query_{}', 'test_{}'])
@pytest.mark.parametrize('named', [False, True])
def test_a_gallery_that_repeats_the_queries_is_none(query, named):
    """Otherwise each query would find itself, and recall would be 100 %."""
    vectors = 'features' if query == 'test_{}' else 'embeddings'  # of the original code
    entries = {vectors: EMBEDDINGS, 'labels': LABELS}
    entries |= {'images': IMAGES} if named else {}
    both = {
        side.format(name): value
        for side in (query, 'gallery_{}')
        for name, value in entries.items()
    }
    ranked = rank_file(save('file.npz', **both), 'cpu')
    assert ranked.gallery is None and 'repeats the queries' in ranked.notices[0]
    assert summary(ranked.ranks, [1, 4]) == evaluate(EMBEDDINGS, LABELS, [1, 4])


# Groups and files


@pytest.mark.parametrize('metric', [None, 'euclidean'])
@pytest.mark.parametrize('apart', [False, True])
@pytest.mark.parametrize('kind', ['groups', 'files'])
def test_groups_and_files_are_ignored(kind, apart, metric):
    numbers = torch.arange(COUNT) // 4
    vectors = F.normalize(EMBEDDINGS)
    if apart:
        entries = {f'query_{kind}': GROUPS[:9], f'gallery_{kind}': GROUPS[9:]}
        entries |= {'query_embeddings': vectors[:9], 'query_labels': LABELS[:9]}
        entries |= {'gallery_embeddings': vectors[9:], 'gallery_labels': LABELS[9:]}
        path = save('file.npz', **entries)
        marks = {kind: numbers[:9], f'gallery_{kind}': numbers[9:]}
        gallery = vectors[9:], LABELS[9:]
        expected = evaluate(vectors[:9], LABELS[:9], [1, 4], *gallery, **marks)
    else:
        path = save('file.npz', embeddings=vectors, labels=LABELS, **{kind: GROUPS})
        expected = evaluate(vectors, LABELS, [1, 4], **{kind: numbers})
    assert metrics_of(path, metric=metric) == expected
    assert expected != evaluate(vectors, LABELS, [1, 4])


def test_copies_that_a_group_ignores_are_not_noted():
    groups = {'groups': GROUPS, 'query_groups': GROUPS[:9]}
    assert not rank_file(save_both(None, None, **groups), 'cpu').notices


def test_groups_that_match_nothing_are_said():
    groups = {'groups': list(range(COUNT)), 'query_groups': GROUPS[:9]}
    ranked = rank_file(save_both(None, None, **groups), 'cpu')
    assert 'no group of the queries' in ranked.notices[0]


def test_groups_of_one_side_are_refused():
    line = refusal(save_both(None, None, query_groups=GROUPS[:9]))
    assert 'groups not in it' in line

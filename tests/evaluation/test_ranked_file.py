"""The queries of two files of embeddings are matched, or refused."""

import pytest
import torch
from embedding_files import (
    COUNT,
    EMBEDDINGS,
    IMAGES,
    LABELS,
    QUERIES,
    TEXTS,
    save,
    save_plain,
)

from areir.errors import UserError
from areir.evaluation.embeddings_file import match_queries, rank_file


def match(one, other):
    return match_queries(rank_file(one, 'cpu'), rank_file(other, 'cpu'))


def refused_match(one, other):
    with pytest.raises(UserError) as error:
        match(one, other)
    return str(error.value)


def test_queries_are_matched_by_name():
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    save_plain('file.pt', images=IMAGES)
    save(
        'other.npz',
        embeddings=EMBEDDINGS[order],
        labels=[TEXTS[i] for i in order],
        images=[IMAGES[i] for i in order],
    )
    assert torch.equal(order[match('file.pt', 'other.npz')], torch.arange(COUNT))


def test_queries_without_names_are_matched_by_their_order():
    save_plain('file.pt', images=IMAGES)
    save_plain('other.pt')
    assert torch.equal(match('file.pt', 'other.pt'), torch.arange(COUNT))


@pytest.mark.parametrize(
    'changed',
    [
        {'images': [*IMAGES[1:], 'another.png']},
        {'embeddings': EMBEDDINGS[1:], 'labels': LABELS[1:], 'images': IMAGES[1:]},
        {'labels': LABELS.roll(1), 'images': None},
        {'labels': LABELS.clamp(max=3)},
        {'labels': torch.arange(COUNT)},
    ],
    ids=['name', 'count', 'labels', 'merged', 'divided'],
)
def test_other_images_do_not_match(changed):
    save_plain('file.pt', images=IMAGES)
    save_plain('other.pt', **{'images': IMAGES, **changed})
    assert refused_match('file.pt', 'other.pt').startswith('file.pt and other.pt: ')
    assert refused_match('other.pt', 'file.pt').startswith('other.pt and file.pt: ')


def test_images_of_one_name_do_not_match():
    save_plain('file.pt', images=['same.png'] * COUNT)
    assert refused_match('file.pt', 'file.pt').startswith('file.pt: ')


MERGED = LABELS[9:].clamp(max=3)


@pytest.mark.parametrize(
    'gallery',
    [
        {'embeddings': EMBEDDINGS[9:20], 'labels': LABELS[9:20]},
        {'embeddings': EMBEDDINGS[9:], 'labels': MERGED},
        {'embeddings': EMBEDDINGS[9:], 'labels': LABELS[9:], 'images': IMAGES[:15]},
        None,
    ],
    ids=['smaller', 'other classes', 'other names', 'none'],
)
def test_another_gallery_does_not_match(gallery):
    images = {'embeddings': EMBEDDINGS[9:], 'labels': LABELS[9:], 'images': IMAGES[9:]}
    save('file.pt', **QUERIES, **images)
    if gallery is None:
        entries = {key.removeprefix('query_'): QUERIES[key] for key in QUERIES}
        save('other.pt', **entries)
    else:
        entries = {f'gallery_{key}': value for key, value in gallery.items()}
        save('other.pt', **QUERIES, **entries)
    assert refused_match('file.pt', 'other.pt').startswith('file.pt and other.pt: ')

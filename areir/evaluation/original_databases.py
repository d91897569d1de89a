"""Read the databases that the original code wrote, under its own names.

    test_features    (N, D), (N, heads, D), or a list of tensors of one image or batch
    test_labels      (N,) integers
    test_images      the paths; optional
    gallery_...      the same of the gallery; then the test images are the queries

https://github.com/leftthomas/NormSoftmax/commits has that code. It scored two images by
the mean of the heads' dot products, so concatenated heads rank the images as it did.
"""

import torch

from areir.errors import UserError
from areir.schemas import is_dense

OLD_NAMES = {'embeddings': 'features', 'labels': 'labels', 'images': 'images'}
OLD_PREFIXES = {'': 'test_', 'query_': 'test_', 'gallery_': 'gallery_'}


def is_original(entries):
    """Whether the entries of a file have the names of the original code."""
    current = {'embeddings', 'query_embeddings', 'gallery_embeddings'}
    return 'test_features' in entries and not current & entries.keys()


def original_name(name):
    """Return what the original code called an entry such as query_labels."""
    prefix, _, rest = name.rpartition('_')
    prefix = prefix and prefix + '_'
    if rest not in OLD_NAMES or prefix not in OLD_PREFIXES:
        return name
    return OLD_PREFIXES[prefix] + OLD_NAMES[rest]


def current_entries(path, entries):
    """Return the entries of an original database under the current names.

    Raises UserError naming the file and what it lacks.
    """
    test = read_side(path, entries, 'test_')
    features = test['embeddings']
    sides = {'': test}
    if 'gallery_features' in entries or 'gallery_labels' in entries:
        gallery = read_side(path, entries, 'gallery_')
        # for data without a gallery, the original code wrote the test images twice
        if not torch.equal(features, gallery['embeddings']):
            sides = {'query_': test, 'gallery_': gallery}
    heads = {}
    if features.dim() == 3:
        heads['ensemble_size'] = features.shape[1]
        for side in sides.values():
            side['embeddings'] = side['embeddings'].flatten(1)
    renamed = {
        prefix + name: value
        for prefix, side in sides.items()
        for name, value in side.items()
    }
    return renamed | heads


def read_side(path, entries, prefix):
    """Return embeddings, labels and images of the test images or of the gallery."""
    missing = [
        prefix + old for old in ('features', 'labels') if prefix + old not in entries
    ]
    if missing:
        present = ', '.join(map(str, entries))
        raise UserError(f'{path}: {", ".join(missing)} not in it, only {present}')
    side = {
        name: entries[prefix + old]
        for name, old in OLD_NAMES.items()
        if prefix + old in entries
    }
    side['embeddings'] = join(path, f'{prefix}features', side['embeddings'])
    return side


def join(path, name, features):
    """Return features as one tensor.

    A list holds a tensor for each image or for each batch. Raises UserError if the
    features are neither a tensor nor such a list.
    """
    try:
        whole = features
        if not isinstance(features, torch.Tensor):
            parts = [torch.as_tensor(part) for part in features]
            whole = torch.stack(parts) if parts[0].dim() == 1 else torch.cat(parts)
        if not is_dense(whole):
            raise ValueError('sparse or expanded')
        return whole.detach()
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = str(error).partition('\n')[0]
        raise UserError(
            f'{path}: {name} must be a tensor or a list of tensors ({reason})'
        ) from error

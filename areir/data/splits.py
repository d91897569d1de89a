"""The splits of a prepared dataset: read them, number classes, hold classes out.

A split file data/<name>/<crop_type>_data_dicts.pth is {'train': {label: [image, ...]},
'test': {...}, 'info': {...}}; In-shop Clothes has query and gallery in place of test.
Image paths are relative to data/<name>, so the folder can be moved.
"""

import hashlib
import json
import os
import random
from dataclasses import dataclass, replace

import torch

from areir.data.layouts import KNOWN_DATASETS
from areir.errors import UserError
from areir.files import load_tensors
from areir.schemas import (
    find_problem,
    is_colour,
    is_count,
    is_dict,
    is_labels,
    is_spread,
    is_text,
    is_texts,
)

PARTS = ({'train', 'test'}, {'train', 'query', 'gallery'})


@dataclass
class Part:
    """The images of one part of a split."""

    images: list  # relative to the dataset's folder
    labels: torch.Tensor  # int64 (N,), positions in classes
    classes: list  # the dataset's own labels, sorted

    def __len__(self):
        return len(self.images)

    def of_classes(self, classes):
        """Return the Part of only these classes, renumbered by their position."""
        position = {label: index for index, label in enumerate(classes)}
        images, labels = [], []
        for image, index in zip(self.images, self.labels.tolist()):
            label = self.classes[index]
            if label in position:
                images.append(image)
                labels.append(position[label])
        return Part(images, torch.tensor(labels, dtype=torch.int64), classes)


@dataclass
class Split:
    """A prepared dataset with one crop type."""

    folder: str  # the dataset's
    info: dict  # what data_utils.py found out: counts, mean, std, warnings, ...
    sha256: str  # of the parts as they are in the file
    parts: dict  # {name: Part}: train and test, or train, query and gallery

    @property
    def train(self):
        return self.parts['train']

    @property
    def query(self):
        """The query images: all test images if there is no gallery."""
        return self.parts['query' if 'query' in self.parts else 'test']

    @property
    def gallery(self):
        """The images that are searched, or None if the queries search each other."""
        return self.parts.get('gallery')

    @property
    def test_parts(self):
        """The names of the test's parts: test, or query and gallery."""
        return [name for name in self.parts if name not in ('train', 'val')]

    @property
    def available(self):
        """How many images a query can retrieve."""
        return len(self.gallery) if self.gallery else len(self.query) - 1


def make_part(images_of, classes):
    """Return the Part of {label: [image, ...]}, in the order of the labels."""
    position = {label: index for index, label in enumerate(classes)}
    images, labels = [], []
    for label in sorted(images_of):
        images += images_of[label]
        labels += [position[label]] * len(images_of[label])
    return Part(images, torch.tensor(labels, dtype=torch.int64), classes)


def hold_out(split, seed):
    """Return a Split with a fifth of the training classes, at least 2, as part 'val'.

    The classes are drawn from the seed. Training keeps the others.
    """
    classes = list(split.train.classes)
    random.Random(seed).shuffle(classes)
    count = max(2, round(len(classes) / 5))
    held, kept = sorted(classes[:count]), sorted(classes[count:])
    train, val = split.train.of_classes(kept), split.train.of_classes(held)
    return replace(split, parts={**split.parts, 'train': train, 'val': val})


def split_path(data_root, name, crop_type):
    """Return the path of a split file."""
    return os.path.join(data_root, name, f'{crop_type}_data_dicts.pth')


def is_counts(value):
    """Whether a value is a pair of numbers for each part of a split."""
    return is_dict(value) and set(value) in PARTS and all(map(is_pair, value.values()))


def is_pair(value):
    """Whether a value is a pair of integers of at least 1."""
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    return pair and all(map(is_count, value))


INFO = {
    'counts': is_counts,
    'mean': is_colour,
    'std': is_spread,
    'warnings': is_texts,
    **dict.fromkeys(('data_name', 'crop_type', 'layout', 'fingerprint'), is_text),
}


def read_split(path):
    """Return the content of a split file. Raises UserError if it is not one.

    The split of another crop type is not the one that belongs there.
    """
    crop_type = os.path.basename(path).removesuffix('_data_dicts.pth')
    try:
        content = load_tensors(path)
    except UserError as error:
        raise UserError(f'{error}: run data_utils.py again') from error
    problem = split_problem(content)
    if not problem and content['info']['crop_type'] != crop_type:
        problem = 'of another crop type'
    if problem:
        raise UserError(
            f'{path} is damaged or was written by other code ({problem}): run '
            'data_utils.py again'
        )
    return content


def split_problem(content):
    """Return what is wrong with the content of a split file, or None."""
    info = content.get('info') if isinstance(content, dict) else None
    problem = find_problem(info, INFO)
    if problem:
        return f'info: {problem}'
    if content.keys() != {*info['counts'], 'info'}:
        return 'its parts are not those of its counts'
    test_labels, test_images = [], []
    for part, count in info['counts'].items():
        images_of = content[part]
        if not isinstance(images_of, dict) or not is_labels(list(images_of)):
            return f'{part} is not a dict of classes'
        if not all(map(is_texts, images_of.values())):
            return f'the images of {part} are not lists of texts'
        names = [image for listed in images_of.values() for image in listed]
        if (len(names), len(images_of)) != tuple(count):
            return f'{part} does not have the images that were counted'
        if part != 'train':
            test_labels += images_of
            test_images += names
    if not is_labels(test_labels):
        return 'some test classes are numbers and some are texts'
    if len(set(test_images)) < len(test_images):
        return 'a test image is in it twice'
    return None


def is_prepared(path, fingerprint):
    """Whether a split file was made from exactly these images and settings."""
    try:
        return read_split(path)['info'].get('fingerprint') == fingerprint
    except (UserError, OSError):  # to be made again
        return False


def missing_files(folder, names):
    """Return those of the relative paths that are not files."""
    return [name for name in names if not os.path.isfile(os.path.join(folder, name))]


def check_name(name):
    """Raise UserError unless `name` can be the name of a folder below data."""
    if not name or name.startswith('.') or os.path.basename(name) != name:
        raise UserError(f'--data_name {name!r}: a plain folder name is needed')


def prepared_names(data_root):
    """Return {name: [crop_type, ...]} of all prepared datasets."""
    prepared = {}
    names = sorted(os.listdir(data_root)) if os.path.isdir(data_root) else []
    for name in names:
        crop_types = [
            crop_type
            for crop_type in ('uncropped', 'cropped')
            if os.path.isfile(split_path(data_root, name, crop_type))
        ]
        if crop_types:
            prepared[name] = crop_types
    return prepared


def explain_missing(data_root, name, crop_type):
    """Return the message for a dataset that is not prepared."""
    listing = [
        f'{prepared} ({", ".join(crop_types)})'
        for prepared, crop_types in prepared_names(data_root).items()
    ]
    known = name in KNOWN_DATASETS or name == 'sample'
    there = known or os.path.isdir(os.path.join(data_root, name))
    flags = f'--data_name {name}' if there else f'--data_path DIR --data_name {name}'
    return (
        f'{name} ({crop_type}) is not prepared in {data_root}; prepared: '
        f'{", ".join(listing) or "nothing"}. Run: python data_utils.py {flags}'
    )


def load_split(data_root, name, crop_type='uncropped'):
    """Return the Split of a prepared dataset.

    Raises UserError if it is not prepared, listing the datasets that are, if its file
    is damaged, or if images are gone.
    """
    check_name(name)
    folder = os.path.join(data_root, name)
    path = split_path(data_root, name, crop_type)
    if not os.path.isfile(path):
        raise UserError(explain_missing(data_root, name, crop_type))
    content = read_split(path)
    info = content.pop('info')
    sha256 = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    test_names = [part for part in info['counts'] if part != 'train']
    test_classes = sorted({label for part in test_names for label in content[part]})
    parts = {'train': make_part(content['train'], sorted(content['train']))}
    for part in test_names:
        parts[part] = make_part(content[part], test_classes)

    images = [image for part in parts.values() for image in part.images]
    missing = missing_files(folder, images)
    if missing:
        raise UserError(
            f'{len(missing):,} images of {path} are gone, such as {missing[0]}: '
            'run data_utils.py again'
        )
    return Split(folder, info, sha256, parts)

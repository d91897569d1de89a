"""The splits of a prepared dataset: read them, number classes, hold classes out.

A split file data/<name>/<crop_type>_data_dicts.pth is {'train': {label: [image, ...]},
'test': {...}, 'info': {...}}; In-shop Clothes has query and gallery in place of test.
Image paths are relative to data/<name>, so the folder can be moved. Test images with
the label DISTRACTOR are searched, but of no class.

In info, files is {image: number} of the images that have identical copies, which have
the same number: a query ignores them. groups is {image: group}: a query
ignores images of its class and group. leaks is {'train/test': how many images of the
second part have copies in the first, ...}. skipped is {image: why it is left out}.
"""

import hashlib
import json
import os
import random
from dataclasses import dataclass, replace

import numpy as np
import torch

from areir.data.images import PixelFormat
from areir.data.lists import DISTRACTOR
from areir.errors import UserError, counted
from areir.files import cut_name, load_own

ADVICE = 'run data_utils.py again'
SPLIT_SUFFIX = '_data_dicts.pth'


@dataclass
class Part:
    """The images of one part of a split."""

    images: list  # relative to the dataset's folder
    labels: torch.Tensor  # int64 (N,), positions in classes, -1 of distractors
    classes: list  # the dataset's own labels, sorted
    # int64 (N,), -1 for none: images of one group, such as a camera, and copies of one
    # file, see `retrieval.evaluate`
    groups: torch.Tensor | None = None
    files: torch.Tensor | None = None

    def __len__(self):
        return len(self.images)

    def rows(self, indices):
        """Return the Part of the images with these indices, int64 (n,)."""
        images = [self.images[index] for index in indices.tolist()]
        marks = {
            name: mark if mark is None else mark[indices]
            for name, mark in self.marks.items()
        }
        return Part(images, self.labels[indices], self.classes, **marks)

    @property
    def marks(self):
        return {'groups': self.groups, 'files': self.files}

    def of_classes(self, classes):
        """Return the Part of only these classes, renumbered by their position."""
        position = {label: index for index, label in enumerate(classes)}
        numbers = [position.get(label, -1) for label in self.classes]
        labels = torch.tensor(numbers)[self.labels]
        part = self.rows((labels >= 0).nonzero().flatten())
        return replace(part, labels=labels[labels >= 0], classes=classes)


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
        """The query images: all test images if there is no gallery.

        Without a test they are those of training.
        """
        return self.parts.get('query') or self.parts.get('test') or self.train

    @property
    def gallery(self):
        """The images that are searched, or None if the queries search each other."""
        return self.parts.get('gallery')

    @property
    def test_parts(self):
        """The names of the test's parts: test, or query and gallery, or none."""
        return [name for name in self.parts if name not in ('train', 'val')]

    @property
    def available(self):
        """How many images a query can retrieve."""
        return len(self.gallery) if self.gallery else len(self.query) - 1

    def pixel_format(self, image_size):
        """Return the PixelFormat with the mean and deviation of the training images."""
        return PixelFormat(image_size, self.info['mean'], self.info['std'])


def make_part(images_of, classes, groups=None, files=None):
    """Return the Part of {label: [image, ...]}, in the order of the labels.

    groups, files: {image: number}, or None if no image has one.
    """
    position = {label: index for index, label in enumerate(classes)}
    position[DISTRACTOR] = -1
    images, labels = [], []
    for label in sorted(images_of):
        images += images_of[label]
        labels += [position[label]] * len(images_of[label])
    marks = [
        numbers and torch.tensor([numbers.get(image, -1) for image in images])
        for numbers in (groups, files)
    ]
    return Part(images, torch.tensor(labels, dtype=torch.int64), classes, *marks)


def common_labels(parts):
    """Return the labels of several Parts in one numbering of their classes' names."""
    names = sorted(set().union(*(part.classes for part in parts)))
    position = {name: index for index, name in enumerate(names)}
    # the last number is that of label -1
    return torch.cat(
        [
            torch.tensor([*(position[name] for name in part.classes), -1])[part.labels]
            for part in parts
        ]
    )


def join_marks(parts):
    """Return {'groups': (N,), 'files': (N,)} of several Parts, those that they have."""
    marks = [part.marks for part in parts]
    return {
        name: torch.cat([of_part[name] for of_part in marks])
        for name, mark in marks[0].items()
        if mark is not None
    }


def hold_out(split, seed):
    """Return a Split with a fifth of the training classes, drawn, as part 'val'."""
    classes = list(split.train.classes)
    random.Random(seed).shuffle(classes)
    count = max(2, round(len(classes) / 5))
    held, kept = sorted(classes[:count]), sorted(classes[count:])
    train, val = split.train.of_classes(kept), split.train.of_classes(held)
    return replace(split, parts={**split.parts, 'train': train, 'val': val})


def split_path(data_root, name, crop_type):
    """Return the path of a split file."""
    return os.path.join(data_root, name, f'{crop_type}{SPLIT_SUFFIX}')


def check_name(name, flag='--data_name'):
    """Raise UserError unless `name`, given by `flag`, can be the name of a folder."""
    plain = name and not name.startswith('.') and os.path.basename(name) == name
    if not plain or cut_name(name) != name:
        raise UserError(f'{flag} {name!r:.99}: a plain, short name is needed')


def prepared_names(data_root):
    """Return {name: [crop_type, ...]} of all prepared datasets."""
    prepared = {}
    for name in sorted(os.listdir(data_root)) if os.path.isdir(data_root) else []:
        for crop_type in ('uncropped', 'cropped'):
            if os.path.isfile(split_path(data_root, name, crop_type)):
                prepared.setdefault(name, []).append(crop_type)
    return prepared


def load_split(data_root, name, crop_type='uncropped'):
    """Return the Split of a prepared dataset.

    Raises UserError if it is not prepared, listing the datasets that are, if its file
    is damaged, or if images are gone.
    """
    check_name(name)
    folder = os.path.join(data_root, name)
    path = split_path(data_root, name, crop_type)
    if not os.path.isfile(path):
        prepared = prepared_names(data_root).items()
        listed = [f'{other} ({", ".join(types)})' for other, types in prepared]
        raise UserError(
            f'{name} ({crop_type}) is not prepared in {data_root}; prepared: '
            f'{", ".join(listed) or "nothing"}. Run: python data_utils.py '
            f'--data_name {name}, with --data_path DIR if your images are elsewhere'
        )
    content = load_own(path, ['train', 'info'], ADVICE)
    info = content['info']
    images_of = {part: content[part] for part in info['counts']}
    groups, files = info.get('groups'), info.get('files') or None
    hashed = [images_of, groups] if groups else images_of
    sha256 = hashlib.sha256(json.dumps(hashed).encode()).hexdigest()
    if groups:
        numbers = np.unique([*groups.values()], return_inverse=True)[1]
        groups = dict(zip(groups, numbers.tolist()))

    tested = [images_of[part] for part in images_of if part != 'train']
    test_classes = sorted(set().union(*tested) - {DISTRACTOR})
    parts = {}
    for part, labelled in images_of.items():
        classes = sorted(labelled) if part == 'train' else test_classes
        parts[part] = make_part(labelled, classes, groups, files)

    missing = [
        image
        for part in parts.values()
        for image in part.images
        if not os.path.isfile(os.path.join(folder, image))
    ]
    if missing:
        raise UserError(
            f'{path}: {counted(len(missing), "image")} gone, such as {missing[0]}: '
            f'{ADVICE}'
        )
    return Split(folder, info, sha256, parts)

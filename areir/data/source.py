"""A dataset as it was extracted: where it is, what it holds, how it will be named."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property

from areir.data.images import IMAGE_SUFFIXES, list_files
from areir.data.layouts import KNOWN_DATASETS, crop_types, has_boxes, read_folder
from areir.data.splits import split_path
from areir.data.tables import read_table
from areir.data.verification import count_parts
from areir.errors import UserError

TABLE = 'table.csv'  # in the dataset's folder: a link to the CSV that describes it


@dataclass
class SourceDataset:
    """The images of a dataset, and the paths of the files that are made of them."""

    data_root: str
    name: str
    source: str  # the folder of the images
    layout: str  # which of its forms the dataset has
    records: list
    # files in `source` that are not images of a class, or, of a known dataset, images
    # that its lists leave out; sorted
    left_out: list
    table: str | None = None  # the CSV that describes it

    @cached_property
    def folder(self):
        """Where the split files go."""
        return os.path.join(self.data_root, self.name)

    @cached_property
    def in_place(self):
        """Whether the images are in the dataset's own folder."""
        return os.path.realpath(self.source) == os.path.realpath(self.folder)

    @cached_property
    def has_boxes(self):
        return any(record.box for record in self.records)

    @cached_property
    def crop_types(self):
        return ('uncropped', 'cropped') if self.has_boxes else ('uncropped',)

    @cached_property
    def counts(self):
        """{part: (images, classes)}"""
        return count_parts(self.records)

    @cached_property
    def images(self):
        """The path of each record's image."""
        return [f'{self.source}/{record.path}' for record in self.records]

    @cached_property
    def boxes(self):
        return [record.box for record in self.records]

    def images_of(self, part):
        """Return the paths of the images of one part of the split."""
        pairs = zip(self.images, self.records)
        return [image for image, record in pairs if record.part == part]

    def names(self, crop_type):
        """Return each record's image as the split file names it."""
        paths = [record.path for record in self.records]
        if self.has_boxes:
            common = os.path.commonpath([os.path.dirname(path) for path in paths])
            return [f'{crop_type}/{os.path.relpath(path, common)}' for path in paths]
        return paths if self.in_place else [f'images/{path}' for path in paths]

    def targets(self, crop_type):
        """Return the path of each record's link or crop."""
        return [f'{self.folder}/{name}' for name in self.names(crop_type)]

    def split_path(self, crop_type):
        return split_path(self.data_root, self.name, crop_type)

    def fingerprint(self, image_size, seed):
        """Return a hash of everything that the split files depend on."""
        stats = [os.stat(image) for image in self.images if os.path.isfile(image)]
        stats = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
        settings = [] if self.name in KNOWN_DATASETS else [image_size, seed]
        records = [record[:4] for record in self.records]  # wherever they are listed
        text = json.dumps([settings, records, stats])
        return hashlib.sha256(text.encode()).hexdigest()


def link_usual_folders(data_root, names):
    """Link data_root/<name> to a known dataset's folder that has another usual name.

    For example, cub becomes a link to CUB_200_2011. names: of KNOWN_DATASETS. Returns
    {name: folder} of the links that were made. Raises UserError if several folders have
    usual names of one dataset.
    """
    folders = sorted(os.listdir(data_root)) if os.path.isdir(data_root) else []
    links = {}
    for name in names:
        usual_names = (name, *KNOWN_DATASETS[name].folders)
        usual = [
            folder
            for folder in folders
            if re.sub('[^a-z0-9]', '', folder.lower()) in usual_names
            and os.path.isdir(os.path.join(data_root, folder))
        ]
        if not usual or os.path.lexists(os.path.join(data_root, name)):
            continue
        if len(usual) > 1:
            raise UserError(
                f'{data_root}: {" and ".join(usual)} may both be {name}: rename one to '
                f'{name}'
            )
        os.symlink(usual[0], os.path.join(data_root, name), target_is_directory=True)
        links[name] = usual[0]
    return links


def find_source(data_root, name, data_path=None):
    """Return the folder of a dataset's images.

    Raises UserError if it is missing, or if the name belongs to another folder.
    """
    folder = os.path.join(data_root, name)
    link = os.path.join(folder, 'images')  # to photos that are elsewhere
    linked = os.path.islink(link)
    source = data_path or (link if linked and name not in KNOWN_DATASETS else folder)
    if not os.path.isdir(source):
        raise UserError(f'{source}: no such folder')
    taken = link if linked else folder
    in_use = os.path.isdir(taken) and os.listdir(taken)
    if data_path and in_use and not os.path.samefile(taken, data_path):
        raise UserError(
            f'{name} is already the name of {os.path.realpath(taken)}: choose another '
            '--data_name'
        )
    return source


def find_table(data_root, name, table, data_path=None):
    """Return the CSV of a dataset: `table`, or the one it was prepared from, or None.

    Raises UserError if it is missing, or if a folder is to take its place.
    """
    link = os.path.join(data_root, name, TABLE)
    if data_path and os.path.lexists(link):
        raise UserError(
            f'{name} is already the name of {os.path.realpath(link)}: choose another '
            '--data_name'
        )
    path = table or (link if os.path.lexists(link) else None)
    if path and not os.path.isfile(path):
        raise UserError(f'{path}: no such file')
    return path and os.path.realpath(path)


def read_source(data_root, name, data_path=None, seed=0, table=None):
    """Read the layout of a dataset and return it as a SourceDataset.

    seed: draws the training classes of a folder that has no split of its own; table:
    a CSV that describes the dataset, whose folder has the images.
    Raises UserError if the dataset's own files are incomplete.
    """
    table = find_table(data_root, name, table, data_path)
    if table:
        source = find_source(data_root, name, os.path.dirname(table))
        layout, records = read_table(table, seed)
        check_parts(table, records)
        return SourceDataset(data_root, name, source, layout, records, [], table)
    source = find_source(data_root, name, data_path)
    made_here = crop_types(name) if has_boxes(name) else ()
    special = []
    files = list_files(source, skip=made_here, special=special)
    if name in KNOWN_DATASETS:
        try:
            layout, records = KNOWN_DATASETS[name].read(source, files)
        except UserError as error:
            if not special:
                raise
            note = f'{source}/{special[0]}: not a regular file'
            raise UserError(f'{error} ({note})') from error
        check_parts(f'{source}/{layout}', records)
        left_out = images_not_listed(files, records)
    else:
        layout, records = read_folder(source, files, seed)
        check_parts(source, records)
        left_out = files_without_class(files + special, records)
    return SourceDataset(data_root, name, source, layout, records, left_out)


def check_parts(source, records):
    """Raise UserError unless there are images to train on and to test with."""
    counts = count_parts(records)
    if 'train' not in counts or len(counts) < 2:
        present = ' and '.join(counts) or 'no'
        raise UserError(
            f'{source}: {present} images found; both training and test are needed'
        )


def files_without_class(files, records):
    """Return the files, apart from split files, that no record names."""
    left_out = set(files).difference(record.path for record in records)
    return sorted(path for path in left_out if not path.endswith('_data_dicts.pth'))


def images_not_listed(files, records):
    """Return the images that no record names, in folders beside those of the named."""
    listed = {record.path for record in records}
    folders = {parent_folder(path) for path in listed}
    return sorted(
        path
        for path in set(files) - listed
        if path.lower().endswith(IMAGE_SUFFIXES) and parent_folder(path) in folders
    )


def parent_folder(path):
    """Return the folder around the folder of a file, None for a file at the top."""
    folder = os.path.dirname(path)
    return os.path.dirname(folder) if folder else None

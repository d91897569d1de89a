"""A dataset as it was extracted: where it is, what it holds, how it will be named."""

import hashlib
import json
import os
import re
from dataclasses import dataclass, replace

from areir.data.crops import source_link
from areir.data.images import IMAGE_SUFFIXES, PREPROCESSING, list_files
from areir.data.layouts import KNOWN_DATASETS
from areir.data.lists import DISTRACTOR, refuse_repeats
from areir.data.own_images import draw_parts, read_folder
from areir.data.splits import SPLIT_SUFFIX, split_path
from areir.data.tables import read_table
from areir.data.verification import count_parts
from areir.errors import UserError, counted, printable

TEST_SHARE = 0.5  # of the classes of a dataset without a split of its own
TABLE = 'table.csv'  # in the dataset's folder: a link to the CSV that describes it
MADE_HERE = ('uncropped', 'cropped')  # folders below that of a known dataset


@dataclass
class SourceDataset:
    """The images of a dataset, and the names of the files that are made of them."""

    data_root: str
    name: str
    source: str  # the folder of the images
    layout: str  # which of its forms the dataset has
    records: list
    # files in `source` that are no images of a class; of a known dataset, images that
    # its lists leave out
    left_out: list
    table: str | None  # the CSV that describes it

    def __post_init__(self):
        self.folder = os.path.join(self.data_root, self.name)  # of the split files
        self.in_place = os.path.realpath(self.source) == os.path.realpath(self.folder)
        self.has_boxes = any(record.box for record in self.records)
        self.crop_types = ('uncropped', 'cropped') if self.has_boxes else ('uncropped',)
        self.counts = count_parts(self.records)  # {part: (images, classes)}
        self.images = [f'{self.source}/{record.path}' for record in self.records]

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

    def fingerprint(self, image_size):
        """Return a hash of everything that the split files depend on."""
        stats = [os.stat(image) for image in self.images if os.path.isfile(image)]
        stats = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
        known = self.name in KNOWN_DATASETS
        settings = [] if known else [image_size, PREPROCESSING]
        # wherever they are listed
        records = [record._replace(origin='') for record in self.records]
        text = json.dumps([settings, records, stats])
        return hashlib.sha256(text.encode()).hexdigest()

    def without(self, paths):
        """Return the dataset without the images of these paths.

        Raises UserError if what is left cannot be split.
        """
        kept = [record for record in self.records if record.path not in paths]
        check_parts(self.name, kept, self.table or self.source, len(self.counts) == 1)
        return replace(self, records=kept)


def link_usual_folders(data_root, names):
    """Link data_root/<name> to a known dataset's folder that has another usual name.

    For example, cub becomes a link to CUB_200_2011. names: of KNOWN_DATASETS. Returns
    {name: folder} of the links that were made. Raises UserError if several folders have
    usual names of one dataset.
    """
    folders = sorted(os.listdir(data_root)) if os.path.isdir(data_root) else []
    folders = [each for each in folders if os.path.isdir(f'{data_root}/{each}')]
    links = {}
    for name in names:
        link = os.path.join(data_root, name)
        usual_names = (name, *KNOWN_DATASETS[name].folders)
        usual = [
            folder
            for folder in folders
            if re.sub('[^a-z0-9]', '', folder.lower()) in usual_names
        ]
        if not usual or os.path.lexists(link):
            continue
        if len(usual) > 1:
            raise UserError(
                f'{data_root}: {" and ".join(usual)} may both be {name}: rename one to '
                f'{name}'
            )
        try:
            os.symlink(usual[0], link, target_is_directory=True)
        except OSError as error:
            raise UserError(f'{data_root}: rename {usual[0]} to {name}') from error
        links[name] = usual[0]
    return links


def find_source(data_root, name, data_path=None, table=None):
    """Return (folder of a dataset's images or CSV, CSV that describes them or None).

    An earlier preparation has left links to them, images and TABLE, or what is in place
    of links where there are none. Raises UserError if they are missing, or if the name
    belongs to other ones.
    """
    folder = os.path.join(data_root, name)
    table_link = source_link(os.path.join(folder, TABLE))
    link = source_link(os.path.join(folder, 'images'))
    owner = table_link if data_path and table_link and not table else None
    table = table or table_link
    if table:
        if not os.path.isfile(table):
            raise UserError(f'{table}: no such file')
        table = os.path.realpath(table)
        data_path = data_path or os.path.dirname(table)
    if name not in KNOWN_DATASETS and link:
        folder = link
    in_use = os.path.isdir(folder) and os.listdir(folder)
    if table and table == os.path.realpath(table_link or ''):
        in_use = False  # by the same table, whose images may be elsewhere
    if data_path and in_use and not os.path.samefile(folder, data_path):
        owner = folder
    if owner:
        owner = os.path.realpath(owner)
        raise UserError(f'{name} is the name of {owner}: choose another --data_name')
    source = data_path or folder
    if not os.path.isdir(source):
        raise UserError(f'{source}: no such folder')
    return source, table


def read_source(
    data_root,
    name,
    data_path=None,
    seed=0,
    table=None,
    test_share=None,
    class_level=None,
    skip_missing=False,
):
    """Read the layout of a dataset and return it as a SourceDataset.

    seed: draws the test classes of a dataset that has no split of its own; test_share:
    their share, 0 for none, by default TEST_SHARE; table: a CSV that describes the
    dataset, whose paths start from data_path, by default its folder; class_level: see
    `own_images.recognise`; skip_missing: see `tables.read_table`. Raises UserError if
    the dataset's own files are incomplete, or if there is a split of its own and a
    `test_share`.
    """
    source, table = find_source(data_root, name, data_path, table)
    if class_level and (table or name in KNOWN_DATASETS):
        raise UserError(
            f'--class_level {class_level}: {table or name} says which class an image '
            'has: leave it out'
        )
    files = [] if table else list_files(source)
    if table:
        link = source_link(os.path.join(data_root, name, 'images'))
        folders = [source] if data_path or not link else [source, link]
        layout, records, source = read_table(table, *folders, skip_missing=skip_missing)
    elif name in KNOWN_DATASETS:
        files = [path for path in files if path.split('/')[0] not in MADE_HERE]
        layout, records = KNOWN_DATASETS[name].read(source, files)
    else:
        layout, records = read_folder(source, files, class_level)
    refuse_repeats([(record.origin, record.path) for record in records])
    has_test = any(record.part != 'train' for record in records)
    if any(record.part is None for record in records):
        share = TEST_SHARE if test_share is None else test_share
        if table:
            print(f'notice: {table}: no column split, so --test_share {share:g} holds')
        records = draw_parts(records, seed, share)
        labelled = [record for record in records if record.label != DISTRACTOR]
        if share == 0 and len(labelled) < len(records):
            count = counted(len(records) - len(labelled), 'image')
            print(f'notice: left out {count} without a label: there is no test')
            records = labelled
    elif test_share or (test_share == 0 and has_test):
        raise UserError(
            f'--test_share {test_share:g}: {table or source} has a split of its '
            'own: leave it out'
        )
    check_parts(name, records, table or source, test_share == 0)
    left_out = set(files).difference(record.path for record in records)
    if name in KNOWN_DATASETS:
        left_out = [path for path in left_out if path.lower().endswith(IMAGE_SUFFIXES)]
    left_out = sorted(path for path in left_out if not path.endswith(SPLIT_SUFFIX))
    return SourceDataset(data_root, name, source, layout, records, left_out, table)


def check_parts(name, records, source, train_only):
    """Raise UserError unless a dataset's records can be trained and tested on.

    source: the folder, or the CSV, of the records; train_only: whether there need not
    be a test. Incomplete known datasets get a warning, see `find_oddities`.
    """
    counts = count_parts(records)
    if 'train' not in counts or (len(counts) < 2 and not train_only):
        present = ' and '.join(counts) or 'no'
        raise UserError(
            f'{source}: {present} images found; both training and test are needed, or '
            '--test_share 0 and training images only'
        )
    for record in records:
        if record.label == DISTRACTOR and record.part in ('train', 'query'):
            raise UserError(
                f'{record.origin or source}: {printable(record.path)}: an image of '
                f'{record.part} needs a label; those without one, or with '
                f'{DISTRACTOR}, are only searched: put it into the test'
            )
    for part, tests in (('training', False), ('the test', True)):
        classes = {rec.label for rec in records if (rec.part != 'train') == tests}
        if name not in KNOWN_DATASETS and len(classes) == 1:
            raise UserError(
                f'{source}: {part} needs at least 2 classes and has '
                f'{printable(classes.pop())}: add classes'
            )

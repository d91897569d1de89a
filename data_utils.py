"""Datasets: read their official layouts, verify every image, write the splits, load the pixels.

    python data_utils.py                                         # whatever is found of data/{car,cub,sop,isc}
    python data_utils.py --data_name sample                      # draws it first
    python data_utils.py --data_path ~/photos --data_name shoes  # any folder of class folders

A split file is {'train': {label: [image, ...]}, 'test': {...}, 'info': {...}}; isc has query and gallery in
place of test. Image paths are relative to data/<name>, so the folder can move.
"""
import argparse
import csv
import hashlib
import json
import os
import random
import signal
import sys
import threading
import warnings
from collections import Counter, defaultdict
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import parent_process
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.io import loadmat
from torch.utils.data import Dataset
from tqdm import tqdm

# channel means and deviations, and (images, classes) of each official split
OFFICIAL = {
    'car': {'mean': (0.4853, 0.4965, 0.4295), 'std': (0.2237, 0.2193, 0.2568),
            'counts': {'train': (8054, 98), 'test': (8131, 98)}},
    'cub': {'mean': (0.4707, 0.4601, 0.4549), 'std': (0.2767, 0.2760, 0.2850),
            'counts': {'train': (5864, 100), 'test': (5924, 100)}},
    'sop': {'mean': (0.5807, 0.5396, 0.5044), 'std': (0.2901, 0.2974, 0.3095),
            'counts': {'train': (59551, 11318), 'test': (60502, 11316)}},
    'isc': {'mean': (0.8324, 0.8109, 0.8041), 'std': (0.2206, 0.2378, 0.2444),
            'counts': {'train': (25882, 3997), 'query': (14218, 3985), 'gallery': (12612, 3985)}},
}
CROP_TYPES = {'car': ('uncropped', 'cropped'), 'cub': ('uncropped', 'cropped')}  # all others: uncropped alone
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.jfif', '.png', '.gif', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')


class Record(NamedTuple):
    """One image as a dataset's own files describe it."""
    split: str                  # train, test, query or gallery
    label: object               # int or str, as the dataset has it
    path: str                   # relative to the dataset's folder, with '/'
    box: tuple | None = None    # left, top, right, bottom: 0-based, half-open, on the stored pixels


# ---------------------------------------------------------------------------------------------- pixels

def image_formats():
    """The formats of pillow that are decoded: all but those that it hands to another program (PostScript is one that
    is executed) or only recognises."""
    Image.init()
    return [name for name in Image.ID if name not in ('EPS', 'WMF', 'MPEG', 'BUFR', 'GRIB', 'HDF5')]


def load_image(path, box=None):
    """Read any image as RGB: the first frame, EXIF orientation applied, transparency on white, all of it decoded.

    box (left, top, right, bottom) is cut out first, from the stored pixels, which is what the datasets'
    boxes were drawn on. Raises ValueError naming the file if it is not a complete image.
    """
    try:
        with warnings.catch_warnings(), Image.open(path, formats=image_formats()) as image:
            warnings.simplefilter('ignore')  # pillow's, of odd metadata
            image.load()
            if box:
                image = image.crop(clamp_box(box, image.size))
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith('I'):  # 16-bit gray, which pillow would clip at 255
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert('RGBA')
                image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
            return image.convert('RGB')
    except Exception as error:  # decoders raise many kinds, and each means that the file is of no use
        raise ValueError(f'{path}: {str(error) or type(error).__name__}') from error


def resize(image, image_size):
    """An RGB image as a square of uint8 (image_size, image_size, 3)."""
    return np.array(image.resize((image_size, image_size), Image.Resampling.BILINEAR))


def to_pixels(image, image_size):
    """An RGB image as a square tensor of uint8 (3, image_size, image_size)."""
    return torch.from_numpy(resize(image, image_size)).permute(2, 0, 1)


class ImageDataset(Dataset):
    """Item i is (pixels of paths[i] as uint8 (3, image_size, image_size), i)."""

    def __init__(self, paths, image_size):
        self.paths = paths
        self.image_size = image_size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return to_pixels(load_image(self.paths[index]), self.image_size), index


def normalise(pixels, mean, std):
    """uint8 (N, 3, H, W) to floats with the dataset's channel means and deviations taken out."""
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (mean, std))
    return (pixels.float() / 255 - mean) / std


def flip(images, mirrored):
    """Mirror those of images (N, 3, H, W) that `mirrored`, booleans (N,), says."""
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)


def leave_signals_to_parent(worker):
    """For a DataLoader's worker processes, so that the training process can finish its batch and save."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


# ---------------------------------------------------------------------------------------------- layouts

def list_files(root, skip=(), problems=None):
    """All files below root as relative paths with '/'. Links are followed, though never into a folder that they
    lie in; system files and the folders `skip` of root are left out. With `problems`, a dict, folders below root
    that cannot be read are put into it, {path: why}, instead of raised."""
    def entries(folder, prefix):
        try:
            return list(os.scandir(folder))
        except OSError as error:
            if problems is None or not prefix:
                raise
            problems[prefix] = error.strerror
            return []

    def walk(folder, prefix, above):
        here = os.path.realpath(folder)
        for entry in entries(folder, prefix) if here not in above else ():
            if entry.name.startswith('.') or entry.name == '__MACOSX' or (not prefix and entry.name in skip):
                continue
            if os.path.isdir(entry.path):
                yield from walk(entry.path, f'{prefix}{entry.name}/', above | {here})
            else:
                yield prefix + entry.name
    return sorted(walk(root, '', frozenset()))


def find_file(files, *names):
    """The path that ends with the first of `names` there is, the shortest if several do; None if none does."""
    for name in names:
        found = [path for path in files if path == name or path.endswith('/' + name)]
        if found:
            return min(found, key=len)
    return None


def locate(files, wanted, source):
    """Put the folder before the wanted relative paths below which most of them exist (the shortest if several do).

    Raises ValueError if none is found; `source` names the file that lists them.
    """
    probes = wanted[::max(1, len(wanted) // 8)]
    prefixes = {path[:-len(probe)] for path in files for probe in probes if path == probe or path.endswith('/' + probe)}
    if not prefixes:
        raise ValueError(f'{source} names {len(wanted)} images, such as {wanted[0]}: not found, extract them beside it')
    files = set(files)
    best = max(prefixes, key=lambda prefix: (sum(prefix + path in files for path in wanted), -len(prefix)))
    return [best + path for path in wanted]


def read_rows(path, fields, header=0):
    """The lines of a text file after its header, split at white space; the last field keeps its own spaces."""
    rows = []
    with open(path, encoding='utf-8-sig') as file:
        for number, line in enumerate(file, 1):
            row = line.strip().split(None, fields - 1)
            if number <= header or not row:
                continue
            if len(row) != fields:
                raise ValueError(f'{path}, line {number}: {fields} fields expected, not {line.strip()!r}')
            rows.append(row)
    return rows


def read_mat(path):
    """The struct array `annotations` of a MATLAB file, as a dict of columns of plain ints and strings.

    Columns are taken by name, since their order differs between files, and made Python ints at once, since
    the cells mix uint8 and uint16 and small integers wrap around.
    """
    try:
        table = loadmat(path)['annotations'].ravel()
    except Exception as error:  # scipy raises many kinds
        raise ValueError(f'{path} is not a readable annotation file: {error}') from error
    return {name: [np.asarray(cell).item() for cell in table[name]] for name in table.dtype.names}


def car_records(labels, paths, boxes):
    """Boxes are x1, y1, x2, y2, 1-based and inclusive; classes 1-98 train, 99-196 test."""
    return [Record('train' if int(label) <= 98 else 'test', int(label), path,
                   (int(x1) - 1, int(y1) - 1, int(x2), int(y2)))
            for label, path, (x1, y1, x2, y2) in zip(labels, paths, boxes)]


def mat_records(root, files, annotations, folder, key):
    """Records of one MATLAB file; `folder` comes before the image names of its column `key`."""
    source = f'{root}/{annotations}'
    columns = read_mat(source)
    if 'class' not in columns:
        raise ValueError(f'{source} has no labels; cars_test_annos_withlabels.mat is needed')
    paths = locate(files, [folder + name for name in columns[key]], source)
    boxes = zip(*(columns[f'bbox_{corner}'] for corner in ('x1', 'y1', 'x2', 'y2')))
    return car_records(columns['class'], paths, boxes)


def read_car(root, files):
    """CARS196: one folder and cars_annos.mat, the two folders of the devkit, or folders of class names with CSV."""
    annotations = find_file(files, 'cars_annos.mat')
    if annotations:
        return annotations, mat_records(root, files, annotations, '', 'relative_im_path')

    train = find_file(files, 'cars_train_annos.mat')
    if train:
        test = find_file(files, 'cars_test_annos_withlabels.mat', 'cars_test_annos.mat')
        if test is None:
            raise ValueError(f'{root}: cars_test_annos_withlabels.mat is missing beside {train}')
        return 'devkit', (mat_records(root, files, train, 'cars_train/', 'fname')
                          + mat_records(root, files, test, 'cars_test/', 'fname'))

    records = []
    if find_file(files, 'anno_train.csv'):
        tables = {name: find_file(files, name) for name in ('anno_train.csv', 'anno_test.csv', 'names.csv')}
        for name, path in tables.items():
            if path is None:
                raise ValueError(f'{root}: {name} is missing beside anno_train.csv')
        with open(f'{root}/{tables["names.csv"]}', encoding='utf-8-sig') as file:
            folders = [line.strip().strip('"').replace('/', '-') for line in file if line.strip()]
        for part in ('train', 'test'):
            annotations = f'{root}/{tables[f"anno_{part}.csv"]}'
            with open(annotations, newline='', encoding='utf-8-sig') as file:
                rows = [row for row in csv.reader(file) if row]
            paths = locate(files, [f'{part}/{folders[int(row[5]) - 1]}/{row[0]}' for row in rows], annotations)
            records += car_records([row[5] for row in rows], paths, [row[1:5] for row in rows])
        return 'anno_train.csv', records

    raise ValueError(f'{root}: no cars_annos.mat, devkit or anno_train.csv found; extract CARS196 there')


def read_cub(root, files):
    """CUB-200-2011: ids 1-based; boxes x, y, width, height, 0-based; classes 1-100 train, 101-200 test."""
    index = find_file(files, 'images.txt')
    if index is None:
        raise ValueError(f'{root}: no images.txt found; extract CUB_200_2011 there')
    folder = f'{root}/{index}'[:-len('images.txt')]
    rows = read_rows(folder + 'images.txt', 2)
    labels = dict(read_rows(folder + 'image_class_labels.txt', 2))
    boxes = {row[0]: [float(value) for value in row[1:]] for row in read_rows(folder + 'bounding_boxes.txt', 5)}
    unknown = [image_id for image_id, _ in rows if image_id not in labels or image_id not in boxes]
    if unknown:
        raise ValueError(f'{folder}images.txt: image {unknown[0]} has no class or no bounding box')
    paths = locate(files, [f'images/{path}' for _, path in rows], folder + 'images.txt')
    records = []
    for (image_id, _), path in zip(rows, paths):
        x, y, width, height = boxes[image_id]
        label = int(labels[image_id])
        records.append(Record('train' if label <= 100 else 'test', label, path,
                              (round(x), round(y), round(x + width), round(y + height))))
    return index, records


def read_sop(root, files):
    """Stanford Online Products: class ids are global, 1-11318 train, 11319-22634 test."""
    records = []
    for split in ('train', 'test'):
        table = find_file(files, f'Ebay_{split}.txt')
        if table is None:
            raise ValueError(f'{root}: Ebay_{split}.txt is missing; extract Stanford_Online_Products there')
        rows = read_rows(f'{root}/{table}', 4, header=1)
        paths = locate(files, [row[3] for row in rows], f'{root}/{table}')
        records += [Record(split, int(row[1]), path) for row, path in zip(rows, paths)]
    return table, records


def read_isc(root, files):
    """In-shop Clothes: train, query and gallery; an item is its id, an image its whole path."""
    table = find_file(files, 'list_eval_partition.txt')
    if table is None:
        raise ValueError(f'{root}: no list_eval_partition.txt found; extract In-shop Clothes Retrieval there')
    rows = read_rows(f'{root}/{table}', 3, header=2)
    wrong = [status for _, _, status in rows if status not in ('train', 'query', 'gallery')]
    if wrong:
        raise ValueError(f'{root}/{table}: status {wrong[0]!r} is none of train, query, gallery')
    # the folder img/ of the list is found as Img/img, img, img/img or img_highres
    paths = locate(files, [path.partition('/')[2] for path, _, _ in rows], f'{root}/{table}')
    return table, [Record(status, item, path) for (_, item, status), path in zip(rows, paths)]


def read_folder(root, files, seed=0):
    """Any folder of class folders. Splits by train and test (or train, query, gallery) where these exist, else
    half of the classes, drawn from the seed, train and half test."""
    images = [path for path in files if path.lower().endswith(IMAGE_SUFFIXES)]
    tops = {path.split('/')[0] for path in images if '/' in path}
    for splits in (('train', 'query', 'gallery'), ('train', 'test')):
        if tops.issuperset(splits):
            parts = [path.split('/') for path in images]
            return ' + '.join(splits), [Record(part[0], part[1], '/'.join(part)) for part in parts
                                        if len(part) > 2 and part[0] in splits]
    classes = sorted(tops)
    if len(classes) < 2:
        raise ValueError(f'{root}: {len(classes)} folders with images; a folder per class is needed, two at least')
    random.Random(seed).shuffle(classes)
    train = set(classes[:(len(classes) + 1) // 2])
    return f'{len(classes)} class folders', [Record('train' if path.split('/')[0] in train else 'test',
                                                    path.split('/')[0], path) for path in images if '/' in path]


READERS = {'car': read_car, 'cub': read_cub, 'sop': read_sop, 'isc': read_isc}


# ---------------------------------------------------------------------------------------------- preparation

def available_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def clamp_box(box, size):
    """Cut a box to what lies inside an image of size (width, height); raises ValueError if nothing does."""
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1])
    if left >= right or top >= bottom:
        raise ValueError(f'box {box} is outside the image of {size[0]} x {size[1]}: '
                         'annotations and images do not belong together')
    return left, top, right, bottom


def verify_image(job):
    """(path, box) to (error or None, whether the box reaches beyond the image)."""
    path, box = job
    try:
        load_image(path, box)
        if box is None:
            return None, False
        with Image.open(path) as image:
            return None, clamp_box(box, image.size) != tuple(box)
    except ValueError as error:
        return str(error), False


def write_crop(job):
    """Cut one box out of an image and write it, at a quality that shows no loss, under its final name at once."""
    source, target, box = job
    crop = load_image(source, box)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    kind = Image.registered_extensions().get(os.path.splitext(target)[1].lower(), 'JPEG')
    try:
        crop.save(target + '.part', format=kind, **({'quality': 95, 'subsampling': 0} if kind == 'JPEG' else {}))
        os.replace(target + '.part', target)
    except OSError as error:
        if os.path.isfile(target + '.part'):
            os.remove(target + '.part')
        raise OSError(f'{target} cannot be written: {error}') from error


def pixel_sums(job):
    """(path, image_size) to the sums of the pixels and of their squares, three integers each."""
    path, image_size = job
    # numpy, since torch's threads do not survive the fork that starts a worker process
    pixels = resize(load_image(path), image_size).reshape(-1, 3).astype(np.int64)
    return pixels.sum(0).tolist(), (pixels ** 2).sum(0).tolist()


def start_worker():
    """A worker process leaves Ctrl-C to its parent and ends when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def parallel(pool, function, jobs, description):
    """Results of function over jobs, in order, from all cores, with a progress bar."""
    return list(tqdm(pool.map(function, jobs, chunksize=16), total=len(jobs), desc=description, unit='img'))


def channel_statistics(pool, paths, image_size):
    """Mean and standard deviation of the pixels / 255 of all images, per channel, exact: integers are summed."""
    sums = parallel(pool, pixel_sums, [(path, image_size) for path in paths], 'mean and deviation')
    totals, squares = ([sum(channel) for channel in zip(*part)] for part in zip(*sums))
    count = len(paths) * image_size ** 2
    mean = tuple(total / count / 255 for total in totals)
    std = tuple((square * count - total ** 2) ** 0.5 / count / 255 for total, square in zip(totals, squares))
    return mean, std


def refuse_foreign_files(root, names):
    """Raise ValueError if a file that was not made here stands where a link or a crop is to be written."""
    for path in names['uncropped']:
        if os.path.lexists(f'{root}/{path}') and not os.path.islink(f'{root}/{path}'):
            raise ValueError(f'{root}/{path} is not a link made here: move {root}/uncropped away')
    crops = os.path.join(root, 'cropped')
    if os.path.isdir(crops) and os.listdir(crops) and not os.path.isfile(os.path.join(crops, '.fingerprint')):
        raise ValueError(f'{crops} was not written here: move it away')


def write_crops(pool, folder, jobs, fingerprint):
    """Write the crops (source, target, box) below folder. Those that an interrupted run left are kept if they are
    of the same fingerprint, which a file beside them tells, else removed first."""
    mark = os.path.join(folder, '.fingerprint')
    if not os.path.isfile(mark) or open(mark).read() != fingerprint:
        for _, target, _ in jobs:
            if os.path.lexists(target):
                os.remove(target)
        os.makedirs(folder, exist_ok=True)
        with open(mark, 'w') as file:
            file.write(fingerprint)
    parallel(pool, write_crop, [job for job in jobs if not os.path.isfile(job[1])], 'cropping')


def count_splits(records):
    """{split: (images, classes)} in the order train, test, query, gallery."""
    classes = defaultdict(set)
    for record in records:
        classes[record.split].add(record.label)
    images = Counter(record.split for record in records)
    return {split: (images[split], len(classes[split])) for split in ('train', 'test', 'query', 'gallery')
            if split in images}


def check_splits(name, records, beyond):
    """Print the counts beside the official ones; return what is odd about the dataset as a list of sentences."""
    counts, warnings = count_splits(records), []
    official = OFFICIAL.get(name, {}).get('counts', {})
    print(f'{"split":<10}{"images":>10}{"classes":>10}' + (f'{"official":>12}{"":>8}' if official else ''))
    for split in {**official, **counts}:
        found, wanted = counts.get(split, (0, 0)), official.get(split)
        print(f'{split:<10}{found[0]:>10,}{found[1]:>10,}' + (f'{wanted[0]:>12,}{wanted[1]:>8,}' if wanted else ''))
        if wanted and found != wanted:
            warnings.append(f'{split} has {found[0]:,} images of {found[1]:,} classes, '
                            f'the official split {wanted[0]:,} of {wanted[1]:,}')
    if name == 'cub' and len(records) == 6033:
        warnings.append('6,033 images: this is CUB-200 of 2010, not CUB-200-2011')
    if beyond and name == 'car':
        warnings.append(f'{beyond:,} boxes reach beyond their image and were clamped: '
                        'annotations and images may not belong together')
    sizes = Counter((record.split, record.label) for record in records)
    single = sum(split == 'test' and size == 1 for (split, _), size in sizes.items())
    if single:
        warnings.append(f'{single:,} test classes have a single image, whose query always misses')
    lost = sum(size for (split, label), size in sizes.items() if split == 'query' and ('gallery', label) not in sizes)
    if lost:
        warnings.append(f'{lost:,} queries have no image of their class in the gallery and always miss')
    seen = len({label for split, label in sizes if split == 'train'}
               & {label for split, label in sizes if split != 'train'})
    if seen:
        warnings.append(f'{seen:,} classes are both in training and in the test: the score is not for unseen classes')
    return warnings


def save(value, path):
    """torch.save under a temporary name, then moved: `path` is always whole."""
    try:
        torch.save(value, path + '.part')
        os.replace(path + '.part', path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if os.path.isfile(path + '.part'):
            os.remove(path + '.part')
        raise OSError(f'{path} cannot be written: {str(error).splitlines()[0]}') from error


def is_prepared(path, fingerprint):
    """Whether a split file stands that was made from exactly these images and settings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return torch.load(path, weights_only=True)['info']['fingerprint'] == fingerprint
    except Exception:  # absent, damaged or made by other code: to be made again
        return False


def missing_files(root, names):
    return [name for name in names if not os.path.isfile(os.path.join(root, name))]


def link_image(source, link):
    """Make `link` a relative link to `source`."""
    target = os.path.relpath(source, os.path.dirname(link))
    if not os.path.islink(link) or os.readlink(link) != target:
        os.makedirs(os.path.dirname(link), exist_ok=True)
        if os.path.lexists(link + '.part'):
            os.remove(link + '.part')
        os.symlink(target, link + '.part')
        os.replace(link + '.part', link)


def link_folder(source, link, data_root):
    """Link to photos: relatively if they lie below data_root, so that they move with it, else absolutely."""
    source, home = os.path.realpath(source), os.path.realpath(os.path.dirname(link))
    inside = source.startswith(os.path.realpath(data_root) + os.sep)
    if os.path.islink(link):
        os.remove(link)
    os.symlink(os.path.relpath(source, home) if inside else source, link)


def prepare(data_root, name, data_path=None, image_size=256, seed=0, num_workers=1):
    """Read, verify and write the splits of one dataset. Raises ValueError, before anything is written, naming
    every image that cannot be read, or what is missing from the layout."""
    root = os.path.join(data_root, name)
    linked = os.path.join(root, 'images')  # where photos that lie elsewhere are linked
    source = data_path or (linked if os.path.islink(linked) and name not in READERS else root)
    if not os.path.isdir(source):
        raise ValueError(f'{source}: no such folder')
    taken = linked if os.path.islink(linked) else root
    if data_path and os.path.isdir(taken) and os.listdir(taken) and not os.path.samefile(taken, data_path):
        raise ValueError(f'{name} is already the name of {os.path.realpath(taken)}: choose another --data_name')
    in_place = os.path.realpath(source) == os.path.realpath(root)

    crop_types = CROP_TYPES.get(name, ('uncropped',))
    files = list_files(source, skip=crop_types if name in CROP_TYPES else ())
    reader = READERS.get(name)
    try:
        layout, records = reader(source, files) if reader else read_folder(source, files, seed)
    except (KeyError, IndexError) as error:
        raise ValueError(f'{source}: its annotation files are incomplete: {error!r}') from error
    counts = count_splits(records)
    if 'train' not in counts or len(counts) < 2:
        raise ValueError(f'{source}: {" and ".join(counts) or "no"} images found; both training and test are needed')
    print(f'{name}: {len(records):,} images in {source} ({layout})')
    left_out = set(files).difference(record.path for record in records) if not reader else ()
    left_out = sorted(path for path in left_out if not path.endswith('_data_dicts.pth'))
    if left_out:
        print(f'notice: {name}: {len(left_out):,} files are no images in class folders, such as {left_out[0]}')

    paths = [f'{source}/{record.path}' for record in records]
    stats = [(s.st_size, s.st_mtime_ns) for s in map(os.stat, filter(os.path.isfile, paths))]
    settings = [] if name in OFFICIAL else [image_size, seed]
    fingerprint = hashlib.sha256(json.dumps([settings, records, stats]).encode()).hexdigest()

    # the names that the splits use
    if name in CROP_TYPES:
        common = os.path.commonpath([os.path.dirname(record.path) for record in records])
        names = {crop: [f'{crop}/{os.path.relpath(record.path, common)}' for record in records] for crop in crop_types}
    else:
        names = {'uncropped': [record.path if in_place else f'images/{record.path}' for record in records]}
    outputs = {crop: os.path.join(root, f'{crop}_data_dicts.pth') for crop in crop_types}
    if all(is_prepared(outputs[crop], fingerprint) and not missing_files(root, names[crop]) for crop in crop_types):
        print(f'{name}: nothing changed since it was prepared')
        return

    if name in CROP_TYPES:
        refuse_foreign_files(root, names)

    with ProcessPoolExecutor(num_workers, initializer=start_worker) as pool:
        verified = parallel(pool, verify_image, [(path, record.box) for path, record in zip(paths, records)],
                            'verifying')
        errors = [error for error, _ in verified if error]
        if errors:
            raise ValueError(f'{name}: {len(errors):,} of {len(records):,} images cannot be read, nothing was '
                             'written; replace these files and run again:\n  ' + '\n  '.join(errors))
        warnings = check_splits(name, records, sum(beyond for _, beyond in verified))
        for warning in warnings:
            print(f'warning: {name}: {warning}')

        if name in OFFICIAL:
            mean, std = OFFICIAL[name]['mean'], OFFICIAL[name]['std']
        else:
            train = [path for path, record in zip(paths, records) if record.split == 'train']
            mean, std = channel_statistics(pool, train, image_size)

        # from here on the disk changes, so what stood before must not outlive an interruption
        os.makedirs(root, exist_ok=True)
        for path in filter(os.path.isfile, outputs.values()):
            os.remove(path)
        if not in_place:
            link_folder(source, linked, data_root)
        if name in CROP_TYPES:
            for path, link in zip(paths, names['uncropped']):
                link_image(path, f'{root}/{link}')
            jobs = [(path, f'{root}/{target}', record.box)
                    for path, target, record in zip(paths, names['cropped'], records)]
            write_crops(pool, os.path.join(root, 'cropped'), jobs, fingerprint)

    for crop in crop_types:
        split = {part: defaultdict(list) for part in counts}
        for record, path in zip(records, names[crop]):
            split[record.split][record.label].append(path)
        info = {'data_name': name, 'crop_type': crop, 'layout': layout, 'mean': mean, 'std': std,
                'counts': counts, 'warnings': warnings, 'fingerprint': fingerprint}
        save({**{part: dict(images) for part, images in split.items()}, 'info': info}, outputs[crop])
        print(f'wrote {outputs[crop]}')


# ---------------------------------------------------------------------------------------------- use

def check_name(name):
    """Raise ValueError unless name can be the name of a dataset, that is of a folder below data."""
    if not name or name.startswith('.') or os.path.basename(name) != name:
        raise ValueError(f'--data_name {name!r}: a plain folder name is needed')


def prepared_names(data_root):
    """{name: [crop_type, ...]} of all prepared datasets."""
    found = defaultdict(list)
    for name in sorted(os.listdir(data_root)) if os.path.isdir(data_root) else []:
        for crop_type in ('uncropped', 'cropped'):
            if os.path.isfile(os.path.join(data_root, name, f'{crop_type}_data_dicts.pth')):
                found[name].append(crop_type)
    return dict(found)


def load_split(data_root, name, crop_type='uncropped'):
    """The split file of a prepared dataset. Raises ValueError if it is not prepared, listing what is, or if
    images have gone since."""
    check_name(name)
    root = os.path.join(data_root, name)
    path = os.path.join(root, f'{crop_type}_data_dicts.pth')
    if not os.path.isfile(path):
        known = name in READERS or name == 'sample' or os.path.isdir(root)
        listing = ', '.join(f'{found} ({", ".join(crops)})' for found, crops in prepared_names(data_root).items())
        raise ValueError(f'{name} ({crop_type}) is not prepared in {data_root}; prepared: {listing or "nothing"}. '
                         f'Run: python data_utils.py {"" if known else "--data_path DIR "}--data_name {name}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch warns of some files before it refuses them
            split = torch.load(path, weights_only=True)
        parts = [split[part] for part in split['info']['counts']]
    except Exception as error:
        raise ValueError(f'{path} is damaged or was written by other code: run data_utils.py again') from error
    missing = missing_files(root, [image for part in parts for images in part.values() for image in images])
    if missing:
        raise ValueError(f'{len(missing):,} images of {path} are gone, such as {missing[0]}: run data_utils.py again')
    return split


def flatten(part, classes):
    """One part of a split, {label: [image, ...]}, as (images, labels): labels are positions in `classes`."""
    position = {label: index for index, label in enumerate(classes)}
    pairs = [(image, position[label]) for label in sorted(part) for image in part[label]]
    return [image for image, _ in pairs], [label for _, label in pairs]


def main():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description='Prepare datasets for train.py.',
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--data_name', help='prepare this one: car, cub, sop, isc, sample, or a name of your own; '
                                            'by default all of the four that are found')
    parser.add_argument('--data_root', default='data', help='folder of the datasets')
    parser.add_argument('--data_path', help='folder of class folders to prepare under --data_name; it stays there')
    parser.add_argument('--image_size', type=int, default=256,
                        help='pixels a side at which mean and deviation of your own dataset are computed')
    parser.add_argument('--seed', type=int, default=0, help='draws the training half of your own dataset')
    parser.add_argument('--num_workers', type=int, default=available_cores(), help='processes')
    args = parser.parse_args()
    if args.image_size < 1 or args.num_workers < 1 or args.seed < 0:
        parser.error('--image_size and --num_workers must be at least 1, --seed at least 0')
    if args.data_path and (not args.data_name or args.data_name in READERS or args.data_name == 'sample'):
        parser.error(f'--data_path needs a --data_name other than {", ".join(READERS)} and sample')
    names = [args.data_name] if args.data_name is not None else \
        [name for name in READERS if os.path.isdir(os.path.join(args.data_root, name))]
    if not names:
        parser.error(f'no {", ".join(READERS)} in {args.data_root}: extract a dataset there (see README.md), '
                     'or try --data_name sample')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does
    failed = False
    for name in names:
        try:
            check_name(name)
            if name == 'sample' and not os.path.isdir(os.path.join(args.data_root, name)):
                from sample_data import draw_sample
                draw_sample(os.path.join(args.data_root, name))
            prepare(args.data_root, name, args.data_path, args.image_size, args.seed, args.num_workers)
        except (ValueError, OSError, BrokenExecutor) as error:  # the other datasets are still prepared
            print(f'data_utils.py: error: {error}', file=sys.stderr)
            failed = True
        except KeyboardInterrupt:
            print('data_utils.py: interrupted; run again to go on', file=sys.stderr)
            sys.exit(130)
    sys.exit(2 if failed else 0)


if __name__ == '__main__':
    main()

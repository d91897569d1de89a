"""Prepare datasets: read their layouts, verify every image, write the split files.

    python data_utils.py                                         # all that are in data/
    python data_utils.py --data_name sample                      # drawn first
    python data_utils.py --data_path ~/photos --data_name shoes  # any folder of classes
    python data_utils.py --csv ~/photos/shoes.csv --data_name shoes

Nothing is written until every image has been verified. A second run writes nothing
unless an image, an annotation or a flag has changed. areir/data/splits.py describes the
split files, areir/data/layouts.py the layouts.
"""

import contextlib
import os
import sys

import filelock

from areir.cli.preparation import get_parser
from areir.scripts import utils

if __name__ == '__main__':
    utils.before_imports(get_parser)  # the imports below take seconds

from areir import processes
from areir.data.crops import link_images, link_source, refuse_foreign_files, write_crops
from areir.data.images import is_outdated
from areir.data.layouts import KNOWN_DATASETS
from areir.data.leaks import find_leaks
from areir.data.lists import DISTRACTOR, listed
from areir.data.sample import draw_sample
from areir.data.source import TABLE, link_usual_folders, read_source
from areir.data.splits import check_name, load_split
from areir.data.verification import (
    channel_statistics,
    find_oddities,
    start_pool,
    verify_images,
)
from areir.errors import UserError, counted, printable
from areir.files import make_writable, remove, write_tensors
from areir.hardware import available_cores, most_workers

# Arguments


def get_args(flags=None):
    parser = get_parser()
    args = parser.parse_args(flags)
    known = ', '.join(KNOWN_DATASETS)
    own = args.data_name and args.data_name not in [*KNOWN_DATASETS, 'sample']
    if (args.data_path or args.csv) and not own:
        flag = '--csv' if args.csv else '--data_path'
        parser.error(f'{flag} needs a --data_name other than {known} and sample')
    args.num_workers = min(args.num_workers or available_cores(), most_workers())
    wanted = [name for name in KNOWN_DATASETS if args.data_name in (None, name)]
    for name, folder in link_usual_folders(args.data_root, wanted).items():
        print(f'notice: {os.path.join(args.data_root, name)} now links to {folder}')
    args.names = [args.data_name]
    if args.data_name is None:
        folders = {name: os.path.join(args.data_root, name) for name in KNOWN_DATASETS}
        args.names = [name for name in KNOWN_DATASETS if os.path.isdir(folders[name])]
    if not args.names:
        parser.error(
            f'no {known} in {args.data_root}: extract a dataset there (see '
            'docs/datasets.md), name your own by --data_path, or try --data_name sample'
        )
    return args


# Preparation


def prepare(
    data_root,
    name,
    data_path=None,
    image_size=256,
    num_workers=1,
    skip_broken=False,
    **options,
):
    """Read, verify and write the splits of one dataset; return what main does of it.

    skip_broken: whether to leave out images that cannot be read; options: of
    `read_source`. Raises UserError, before anything is written, naming what its layout
    lacks, or every such image.
    """
    check_name(name)
    options['skip_missing'] = skip_broken
    dataset = read_source(data_root, name, data_path, **options)
    print_source(dataset)
    fingerprint = dataset.fingerprint(image_size)
    if is_unchanged(dataset, fingerprint, skip_broken):
        print(f'{name}: nothing changed since it was prepared')
        return outcome(dataset)

    if dataset.has_boxes:
        crop_folder = os.path.join(dataset.folder, 'cropped')
        refuse_foreign_files(dataset.targets('uncropped'), crop_folder)
    parent = data_root  # nothing is made before all images are verified
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent) or os.curdir
    make_writable(parent, '--data_root', data_root)
    with start_pool(num_workers) as pool:
        # the mean and deviation of known datasets are at hand
        wanted = 0 if name in KNOWN_DATASETS else image_size
        results = verify_images(pool, dataset.images, dataset.records, wanted)
        dataset, results, skipped = leave_out_broken(dataset, results, skip_broken)
        print_counts(dataset, results)
        found = {
            crop_type: inspect_split(dataset, results, crop_type)
            for crop_type in dataset.crop_types
        }
        warnings = [line for entry in found.values() for line in entry['warnings']]
        for warning in dict.fromkeys(warnings):
            print(f'warning: {name}: {warning}')
        mean, std = find_statistics(dataset, results, image_size)
        info = {
            'layout': dataset.layout,
            'mean': mean,
            'std': std,
            'counts': dataset.counts,
            'skipped': skipped,
            'fingerprint': fingerprint,
        }
        with locked_dataset(data_root, name):  # from here on the disk changes
            for crop_type in dataset.crop_types:  # not to outlive an interruption
                remove(dataset.split_path(crop_type))
            make_links_and_crops(pool, dataset, fingerprint)
            write_split_files(dataset, info, found)
    return outcome(dataset)


def outcome(dataset):
    """Return the paths of a dataset's split files and the counts of its parts."""
    kinds = dataset.crop_types
    split = load_split(dataset.data_root, dataset.name, kinds[0])
    paths = {kind: dataset.split_path(kind) for kind in kinds}
    return {'paths': paths, 'counts': split.info['counts']}


@contextlib.contextmanager
def locked_dataset(data_root, name):
    """Keep other processes from writing a dataset; wait for one that does."""
    os.makedirs(data_root, exist_ok=True)
    lock = filelock.FileLock(os.path.join(data_root, f'.{name}.lock'))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f'another process is writing {name}: waiting for it', flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def print_source(dataset):
    """Print what was found, and a notice if some files are left out."""
    name, count = dataset.name, len(dataset.records)
    images = counted(count, 'image')
    print(f'{name}: {images} in {dataset.source} ({dataset.layout})')
    left_out = dataset.left_out
    if left_out:
        what = counted(len(left_out), 'file') + ' without an image of a class'
        if name in KNOWN_DATASETS:
            what = counted(len(left_out), 'image') + f' not in {dataset.layout}'
        example = printable(left_out[0])
        print(f'notice: {name}: left out {what}, such as {example}')


def is_unchanged(dataset, fingerprint, skip_broken):
    """Whether all split files have this fingerprint and all their images are there.

    For images that were left out, `skip_broken` must be given.
    """
    try:
        infos = [
            load_split(dataset.data_root, dataset.name, crop_type).info
            for crop_type in dataset.crop_types
        ]
    except (UserError, OSError):  # to be made again
        return False
    if any(info['fingerprint'] != fingerprint for info in infos):
        return False
    skipped = infos[0]['skipped']
    return (skip_broken or not skipped) and not any(map(is_outdated, skipped.values()))


def leave_out_broken(dataset, results, skip_broken):
    """Return (dataset, results, {path: reason}) without the images that are broken.

    results: of `verify_images`. Raises UserError naming all of them unless they are to
    be left out, or if too little is left.
    """
    name, skipped, lines = dataset.name, {}, []
    for result, record, image in zip(results, dataset.records, dataset.images):
        if result.problem:
            skipped[record.path] = result.problem
            origin = f' ({record.origin})' if record.origin else ''
            lines.append(f'{printable(image)}: {printable(result.problem)}{origin}')
    if not lines:
        return dataset, results, skipped
    count = f'{len(lines):,} of {counted(len(results), "image")}'
    if not skip_broken:
        raise UserError(
            f'{name}: {count} cannot be read, so nothing was written; replace these '
            'files and run again, or add --skip_broken to leave them out:'
            f'{listed(lines, len(lines))}'
        )
    print(f'notice: {name}: left out {count}, which cannot be read:{listed(lines)}')
    classes = {record.label for record in dataset.records}
    dataset = dataset.without(skipped)
    lost = sorted(classes - {record.label for record in dataset.records})
    if lost:
        print(
            f'notice: {name}: classes without an image left: {len(lost):,}, such '
            f'as {printable(str(lost[0]))}'
        )
    return dataset, [result for result in results if not result.problem], skipped


def print_counts(dataset, results):
    """Print the images and classes of each part, and which boxes were cut."""
    records = dataset.records
    for part, (images, classes) in dataset.counts.items():
        labels = [record.label for record in records if record.part == part]
        count = labels.count(DISTRACTOR)
        among = f', and {counted(count, "distractor")}' if count else ''
        number, of = counted(images - count, 'image'), counted(classes, 'class')
        print(f'{part:<8}{number:>17} of {of}{among}')
    pairs = zip(results, records)
    beyond = [record for result, record in pairs if result.beyond]
    if beyond:
        print(
            f'notice: {dataset.name}: {counted(len(beyond), "box")} beyond the edge of '
            f'the image, and cut there, such as that of {printable(beyond[0].path)} '
            f'({beyond[0].origin})'
        )


def inspect_split(dataset, results, crop_type):
    """Return the entries warnings, leaks and files of a split's info.

    results: of `verify_images`. Copies have the same bytes and, if they are cropped,
    the same box. In known datasets they count, as in the benchmark.
    """
    contents = [
        (result.digest, record.box if crop_type == 'cropped' else None)
        for result, record in zip(results, dataset.records)
    ]
    own = dataset.name not in KNOWN_DATASETS
    leaks, sentences, numbers = find_leaks(contents, dataset.records, own)
    beyond = sum(result.beyond for result in results)
    oddities = find_oddities(
        dataset.name, dataset.records, beyond, contents if own else None
    )
    names = zip(dataset.names(crop_type), dataset.records)
    files = {name: numbers[rec.path] for name, rec in names if rec.path in numbers}
    return {
        'warnings': oddities + sentences,
        'leaks': leaks,
        'files': files if own else {},
    }


def find_statistics(dataset, results, image_size):
    """Return (mean, std) of the training images; those of known datasets are at hand.

    results: of `verify_images`. Raises UserError if all their pixels have the same
    value in a channel: its std is 0, and train.py divides by it.
    """
    if dataset.name in KNOWN_DATASETS:
        known = KNOWN_DATASETS[dataset.name]
        return known.mean, known.std
    mean, std = channel_statistics(results, image_size)
    if 0 in std:
        channel = ('red', 'green', 'blue')[std.index(0)]
        raise UserError(
            f'{dataset.name}: all pixels of the training images have the same '
            f'{channel}: replace or add images in {dataset.source}'
        )
    return mean, std


def make_links_and_crops(pool, dataset, fingerprint):
    """Link to images that are elsewhere; write the crops of a dataset with boxes."""
    os.makedirs(dataset.folder, exist_ok=True)
    if not dataset.in_place:
        link = os.path.join(dataset.folder, 'images')
        links = link_source(dataset.source, link, dataset.data_root)
        if not links and not dataset.has_boxes:
            link_images(dataset.images, dataset.targets('uncropped'))
    if dataset.table:
        link = os.path.join(dataset.folder, TABLE)
        if os.path.realpath(link) != dataset.table:
            link_source(dataset.table, link, dataset.data_root)
    if dataset.has_boxes:
        link_images(dataset.images, dataset.targets('uncropped'))
        boxes = [record.box for record in dataset.records]
        jobs = list(zip(dataset.images, dataset.targets('cropped'), boxes))
        folder = os.path.join(dataset.folder, 'cropped')
        write_crops(pool, folder, jobs, fingerprint)


def write_split_files(dataset, info, found):
    """Write a split file for each crop type.

    info: the entry that all of them hold; found: what is added to it, by crop type.
    """
    files = {}
    for crop_type in dataset.crop_types:
        split = {part: {} for part in dataset.counts}
        for record, image in zip(dataset.records, dataset.names(crop_type)):
            split[record.part].setdefault(record.label, []).append(image)
        split['info'] = {'data_name': dataset.name, 'crop_type': crop_type, **info}
        split['info'] |= found[crop_type]
        groups = {
            image: record.group
            for record, image in zip(dataset.records, dataset.names(crop_type))
            if record.group is not None
        }
        if groups:
            split['info']['groups'] = groups
        files[dataset.split_path(crop_type)] = split
    write_tensors(files)
    for path in files:
        print(f'wrote {path}')


# Script


def prepare_one(args, name):
    """Prepare one dataset of the command line; draw the sample if it is missing."""
    folder = os.path.join(args.data_root, name)
    if name == 'sample' and not os.path.isdir(folder):
        with locked_dataset(args.data_root, name):
            if not os.path.isdir(folder):  # another process may have drawn it
                draw_sample(folder)
    return prepare(
        args.data_root,
        name,
        args.data_path,
        image_size=args.image_size,
        num_workers=args.num_workers,
        skip_broken=args.skip_broken,
        seed=args.seed,
        table=args.csv,
        test_share=args.test_share,
        class_level=args.class_level,
    )


@processes.left_as_found()
def main(flags: dict | None = None) -> dict:
    """Prepare datasets, and return where their split files are and what they hold.

        areir.prepare({'data_path': 'photos', 'data_name': 'shoes'})

    flags: {flag: value}, see docs/flags.md and `Parser.to_argv`; by default those of
    the command line. Returns {dataset: {'paths': {crop type: path}, 'counts': {part:
    (images, classes)}}}. Raises UserError if a flag or a dataset is refused, and
    OSError if a file cannot be read or written, but first prepares the other datasets.
    """
    args, outcomes, failures = get_args(flags), {}, []
    for name in args.names:
        try:
            outcomes[name] = prepare_one(args, name)
        except (UserError, OSError) as error:  # the other datasets are still prepared
            failures.append(error)
        except KeyboardInterrupt:
            raise KeyboardInterrupt('run the same command again to continue') from None
    for error in failures[:-1]:
        print(utils.explain(error)[0], file=sys.stderr)
    if failures:
        raise failures[-1]
    return outcomes


if __name__ == '__main__':
    utils.run_script(main)

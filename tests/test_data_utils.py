"""data_utils.py as a user has it: what it prepares, prints and refuses."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from official import (
    many_cars,
    noise,
    tree,
    write_car_folder,
    write_classes,
    write_cub,
    write_image,
    write_isc,
    write_sop,
)
from PIL import Image

from areir.data.images import load_image
from areir.data.lists import DISTRACTOR
from areir.data.source import read_source
from areir.data.splits import load_split, prepared_names
from areir.data.verification import Verified
from areir.scripts import data_utils, utils
from areir.scripts.data_utils import prepare


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the script in this process; return (exit code, stdout, stderr)."""

    def run(*flags):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['data_utils.py', *map(str, flags)])
        code = 0
        try:
            utils.run_script(data_utils.main)
        except SystemExit as end:
            code = end.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def start(*flags, **options):
    """Start the script in a process of its own."""
    command = [sys.executable, os.path.join(REPOSITORY, 'data_utils.py')]
    return subprocess.Popen(
        [*command, *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def images_of(root, name, crop_type='uncropped'):
    parts = load_split(root, name, crop_type).parts.values()
    return [image for part in parts for image in part.images]


# What is prepared


def test_all_datasets_that_are_there_are_prepared(call, root):
    write_car_folder(root)
    write_cub(root / 'cub/CUB_200_2011')
    write_sop(root / 'sop')
    write_isc(root / 'isc')
    write_classes(root / 'mine')
    (root / 'car/car_ims/000003.jpg').write_bytes(b'')
    code, output, errors = call('--num_workers', 1)
    assert code == 2 and 'Traceback' not in errors
    assert 'data_utils.py: error: car' in errors and '000003.jpg' in errors
    both = ['uncropped', 'cropped']
    others = {'cub': both, 'sop': ['uncropped'], 'isc': ['uncropped']}
    assert prepared_names(root) == others
    for path in root.rglob('*_data_dicts.pth'):
        assert f'wrote data/{path.relative_to(root)}' in output
    write_image(root / 'car/car_ims/000003.jpg')
    code, output, _ = call('--num_workers', 1)
    assert code == 0 and output.count('nothing changed') == 3
    assert prepared_names(root) == {'car': both, **others}


def test_a_csv_is_prepared(call, root, tmp_path):
    write_classes(tmp_path / 'photos')
    rows = [f'{label}/{n}.png,{label}' for label in 'abcd' for n in range(2)]
    table = tmp_path / 'photos/shop.csv'
    table.write_text('\n'.join(['path,label', *rows]))
    assert call('--csv', 'photos/shop.csv', '--data_name', 'shop')[0] == 0
    assert len(images_of(root, 'shop')) == 8
    table.write_text('path,label\ngone.png,a\n')
    code, _, errors = call('--data_name', 'shop')
    assert code == 2 and 'gone.png' in errors and 'Traceback' not in errors
    assert len(images_of(root, 'shop')) == 8  # as it was


def test_another_share_of_the_test_is_prepared_again(call, root, tmp_path):
    write_classes(tmp_path / 'photos')
    flags = ['--data_path', 'photos', '--data_name', 'shoes', '--image_size', 8]
    sizes = []
    for more in ([], ['--test_share', 0], ['--test_share', 0.5], []):
        code, output, _ = call(*flags, *more)
        assert code == 0
        parts = torch.load(root / 'shoes/uncropped_data_dicts.pth')
        sizes.append({name: len(parts[name]) for name in parts['info']['counts']})
    assert sizes == [halves := {'train': 2, 'test': 2}, {'train': 4}, halves, halves]
    assert 'nothing changed' in output


def info_of(root, name, crop_type='uncropped'):
    return load_split(root, name, crop_type).info


def test_files_on_both_sides_are_told_counted_and_numbered(call, root, tmp_path):
    photos = tmp_path / 'photos'
    for part, classes in (('train', 'ab'), ('query', 'xy'), ('gallery', 'xy')):
        for number, label in enumerate(classes * 2):
            write_image(photos / part / label / f'{number // 2}.png')
    assert call('--data_path', photos, '--data_name', 'fine')[0] == 0
    info = info_of(root, 'fine')
    assert (info['leaks'], info['files'], info['warnings']) == ({}, {}, [])
    # a link and a hard link are the file, whatever their names
    (photos / 'gallery/x/other.png').symlink_to(photos / 'query/x/0.png')
    os.link(photos / 'query/y/1.png', photos / 'gallery/y/same.png')
    shutil.copy(photos / 'train/a/0.png', photos / 'gallery/y/seen.png')
    code, output, _ = call('--data_path', photos, '--data_name', 'leaky')
    info = info_of(root, 'leaky')
    assert code == 0 and info['leaks'] == {'train/gallery': 1, 'query/gallery': 2}
    assert 'query/x/0.png and gallery/x/other.png' in output
    assert 'in several classes' not in output  # training has seen.png: told once
    assert all(f'warning: leaky: {line}' in output for line in info['warnings'])
    files = info['files']
    assert set(files) == {
        *('images/query/x/0.png', 'images/gallery/x/other.png'),
        *('images/query/y/1.png', 'images/gallery/y/same.png'),
        *('images/train/a/0.png', 'images/gallery/y/seen.png'),
    }
    assert files['images/query/x/0.png'] == files['images/gallery/x/other.png']
    assert files['images/query/x/0.png'] != files['images/query/y/1.png']


def test_two_boxes_of_a_photo_are_copies_unless_they_are_cut_out(root, tmp_path):
    write_classes(tmp_path / 'photos')
    shutil.copy(tmp_path / 'photos/c/0.png', tmp_path / 'photos/c/1.png')
    rows = [f'{c}/{n}.png,{c},train,,,,' for c in 'ab' for n in range(2)]
    rows += [f'{c}/{n}.png,{c},val,{n},9,0,9' for c in 'cd' for n in range(2)]
    table = tmp_path / 'photos/shop.csv'
    table.write_text('\n'.join(['path,label,split,x_1,x_2,y_1,y_2', *rows]))
    prepare(root, 'shop', table=str(table), image_size=8)
    whole, cut = info_of(root, 'shop'), info_of(root, 'shop', 'cropped')
    assert whole['leaks'] == {'test/test': 2} and len(whole['files']) == 2
    assert (cut['leaks'], cut['files'], cut['warnings']) == ({}, {}, [])


def test_copies_in_a_benchmark_are_told_and_count(call, root):
    write_isc(root / 'isc')
    query, gallery = [*(root / 'isc').rglob('*/id_00000007/02_1_front.jpg')]
    shutil.copy(query, gallery)
    code, output, _ = call('--data_name', 'isc')
    info = info_of(root, 'isc')
    assert code == 0 and info['leaks'] == {'query/gallery': 1}
    assert info['files'] == {}
    assert 'the benchmark counts them' in output


def test_broken_images_are_left_out_if_wanted(call, root, tmp_path):
    photos = tmp_path / 'photos'
    for part, classes in (('train', 'ab'), ('test', 'xy')):
        write_classes(photos / part, classes, images=12)
    broken = [photos / f'test/x/{n}.png' for n in range(11)] + [
        photos / 'train/b/0.png'
    ]
    whole = {path: path.read_bytes() for path in broken}
    for path in broken:
        path.write_bytes(whole[path][:99])
    flags = ['--data_path', photos, '--data_name', 'shoes', '--image_size', 8]
    code, _, errors = call(*flags)
    assert code == 2 and '12 of 48' in errors and '--skip_broken' in errors
    assert 'train/b/0.png' in errors and not root.exists()

    code, output, _ = call(*flags, '--skip_broken')
    split = load_split(root, 'shoes')
    assert code == 0 and split.info['counts'] == {'train': (23, 2), 'test': (13, 2)}
    listed = [line for line in output.splitlines() if line.startswith('  ')]
    assert len(listed) == 11 and listed[-1] == '  and 2 more'
    skipped = [path.relative_to(photos).as_posix() for path in broken]
    assert sorted(split.info['skipped']) == sorted(skipped)
    reasons = set(split.info['skipped'].values())
    assert reasons and not any(str(photos) in reason for reason in reasons)

    # until a file changes, or is wanted
    assert 'nothing changed' in call(*flags, '--skip_broken')[1]
    assert call(*flags)[0] == 2
    broken[0].write_bytes(whole[broken[0]])
    code, output, _ = call(*flags, '--skip_broken')
    assert code == 0 and len(load_split(root, 'shoes').parts['test']) == 14
    for path in broken:
        path.write_bytes(whole[path])
    assert call(*flags)[0] == 0 and info_of(root, 'shoes')['skipped'] == {}


def test_rows_without_their_file_are_left_out_if_wanted(call, root, tmp_path):
    write_classes(tmp_path / 'photos', 'abcd')
    rows = [f'{c}/{n}.png,{c}' for c in 'abcd' for n in (0, 1)] + ['a/2.png,a']
    table = tmp_path / 'photos/shop.csv'
    table.write_text('\n'.join(['path,label', *rows]))
    flags = ['--csv', table, '--data_name', 'shop', '--image_size', 8]
    code, _, errors = call(*flags)
    assert code == 2 and 'line 10' in errors and '--skip_broken' in errors
    code, output, _ = call(*flags, '--skip_broken')
    assert code == 0 and 'left out 1 of 9 images' in output and 'line 10' in output
    assert list(info_of(root, 'shop')['skipped']) == ['a/2.png']
    # until the file is there
    assert 'nothing changed' in call(*flags, '--skip_broken')[1]
    write_image(tmp_path / 'photos/a/2.png')
    assert call(*flags, '--skip_broken')[0] == 0
    assert info_of(root, 'shop')['skipped'] == {}
    assert len(images_of(root, 'shop')) == 9


def test_a_class_that_is_broken_is_named(call, tmp_path):
    photos = tmp_path / 'photos'
    for part, classes in (('train', 'abc'), ('test', 'xyz')):
        write_classes(photos / part, classes)
    flags = ['--data_path', photos, '--data_name', 'shoes', '--skip_broken']
    for path in (photos / 'test/x').iterdir():
        path.write_bytes(b'')
    code, output, _ = call(*flags)
    assert code == 0 and 'without an image left: 1, such as x' in output
    for path in (photos / 'test/y').iterdir():
        path.write_bytes(b'')
    code, _, errors = call(*flags)
    assert code == 2 and 'at least 2 classes and has z' in errors.splitlines()[-1]
    for path in (photos / 'test/z').iterdir():
        path.write_bytes(b'')
    code, _, errors = call(*flags)
    assert code == 2 and 'train images found' in errors.splitlines()[-1]


def test_groups_and_distractors_are_in_the_split(root, tmp_path, capsys):
    write_classes(tmp_path / 'photos')
    dataset = read_source(root, 'shoes', tmp_path / 'photos')
    parts = {'a': 'train', 'b': 'train', 'c': 'test', 'd': 'test'}
    records = [
        record._replace(part=parts[record.label], group=f'cam{record.path[2]}')
        for record in dataset.records
    ]
    grouped = replace(dataset, records=records)
    assert grouped.fingerprint(8) != dataset.fingerprint(8)
    records[-1] = records[-1]._replace(label=DISTRACTOR, group=None)
    grouped = replace(dataset, records=records)
    assert grouped.counts == {'train': (4, 2), 'test': (4, 2)}
    results = [Verified(digest=record.path.encode()) for record in records]
    data_utils.print_counts(grouped, results)
    assert '3 images of 2 classes, and 1 distractor\n' in capsys.readouterr().out
    found = data_utils.inspect_split(grouped, results, 'uncropped')
    grouped_info = {'uncropped': found}
    os.makedirs(root / 'shoes')
    data_utils.write_split_files(grouped, {'counts': grouped.counts}, grouped_info)
    content = torch.load(root / 'shoes/uncropped_data_dicts.pth')
    assert content['test'][DISTRACTOR] == ['images/d/1.png']
    groups = content['info']['groups']
    assert len(groups) == 7 and groups['images/c/1.png'] == 'cam1'


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'count'), [('sample', 800), ('car', 7)])
def test_two_processes_prepare_the_same_dataset(root, name, count):
    if name == 'car':
        write_car_folder(root, many_cars(14))
    flags = ['--data_root', root, '--data_name', name, '--image_size', '16']
    both = [start(*flags) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    split = load_split(root, name)
    assert [len(part) for part in split.parts.values()] == [count, count]
    for image in images_of(root, name, 'cropped' if name == 'car' else 'uncropped'):
        load_image(root / name / image)


def test_data_can_be_moved_and_used_from_elsewhere(root, tmp_path, monkeypatch, capsys):
    write_car_folder(root)
    write_classes(root / 'inside')
    write_classes(tmp_path / 'outside')
    monkeypatch.chdir(tmp_path)
    prepare('data', 'car')
    prepare('data', 'linked', 'data/inside', image_size=8)
    prepare('data', 'far', 'outside', image_size=8)
    (tmp_path / 'disk/work').mkdir(parents=True)
    shutil.move(root, tmp_path / 'disk/moved')
    monkeypatch.chdir(tmp_path / 'disk/work')
    counts = {('car', 'uncropped'): 5, ('car', 'cropped'): 5}
    counts |= {('linked', 'uncropped'): 8, ('far', 'uncropped'): 8}
    for (name, crop_type), count in counts.items():
        images = images_of('../moved', name, crop_type)
        assert len(images) == count
        for image in images:
            assert load_image(Path('../moved', name, image)).mode == 'RGB'
    capsys.readouterr()
    for name in ('car', 'linked', 'far'):
        prepare('../moved', name, image_size=8)
        assert f'{name}: nothing changed' in capsys.readouterr().out


# Usual names of folders


def test_usual_names_of_folders_are_found(call, root):
    write_cub(root / 'CUB_200_2011')
    write_sop(root / 'Stanford_Online_Products')
    write_isc(root / 'In-shop Clothes Retrieval Benchmark')
    write_car_folder(root)
    (root / 'car').rename(root / 'Stanford_Cars')
    code, output, errors = call('--num_workers', 1)
    assert code == 0, errors
    for name in ('car', 'cub', 'sop', 'isc'):
        folder = os.readlink(root / name)  # relative: both can be moved together
        assert os.path.dirname(folder) == '' and f'now links to {folder}' in output
        assert images_of(root, name)
    assert call('--num_workers', 1)[1].count('nothing changed') == 4


def test_two_usual_names_of_a_dataset_are_refused(call, root):
    for folder in ('CUB_200_2011', 'CUB-200-2011'):
        write_cub(root / folder)
    code, _, errors = call('--data_name', 'cub')
    assert code == 2 and 'may both be cub' in errors and errors.count('\n') == 1
    assert not (root / 'cub').exists()


# What is refused


@pytest.mark.parametrize(
    ('flags', 'names'),
    [
        ('', '--data_name sample'),
        ('--data_name ../x', '--data_name'),
        ('--data_name=', '--data_name'),
        ('--data_path photos', '--data_path'),
        ('--data_path photos --data_name car', '--data_path'),
        ('--csv df.csv --data_name sample', '--csv'),
        ('--data_path absent --data_name shoes', 'absent'),
        ('--data_name car', 'data/car'),
        ('--num_workers 0', '--num_workers'),
        ('--seed -1', '--seed'),
        ('--test_share 1', '--test_share'),
        ('--test_share 0.9 --data_path photos --data_name shoes', '--test_share 0.9'),
    ],
)
def test_bad_flags_are_refused_by_name(call, tmp_path, flags, names):
    write_classes(tmp_path / 'photos')
    before = tree(tmp_path)
    code, _, errors = call(*flags.split())
    (line,) = errors.splitlines()
    assert code == 2 and line.startswith('data_utils.py: error: ') and names in line
    assert tree(tmp_path) == before


def test_training_images_that_cannot_be_normalised_are_refused(call, root):
    for number in range(8):
        red, _, blue = noise(seed=number).split()
        image = Image.merge('RGB', (red, Image.new('L', (24, 18), 7), blue))
        write_image(root / f'plain/{number % 4}/{number}.png', image)
    code, _, errors = call('--data_name', 'plain', '--num_workers', 1)
    line = errors.splitlines()[-1]
    assert code == 2 and line.startswith('data_utils.py: error: plain: ')
    assert 'the same green:' in line and 'data/plain' in line
    assert prepared_names(root) == {}


@pytest.mark.slow
# Ctrl-C goes to all processes of a terminal, SIGTERM to the one that it names
@pytest.mark.parametrize(
    ('number', 'send'), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)]
)
def test_a_signal_ends_in_one_line_and_nothing_written(root, tmp_path, number, send):
    photos = tmp_path / 'photos'
    write_classes(photos, images=100)
    flags = ['--data_root', root, '--data_name', 'shoes', '--data_path', photos]
    process = start(
        *(*flags, '--num_workers', 1, '--image_size', 1024),
        start_new_session=True,
        env={**os.environ, 'PYTHONUNBUFFERED': '1'},
        # a shell ignores SIGINT in what it starts in the background
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    seen = ''
    while 'images in' not in seen:  # seconds before the end
        seen += process.stdout.read(1)
    send(process.pid, number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith('data_utils.py: interrupted')
    assert 'Traceback' not in errors
    assert not root.exists()

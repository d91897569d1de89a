"""data_utils.py as a user has it: what it prepares, prints and refuses."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import REPOSITORY
from official import (
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

import data_utils
import utils
from areir.data.images import load_image
from areir.data.sample import draw_sample
from areir.data.splits import load_split, prepared_names
from data_utils import prepare


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the script in this process; return (exit code, stdout, stderr)."""

    def run(*flags):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['data_utils.py', *map(str, flags)])
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as end:
            utils.run_script(data_utils.main)
        signal.signal(signal.SIGTERM, handler)
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    return run


def images_of(root, name, crop_type='uncropped'):
    parts = load_split(root, name, crop_type).parts.values()
    return [image for part in parts for image in part.images]


def test_an_empty_folder_is_refused_in_one_line(call):
    code, _, errors = call()
    (line,) = errors.splitlines()
    assert code == 2 and 'error' in line and '--data_name sample' in line


def test_all_datasets_that_are_there_are_prepared(call, root):
    write_car_folder(root)
    write_cub(root / 'cub/CUB_200_2011')
    write_sop(root / 'sop')
    write_isc(root / 'isc')
    write_classes(root / 'mine')
    code, output, _ = call('--num_workers', 1)
    assert code == 0
    both = ['uncropped', 'cropped']
    assert prepared_names(root) == {
        'car': both,
        'cub': both,
        'sop': ['uncropped'],
        'isc': ['uncropped'],
    }
    for path in root.rglob('*_data_dicts.pth'):
        assert f'wrote data/{path.relative_to(root)}' in output
    code, output, _ = call('--num_workers', 1)
    assert code == 0 and output.count('nothing changed') == 4


def test_one_dataset_fails_and_the_others_are_prepared(call, root):
    write_car_folder(root)
    (root / 'car/car_ims/000003.jpg').write_bytes(b'')
    write_cub(root / 'cub')
    code, output, errors = call('--num_workers', 1)
    assert code == 2 and 'Traceback' not in errors
    assert 'data_utils.py: error: car' in errors and '000003.jpg' in errors
    assert 'wrote data/cub/cropped_data_dicts.pth' in output
    assert prepared_names(root) == {'cub': ['uncropped', 'cropped']}


def test_a_folder_in_the_place_of_a_split_is_refused_before_anything_changes(
    call, root
):
    write_car_folder(root)
    assert call('--data_name', 'car', '--num_workers', 1)[0] == 0
    os.remove(root / 'car/cropped_data_dicts.pth')
    os.mkdir(root / 'car/cropped_data_dicts.pth')
    code, _, errors = call('--data_name', 'car', '--num_workers', 1)
    assert code == 2 and 'cropped_data_dicts.pth is a folder' in errors
    assert os.path.isfile(root / 'car/uncropped_data_dicts.pth')


def test_a_bug_keeps_its_traceback(call, root, monkeypatch):
    write_classes(root / 'shoes')
    monkeypatch.setattr(data_utils, 'find_statistics', None)
    code, _, errors = call('--data_name', 'shoes')
    assert code == 1 and 'Traceback' in errors


def test_the_sample_is_drawn_once(call, root, monkeypatch):
    small = partial(draw_sample, train_classes=3, test_classes=2, side=16)
    monkeypatch.setattr(data_utils, 'draw_sample', small)
    flags = ('--data_name', 'sample', '--image_size', 16)
    code, _, _ = call(*flags)
    assert code == 0
    split = load_split(root, 'sample')
    assert split.info['counts'] == {'train': (60, 3), 'test': (40, 2)}
    before = tree(root)
    code, output, _ = call(*flags)
    assert code == 0 and 'nothing changed' in output and tree(root) == before


def test_a_sample_that_another_process_draws_is_waited_for(call, root, monkeypatch):
    small = partial(draw_sample, train_classes=3, test_classes=2, side=16)
    drawn = []

    @contextlib.contextmanager
    def other(path, work):
        if not drawn:
            small(root / 'sample')
            drawn.append(work)
        yield

    monkeypatch.setattr(data_utils, 'locked', other)
    monkeypatch.setattr(data_utils, 'draw_sample', None)
    code, output, _ = call('--data_name', 'sample', '--image_size', 16)
    assert code == 0 and 'wrote' in output and drawn == ['writing sample']


@pytest.mark.slow
def test_two_processes_prepare_the_sample(root):
    command = [sys.executable, os.path.join(REPOSITORY, 'data_utils.py')]
    command += ['--data_root', root, '--data_name', 'sample', '--image_size', '16']
    both = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    waited = [output for output, _ in outputs if 'writing sample: waiting' in output]
    assert len(waited) == 1
    assert load_split(root, 'sample').info['counts']['train'] == (800, 40)


@pytest.mark.slow
def test_the_sample_has_40_and_40_classes_of_20_images(call, root):
    code, _, _ = call('--data_name', 'sample', '--image_size', 64)
    assert code == 0
    split = load_split(root, 'sample')
    assert split.info['counts'] == {'train': (800, 40), 'test': (800, 40)}
    assert not set(split.train.classes) & set(split.query.classes)
    image = load_image(root / 'sample' / split.train.images[0])
    assert image.size == (64, 64)


@pytest.mark.parametrize(
    ('flags', 'names'),
    [
        ('--data_name ../x', '--data_name'),
        ('--data_name .', '--data_name'),
        ('--data_name a/b', '--data_name'),
        ('--data_name=', '--data_name'),
        ('--data_path photos', '--data_path'),
        ('--data_path photos --data_name car', '--data_path'),
        ('--data_path photos --data_name sample', '--data_path'),
        ('--data_path absent --data_name shoes', 'absent'),
        ('--data_name car', 'data/car'),
        ('--num_workers 0', '--num_workers'),
        ('--image_size 0', '--image_size'),
        ('--num_workers 100000', '--num_workers: 100000 is above 256'),
        ('--seed -1', '--seed'),
        ('--data_path / --data_name shoes', '/: the root of the disk'),
    ],
)
def test_bad_flags_are_refused_by_name(call, tmp_path, flags, names):
    write_classes(tmp_path / 'photos')
    before = tree(tmp_path)
    code, _, errors = call(*flags.split())
    (line,) = errors.splitlines()
    assert code == 2 and line.startswith('data_utils.py: error: ') and names in line
    assert tree(tmp_path) == before


def test_flags_have_their_defaults():
    defaults = vars(data_utils.get_parser().parse_args([]))
    assert defaults.pop('num_workers') is None
    assert defaults == {
        'data_name': None,
        'csv': None,
        'data_root': 'data',
        'data_path': None,
        'image_size': 256,
        'seed': 0,
    }


def test_files_that_are_not_images_are_pointed_out(root, tmp_path, capsys):
    write_classes(tmp_path / 'photos')
    (tmp_path / 'photos/a/ph\noto.raw').write_bytes(b'?')
    prepare(root, 'shoes', tmp_path / 'photos', image_size=8)
    output = capsys.readouterr().out
    assert 'notice: shoes: left out 1 files' in output and r'a/ph\noto.raw' in output
    assert len(images_of(root, 'shoes')) == 8


def test_an_own_folder_is_split_by_seed_and_measured_at_image_size(root, tmp_path):
    photos = tmp_path / 'photos'
    write_classes(photos, 'abcdefg')
    before = tree(photos)
    prepare(root, 'shoes', photos, image_size=8)
    split = load_split(root, 'shoes')
    assert (len(split.train.classes), len(split.query.classes)) == (4, 3)
    expected = {f'images/{name}/{n}.png' for name in 'abcdefg' for n in (0, 1)}
    assert set(images_of(root, 'shoes')) == expected
    assert tree(photos) == before
    prepare(root, 'shoes', photos, image_size=16)
    assert load_split(root, 'shoes').info['std'] != split.info['std']


@pytest.mark.parametrize('channel', ['red', 'green', 'blue'])
def test_training_images_that_cannot_be_normalised_are_refused(call, root, channel):
    place = ('red', 'green', 'blue').index(channel)
    for number in range(8):
        channels = list(noise(seed=number).split())
        channels[place] = Image.new('L', (24, 18), 7)
        image = Image.merge('RGB', channels)
        write_image(root / f'plain/{number % 4}/{number}.png', image)
    code, _, errors = call('--data_name', 'plain', '--num_workers', 1)
    line = errors.splitlines()[-1]
    assert code == 2 and line.startswith('data_utils.py: error: plain: ')
    assert f'the same {channel}:' in line and 'data/plain' in line
    assert prepared_names(root) == {}


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


@pytest.mark.slow
# Ctrl-C goes to all processes of a terminal, SIGTERM to the one that it names
@pytest.mark.parametrize(
    ('number', 'send'), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)]
)
def test_a_signal_ends_in_one_line_and_nothing_written(root, tmp_path, number, send):
    photos = tmp_path / 'photos'
    write_classes(photos, ['a', 'b'], images=200)
    flags = {
        '--data_root': root,
        '--data_name': 'shoes',
        '--data_path': photos,
        '--num_workers': 1,
        '--image_size': 1024,  # so that it takes long enough
    }
    process = subprocess.Popen(
        [
            *(sys.executable, os.path.join(REPOSITORY, 'data_utils.py')),
            *(str(word) for flag in flags.items() for word in flag),
        ],
        start_new_session=True,
        # a shell ignores SIGINT in what it starts in the background
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()  # is flushed when the worker process starts
    time.sleep(0.3)
    send(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith('data_utils.py: interrupted')
    assert 'Traceback' not in errors
    assert not root.exists()


USUAL = {
    'CUB_200_2011': ('cub', write_cub),
    'CUB-200-2011': ('cub', write_cub),
    'Stanford_Online_Products': ('sop', write_sop),
    'In-shop Clothes Retrieval Benchmark': ('isc', write_isc),
    'In_shop_Clothes_Retrieval_Benchmark': ('isc', write_isc),
    'Stanford_Cars': ('car', write_car_folder),
    'cars196': ('car', write_car_folder),
}


@pytest.mark.parametrize('folder', USUAL)
@pytest.mark.parametrize('named', [True, False])
def test_usual_names_of_folders_are_found(call, root, folder, named):
    name, write = USUAL[folder]
    write(root / folder)
    code, output, errors = call(*(['--data_name', name] if named else []))
    assert code == 0, errors
    assert f'now links to {folder}' in output
    assert images_of(root, name)
    assert os.readlink(root / name) == folder  # the folder of datasets can be moved
    assert 'nothing changed' in call('--data_name', name)[1]


def test_a_folder_of_the_own_name_comes_first(call, root):
    write_cub(root / 'cub')
    write_sop(root / 'CUB_200_2011')
    code, output, errors = call()
    assert code == 0 and 'links' not in output, errors


def test_two_usual_names_of_a_dataset_are_refused(call, root):
    write_cub(root / 'CUB_200_2011')
    write_cub(root / 'CUB-200-2011')
    code, _, errors = call('--data_name', 'cub')
    assert code == 2 and 'may both be cub' in errors and errors.count('\n') == 1
    assert not (root / 'cub').exists()


def test_own_data_is_never_linked(call, root):
    write_classes(root / 'cars196')
    code, output, errors = call('--data_name', 'cars196')
    assert code == 0 and 'links' not in output, errors
    assert not (root / 'car').exists()


@pytest.mark.parametrize('name', [None, 'cub', 'sample'])
def test_a_csv_needs_a_name_of_its_own(call, tmp_path, name):
    (tmp_path / 'df.csv').write_text('path,label\n')
    flags = ['--csv', 'df.csv', *(['--data_name', name] if name else [])]
    code, _, errors = call(*flags)
    assert code == 2 and '--csv needs a --data_name other than' in errors
    flags = ['--csv', 'df.csv', '--data_path', '.', '--data_name', 'shop']
    assert 'give one of them' in call(*flags)[2]


def test_a_csv_is_prepared(call, root, tmp_path):
    write_classes(tmp_path / 'photos')
    rows = [f'{label}/{n}.png,{label}' for label in 'abcd' for n in range(2)]
    table = tmp_path / 'photos/shop.csv'
    table.write_text('\n'.join(['path,label', *rows]))
    code, output, errors = call('--csv', 'photos/shop.csv', '--data_name', 'shop')
    assert code == 0 and '8 images in' in output and '(shop.csv)' in output, errors
    assert len(images_of(root, 'shop')) == 8
    table.write_text('path,label\ngone.png,a\n')
    code, _, errors = call('--data_name', 'shop')
    assert code == 2 and 'line 2: ' in errors and 'Traceback' not in errors
    assert len(images_of(root, 'shop')) == 8  # as it was

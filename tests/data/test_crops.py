"""Links and crops are atomic, kept while they are right, and never replace a user's."""

import os

import pytest
import torch
from official import (
    CARS,
    image_size,
    many_cars,
    noise,
    to_pixels,
    tree,
    write_car_folder,
    write_classes,
    write_image,
    write_lines,
)
from special import largest_file

from areir.data import crops
from areir.data.source import link_usual_folders
from areir.data.splits import load_split
from areir.errors import UserError
from areir.scripts.data_utils import prepare

REAL_CROP = crops.write_crop


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


def crop_or_interrupt(job):
    """write_crop, interrupted at the 19th car; worker processes find it by name."""
    if '000019' in job[0]:
        raise KeyboardInterrupt
    REAL_CROP(job)


def save_half(value, file):
    file.write(b'half of it')
    raise KeyboardInterrupt


def interrupt(root, monkeypatch, module=crops, name='write_crop', do=crop_or_interrupt):
    """Prepare cars and be interrupted."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, name, do)
        prepare(root, 'car')


def test_a_second_run_writes_nothing_until_something_changes(root, capsys):
    rows = [(name.replace('jpg', 'png'), box, label) for name, box, label in CARS]
    write_car_folder(root, rows)
    prepare(root, 'car')
    for name, _, _ in rows:
        link = root / 'car/uncropped' / name
        assert link.is_symlink() and not os.path.isabs(os.readlink(link))
        assert link.samefile(root / 'car/car_ims' / name)
    before = tree(root)
    capsys.readouterr()
    prepare(root, 'car')
    assert 'nothing changed' in capsys.readouterr().out
    assert tree(root) == before

    write_image(root / 'car/car_ims/000004.png', noise(seed=99))
    prepare(root, 'car')
    expected = to_pixels(noise(seed=99))[2:15, 1:20]
    assert (to_pixels(root / 'car/cropped/000004.png') == expected).all()

    write_car_folder(root, [*rows[:4], (rows[4][0], (2, 2, 5, 4), 196)])
    prepare(root, 'car')  # with a corrected box
    assert image_size(root / 'car/cropped/008055.png') == (4, 3)

    (root / 'car/cropped/000001.png').unlink()
    prepare(root, 'car')
    assert image_size(root / 'car/cropped/000001.png') == (10, 8)


@pytest.mark.parametrize(
    ('how', 'complete'),
    [((crops, 'write_crop', crop_or_interrupt), 18), ((torch, 'save', save_half), 22)],
    ids=['cropping', 'saving'],
)
def test_an_interrupted_run_goes_on(root, monkeypatch, how, complete):
    write_car_folder(root, many_cars(22))
    interrupt(root, monkeypatch, *how)
    assert not list((root / 'car').glob('*_data_dicts.pth'))
    entries = tree(root / 'car/cropped').items()
    kept = {path: entry for path, entry in entries if path.endswith('.jpg')}
    assert len(kept) == complete
    prepare(root, 'car')
    after = tree(root / 'car/cropped')
    assert {path: after[path] for path in kept} == kept  # they were not made again
    for crop_type in ('cropped', 'uncropped'):
        parts = load_split(root, 'car', crop_type).parts
        assert sum(map(len, parts.values())) == 22
    assert not list(root.rglob('.*.part'))


def test_crops_of_earlier_boxes_do_not_survive_an_interrupted_run(root, monkeypatch):
    write_car_folder(root, many_cars(22))
    prepare(root, 'car')
    write_car_folder(root, many_cars(22, box=(2, 2, 14, 12)))
    interrupt(root, monkeypatch)
    prepare(root, 'car')
    parts = load_split(root, 'car', 'cropped').parts.values()
    images = [image for part in parts for image in part.images]
    assert {image_size(root / 'car' / image) for image in images} == {(13, 11)}


def test_a_crop_that_is_cut_short_is_not_kept(tmp_path):
    """pillow does not notice that a disk took only a part of a JPEG."""
    image, target = tmp_path / 'it.png', tmp_path / 'crop.jpg'
    write_image(image, noise((64, 64)))
    with largest_file(1000), pytest.raises(OSError, match=r'crop\.jpg cannot be'):
        crops.write_crop((image, str(target), (0, 0, 60, 60)))
    assert not target.exists()


@pytest.mark.parametrize('mine', ['uncropped/000001.jpg', 'cropped/000001.jpg'])
def test_files_in_the_way_are_not_touched(root, mine):
    write_car_folder(root)
    write_image(root / 'car' / mine)
    before = tree(root)
    with pytest.raises(UserError, match=mine.split('/')[0]):
        prepare(root, 'car')
    assert tree(root) == before


def test_what_a_killed_process_left_is_not_in_the_way(root):
    write_car_folder(root)
    crop_folder = root / 'car/cropped'
    crop_folder.mkdir()
    (crop_folder / '..fingerprint.0123456789ab.part').write_text('half')
    leftover = crop_folder / '.000001.jpg.0123456789ab.part'
    leftover.write_text('half')
    os.utime(leftover, (0, 0))  # long ago
    (crop_folder / '.fingerprint').write_text('of other boxes')
    prepare(root, 'car')
    assert not leftover.exists()
    assert image_size(crop_folder / '000001.jpg') == (10, 8)


# Disks without symbolic links


@pytest.fixture(params=['hard links', 'copies'])
def no_links(request, monkeypatch):
    """A disk without symbolic links, and perhaps without hard links."""

    def refuse(*paths, **options):
        raise OSError(1, 'Operation not permitted', paths[1])

    monkeypatch.setattr(os, 'symlink', refuse)
    if request.param == 'copies':
        monkeypatch.setattr(os, 'link', refuse)
    return request.param


def folder_of_photos(tmp_path):
    write_classes(tmp_path / 'photos')
    return {'data_path': tmp_path / 'photos'}


def table_of_photos(tmp_path):
    write_classes(tmp_path / 'photos')
    names = [(c, f'{c}/{i}.png') for c in 'abcd' for i in range(2)]
    lines = ['path,label', *(f'{path},{label}' for label, path in names)]
    write_lines(tmp_path / 'photos/table.csv', lines)
    return {'table': tmp_path / 'photos/table.csv'}


@pytest.mark.parametrize('make', [folder_of_photos, table_of_photos])
def test_without_symbolic_links_images_are_linked_otherwise(
    root, tmp_path, no_links, capsys, make
):
    source = make(tmp_path)
    prepare(root, 'shop', **source)
    assert no_links in capsys.readouterr().out
    split = load_split(root, 'shop')
    paths = [root / 'shop' / path for path in split.train.images]
    assert len(paths) == 4 and not any(path.is_symlink() for path in paths)
    before = tree(root)
    for again in (source, {}):  # the source is known
        prepare(root, 'shop', **again)
        assert 'nothing changed' in capsys.readouterr().out
    assert tree(root) == before
    changed = tmp_path / 'photos' / paths[0].relative_to(root / 'shop/images')
    changed.unlink()
    noise(seed=99).resize((30, 20)).save(changed)
    prepare(root, 'shop')
    assert paths[0].read_bytes() == changed.read_bytes()
    with pytest.raises(UserError, match='choose another --data_name'):
        prepare(root, 'shop', root)


def test_without_symbolic_links_boxes_and_usual_names_work_too(root, no_links):
    write_car_folder(root)
    prepare(root, 'car')
    first = root / 'car/uncropped' / CARS[0][0]
    assert first.read_bytes() == (root / 'car/car_ims' / CARS[0][0]).read_bytes()
    (root / 'car/car_ims' / CARS[0][0]).touch()
    os.utime(root / 'car/car_ims' / CARS[0][0], (1, 1))
    prepare(root, 'car')  # its own copies are not a user's files
    (root / 'CUB_200_2011').mkdir()
    with pytest.raises(UserError, match='rename CUB_200_2011 to cub'):
        link_usual_folders(root, ['cub'])

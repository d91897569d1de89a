"""Datasets: files in the official formats are written here, read back, and broken on purpose."""
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import data_utils
import sample_data
from data_utils import Record, load_image, load_split, prepare

REPOSITORY = Path(data_utils.__file__).parent
REAL_CROP = data_utils.write_crop

# ---------------------------------------------------------------------------------------------- helpers


def noise(size=(24, 18), seed=0):
    """Independent random pixels: shifted by a single pixel they have nothing in common."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def write(path, image=None, **options):
    """Write an image, by default noise that differs from path to path, making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image or noise(seed=zlib.crc32('/'.join(path.parts[-3:]).encode()))
    image.save(path, **{'quality': 95, **options} if path.suffix == '.jpg' else options)


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def pixels(image):
    return np.asarray(image).astype(int)


def tree(root):
    """Everything below root: path to (content or target of a link, time of change). Links are not followed."""
    return {str(path.relative_to(root)): (os.readlink(path) if path.is_symlink() else path.read_bytes()
                                          if path.is_file() else None, path.lstat().st_mtime_ns)
            for path in sorted(root.rglob('*'))}


def listed(split):
    """All images of a split, as paths relative to the dataset's folder."""
    return [path for part in split['info']['counts'] for images in split[part].values() for path in images]


def write_mat(path, fields, rows):
    """An annotation file as the official ones: every field an object, cells mixed uint8 and uint16 by value."""
    def cell(value):
        return value if isinstance(value, str) else np.uint8(value) if value < 256 else np.uint16(value)
    table = np.zeros((1, len(rows)), dtype=[(field, object) for field in fields.split()])
    for index, row in enumerate(rows):
        table[0, index] = tuple(cell(value) for value in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {'annotations': table})


# name, (x1, y1, x2, y2) 1-based inclusive, class
CARS = [('000001.jpg', (3, 2, 12, 9), 1), ('000002.jpg', (1, 1, 24, 18), 98), ('000003.jpg', (5, 5, 5, 5), 99),
        ('000004.jpg', (2, 3, 20, 15), 100), ('008055.jpg', (24, 18, 24, 18), 196)]


def car_a(root, rows=CARS):
    """One folder; the column `test` says the contrary of what the retrieval split has to be."""
    for name, _, _ in rows:
        if not (root / 'car/car_ims' / name).exists():
            write(root / 'car/car_ims' / name)
    write_mat(root / 'car/cars_annos.mat', 'relative_im_path bbox_x1 bbox_y1 bbox_x2 bbox_y2 class test',
              [(f'car_ims/{name}', *box, label, int(label <= 98)) for name, box, label in rows])


def car_b(root, devkit='devkit/', nested=False, labels=True):
    """Two folders that use the same names for different pictures."""
    rows = {'train': [('00001.jpg', (1, 2, 10, 12), 14), ('00002.jpg', (3, 4, 20, 18), 190)],
            'test': [('00001.jpg', (5, 6, 24, 18), 181), ('00002.jpg', (7, 1, 14, 3), 2)]}
    for part, table in rows.items():
        for name, _, _ in table:
            write(root / 'car' / (f'cars_{part}/' * (1 + nested)) / name)
        if part == 'train' or labels:
            write_mat(root / f'car/{devkit}cars_{part}_annos{"_withlabels" * (part == "test")}.mat',
                      'bbox_x1 bbox_y1 bbox_x2 bbox_y2 class fname',
                      [(*box, label, name) for name, box, label in table])
    write_mat(root / f'car/{devkit}cars_test_annos.mat', 'bbox_x1 bbox_y1 bbox_x2 bbox_y2 fname',
              [(*box, name) for name, box, _ in rows['test']])


CUBS = [(1, '001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg', 1, '2.0 3.0 10.0 8.0'),
        (2, '100.Brown_Pelican/Brown_Pelican_0001_9.jpg', 100, '0.0 0.0 24.0 18.0'),
        (3, '101.White_Pelican/White_Pelican_0005_1.jpg', 101, '14.0 9.0 32.0 32.0'),  # beyond 24 x 18
        (4, '200.Common_Yellowthroat/Common_Yellowthroat_0003_1.jpg', 200, '5.0 6.0 7.0 8.0')]


def cub(folder):
    for _, path, label, _ in CUBS:
        image = {101: Image.new('RGB', (24, 18), 'white'), 200: noise().convert('L')}.get(label)
        write(folder / 'images' / path, image)
        write_text(folder / 'images' / path.split('/')[0] / '._Apple_Double_0001_1.jpg', 'resource fork')
    write_text(folder / 'images.txt', ''.join(f'{row[0]} {row[1]}\n' for row in CUBS))
    write_text(folder / 'image_class_labels.txt', ''.join(f'{row[0]} {row[2]}\n' for row in CUBS))
    write_text(folder / 'bounding_boxes.txt', ''.join(f'{row[0]} {row[3]}\n' for row in CUBS))
    write_text(folder / 'classes.txt', ''.join(f'{row[2]} {row[1].split("/")[0]}\n' for row in CUBS))
    write_text(folder / 'train_test_split.txt', ''.join(f'{row[0]} {row[0] % 2}\n' for row in CUBS))


def own(folder, classes=('a', 'b', 'c', 'd'), images=2, size=(24, 18)):
    for label, number in itertools.product(classes, range(images)):
        seed = zlib.crc32(f'{label}/{number}'.encode())
        write(folder / label / f'{number}.png', noise(size, seed))


def command(*arguments, **options):
    return subprocess.run([sys.executable, REPOSITORY / 'data_utils.py', *map(str, arguments)], text=True,
                          capture_output=True, timeout=120, **options)


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


# ---------------------------------------------------------------------------------------------- CARS196

def test_car_one_folder(root, capsys):
    car_a(root)
    prepare(root, 'car')
    split = torch.load(root / 'car/uncropped_data_dicts.pth', weights_only=True)
    assert split['train'] == {1: ['uncropped/000001.jpg'], 98: ['uncropped/000002.jpg']}
    assert split['test'] == {99: ['uncropped/000003.jpg'], 100: ['uncropped/000004.jpg'], 196: ['uncropped/008055.jpg']}
    assert {type(label) for part in ('train', 'test') for label in split[part]} == {int}
    for name, _, _ in CARS:  # links that show the original bytes: nothing was encoded again
        link = root / 'car/uncropped' / name
        assert link.is_symlink()
        assert link.read_bytes() == (root / 'car/car_ims' / name).read_bytes()
    cropped = load_split(root, 'car', 'cropped')
    assert cropped['train'] == {1: ['cropped/000001.jpg'], 98: ['cropped/000002.jpg']}
    # statistics are the published ones, and so few images are not the official ones
    info = split['info']
    assert info['mean'] == (0.4853, 0.4965, 0.4295) and info['std'] == (0.2237, 0.2193, 0.2568)
    assert info['counts'] == {'train': (2, 2), 'test': (3, 3)}
    assert [warning.split()[0] for warning in info['warnings'][:2]] == ['train', 'test']
    assert '8,054 of 98' in info['warnings'][0] and '8,131 of 98' in info['warnings'][1]
    printed = capsys.readouterr().out
    assert all(f'warning: car: {warning}' in printed for warning in info['warnings'])


def test_car_crop_is_exact_to_the_pixel(root):
    image = noise((300, 280), seed=7)
    # 255 and 256: a sum or difference in uint8 would wrap
    boxes = {'000001.png': (1, 1, 255, 256), '000002.png': (255, 254, 256, 255), '000003.jpg': (101, 52, 255, 180)}
    for name in boxes:
        write(root / 'car/car_ims' / name, image)
    car_a(root, [(name, box, label) for (name, box), label in zip(boxes.items(), (1, 2, 196))])
    prepare(root, 'car')
    for name, (x1, y1, x2, y2) in boxes.items():
        source = pixels(Image.open(root / 'car/car_ims' / name))
        with Image.open(root / 'car/cropped' / name) as crop:
            assert crop.size == (x2 - x1 + 1, y2 - y1 + 1)
            found = pixels(crop)
        distance = {(x, y): np.abs(source[y1 - 1 + y:y2 + y, x1 - 1 + x:x2 + x] - found).mean()
                    for x, y in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)) if x1 + x > 0 and y1 + y > 0}
        exact = distance.pop((0, 0))
        assert exact == 0 if name.endswith('png') else exact < 4
        assert min(distance.values()) > 40


@pytest.mark.parametrize(('devkit', 'nested'), [('devkit/', False), ('', False), ('devkit/', True)])
def test_car_two_folders(root, devkit, nested):
    car_b(root, devkit, nested)
    prepare(root, 'car')
    split = load_split(root, 'car', 'cropped')
    train, test = ('cars_train/' * (1 + nested), 'cars_test/' * (1 + nested))
    assert split['train'] == {14: [f'cropped/{train}00001.jpg'], 2: [f'cropped/{test}00002.jpg']}
    assert split['test'] == {190: [f'cropped/{train}00002.jpg'], 181: [f'cropped/{test}00001.jpg']}
    # the pictures of the two folders that share a name, each with the box of its own table
    sizes = {path: Image.open(root / 'car' / path).size for path in listed(split)}
    assert sizes == {f'cropped/{train}00001.jpg': (10, 11), f'cropped/{train}00002.jpg': (18, 15),
                     f'cropped/{test}00001.jpg': (20, 13), f'cropped/{test}00002.jpg': (8, 3)}
    for path in listed(load_split(root, 'car')):
        assert (root / 'car' / path).read_bytes() == (root / 'car' / path.replace('uncropped/', '', 1)).read_bytes()
    assert len({(root / 'car' / path).read_bytes() for path in listed(load_split(root, 'car'))}) == 4


def test_car_test_annotations_without_labels(root):
    car_b(root, labels=False)
    before = tree(root)
    with pytest.raises(ValueError, match=r'cars_test_annos\.mat has no labels; .*withlabels\.mat is needed'):
        prepare(root, 'car')
    assert tree(root) == before


def test_car_folders_of_class_names(root):
    names = [f'Car {number}' for number in range(1, 197)]
    names[188] = 'Ram C/V Cargo Van Minivan 2012'  # its folder has "-" for "/"
    write_text(root / 'car/names.csv', '\n'.join(names) + '\n')
    tables = {'train': [('00001.jpg', 3, 2, 12, 9, 1), ('00002.jpg', 1, 1, 24, 18, 189)],
              'test': [('00001.jpg', 5, 5, 8, 8, 1), ('00003.jpg', 2, 3, 20, 15, 99)]}
    for part, rows in tables.items():
        write_text(root / f'car/anno_{part}.csv', ''.join(','.join(map(str, row)) + '\n' for row in rows))
        for row in rows:
            write(root / 'car/car_data/car_data' / part / names[row[5] - 1].replace('/', '-') / row[0])
    prepare(root, 'car')
    split = load_split(root, 'car', 'cropped')
    assert split['train'] == {1: ['cropped/train/Car 1/00001.jpg', 'cropped/test/Car 1/00001.jpg']}
    assert split['test'] == {189: ['cropped/train/Ram C-V Cargo Van Minivan 2012/00002.jpg'],
                             99: ['cropped/test/Car 99/00003.jpg']}
    sizes = [Image.open(root / 'car' / path).size for path in split['train'][1]]
    assert sizes == [(10, 8), (4, 4)]


def test_car_box_beyond_its_image(root, capsys):
    car_a(root, [*CARS[:4], ('000005.jpg', (20, 10, 30, 40), 150)])
    prepare(root, 'car')
    assert Image.open(root / 'car/cropped/000005.jpg').size == (5, 9)  # 20..24 and 10..18
    warning, = [text for text in load_split(root, 'car')['info']['warnings'] if 'beyond' in text]
    assert warning.startswith('1 boxes') and f'warning: car: {warning}' in capsys.readouterr().out


def test_car_box_outside_its_image(root):
    car_a(root, [*CARS, ('000006.jpg', (25, 1, 30, 9), 150)])  # the image ends at 24
    before = tree(root)
    with pytest.raises(ValueError, match=r'000006\.jpg: box .* outside') as error:
        prepare(root, 'car')
    assert '000001.jpg' not in str(error.value)
    assert tree(root) == before


# ---------------------------------------------------------------------------------------------- CUB200

@pytest.mark.parametrize('folder', ['cub/CUB_200_2011', 'cub'])
def test_cub(root, folder):
    cub(root / folder)
    prepare(root, 'cub')
    split = load_split(root, 'cub', 'cropped')
    assert split['train'] == {label: [f'cropped/{path}'] for _, path, label, _ in CUBS[:2]}
    assert split['test'] == {label: [f'cropped/{path}'] for _, path, label, _ in CUBS[2:]}
    crops = [Image.open(root / 'cub/cropped' / row[1]) for row in CUBS]
    assert [crop.size for crop in crops] == [(10, 8), (24, 18), (10, 9), (7, 8)]
    source = pixels(Image.open(root / folder / 'images' / CUBS[0][1]))
    assert np.abs(pixels(crops[0]) - source[3:11, 2:12]).mean() < 4  # 0-based, half-open
    assert pixels(crops[2]).min() > 250  # a white image: no black beyond its edge
    assert crops[3].mode == 'RGB'
    gray = pixels(load_image(root / 'cub' / load_split(root, 'cub')['test'][200][0]))
    assert gray.shape == (18, 24, 3) and (gray[..., 0] == gray[..., 1]).all() and (gray[..., 0] == gray[..., 2]).all()
    assert split['info']['mean'] == (0.4707, 0.4601, 0.4549) and split['info']['std'] == (0.2767, 0.2760, 0.2850)


def test_cub_with_its_images_elsewhere(root, tmp_path):
    cub(root / 'cub')
    shutil.move(root / 'cub/images', tmp_path / 'disk')
    (root / 'cub/images').symlink_to(tmp_path / 'disk')
    prepare(root, 'cub')
    assert len(listed(load_split(root, 'cub'))) == 4


def test_cub_of_2010_is_recognised(capsys):
    def hints(images):
        warnings = data_utils.check_splits('cub', [Record('train', 1, 'x')] * images, 0)
        return sum('2010' in warning for warning in warnings)
    assert (hints(6033), hints(6032), hints(11788)) == (1, 0, 0)
    assert '5,864' in capsys.readouterr().out  # the official count stands beside ours


# ---------------------------------------------------------------------------------------------- SOP, In-shop

@pytest.mark.parametrize('folder', ['', 'Stanford_Online_Products/'])
def test_sop(root, folder):
    base = root / 'sop' / folder
    rows = {'train': [(1, 1, 1, 'bicycle_final/111085122871_0.JPG'), (2, 1, 1, 'bicycle_final/111085122871_1.JPG'),
                      (3, 11318, 12, 'toaster_final/111085122871_0.JPG')],
            'test': [(59552, 11319, 1, 'lamp_final/271802113987_2.JPG'), (59553, 22634, 2, 'fan_final/1_0.JPG')]}
    for split, table in rows.items():
        write_text(base / f'Ebay_{split}.txt', 'image_id class_id super_class_id path\n'
                   + ''.join(' '.join(map(str, row)) + '\n' for row in table))
        for row in table:
            write(base / row[3], quality=95)
    write(base / 'lamp_final/271802113987_2.JPG', Image.new('RGB', (24, 18), (200, 30, 60)).quantize(), format='GIF')
    with Image.open(base / 'lamp_final/271802113987_2.JPG') as image:
        assert image.mode == 'P'
    prepare(root, 'sop')
    split = load_split(root, 'sop')
    assert split['train'] == {1: [f'{folder}bicycle_final/111085122871_0.JPG',
                                  f'{folder}bicycle_final/111085122871_1.JPG'],
                              11318: [f'{folder}toaster_final/111085122871_0.JPG']}
    assert split['test'] == {11319: [f'{folder}lamp_final/271802113987_2.JPG'], 22634: [f'{folder}fan_final/1_0.JPG']}
    assert {type(label) for label in split['train']} == {int}
    gif = load_image(root / 'sop' / split['test'][11319][0])
    assert gif.mode == 'RGB' and gif.getpixel((5, 5)) == (200, 30, 60)
    assert split['info']['mean'] == (0.5807, 0.5396, 0.5044) and split['info']['std'] == (0.2901, 0.2974, 0.3095)
    assert not (root / 'sop/uncropped').exists()  # 120,053 files: they stay where they are


@pytest.mark.parametrize(('folder', 'table', 'images'), [
    ('', 'Eval/', 'Img/img'), ('', '', 'img'), ('', 'Eval/', 'img/img'), ('', '', 'img_highres'),
    ('In-shop Clothes Retrieval Benchmark/', 'Eval/', 'Img/img')])
def test_isc(root, folder, table, images):
    base = root / 'isc' / folder
    rows = [('WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg', 'id_00000001', 'train'),
            ('MEN/Tees_Tanks/id_00000002/02_1_front.jpg', 'id_00000002', 'train'),
            # one id and one basename in two categories, one query and one gallery: {id}_{basename} would be a free hit
            ('WOMEN/Dresses/id_00000007/02_1_front.jpg', 'id_00000007', 'query'),
            ('WOMEN/Rompers/id_00000007/02_1_front.jpg', 'id_00000007', 'gallery'),
            ('WOMEN/Rompers/id_00000007/02_2_side.jpg', 'id_00000007', 'gallery')]
    for path, _, _ in rows:
        write(base / images / path)
    write_text(base / table / 'list_eval_partition.txt', f'{len(rows)}\nimage_name  item_id  evaluation_status\n'
               + ''.join(f'{"img/" + path:<62} {item:<12} {status:<12}\n' for path, item, status in rows))
    prepare(root, 'isc')
    split = load_split(root, 'isc')
    assert set(split) == {'train', 'query', 'gallery', 'info'}
    places = [f'{folder}{images}/{path}' for path, _, _ in rows]
    assert split['train'] == {'id_00000001': [places[0]], 'id_00000002': [places[1]]}
    assert split['query'] == {'id_00000007': [places[2]]}
    assert split['gallery'] == {'id_00000007': places[3:]}
    first, second = (pixels(load_image(root / 'isc' / place)) for place in places[2:4])
    assert (first != second).any()
    assert split['info']['mean'] == (0.8324, 0.8109, 0.8041) and split['info']['std'] == (0.2206, 0.2378, 0.2444)
    assert split['info']['counts'] == {'train': (2, 2), 'query': (1, 1), 'gallery': (2, 1)}


# ---------------------------------------------------------------------------------------------- other folders

def test_own_folder_is_split_in_half_by_seed(root, tmp_path):
    photos = tmp_path / 'photos'
    classes = ['a', 'b', 'c d', 'Übergröße', '日本', 'f', 'g']
    own(photos, classes)
    write(photos / '._a' / '0.png')
    write_text(photos / 'a' / '._0.png', 'resource fork')
    write_text(photos / 'a' / '.DS_Store', 'not an image')
    write_text(photos / 'a' / 'notes.txt', 'not an image')
    before = tree(photos)
    prepare(root, 'shoes', photos, image_size=8)
    split = load_split(root, 'shoes')
    assert set(split) == {'train', 'test', 'info'}
    assert (len(split['train']), len(split['test'])) == (4, 3)
    assert sorted([*split['train'], *split['test']]) == sorted(classes)
    assert {**split['train'], **split['test']} == {name: [f'images/{name}/{n}.png' for n in (0, 1)] for name in classes}
    assert tree(photos) == before
    prepare(root, 'same', photos, image_size=8)
    assert set(load_split(root, 'same')['train']) == set(split['train'])
    halves = set()
    for seed in range(5):
        prepare(root, f'seed{seed}', photos, image_size=8, seed=seed)
        halves.add(frozenset(load_split(root, f'seed{seed}')['train']))
    assert len(halves) > 1


@pytest.mark.parametrize('parts', [('train', 'test'), ('train', 'query', 'gallery')])
def test_own_folder_with_splits(root, parts):
    for part in parts:
        own(root / 'shoes' / part, ['x', 'y'] if part == 'train' else ['z'])
    prepare(root, 'shoes', image_size=8)
    split = load_split(root, 'shoes')
    assert list(split['info']['counts']) == list(parts)
    assert split['train'] == {name: [f'train/{name}/0.png', f'train/{name}/1.png'] for name in 'xy'}
    assert all(split[part] == {'z': [f'{part}/z/0.png', f'{part}/z/1.png']} for part in parts[1:])


def test_own_folder_with_links(root, tmp_path):
    own(tmp_path / 'photos', ['a', 'b'])
    own(tmp_path / 'elsewhere', ['c'])
    (tmp_path / 'photos/c').symlink_to(tmp_path / 'elsewhere/c')
    (tmp_path / 'photos/a/top').symlink_to('..')  # a cycle to a folder above
    (tmp_path / 'photos/b/self').symlink_to('self')  # a link that leads nowhere
    (tmp_path / 'photos/b/gone').symlink_to('gone_since')
    prepare(root, 'shoes', tmp_path / 'photos', image_size=8)
    assert sorted(listed(load_split(root, 'shoes'))) == [f'images/{name}/{n}.png' for name in 'abc' for n in (0, 1)]


def test_folders_that_link_to_each_other(tmp_path):
    own(tmp_path, ['a', 'b'])
    (tmp_path / 'a/to_b').symlink_to('../b')
    (tmp_path / 'b/to_a').symlink_to('../a')
    files = data_utils.list_files(tmp_path)
    assert {'a/0.png', 'a/1.png', 'b/0.png', 'b/1.png'} <= set(files)
    assert len(files) <= 8  # no folder again inside itself, as in a/to_b/to_a; with more folders it never ended


def test_own_mean_and_deviation(root, tmp_path):
    own(tmp_path / 'photos', images=3, size=(31, 17))
    prepare(root, 'shoes', tmp_path / 'photos', image_size=12)
    split = load_split(root, 'shoes')
    train = [path for images in split['train'].values() for path in images]
    assert len(train) == 6
    stack = np.stack([np.asarray(Image.open(root / 'shoes' / path).resize((12, 12), Image.Resampling.BILINEAR))
                      for path in train]).astype(np.float64) / 255
    np.testing.assert_allclose(split['info']['mean'], stack.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(split['info']['std'], stack.std((0, 1, 2)), rtol=1e-12)


def test_data_folder_moved_and_addressed_from_elsewhere(root, tmp_path, monkeypatch, capsys):
    car_a(root)
    own(root / 'inside')
    own(tmp_path / 'outside')
    monkeypatch.chdir(tmp_path)
    prepare('data', 'car')
    prepare('data', 'linked', 'data/inside', image_size=8)
    prepare('data', 'far', 'outside', image_size=8)
    (tmp_path / 'disk/work').mkdir(parents=True)
    shutil.move(root, tmp_path / 'disk/moved')
    monkeypatch.chdir(tmp_path / 'disk/work')
    for name, crop_type in (('car', 'uncropped'), ('car', 'cropped'), ('linked', 'uncropped'), ('far', 'uncropped')):
        images = listed(load_split('../moved', name, crop_type))
        assert len(images) == (5 if name == 'car' else 8)
        assert all(load_image(Path('../moved', name, image)).mode == 'RGB' for image in images)
    capsys.readouterr()
    for name in ('car', 'linked', 'far'):
        prepare('../moved', name, image_size=8)
        assert f'{name}: nothing changed' in capsys.readouterr().out


@pytest.mark.parametrize('first', ['linked', 'in place'])
def test_name_of_another_folder_is_refused(root, tmp_path, first):
    own(tmp_path / 'photos' if first == 'linked' else root / 'shoes')
    own(tmp_path / 'other', ['p', 'q'])
    prepare(root, 'shoes', tmp_path / 'photos' if first == 'linked' else None, image_size=8)
    before = tree(root)
    with pytest.raises(ValueError, match='shoes is already the name of'):
        prepare(root, 'shoes', tmp_path / 'other', image_size=8)
    assert tree(root) == before


def test_images_of_a_split_that_are_gone(root):
    own(root / 'shoes')
    prepare(root, 'shoes', image_size=8)
    (root / 'shoes/a/0.png').unlink()
    with pytest.raises(ValueError, match=r'1 images of .* gone, such as a/0\.png'):
        load_split(root, 'shoes')
    with pytest.raises(ValueError, match=r'boots \(uncropped\) is not prepared .*shoes \(uncropped\)'):
        load_split(root, 'boots')


def test_odd_splits_are_pointed_out():
    def warnings(*parts):
        return data_utils.check_splits('shoes', [Record(split, label, 'x') for split, label in parts], 0)
    fine = [('train', 1), ('test', 2), ('test', 2)]
    assert warnings(*fine) == warnings(('train', 1), ('query', 2), ('gallery', 2)) == []
    assert 'single image' in warnings(*fine, ('test', 3))[0]
    assert 'both in training and in the test' in warnings(*fine, ('train', 2))[0]
    assert '2 queries' in warnings(('train', 1), ('query', 2), ('query', 2), ('gallery', 3))[0]


# ---------------------------------------------------------------------------------------------- pixels

def test_load_image_modes(tmp_path):
    red, half = (255, 0, 0), Image.new('RGBA', (4, 3), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 2, 3))  # red at the left, transparent at the right
    palette = Image.new('P', (4, 3), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.paste(0, (2, 0, 4, 3))  # red at the left, blue at the right
    gray = Image.new('L', (4, 3), 77)
    faint = Image.merge('LA', (gray, Image.new('L', (4, 3), 0)))
    deep = Image.fromarray(np.array([[0, 256, 32768, 65535]] * 3, dtype=np.uint16))
    cases = {'gray.png': (gray, {}, (77, 77, 77), (77, 77, 77)), 'palette.png': (palette, {}, red, (0, 0, 255)),
             'hole.png': (palette, {'transparency': 0}, red, (255, 255, 255)),
             'rgba.png': (half, {}, red, (255, 255, 255)), 'la.png': (faint, {}, (255, 255, 255), (255, 255, 255)),
             'deep.png': (deep, {}, (0, 0, 0), (255, 255, 255)),
             'cmyk.jpg': (Image.new('CMYK', (4, 3), (0, 255, 255, 0)), {}, red, red)}
    for name, (image, options, left, right) in cases.items():
        write(tmp_path / name, image, **options)
        found = load_image(tmp_path / name)
        assert (found.mode, found.size) == ('RGB', (4, 3)), name
        for place, wanted in (((0, 1), left), ((3, 1), right)):
            assert np.abs(np.subtract(found.getpixel(place), wanted)).max() <= 3 * (name == 'cmyk.jpg'), name
    assert [load_image(tmp_path / 'deep.png').getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_load_image_applies_the_orientation(tmp_path):
    image, exif = noise((6, 4)), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    write(tmp_path / 'turned.png', image, exif=exif)
    assert (pixels(load_image(tmp_path / 'turned.png')) == np.rot90(pixels(image), -1)).all()
    # boxes were drawn on the stored pixels
    part = pixels(load_image(tmp_path / 'turned.png', (1, 0, 6, 2)))
    assert (part == np.rot90(pixels(image)[0:2, 1:6], -1)).all()


@pytest.mark.parametrize('name', ['cut.jpg', 'cut.png', 'cut.gif'])
def test_load_image_refuses_half_a_file(tmp_path, name):
    write(tmp_path / name, noise((64, 64)))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:len(data) // 2])
    with pytest.raises((OSError, ValueError)):
        load_image(tmp_path / name)


def test_image_dataset(tmp_path):
    write(tmp_path / 'a.png', Image.new('RGB', (30, 10), (1, 2, 3)))
    write(tmp_path / 'b.png', Image.new('L', (5, 9), 200))
    dataset = data_utils.ImageDataset([tmp_path / 'a.png', tmp_path / 'b.png'], 8)
    assert len(dataset) == 2
    for index, colour in enumerate([(1, 2, 3), (200, 200, 200)]):
        image, position = dataset[index]
        assert (image.dtype, image.shape, position) == (torch.uint8, (3, 8, 8), index)
        assert (image == torch.tensor(colour).view(3, 1, 1)).all()


def test_normalise():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    found = data_utils.normalise(images, (0.5, 0.1, 0.25), (0.25, 0.2, 0.5))
    assert found.shape == (2, 3, 4, 4) and found.dtype == torch.float32
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([-2.0, 0.5, 1.5]))


def test_flip():
    images = torch.arange(2 * 3 * 2 * 4).view(2, 3, 2, 4)
    flipped = data_utils.flip(images, torch.tensor([False, True]))
    assert torch.equal(flipped[0], images[0])
    assert flipped[1, 2, 1].tolist() == images[1, 2, 1].tolist()[::-1]


def test_flatten():
    part = {'b': ['b1'], 'a': ['a2', 'a1']}
    assert data_utils.flatten(part, ['a', 'b']) == (['a2', 'a1', 'b1'], [0, 0, 1])
    assert data_utils.flatten(part, ['b', 'x', 'a']) == (['a2', 'a1', 'b1'], [2, 2, 0])


# ---------------------------------------------------------------------------------------------- preparation

def test_all_unreadable_images_are_named_and_nothing_is_written(root):
    rows = [(f'{number:06d}.jpg', (1, 1, 9, 9), 1 + 10 * number) for number in range(1, 19)]
    car_a(root, rows)
    folder = root / 'car/car_ims'
    data = (folder / '000002.jpg').read_bytes()
    (folder / '000002.jpg').write_bytes(data[:len(data) // 2])
    (folder / '000005.jpg').write_bytes(b'')
    (folder / '000009.jpg').write_text('<html>404</html>')
    (folder / '000018.jpg').unlink()
    before = tree(root)
    with pytest.raises(ValueError, match='4 of 18 images cannot be read') as error:
        prepare(root, 'car', num_workers=2)
    named = [name for name, _, _ in rows if name in str(error.value)]
    assert named == ['000002.jpg', '000005.jpg', '000009.jpg', '000018.jpg']
    assert tree(root) == before


def test_unreadable_image_of_an_own_folder_writes_nothing(root, tmp_path):
    own(tmp_path / 'photos')
    (tmp_path / 'photos/b/1.png').write_bytes(b'')
    with pytest.raises(ValueError, match=r'b/1\.png'):
        prepare(root, 'shoes', tmp_path / 'photos', image_size=8)
    assert not root.exists()


def test_second_run_rewrites_nothing_until_something_changes(root, capsys):
    rows = [(name.replace('jpg', 'png'), box, label) for name, box, label in CARS]
    car_a(root, rows)
    prepare(root, 'car')
    before = tree(root)
    capsys.readouterr()
    prepare(root, 'car')
    assert 'nothing changed' in capsys.readouterr().out
    assert tree(root) == before

    write(root / 'car/car_ims/000004.png', noise(seed=99))
    prepare(root, 'car')
    assert 'nothing changed' not in capsys.readouterr().out
    assert (pixels(Image.open(root / 'car/cropped/000004.png')) == pixels(noise(seed=99))[2:15, 1:20]).all()

    car_a(root, [*rows[:4], (rows[4][0], (2, 2, 5, 4), 196)])  # a corrected box
    prepare(root, 'car')
    assert Image.open(root / 'car/cropped/008055.png').size == (4, 3)

    (root / 'car/cropped/000001.png').unlink()
    prepare(root, 'car')
    assert Image.open(root / 'car/cropped/000001.png').size == (10, 8)


def crop_or_interrupt(job):
    """write_crop, interrupted at the nineteenth car; a worker process finds it by this name."""
    if '000019' in job[0]:
        raise KeyboardInterrupt
    REAL_CROP(job)


def save_half(value, path):
    Path(path).write_bytes(b'half of it')
    raise KeyboardInterrupt


@pytest.mark.parametrize('where', ['cropping', 'saving'])
def test_interrupted_run_goes_on(root, monkeypatch, where):
    car_a(root, [(f'{number:06d}.jpg', (2, 2, 9, 9), 5 * number) for number in range(1, 23)])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if where == 'cropping':
            patch.setattr(data_utils, 'write_crop', crop_or_interrupt)
        else:
            patch.setattr(torch, 'save', save_half)
        prepare(root, 'car')
    assert not list((root / 'car').glob('*_data_dicts.pth'))
    crops = {path: entry for path, entry in tree(root / 'car/cropped').items() if path.endswith('.jpg')}
    assert len(crops) == (18 if where == 'cropping' else 22)
    prepare(root, 'car')
    after = tree(root / 'car/cropped')
    assert {path: after[path] for path in crops} == crops  # those that were complete were not made again
    assert len(listed(load_split(root, 'car', 'cropped'))) == len(listed(load_split(root, 'car'))) == 22


def test_crops_of_earlier_boxes_do_not_survive_an_interrupted_run(root, monkeypatch):
    rows = [(f'{number:06d}.jpg', (2, 2, 9, 9), 5 * number) for number in range(1, 23)]
    car_a(root, rows)
    prepare(root, 'car')
    car_a(root, [(name, (2, 2, 14, 12), label) for name, _, label in rows])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data_utils, 'write_crop', crop_or_interrupt)
        prepare(root, 'car')
    prepare(root, 'car')
    sizes = {Image.open(root / 'car' / path).size for path in listed(load_split(root, 'car', 'cropped'))}
    assert sizes == {(13, 11)}


@pytest.mark.parametrize('mine', ['uncropped/000001.jpg', 'cropped/000001.jpg'])
def test_files_in_the_way_are_not_touched(root, mine):
    car_a(root, [('000001.jpg', (1, 1, 9, 9), 98), ('000002.jpg', (1, 1, 9, 9), 99)])
    write(root / 'car' / mine)
    before = tree(root)
    with pytest.raises(ValueError, match=r'move .*(it|uncropped) away'):
        prepare(root, 'car')
    assert tree(root) == before


def test_photos_of_unknown_kinds_are_pointed_out(root, tmp_path, capsys):
    own(tmp_path / 'photos')
    (tmp_path / 'photos/a/photo.heic').write_bytes(b'?')
    prepare(root, 'shoes', tmp_path / 'photos', image_size=8)
    assert '1 files are no images in class folders, such as a/photo.heic' in capsys.readouterr().out


@pytest.mark.skipif(not os.path.isdir('/proc'), reason='processes are looked up in /proc')
def test_worker_processes_end_with_their_parent(root, tmp_path):
    own(tmp_path / 'photos', ['a', 'b'], images=800)
    flags = ['--data_root', root, '--data_name', 'shoes', '--data_path', tmp_path / 'photos', '--num_workers', '2']
    process = subprocess.Popen([sys.executable, REPOSITORY / 'data_utils.py', *flags], start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def group():
        states = []
        for stat in Path('/proc').glob('[0-9]*/stat'):
            try:
                fields = stat.read_text().rsplit(')', 1)[1].split()
            except OSError:  # it ended meanwhile
                continue
            states += [fields[0]] if int(fields[2]) == process.pid and fields[0] != 'Z' else []
        return len(states)
    deadline = time.monotonic() + 60
    while group() < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while group() and time.monotonic() < deadline:
        time.sleep(0.1)
    left = group()
    if left:
        os.killpg(process.pid, signal.SIGKILL)
    assert left == 0


def test_prepare_after_multithreaded_arithmetic(root, tmp_path):
    """OpenMP's threads do not survive a fork: a worker process that waits for them waits forever."""
    own(tmp_path / 'photos', ['a', 'b'])
    code = 'import sys, torch, data_utils; torch.rand(10 ** 7).sum(); data_utils.prepare(*sys.argv[1:])'
    process = subprocess.Popen([sys.executable, '-c', code, root, 'shoes', tmp_path / 'photos'], cwd=REPOSITORY,
                               start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert process.wait(timeout=30) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with its workers
            process.wait()


# ---------------------------------------------------------------------------------------------- command line

def test_command_on_an_empty_folder(tmp_path):
    done = command('--data_root', tmp_path / 'data')
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    line, = done.stderr.splitlines()
    assert 'error' in line and '--data_name sample' in line


def test_command_prepares_what_it_can(root):
    car_a(root)
    (root / 'car/car_ims/000003.jpg').write_bytes(b'')
    cub(root / 'cub')
    done = command('--data_root', root, '--num_workers', 1)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert '000003.jpg' in done.stderr
    assert data_utils.prepared_names(root) == {'cub': ['uncropped', 'cropped']}


def test_command_draws_the_sample(root):
    done = command('--data_name', 'sample', '--data_root', 'data', '--image_size', 64, cwd=root.parent)
    assert done.returncode == 0, done.stderr
    split = load_split(root, 'sample')
    assert split['info']['counts'] == {'train': (800, 40), 'test': (800, 40)}
    assert not set(split['train']) & set(split['test'])
    image = load_image(root / 'sample' / listed(split)[0])
    assert image.size == (64, 64)


@pytest.mark.parametrize(('flags', 'reason'), [
    ('--data_name ../x', 'plain folder name'), ('--data_name .', 'plain folder name'),
    ('--data_name a/b', 'plain folder name'), ('--data_name=', 'plain folder name'),
    ('--data_path photos', 'needs a --data_name'), ('--data_path photos --data_name car', 'needs a --data_name'),
    ('--data_path absent --data_name shoes', 'absent: no such folder'), ('--data_name car', 'no such folder'),
    ('--num_workers 0', 'at least 1')])
def test_command_refuses(tmp_path, monkeypatch, capsys, flags, reason):
    monkeypatch.chdir(tmp_path)
    own(tmp_path / 'photos')
    before = tree(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['data_utils.py', *flags.split()])
    with pytest.raises(SystemExit) as stop:
        data_utils.main()
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err
    assert tree(tmp_path) == before


# ---------------------------------------------------------------------------------------------- sample

def drawn(folder, **options):
    sample_data.draw_sample(str(folder), train_classes=3, test_classes=2, images_per_class=2, side=16, **options)
    return {str(path.relative_to(folder)): pixels(Image.open(path)) for path in sorted(folder.rglob('*.png'))}


def test_sample_is_drawn_from_its_seed(tmp_path):
    first, second, other = drawn(tmp_path / 'a'), drawn(tmp_path / 'b'), drawn(tmp_path / 'c', seed=1)
    assert len(first) == 10 and list(first) == list(second) == list(other)
    assert all((first[name] == second[name]).all() for name in first)
    assert all((first[name] != other[name]).any() for name in first)
    assert len({image.tobytes() for image in first.values()}) == 10
    classes = [{name.split('/')[1] for name in first if name.startswith(part)} for part in ('train/', 'test/')]
    assert [len(names) for names in classes] == [3, 2] and not classes[0] & classes[1]


def test_interrupted_drawing(tmp_path, monkeypatch):
    draw, count = sample_data.draw_image, itertools.count()

    def interrupted(*arguments):
        if next(count) == 7:
            raise KeyboardInterrupt
        return draw(*arguments)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample_data, 'draw_image', interrupted)
        drawn(tmp_path / 'sample')
    assert not (tmp_path / 'sample').exists()
    assert len(drawn(tmp_path / 'sample')) == 10
    assert os.listdir(tmp_path) == ['sample']

"""Small datasets in the official layouts, with their traps, for tests to read.

Images are 24 x 18 pixels. Each function writes one dataset below a folder `root`.
"""

import itertools
import os
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def noise(size=(24, 18), seed=0):
    """Return an image of independent random pixels.

    Shifted by one pixel, it has nothing in common with itself.
    """
    shape = (size[1], size[0], 3)
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def write_image(path, image=None, **options):
    """Write an image, making its folder; by default noise that depends on the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image or noise(seed=zlib.crc32('/'.join(path.parts[-3:]).encode()))
    if path.suffix == '.jpg':
        options = {'quality': 95, **options}
    image.save(path, **options)


def write_lines(path, lines):
    """Write lines to a text file, making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')


def to_pixels(image):
    """Return an image or the image of a path as integers (H, W, 3)."""
    if isinstance(image, (str, Path)):
        with Image.open(image) as opened:
            return np.asarray(opened).astype(int)
    return np.asarray(image).astype(int)


def image_size(path):
    """Return (width, height) of an image file."""
    with Image.open(path) as image:
        return image.size


def tree(root):
    """Return {path: (content, time of change)} of everything below root.

    The content of a link is its target; links are not followed.
    """
    content = {}
    for path in sorted(Path(root).rglob('*')):
        inside = None
        if path.is_symlink():
            inside = os.readlink(path)
        elif path.is_file():
            inside = path.read_bytes()
        content[str(path.relative_to(root))] = (inside, path.lstat().st_mtime_ns)
    return content


# CARS196


def write_mat(path, fields, rows):
    """Write an annotation file as the official ones are.

    Every field is an object; cells mix uint8 and uint16, depending on the value.
    """
    table = np.zeros((1, len(rows)), dtype=[(field, object) for field in fields])
    for index, row in enumerate(rows):
        table[0, index] = tuple(map(matlab_cell, row))
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {'annotations': table})


def matlab_cell(value):
    if isinstance(value, str):
        return value
    return np.uint8(value) if value < 256 else np.uint16(value)


CORNERS = ['bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2']
CAR_FIELDS = ['relative_im_path', *CORNERS, 'class', 'test']

# file, (x1, y1, x2, y2) 1-based and inclusive, class
CARS = [
    ('000001.jpg', (3, 2, 12, 9), 1),
    ('000002.jpg', (1, 1, 24, 18), 98),
    ('000003.jpg', (5, 5, 5, 5), 99),
    ('000004.jpg', (2, 3, 20, 15), 100),
    ('008055.jpg', (24, 18, 24, 18), 196),
]


def many_cars(count, box=(2, 2, 9, 9), suffix='jpg'):
    """Return rows as CARS of `count` images of both halves of the classes."""
    step = 196 // count
    return [(f'{i:06d}.{suffix}', box, step * i) for i in range(1, count + 1)]


def write_car_folder(root, rows=CARS):
    """Write CARS196 as one folder with cars_annos.mat.

    Its column `test` contradicts the split by class.
    """
    folder = root / 'car/car_ims'
    for name, _, _ in rows:
        if not (folder / name).exists():
            write_image(folder / name)
    table = [
        (f'car_ims/{name}', *box, label, int(label <= 98)) for name, box, label in rows
    ]
    write_mat(root / 'car/cars_annos.mat', CAR_FIELDS, table)


DEVKIT = {
    'train': [
        ('00001.jpg', (1, 2, 10, 12), 14),
        ('00002.jpg', (3, 4, 20, 18), 190),
    ],
    'test': [
        ('00001.jpg', (5, 6, 24, 18), 181),
        ('00002.jpg', (7, 1, 14, 3), 2),
    ],
}


def write_car_devkit(root, devkit='devkit/', nested=False, labels=True):
    """Write CARS196 as two folders that use the same names for different pictures.

    nested: a folder in a folder of the same name; labels: with the labels of the test.
    """
    for part, rows in DEVKIT.items():
        folder = f'car/cars_{part}/' + f'cars_{part}/' * nested
        for name, _, _ in rows:
            write_image(root / folder / name)
    fields = [*CORNERS, 'class', 'fname']
    tables = {'cars_train_annos.mat': 'train'}
    if labels:
        tables['cars_test_annos_withlabels.mat'] = 'test'
    for table, part in tables.items():
        rows = [(*box, label, name) for name, box, label in DEVKIT[part]]
        write_mat(root / f'car/{devkit}{table}', fields, rows)
    rows = [(*box, name) for name, box, _ in DEVKIT['test']]
    write_mat(root / f'car/{devkit}cars_test_annos.mat', [*CORNERS, 'fname'], rows)


def write_car_csv(root):
    """Write CARS196 as folders of class names with CSV files."""
    names = [f'Car {number}' for number in range(1, 197)]
    names[188] = 'Ram C/V Cargo Van Minivan 2012'  # its folder has "-" for "/"
    write_lines(root / 'car/names.csv', names)
    tables = {
        'train': [('00001.jpg', 3, 2, 12, 9, 1), ('00002.jpg', 1, 1, 24, 18, 189)],
        'test': [('00001.jpg', 5, 5, 8, 8, 1), ('00003.jpg', 2, 3, 20, 15, 99)],
    }
    for part, rows in tables.items():
        lines = [','.join(map(str, row)) for row in rows]
        write_lines(root / f'car/anno_{part}.csv', lines)
        for name, *_, label in rows:
            folder = names[label - 1].replace('/', '-')
            write_image(root / 'car/car_data/car_data' / part / folder / name)


# CUB-200-2011

# id, path, class, x y width height; the third reaches beyond 24 x 18
CUBS = [
    (1, '001.Black_footed_Albatross/Albatross_0046_18.jpg', 1, '2.0 3.0 10.0 8.0'),
    (2, '100.Brown_Pelican/Pelican_0001_9.jpg', 100, '0.0 0.0 24.0 18.0'),
    (3, '101.White_Pelican/Pelican_0005_1.jpg', 101, '14.0 9.0 32.0 32.0'),
    (4, '200.Common_Yellowthroat/Yellowthroat_0003_1.jpg', 200, '5.0 6.0 7.0 8.0'),
]


def write_cub(folder):
    """Write CUB-200-2011 to `folder`, with a white and a grey image and ._ files."""
    special = {101: Image.new('RGB', (24, 18), 'white'), 200: noise().convert('L')}
    for _, path, label, _ in CUBS:
        write_image(folder / 'images' / path, special.get(label))
        hidden = path.split('/')[0] + '/._Apple_Double_0001_1.jpg'
        write_lines(folder / 'images' / hidden, ['resource fork'])
    tables = {
        'images.txt': '{0} {1}',
        'image_class_labels.txt': '{0} {2}',
        'bounding_boxes.txt': '{0} {3}',
    }
    for name, row in tables.items():
        write_lines(folder / name, [row.format(*values) for values in CUBS])
    classes = [f'{label} {path.split("/")[0]}' for _, path, label, _ in CUBS]
    write_lines(folder / 'classes.txt', classes)
    split = [f'{number} {number % 2}' for number, *_ in CUBS]
    write_lines(folder / 'train_test_split.txt', split)


# Stanford Online Products

PRODUCTS = {
    'train': [
        (1, 1, 1, 'bicycle_final/111085122871_0.JPG'),
        (2, 1, 1, 'bicycle_final/111085122871_1.JPG'),
        (3, 11318, 12, 'toaster_final/111085122871_0.JPG'),
    ],
    'test': [
        (59552, 11319, 1, 'lamp_final/271802113987_2.JPG'),
        (59553, 22634, 2, 'fan_final/1_0.JPG'),
    ],
}


def write_sop(folder):
    """Write Stanford Online Products to `folder`; one .JPG is a GIF with a palette."""
    for split, rows in PRODUCTS.items():
        lines = [' '.join(map(str, row)) for row in rows]
        header = 'image_id class_id super_class_id path'
        write_lines(folder / f'Ebay_{split}.txt', [header, *lines])
        for *_, path in rows:
            write_image(folder / path, quality=95)
    gif = Image.new('RGB', (24, 18), (200, 30, 60)).quantize()
    write_image(folder / 'lamp_final/271802113987_2.JPG', gif, format='GIF')


# In-shop Clothes

# One id and one base name occur in two categories, once as query and once in the
# gallery: {id}_{base name} would be a free hit.
CLOTHES = [
    ('WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg', 'id_00000001', 'train'),
    ('MEN/Tees_Tanks/id_00000002/02_1_front.jpg', 'id_00000002', 'train'),
    ('WOMEN/Dresses/id_00000007/02_1_front.jpg', 'id_00000007', 'query'),
    ('WOMEN/Rompers/id_00000007/02_1_front.jpg', 'id_00000007', 'gallery'),
    ('WOMEN/Rompers/id_00000007/02_2_side.jpg', 'id_00000007', 'gallery'),
]


def write_isc(folder, table='Eval/', images='Img/img'):
    """Write In-shop Clothes to `folder`; table, images: folders of list and images."""
    for path, _, _ in CLOTHES:
        write_image(folder / images / path)
    lines = [str(len(CLOTHES)), 'image_name  item_id  evaluation_status']
    for path, item, status in CLOTHES:
        lines.append(f'{"img/" + path:<62} {item:<12} {status:<12}')
    write_lines(folder / table / 'list_eval_partition.txt', lines)


# Any folder of class folders


def write_classes(folder, classes=('a', 'b', 'c', 'd'), images=2, size=(24, 18)):
    """Write <folder>/<class>/<number>.png."""
    for label, number in itertools.product(classes, range(images)):
        seed = zlib.crc32(f'{label}/{number}'.encode())
        write_image(folder / label / f'{number}.png', noise(size, seed))

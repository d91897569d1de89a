"""Which folder is the class, which is a part of the split, and what is refused."""

import re

import pytest
from official import write_classes, write_image

from areir.data.own_images import recognise
from areir.data.source import read_source
from areir.data.splits import load_split
from areir.errors import UserError
from areir.gallery.folders import class_names
from areir.scripts.data_utils import prepare


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


def list_images(*folders):
    """Return the paths of two images in each folder."""
    return [f'{folder}/{number}.jpg' for folder in folders for number in (1, 2)]


def understood(images, class_level=None):
    """Return {'part/class'} of the images; without a part, nothing is before the /."""
    places = recognise(images, class_level).places
    return {f'{place[0] or ""}/{place[1]}' for place in places if place}


@pytest.mark.parametrize(
    'parts',
    [
        *['train/ test/', 'Train/ Test/', 'TRAIN/ TESTING/', 'training/ testing/'],
        *['train/ val/', 'Training/ Valid/', 'train/ validation/', 'train/ eval/'],
        *['train/ evaluation/', 'training_set/ test_set/', 'seg_train/ seg_test/'],
        *['archive/train/ archive/val/', 'x/data/train/ x/data/test/'],
        *['images/train/ images/val/', 'train/images/ val/images/'],
        *['training_set/training_set/ test_set/test_set/', 'x_train_v2/ x_test_v2/'],
        *['trainset/train/ testset/test/', 'train2017/ val2017/', '1_train/ 2_test/'],
    ],
)
def test_names_of_parts_in_any_case_and_depth(parts):
    train, test = parts.split()
    images = list_images(f'{train}a', f'{train}b', f'{test}c', f'{test}d')
    assert understood(images) == {'train/a', 'train/b', 'test/c', 'test/d'}
    layout = recognise(images)
    assert layout.text == f'classes are the folders below {train} and {test}: 2 and 2'
    assert not layout.problem
    assert class_names(recognise(images)) == list('aabbccdd')


@pytest.mark.parametrize(
    ('folders', 'expected', 'text'),
    [
        # folders around the classes, and in them
        (['images/a', 'images/b'], ['/a', '/b'], 'below images/: 2'),
        (['x/y/Data/a', 'x/y/Data/b'], ['/a', '/b'], 'below x/y/Data/: 2'),
        (['a/images', 'b/images'], ['/a', '/b'], 'its folders: 2'),
        (['val/a', 'val/b'], ['/a', '/b'], 'below val/: 2'),
        # classes that have a name of a part, and other odd names
        (['train', 'car', 'bus'], ['/train', '/car', '/bus'], 'its folders: 3'),
        (['train', 'val', 'a', 'b'], ['/train', '/val', '/a', '/b'], 'folders: 4'),
        (['test', 'images', 'a'], ['/test', '/images', '/a'], 'its folders: 3'),
        (['1', '2', '10', '01'], ['/1', '/2', '/10', '/01'], 'its folders: 4'),
        (['Shoe', 'shoe'], ['/Shoe', '/shoe'], "2; 'Shoe' and 'shoe' are different"),
        (['a', 'b', 'a '], ['/a', '/b', '/a '], "3; 'a' and 'a ' are different"),
        (['caf\xe9', 'cafe\u0301'], ['/caf\xe9', '/cafe\u0301'], 'are different'),
        # folders of a class
        (['a/front', 'a', 'b'], ['/a', '/b'], 'deeper folders, such as a/front/'),
        (['a/x', 'a/y', 'b', 'c', 'd'], ['/a', '/b', '/c', '/d'], 'such as a/x/'),
        # three parts
        (
            ['train/a', 'train/b', 'val/a', 'test/c'],
            ['train/a', 'train/b', 'unused/a', 'test/c'],
            'below train/ and test/: 2 and 1; val/ left out',
        ),
        (
            ['train/a', 'train/b', 'val/a', 'test'],
            ['train/a', 'train/b', 'test/a'],
            'below train/ and val/: 2 and 1; test/ left out',
        ),
        (
            ['train/a', 'train/b', 'query/c', 'test/c', 'test/d'],
            ['train/a', 'train/b', 'query/c', 'gallery/c', 'gallery/d'],
            'below train/ and query/ and test/: 2 and 1 and 2',
        ),
    ],
)
def test_other_layouts_of_classes(folders, expected, text):
    images = list_images(*folders)
    layout = recognise(images)
    assert understood(images) == set(expected)
    assert text in layout.text and not layout.problem


def test_train_val_and_test_are_prepared_without_val(root, capsys):
    for part in ('train', 'val', 'test'):
        write_classes(root / 'shoes' / part, ['a', 'b'])
    dataset = read_source(root, 'shoes')
    assert dataset.counts == {'train': (4, 2), 'test': (4, 2)}
    assert dataset.left_out == [f'val/{c}/{n}.png' for c in 'ab' for n in (0, 1)]


BRANDS = [f'brand{b}/model{m}' for b in range(3) for m in range(3)]


@pytest.mark.parametrize(
    'folders',
    [
        BRANDS,
        [f'{part}/{model}' for part in ('train', 'Test') for model in BRANDS],
        [*BRANDS, 'brand0', 'brand1', 'brand2'],  # a few images of no model
        [f'{model}/photos' for model in BRANDS],
    ],
)
def test_folders_in_folders_are_refused_with_the_choices(folders):
    images = list_images(*folders)
    layout = recognise(images)
    for choice in ('1: 3 classes such as brand0', '2: 9 classes such as brand0/model0'):
        assert f'--class_level {choice}' in layout.problem
        assert f'--class_level {choice}' in layout.choices
    assert 'level 3' not in layout.problem
    brands = {'brand0', 'brand1', 'brand2'}
    assert set(class_names(recognise(images))) == brands  # a search takes the first
    for level, classes in ((1, brands), (2, set(BRANDS))):
        layout = recognise(images, level)
        assert not layout.problem and f'at level {level}' in layout.text
        assert {place[1] for place in layout.places if place} == classes
    left_out = [image for image, place in zip(images, layout.places) if not place]
    assert left_out == [image for image in images if image.count('/') == 1]
    assert 'no class folders at level 4' in recognise(images, 4).problem


@pytest.mark.parametrize(
    ('folders', 'problem'),
    [
        (['a'], 'a/ lie in no class folders'),
        (['train', 'test'], 'train/ lie in no class folders'),
        (['train/images', 'val/images', 'val/labels'], 'no class folders'),
        (['train', 'val', 'test', 'more'], 'train/ lie in no class folders'),
        (['train/a', 'train/b', 'val'], 'val/ lie in no class folders'),
        (['train/a', 'Train/b', 'test/c'], 'Train/ and train/ have one meaning'),
        (['train/a', 'query/b'], 'query/ and gallery/ belong together'),
        (['images/a', 'images/b', 'masks/a', 'masks/b'], 'level 2: 4 classes'),
        (['a', 'b', '-1'], 'the name -1'),
        (['a/x', 'b/y', 'c/z', 'd/v', 'd/w'], '--class_level 2: 5 classes'),
        (['test/a', 'test/b', 'c', 'd', 'e', 'f'], '--class_level 1: 5 classes'),
    ],
)
def test_what_is_unclear_is_refused(folders, problem):
    assert problem in recognise(list_images(*folders)).problem


def test_a_level_is_chosen(root, tmp_path, capsys):
    photos = tmp_path / 'photos'
    write_classes(photos, [*BRANDS, 'brand0'])
    with pytest.raises(UserError, match=r'photos: .*--class_level 2: 9 classes'):
        read_source(root, 'shop', photos)
    prepare(root, 'shop', photos, image_size=8, class_level=2)
    printed = capsys.readouterr().out
    assert 'classes are its folders at level 2: 9' in printed
    assert 'left out 2 files' in printed and 'brand0/0.png' in printed
    split = load_split(root, 'shop')
    assert sorted([*split.train.classes, *split.query.classes]) == BRANDS


def test_a_level_without_folders_of_classes_is_refused(root, tmp_path):
    (root / 'car').mkdir(parents=True)
    with pytest.raises(UserError, match='--class_level 1: car'):
        read_source(root, 'car', class_level=1)
    table = tmp_path / 'shoes.csv'
    table.write_text('path,label\n')
    with pytest.raises(UserError, match=r'--class_level 1: .*shoes\.csv'):
        read_source(root, 'shop', table=table, class_level=1)


# Person and vehicle re-identification

MARKET = {
    'bounding_box_train/0002_c1s1_000451_03.jpg': ('train', '0002', 'c1'),
    'bounding_box_train/0007_c3s3_077419_03.jpg': ('train', '0007', 'c3'),
    'query/0001_c1s1_001051_00.jpg': ('query', '0001', 'c1'),
    'query/0003_c4s6_015641_00.jpg': ('query', '0003', 'c4'),
    'bounding_box_test/0001_c2s1_000301_01.jpg': ('gallery', '0001', 'c2'),
    'bounding_box_test/0003_c1s6_015971_02.jpg': ('gallery', '0003', 'c1'),
    'bounding_box_test/0000_c1s1_000151_01.jpg': ('gallery', '-1', 'c1'),
    'bounding_box_test/-1_c1s1_000401_03.jpg': None,
}
# what lies beside the parts and is none
OTHERS = ['gt_bbox/0001_c1s1_001051_00.jpg', 'train_all/0002/0002_c1s1_000451_03.jpg']


@pytest.mark.parametrize('beside', [[], OTHERS])
@pytest.mark.parametrize('identity_folders', [False, True])
@pytest.mark.parametrize(
    'names',
    [
        ('bounding_box_train', 'query', 'bounding_box_test'),
        ('Market/train', 'Market/query', 'Market/gallery'),
        ('Image_Train', 'image_query', 'image_test'),
    ],
)
def test_identity_and_camera_in_the_names_of_files(names, identity_folders, beside):
    names = dict(zip(('bounding_box_train', 'query', 'bounding_box_test'), names))
    images = []
    for path in MARKET:
        part, name = path.split('/')
        inner = name.split('_')[0] + '/' if identity_folders else ''
        images.append(f'{names[part]}/{inner}{name}')
    around = images[0].rpartition('Market/')[1]
    layout = recognise([*images, *(around + image for image in beside)])
    assert layout.places == list(MARKET.values()) + [None for _ in beside]
    assert '2 and 2 and 2; 1 distractor; 1 image without identity' in layout.text
    assert not layout.problem
    classes = ['0002', '0007', '0001', '0003', '0001', '0003', None, None]
    assert class_names(recognise(images)) == classes


@pytest.mark.parametrize('name', ['montage.jpg', '0007_c3s3_077419_03.jpg'])
def test_one_odd_name_among_identities_is_named(name):
    """Without it, all cameras would be lost without a word."""
    images = [re.sub('/([^_]+)', r'/\1/\1', path) for path in MARKET]
    odd = f'bounding_box_train/0002/{name}'
    layout = recognise([*images, odd])
    assert odd in layout.problem and odd in layout.choices
    assert recognise([*images, odd], 1).places[-1] == ('train', '0002', None)


def test_re_identification_of_other_names():
    # VeRi-776; identity 0 is one like others if it is queried; no parts
    names = ['0002_c002_00030600_0.jpg', '0000_c014_00029325_0.jpg']
    images = [f'image_{part}/{name}' for part in ('train', 'query') for name in names]
    images += ['image_test/0000_c003_00029325_0.jpg', 'image_test/0005_c003_1.jpg']
    places = recognise(images).places
    assert [place[2] for place in places] == ['c002', 'c014'] * 2 + ['c003'] * 2
    assert [place[1] for place in places] == ['0002', '0000'] * 2 + ['0000', '0005']
    alone = [path.split('/')[1] for path in MARKET if 'test' in path]
    assert class_names(recognise(alone)) == ['0001', '0003', None, None]
    # one name that does not fit
    layout = recognise([*MARKET, 'query/portrait.jpg'])
    assert 'query/portrait.jpg is not' in layout.problem and not any(layout.places)


def test_re_identification_is_prepared(root, tmp_path, capsys):
    for path in MARKET:
        write_image(tmp_path / 'market' / path)
    (tmp_path / 'market/query/Thumbs.db').write_text('')
    dataset = read_source(root, 'market', tmp_path / 'market')
    found = {r.path: (r.part, r.label, r.group) for r in dataset.records}
    assert found == {path: place for path, place in MARKET.items() if place}
    junk = 'bounding_box_test/-1_c1s1_000401_03.jpg'
    assert dataset.left_out == [junk, 'query/Thumbs.db']

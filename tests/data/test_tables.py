"""Your own images, listed in a CSV: what it may look like, and what is refused."""

import os
import unicodedata

import pytest
from official import image_size, to_pixels, write_classes, write_image, write_lines

from areir.data.lists import plain_labels
from areir.data.source import read_source
from areir.data.splits import load_split
from areir.data.tables import read_table
from areir.errors import UserError
from areir.scripts.data_utils import prepare


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'data'


HEADER = 'label,path,split,is_query,is_gallery,category'
# two classes to train on, two to test with
ROWS = [
    '7,a/1.png,train,,,x',
    '7,a/2.png,train,,,x',
    '3,b/1.png,train,,,x',
    '3,b/2.png,train,,,x',
    '12,c/1.png,validation,True,True,y',
    '12,c/2.png,validation,True,True,y',
    '5,d/1.png,validation,True,True,y',
    '5,d/2.png,validation,True,True,y',
]


def write_table(folder, rows, header=HEADER):
    """Write a CSV and the images that its rows name; return its path."""
    column = header.split(',').index('path')
    for row in rows:
        path = folder / row.split(',')[column]
        if not path.exists():
            write_image(path)
    write_lines(folder / 'df.csv', [header, *rows])
    return str(folder / 'df.csv')


def without(*columns):
    """Return (rows, header) without some columns."""
    lines = [line.split(',') for line in (HEADER, *ROWS)]
    kept = [place for place, name in enumerate(lines[0]) if name not in columns]
    header, *rows = [','.join(line[place] for place in kept) for line in lines]
    return rows, header


def test_splits_and_classes(tmp_path):
    layout, records, folder = read_table(write_table(tmp_path, ROWS))
    assert (layout, folder) == ('df.csv', str(tmp_path))
    assert [record.part for record in records] == ['train'] * 4 + ['test'] * 4
    assert [record.label for record in records] == [*'7733', '12', '12', '5', '5']
    assert [record.path for record in records][:2] == ['a/1.png', 'a/2.png']
    assert {record.box for record in records} == {None}
    # without roles all search each other
    path = write_table(tmp_path, *without('is_query', 'is_gallery'))
    assert read_table(path)[1] == records


def test_a_share_of_a_dataset_with_a_split_is_refused(root, tmp_path):
    for part in ('train', 'test'):
        write_classes(tmp_path / 'parted' / part, 'ab')
    path = write_table(tmp_path / 'photos', ROWS)
    for source in ({'data_path': tmp_path / 'parted'}, {'table': path}):
        with pytest.raises(UserError, match='--test_share 0: '):
            read_source(root, 'shop', **source, test_share=0)


def test_a_table_of_training_images_only(root, tmp_path):
    path = write_table(tmp_path, ROWS[:4])
    with pytest.raises(UserError, match='or --test_share 0'):
        read_source(root, 'shop', table=path)
    dataset = read_source(root, 'shop', table=path, test_share=0)
    assert dataset.counts == {'train': (4, 2)}


def test_query_and_gallery(tmp_path):
    rows = list(ROWS)
    rows[4::2] = [row.replace('True,True', 'True,False') for row in rows[4::2]]
    rows[5::2] = [row.replace('True,True', '0,1') for row in rows[5::2]]
    _, records, _ = read_table(write_table(tmp_path, rows))
    assert [record.part for record in records[4:]] == ['query', 'gallery'] * 2


@pytest.mark.parametrize('roles', ['True,False', 'False,False'])
def test_mixed_roles_are_refused(tmp_path, roles):
    rows = [*ROWS[:-1], ROWS[-1].replace('True,True', roles)]
    with pytest.raises(UserError, match=r'df\.csv, line 9: is_query'):
        read_table(write_table(tmp_path, rows))


def test_without_a_column_split_the_share_holds(root, tmp_path, capsys):
    path = write_table(tmp_path, *without('split', 'is_query', 'is_gallery'))
    dataset = read_source(root, 'shop', table=path)
    assert dataset.counts == {'train': (4, 2), 'test': (4, 2)}
    assert f'notice: {path}: no column split' in capsys.readouterr().out
    dataset = read_source(root, 'shop', table=path, test_share=0)
    assert dataset.counts == {'train': (8, 4)}


def test_without_a_column_split_images_with_a_role_are_the_test(tmp_path, capsys):
    path = write_table(tmp_path, *without('split'))
    assert read_table(path)[1] == read_table(write_table(tmp_path, ROWS))[1]
    assert f'notice: {path}: no column split' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('bad', 'expected'),
    [
        ('blue,e/1.png,holdout,,,x', "split 'holdout'"),
        ('8,,train,,,x', 'no such file'),
        ('8,gone.png,train,,,x', "'gone.png': no such file"),
        ('2.71802E+11,a/1.png,train,,,x', 'spreadsheet'),
        ('8,a/1.png,validation,maybe,True,x', "is_query 'maybe'"),
        ('8,a/1.png,train', 'cells than columns'),
        ('8,a/1.png,train,,,x,9,2,3,14', 'box from'),
        ('8,a/1.png,train,,,x,2,9,3,', 'box .* four numbers'),
        ('8,a/1.png,train,,,x,2,9,3,inf', 'box .* four numbers'),
        ('8,a/1.png,train,,,x,2,9,3,"1,024"', 'box .* four numbers'),
        ('8,a/1.png,train,,,x,0.1,0.9,0,1', 'box .* pixels'),
        ('8,a/1.png,train,,,x,0,1,0,1', 'box .* pixels'),
    ],
)
def test_bad_rows_are_named_by_their_line(tmp_path, bad, expected):
    write_image(tmp_path / 'e/1.png')
    path = write_table(tmp_path, ROWS)
    boxed = bad.count(',') > 5
    header = HEADER + ',x_1,x_2,y_1,y_2' * boxed
    write_lines(path, [header, ROWS[0] + ',1,2,3,4' * boxed, bad])
    with pytest.raises(UserError, match=rf'df\.csv, line 3: .*{expected}'):
        read_table(path)


def test_columns_that_are_missing_or_there_twice_are_named(tmp_path):
    path = write_table(tmp_path, ROWS)
    for column in ('path', 'label'):
        rows, header = without(column)
        write_lines(path, [header, *rows])
        with pytest.raises(UserError, match=rf'df\.csv: no column {column}'):
            read_table(path)
    write_lines(path, [HEADER.replace('category', 'label'), *ROWS])
    with pytest.raises(UserError, match=r'df\.csv: two columns label'):
        read_table(path)
    path = write_table(tmp_path, ['a/1.png,8,20,20'], 'path,label,x1,y1')
    with pytest.raises(UserError, match=r'df\.csv, line 2: box .*four numbers'):
        read_table(path)


BOXED = 'path,label,split,x_1,x_2,y_1,y_2'


def test_boxes_are_cut_out(root, tmp_path, capsys):
    rows = [f'{name}.png,{name},train,2,"9,4",3.0,14' for name in 'abcd']
    rows += ['e.png,e,validation,4,20,0,10', 'f.png,f,validation,,,,']
    rows += ['g.png,e,validation,-4,20,0,10', 'h.png,f,validation,1,1e308,2,9']
    table = write_table(tmp_path / 'photos', rows, BOXED)
    prepare(str(root), 'shop', table=table)
    printed = capsys.readouterr().out
    assert '2 boxes beyond' in printed and f'g.png ({table}, line 8)' in printed
    images = load_split(str(root), 'shop', 'cropped').query.images
    sizes = {name: image_size(root / 'shop' / name) for name in images}
    assert sizes == {
        'cropped/e.png': (16, 10),
        'cropped/f.png': (24, 18),
        'cropped/g.png': (20, 10),
        'cropped/h.png': (23, 7),
    }
    crop = to_pixels(root / 'shop/cropped/a.png')
    assert (crop == to_pixels(tmp_path / 'photos/a.png')[3:14, 2:9]).all()
    whole = load_split(str(root), 'shop').query.images
    assert whole == [name.replace('cropped', 'uncropped') for name in images]
    assert image_size(root / 'shop/uncropped/e.png') == (24, 18)


# Other forms of tables


def read_text(folder, text, encoding='utf-8'):
    """Return the records of a table, without their origins."""
    (folder / 'df.csv').write_bytes(text.encode(encoding))
    return read_table(str(folder / 'df.csv'))[1]


def rows_of(records):
    return [(record.path, record.label) for record in records]


@pytest.mark.parametrize(
    ('text', 'encoding'),
    [
        ('path,label\n"a, b.png","x; y"\nc.png,z\n', 'utf-8'),
        ('path,label\r\n"a, b.png","x; y"\r\nc.png,z\r\n', 'utf-8-sig'),
        ('path\tlabel\na, b.png\tx; y\nc.png\tz\n', 'utf-16'),
        ('\nsep=;\nlabel;path\n"x; y";a, b.png\nz;c.png\n;\n', 'utf-8'),
        ('"path"|"label"\r"a, b.png"|x; y\r c.png | z \r', 'utf-8'),
        (',path,label,\n0,"a, b.png",x; y,\n1, "c.png", z,\n,,,\n', 'utf-8'),
        ('path,label\n"a, b.png",x; y,\nc.png,z,,\n', 'utf-8'),
        ('Image Name;CLASS\na, b.png;"x; y"\nc.png;z\n', 'utf-8'),
        ('image,path,class,label\n,"a, b.png",0,x; y\n,c.png,1,z\n', 'utf-8'),
    ],
)
def test_a_table_of_another_program(tmp_path, text, encoding):
    write_image(tmp_path / 'a, b.png')
    write_image(tmp_path / 'c.png')
    records = read_text(tmp_path, text, encoding)
    assert rows_of(records) == [('a, b.png', 'x; y'), ('c.png', 'z')]
    assert records[0].origin.rpartition(' ')[0] == f'{tmp_path}/df.csv, line'


def test_columns_that_have_another_name_are_said(tmp_path, capsys):
    write_image(tmp_path / 'a.png')
    read_text(tmp_path, 'file_name,Identity,width\na.png,x,24\n')
    printed = capsys.readouterr().out
    for part in ('file_name is the path', 'Identity is the label', 'not used: width'):
        assert part in printed
    read_text(tmp_path, 'path,label\na.png,x\n')
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ('text', 'offender'),
    [
        ('name,label\na.png,x\n', 'no column path or image; .*name, label'),
        ('a.png,x\n', 'no column path .*a.png, x'),
        ('', 'no column path .*none'),
        ('path,label\na.png\n', 'line 2: more or fewer cells'),
        ('path,label\na.png,x,y\n', 'line 2: more or fewer cells'),
        ('path,label\n"a.png,x\n', 'line 2: not a CSV row'),
        ('path,label\na.png,x\n./a.png,x\n', "line 3: image 'a.png' is already"),
    ],
)
def test_a_table_that_makes_no_sense(root, tmp_path, text, offender):
    write_image(tmp_path / 'a.png')
    (tmp_path / 'df.csv').write_text(text)
    with pytest.raises(UserError, match=rf'df\.csv.* {offender}') as refused:
        read_source(root, 'shop', table=str(tmp_path / 'df.csv'))
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize('encoding', ['cp1252', 'utf-16-le', 'utf-32'])
def test_a_table_in_another_encoding_is_refused(tmp_path, encoding):
    with pytest.raises(UserError, match=r'df\.csv, line \d: not text .* save'):
        read_text(tmp_path, 'path,label\nété.png,x\n', encoding)


@pytest.mark.parametrize(
    ('labels', 'expected'),
    [
        (['3.0', '12.0', ''], ['3', '12', '-1']),
        (['3', '3.0', '-1'], ['3', '3', '-1']),
        (['3,0', '003', 'None'], ['3', '003', '-1']),
        (['a', '3.0', 'None'], ['a', '3.0', 'None']),
        (['a', 'nan', '-1'], ['a', '-1', '-1']),
        (['cafe\u0301', 'caf\xe9', '<NA>'], ['caf\xe9', 'caf\xe9', '-1']),
    ],
)
def test_labels(labels, expected):
    assert plain_labels(labels) == expected


@pytest.mark.parametrize(
    ('labels', 'said'),
    [
        ('Ab ab', "'Ab' and 'ab'"),
        ('007 7', "'007' and '7'"),
        ('a None', 'None is a class'),
    ],
)
def test_labels_that_are_alike_are_said(tmp_path, capsys, labels, said):
    write_pictures(tmp_path, 'ab')
    first, second = labels.split()
    records = read_text(tmp_path, f'path,label\na.png,{first}\nb.png,{second}\n')
    assert [record.label for record in records] == [first, second]
    assert said in capsys.readouterr().out


# Distractors and groups

PARTS = 'path,label,split,is_query,is_gallery\n'


def write_pictures(folder, names='abcdef'):
    for name in names:
        write_image(folder / f'{name}.png')


@pytest.mark.parametrize('label', ['', '-1', 'nan'])
def test_images_without_a_label_are_distractors(root, tmp_path, capsys, label):
    write_pictures(tmp_path)
    table = PARTS + 'a.png,x,train,,\nb.png,y,train,,\n'
    for roles in ('1,1', '0,1', ','):
        row = f'e.png,{label},val,{roles}\n'
        apart = f'{table}c.png,z,val,1,0\nd.png,z,val,0,1\n{row}'
        parts = [(record.part, record.label) for record in read_text(tmp_path, apart)]
        assert parts[2:] == [('query', 'z'), ('gallery', 'z'), ('gallery', '-1')]
    assert 'df.csv: 1 image without a label' in capsys.readouterr().out
    for roles in ('1,1', '0,1'):
        row = f'e.png,{label},val,{roles}\n'
        together = f'{table}c.png,z,val,1,1\nd.png,z,val,1,1\n{row}'
        records = read_text(tmp_path, together)
        parts = [(record.part, record.label) for record in records]
        assert parts[2:] == [('test', 'z'), ('test', 'z'), ('test', '-1')]
    for bad in ('train,,', 'val,1,0'):
        read_text(tmp_path, f'{apart}f.png,{label},{bad}\n')
        with pytest.raises(UserError, match=r'df\.csv, line 7: .*f.png.* label'):
            read_source(root, 'shop', table=str(tmp_path / 'df.csv'))


def test_without_a_column_split_distractors_are_tested(root, tmp_path):
    write_pictures(tmp_path)
    text = 'path,label\na.png,w\nb.png,x\nc.png,y\nd.png,z\ne.png,\nf.png,\n'
    read_text(tmp_path, text)
    dataset = read_source(root, 'shop', table=str(tmp_path / 'df.csv'))
    assert dataset.counts == {'train': (2, 2), 'test': (4, 2)}
    dataset = read_source(root, 'shop', table=str(tmp_path / 'df.csv'), test_share=0)
    assert dataset.counts == {'train': (4, 4)}


@pytest.mark.parametrize('column', ['group', 'Camera', 'cam_id'])
def test_groups(tmp_path, column):
    write_pictures(tmp_path, 'abc')
    text = f'path,label,{column}\na.png,x,1.0\nb.png,x,2.0\nc.png,y,\n'
    assert [record.group for record in read_text(tmp_path, text)] == ['1', '2', None]


def test_parts_have_other_names(tmp_path, capsys):
    write_pictures(tmp_path)
    text = 'path,label,Subset\na.png,x,Training\nb.png,y,valid\nc.png,z,TEST\n'
    parts = [record.part for record in read_text(tmp_path, text)]
    assert parts == ['train', 'test', 'test']
    assert 'the test is test and valid' in capsys.readouterr().out
    text = 'path,label,split\na.png,x,train\nb.png,z,query\nc.png,z,gallery\n'
    parts = [record.part for record in read_text(tmp_path, text)]
    assert parts == ['train', 'query', 'gallery']


# Paths


def test_paths_of_other_systems(tmp_path, monkeypatch):
    """As they are on disk: separators, case and accents, absolute or from elsewhere."""
    nfd = unicodedata.normalize('NFD', 'été')
    for name in ('a', 'b'):
        write_image(tmp_path / f'Photos/{nfd}/{name}.JPG', format='JPEG')
    expected = [(f'Photos/{nfd}/{name}.JPG', name) for name in 'ab']
    monkeypatch.chdir(tmp_path.parent)
    for start in (
        f'Photos/{nfd}/',
        'Photos/été/',
        'photos/ÉTÉ/',
        '.\\Photos\\été\\',
        f'{tmp_path}/Photos/été/',
        f'{tmp_path.name}/Photos/été/',  # from the current folder
        'C:\\Users\\me\\Photos\\été\\',
        '/mnt/elsewhere/Photos/été/',
        'http://example.org/Photos/été/',
    ):
        text = f'path,label\n{start}a.jpg,a\n{start}b.JPG,b\n'
        assert rows_of(read_text(tmp_path, text)) == expected


def test_an_exact_name_comes_first(tmp_path):
    for name in ('A.png', 'a.png', r'b\a.png', 'b/a.png'):
        write_image(tmp_path / name)
    text = 'path,label\na.png,x\nA.png,y\nb\\a.png,z\nb/a.png,w\n'
    paths = [record.path for record in read_text(tmp_path, text)]
    assert paths == ['a.png', 'A.png', r'b\a.png', 'b/a.png']
    with pytest.raises(UserError, match=r"line 3: path 'B/A\.PNG': no such file"):
        write_image(tmp_path / 'b/A.png')  # two that differ in case alone
        read_text(tmp_path, 'path,label\na.png,x\nB/A.PNG,y\n')


def test_images_elsewhere(root, tmp_path, capsys):
    """A table may have absolute paths, and any folder around its images is linked."""
    lines = ['path,label']
    for name in 'abcd':
        write_image(tmp_path / f'disk/{name}/1.png')
        lines.append(f'{tmp_path}/disk/{name}/1.png,{name}')
    lines[1] = '../disk/a/1.png,a'
    write_lines(tmp_path / 'tables/df.csv', lines)
    prepare(str(root), 'shop', table=str(tmp_path / 'tables/df.csv'), image_size=8)
    split = load_split(str(root), 'shop')
    images = sorted(split.train.images + split.query.images)
    assert images == [f'images/{name}/1.png' for name in 'abcd']
    assert os.path.samefile(root / 'shop/images', tmp_path / 'disk')
    capsys.readouterr()
    prepare(str(root), 'shop', image_size=8)
    assert 'nothing changed' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('name', 'nearest'),
    [('photos/a1.jpeg', 'photos/a1.jpg'), ('a2.jpg', 'photos/a2.jpg')],
)
def test_a_missing_image_has_a_nearest_name(tmp_path, name, nearest):
    for number in (1, 2):
        write_image(tmp_path / f'photos/a{number}.jpg')
    with pytest.raises(UserError, match=rf'line 3: .*{name}.* mean {nearest}'):
        read_text(tmp_path, f'path,label\nphotos/a1.jpg,a\n{name},b\n')
    with pytest.raises(UserError, match=rf'none .*{name}.* mean {nearest}'):
        read_text(tmp_path, f'path,label\n{name},b\n')


@pytest.mark.parametrize('inside', [False, True])
def test_a_table_is_prepared_and_remembered(root, tmp_path, capsys, inside):
    folder = root / 'shop' if inside else tmp_path / 'photos'
    prepare(root, 'shop', table=write_table(folder, ROWS))
    split = load_split(root, 'shop')
    assert split.train.classes == ['3', '7']
    prefix = '' if inside else 'images/'
    assert split.query.images[0] == f'{prefix}c/1.png'
    capsys.readouterr()
    prepare(root, 'shop')
    assert 'nothing changed' in capsys.readouterr().out
    write_table(folder, ROWS[1:])  # a row less
    prepare(root, 'shop')
    assert len(load_split(root, 'shop').train) == 3


def test_a_name_stays_with_its_table(root, tmp_path):
    table = write_table(tmp_path / 'photos', ROWS)
    prepare(root, 'shop', table=table)
    for options in (
        {'table': write_table(tmp_path / 'others', ROWS)},
        {'data_path': str(tmp_path / 'photos')},
    ):
        with pytest.raises(UserError, match='shop is the name of'):
            prepare(root, 'shop', **options)
    os.remove(table)
    with pytest.raises(UserError, match=r'table\.csv: no such file'):
        prepare(root, 'shop')


def test_paths_that_start_from_another_folder(root, tmp_path):
    """As those of images.csv, which inference.py --export writes: from the gallery."""
    photos, exported = tmp_path / 'photos', tmp_path / 'exported'
    photos.mkdir()
    exported.mkdir()
    table = write_table(photos, ROWS)
    os.rename(table, exported / 'images.csv')
    table = str(exported / 'images.csv')
    with pytest.raises(UserError, match='--data_path'):
        prepare(str(root), 'shop', table=table, image_size=8)
    prepare(str(root), 'shop', str(photos), table=table, image_size=8)
    split = load_split(str(root), 'shop')
    assert sorted(split.train.images)[0] == 'images/a/1.png'
    prepare(str(root), 'shop', image_size=8)  # by the links that were left

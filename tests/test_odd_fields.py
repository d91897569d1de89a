"""Files of torch.save whose fields are missing or odd are refused by name."""

import math
import os

import numpy as np
import pytest
import torch
from slim import use_slim_backbone
from trained import CALIBRATION

from areir.errors import UserError
from areir.files import write_tensors
from areir.gallery import databases, index_table
from areir.gallery.databases import load_database
from areir.gallery.index_table import IndexTable, read_table
from areir.gallery.matrix_file import write_blocks
from areir.matching import thresholds
from areir.schemas import find_problem, is_dense, is_floats, is_number
from areir.training import checkpoints
from areir.training.weights import freeze_old_heads
from model import EnsembleModel

FLOATS = torch.eye(4)
SPARSE = FLOATS.to_sparse()
EXPANDED = torch.zeros(1).expand(4, 10**12)  # 4 bytes in the file
NOT_FINITE = [torch.full((4, 4), value) for value in (math.nan, math.inf)]
ODD_TENSORS = [
    None,
    'x',
    [1.0] * 4,
    SPARSE,
    EXPANDED,
    *NOT_FINITE,
    FLOATS.long(),
    FLOATS.to(torch.complex64),
    FLOATS.to(torch.int8),
]
ODD_COUNTS = [None, '2', 0, -1, 2.0, True, math.inf, math.nan, [], torch.tensor(2)]
ODD_TEXTS = [None, 5, [], {}, torch.ones(2)]
REMOVED = object()


def changed(content, *path, value):
    """Return a copy of nested dicts in which one value is replaced or REMOVED."""
    name, *rest = path
    value = changed(content[name], *rest, value=value) if rest else value
    copy = {**content, name: value}
    if value is REMOVED:
        del copy[name]
    return copy


def cases(*fields):
    """Return [(path, value)] of fields, (names with dots, odd values)."""
    return [(names.split('.'), value) for names, values in fields for value in values]


def every_case(fields):
    """Parametrize a test by `path` and `value`."""
    pairs = cases(*fields)
    return pytest.mark.parametrize(('path', 'value'), pairs, ids=range(len(pairs)))


def save(folder, name, content):
    path = str(folder / name)
    write_tensors({path: content})
    return path


# The checks themselves


def test_finite_floats():
    assert all(map(is_floats, [FLOATS, FLOATS.half(), FLOATS.double(), FLOATS[:0]]))
    assert not any(map(is_floats, ODD_TENSORS))
    corner = torch.ones(3, 2)
    corner[2, 1] = -math.inf
    assert not is_floats(corner)
    assert is_dense(FLOATS[:, 1:]) and is_dense(FLOATS.T)
    assert not any(map(is_dense, (SPARSE, EXPANDED, torch.ones(2, device='meta'))))


def test_numbers():
    assert is_number(0) and is_number(-1.5)
    assert not any(map(is_number, (True, '1', math.nan, math.inf, None, 1j)))


def test_a_message_says_what_a_field_should_be():
    schema = {**databases.DATABASE, **databases.OPTIONAL, 'recall': lambda value: False}

    def problem(**fields):
        return find_problem(fields, {name: schema[name] for name in fields})

    assert problem(epoch=-1) == 'epoch is not an integer of at least 0'
    assert problem(epoch=1, images=[5]) == 'images is not a list of texts'
    assert problem(calibration={}) == 'calibration is not a calibration or None'
    assert problem(recall=2) == 'recall is damaged'


SCHEMAS = [
    *(databases.DATABASE, databases.OPTIONAL, index_table.TABLE, index_table.OPTIONAL),
    *(thresholds.SCHEMA, checkpoints.STATE, checkpoints.OPTIONAL, checkpoints.PART),
]


@pytest.mark.parametrize('schema', SCHEMAS)
def test_checks_say_what_they_ask_for(schema):
    for name, check in schema.items():
        if check.__name__ != '<lambda>':
            problem = find_problem({name: object()}, {name: check})
            assert problem.startswith(f'{name} is not '), problem


COLOURS = [REMOVED, None, 0.5, 'xyz', (0.5, 0.5), (math.nan, 0.5, 0.5), (1, 2, 3)]

CALIBRATION_FIELDS = [
    ('calibration', ['x', [], {}]),
    ('calibration.threshold', [REMOVED, None, 'x', math.nan]),
    ('calibration.sizes', [REMOVED, 5, [100, 1], ['1', '100'], [1], [-1, 100]]),
    ('calibration.false_match_rate', [0, 1, -0.5, '0.01']),
    ('calibration.classes', [REMOVED, *ODD_COUNTS]),
]


@pytest.fixture
def slim(monkeypatch):
    use_slim_backbone(monkeypatch)
    return EnsembleModel('resnet18', 2, 3)


def test_a_smaller_ensemble_without_all_weights_is_refused(slim):
    whole = slim.state_dict()
    freeze_old_heads(slim, whole, 1)
    for name in ('trunk.bn1.weight', 'heads.0.fc.weight'):
        for state in (changed(whole, name, value=REMOVED), {**whole, name: FLOATS}):
            with pytest.raises(UserError, match=rf'--extend: .*{name}'):
                freeze_old_heads(slim, state, 1)


# Databases

DATABASE = {
    'embeddings': FLOATS,
    'labels': torch.tensor([0, 0, 1, 1]),
    'images': ['1.png', '2.png', '3.png', '4.png'],
    'classes': ['a', 'b'],
    'data_name': 'shoes',
    'data_root': 'data',
    'model': 'run_model.pth',
    'version': 'v0',
    'epoch': 1,
    'protocol': 'strict',
    'ensemble_size': 2,
    'calibration': CALIBRATION,
}
ODD_LABELS = [
    *(None, 'x', [0, 0, 1, 1], SPARSE.long(), torch.zeros(4)),
    *(torch.zeros(4, 1).long(), torch.tensor([0, 0, 1, 2]), torch.tensor(0)),
]
DATABASE_FIELDS = [
    ('embeddings', [*ODD_TENSORS, FLOATS[:3], FLOATS[:, :0], FLOATS[:, :3], FLOATS[0]]),
    ('labels', ODD_LABELS),
    ('images', [None, 'abcd', [], [None] * 4, ['x'] * 3]),
    ('classes', [None, [], ['a'], ['a', 5], 'ab', {0: 'a', 1: 'b'}]),
    ('ensemble_size', [*ODD_COUNTS, 3]),
    ('epoch', ['x', -1, math.nan]),
    *((name, ODD_TEXTS) for name in ('data_name', 'data_root', 'model', 'protocol')),
    ('query_embeddings', [FLOATS]),
    *CALIBRATION_FIELDS,
]


@every_case(DATABASE_FIELDS)
def test_odd_databases_are_refused(tmp_path, path, value):
    content = changed(DATABASE, *path, value=value)
    save(tmp_path, 'run_data_base.pth', content)
    with pytest.raises(UserError, match=r'--data_base run_data_base\.pth: damaged \('):
        load_database('run_data_base.pth', str(tmp_path))


def test_queries_of_another_length_are_refused(tmp_path):
    queries = {f'query_{name}': DATABASE[name] for name in ('labels', 'images')}
    content = {**DATABASE, **queries, 'query_embeddings': torch.ones(4, 6)}
    save(tmp_path, 'run_data_base.pth', content)
    with pytest.raises(UserError, match='different lengths'):
        load_database('run_data_base.pth', str(tmp_path))


# The table of an index

TABLE = {
    'settings': {'model': 'v0'},
    'gallery': 'photos',
    'paths': ['1.png', '2.png'],
    'seen': [[5, 6], [7, 8]],
    'problems': {'3.png': ([9, 9], 'damaged')},
    'vectors': 'vectors_0.npy',
    'dimensions': 4,
    'components': None,
    'fitted': 0,
    'calibration': CALIBRATION,
    'checksums': {'vectors_0.npy': [1]},
}
TABLE_FIELDS = [
    ('settings', [REMOVED, None, 'x', [], {'model': torch.zeros(3)}]),
    ('paths', [REMOVED, None, ['1.png'], ['2.png', '1.png'], [1, 2], ['1.png'] * 2]),
    ('seen', [REMOVED, None, [[5, 6]], [5, 6], [[5, 6], [7, '8']], [[5, 6], [7]]]),
    ('problems', [REMOVED, [], {5: ([9, 9], 'x')}, {'x': 5}, {'x': ([9, 9], None)}]),
    ('vectors', [REMOVED, None, 5, '', 'other.npy']),
    ('dimensions', [REMOVED, 5, *ODD_COUNTS]),
    ('components', [5, {}, {'mean': torch.zeros(4), 'matrix': SPARSE}]),
    ('fitted', ['x', -1, 1.5, math.inf]),
    ('checksums', [None, [], {'x': 5}, {5: [1]}, {'x': ['y']}]),
    ('gallery', [None, 5]),
    *CALIBRATION_FIELDS,
]


@pytest.fixture
def index_folder(tmp_path):
    vectors = np.eye(4, dtype=np.float32)[:2]
    path = os.path.join(tmp_path, 'vectors_0.npy')
    write_blocks(path, vectors.shape, vectors.dtype, [vectors])
    return tmp_path


def test_a_whole_table_is_read(index_folder):
    save(index_folder, 'index.pth', TABLE)
    assert read_table(str(index_folder)) == IndexTable(**TABLE)
    older = {name: TABLE[name] for name in list(TABLE)[:7] if name != 'gallery'}
    save(index_folder, 'index.pth', older)
    assert read_table(str(index_folder)).paths == TABLE['paths']


@every_case(TABLE_FIELDS)
def test_an_odd_table_is_built_again(index_folder, capsys, path, value):
    save(index_folder, 'index.pth', changed(TABLE, *path, value=value))
    assert read_table(str(index_folder)) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith('notice: ') and 'index.pth is damaged' in line

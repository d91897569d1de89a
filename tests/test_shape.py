"""The shape of the sources: sizes, line lengths, closures and the direction of imports.

STYLE in numbers: a file of at most 400 lines, a function of at most 60 (80 for a
script's main and its arguments), closures that capture at most three local names, 47
characters per line on average, and imports that point downwards only.
"""

import ast
import re
import symtable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for pattern in ('*.py', 'areir/**/*.py', 'benchmarks/*.py', 'docs/*.py')
    for path in ROOT.glob(pattern)
)
TESTS = sorted(ROOT.glob('tests/**/*.py'))
SCRIPTS = {path.stem for path in ROOT.glob('*.py')}
COMPREHENSIONS = ('listcomp', 'setcomp', 'dictcomp', 'genexpr')
ARGUMENTS = ('main', 'get_args', 'get_parser')

# a room may import those after it
ROOMS = ('output', 'training', 'retrieval', 'data', 'ground')


def name_of(path):
    return str(path.relative_to(ROOT))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(part for part in parts if part != '__init__')


def imports_of(path):
    """Return the dotted names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def room_of(module):
    """Return the room of a module; 'ground' for areir.files, areir.cli and so on."""
    parts = module.split('.')
    known = len(parts) > 1 and parts[1] in ROOMS
    return parts[1] if known else 'ground'


def captures(table):
    """Yield (function, local names that it captures) below a symbol table."""
    for child in table.get_children():
        comprehension = child.get_name() in COMPREHENSIONS
        if child.get_type() == 'function' and not comprehension:
            yield f'{child.get_name()}, line {child.get_lineno()}', child.get_frees()
        yield from captures(child)


@pytest.mark.parametrize('path', SOURCES + TESTS, ids=name_of)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize('path', SOURCES, ids=name_of)
def test_functions_fit_on_a_screen(path):
    script = path.parent == ROOT
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            most = 80 if script and node.name in ARGUMENTS else 60
            assert node.end_lineno - node.lineno + 1 <= most, node.name


def code_lines(path):
    """Return the non-blank lines of a file, docstrings left out."""
    text = path.read_text()
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and ast.get_docstring(node):
            text_node = node.body[0]
            docstrings |= set(range(text_node.lineno, text_node.end_lineno + 1))
    numbered = enumerate(text.splitlines(), 1)
    return [
        line for number, line in numbered if line.strip() and number not in docstrings
    ]


def mean_length(lines):
    return sum(map(len, lines)) / max(1, len(lines))


@pytest.mark.parametrize('path', SOURCES, ids=name_of)
def test_lines_have_room(path):
    assert mean_length(code_lines(path)) <= 47


def test_lines_have_room_on_average():
    lines = [line for path in SOURCES for line in path.read_text().splitlines()]
    assert mean_length([line for line in lines if line.strip()]) <= 47


@pytest.mark.parametrize('path', SOURCES, ids=name_of)
def test_closures_capture_little(path):
    for function, names in captures(symtable.symtable(path.read_text(), '', 'exec')):
        assert len(names) <= 3, (function, names)


@pytest.mark.parametrize('path', sorted(ROOT.glob('areir/**/*.py')), ids=name_of)
def test_imports_point_downwards(path):
    room = room_of(module_name(path))
    for imported in imports_of(path):
        assert imported.split('.')[0] not in SCRIPTS, imported
        if imported.split('.')[0] == 'areir':
            below = ROOMS.index(room_of(imported)) >= ROOMS.index(room)
            assert below, f'{room} imports {imported}'


def test_no_circles():
    modules = {module_name(path): path for path in ROOT.glob('areir/**/*.py')}
    edges = {}
    for module, path in modules.items():
        imported = imports_of(path) & modules.keys() - {module}
        # `from room import module` names the room only to reach the module
        packages = {name.rpartition('.')[0] for name in imported}
        edges[module] = imported - packages
    done = set()

    def visit(module, above):
        assert module not in above, ' -> '.join([*above, module])
        if module not in done:
            for imported in edges[module]:
                visit(imported, (*above, module))
            done.add(module)

    for module in modules:
        visit(module, ())


@pytest.mark.parametrize('path', sorted(ROOT.glob('areir/**/*.py')), ids=name_of)
def test_nothing_runs_on_import(path):
    """The top level of a module only defines things: no loops, calls or prints."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign)
    for node in ast.parse(path.read_text()).body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert text or isinstance(node, (*allowed, ast.AnnAssign)), node.lineno


@pytest.mark.parametrize('path', SOURCES, ids=name_of)
def test_public_functions_say_what_they_do(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), 'the module'
    for node in tree.body:
        if isinstance(node, ast.ClassDef) or (
            path.parts[-2] in ROOMS and isinstance(node, ast.FunctionDef)
        ):
            assert ast.get_docstring(node), node.name


def test_only_files_py_writes_whole_files():
    """One atomic writer and one checked loader: no one else moves or unpickles."""
    for path in SOURCES:
        allowed = ('areir/files.py', 'areir/training/checkpoints.py')
        if name_of(path).startswith(allowed):
            continue
        calls = re.findall(
            r'os\.replace\(|torch\.load\(|\.part[\'\"]', path.read_text()
        )
        assert not calls, (name_of(path), calls)

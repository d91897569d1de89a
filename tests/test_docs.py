"""The README and docs: flags, links and files named in them exist."""

import importlib
import os
import re
import sys

import pytest
from conftest import REPOSITORY

sys.path.insert(0, os.path.join(REPOSITORY, 'docs'))
import make_flags

# flags of torchrun, which some commands use
TORCHRUN = {'--nproc_per_node', '--nnodes', '--rdzv_backend', '--rdzv_endpoint'}
VIEWERS = {'--logdir', '--backend'}  # of tensorboard and mlflow
FLAG = re.compile(r'(?<![\w-])--[a-z]\w*')
LINK = re.compile(r'\]\(([^)\s]+)\)')
# `areir/files.py`, `areir/training/`, `.ci/run`, `Makefile`, but not `photos/<class>/`
FILE = re.compile(
    r'`((?:areir|docs|tests|benchmarks|\.ci)/[\w./]*'
    r'|[\w./]+\.(?:py|md|cff|toml)|requirements[\w-]*\.txt|Makefile)`'
)


def read(path):
    with open(os.path.join(REPOSITORY, path), encoding='utf-8') as file:
        return file.read()


def pages():
    """Return the pages that describe the code as it is, so not the changelog."""
    docs = os.listdir(os.path.join(REPOSITORY, 'docs'))
    suffixes = '.md', '.ipynb'
    names = sorted(f'docs/{name}' for name in docs if name.endswith(suffixes))
    return ['README.md', 'CONTRIBUTING.md', *names]


def script_flags(script):
    parser = importlib.import_module(script.removesuffix('.py')).get_parser()
    return {flag for action in parser._actions for flag in action.option_strings}


def known_flags(script):
    """Return the flags that a script takes; those of benchmarks are in their source."""
    if script.startswith('benchmarks/'):
        source = read(script) + read('benchmarks/methods.py')
        return set(re.findall(r"'(--\w+)'", source))
    return script_flags(script)


def commands(text):
    """Yield (script, the rest of the command) for each command line of a page."""
    for block in re.findall(r'```\w*\n(.*?)```', text, re.DOTALL):
        for line in block.replace('\\\n', ' ').splitlines():
            command = line.removeprefix('$ ').split('#')[0]
            match = re.match(r'(?:python|torchrun)\b.*?([\w/]+\.py)(.*)', command)
            if match:
                yield match.groups()


def anchors(text):
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r'^#+ (.*)$', re.sub(r'```.*?```', '', text, flags=re.S), re.M)
    return {
        re.sub(r'[^\w -]', '', title).strip().lower().replace(' ', '-')
        for title in titles
    }


def test_flags_page_is_what_the_generator_writes():
    written = read('docs/flags.md')
    assert written == make_flags.flags_page(), 'run `make docs`'


@pytest.mark.parametrize('page', pages())
def test_links_and_files_exist(page):
    text = read(page)
    folder = os.path.dirname(page)
    for link in LINK.findall(text):
        if '://' in link:
            continue
        target, _, anchor = link.partition('#')
        path = os.path.normpath(os.path.join(folder, target)) if target else page
        assert os.path.exists(os.path.join(REPOSITORY, path)), link
        if anchor:
            assert anchor in anchors(read(path)), link
    for name in FILE.findall(text):
        assert os.path.exists(os.path.join(REPOSITORY, name)), name


@pytest.mark.parametrize('page', pages())
def test_flags_exist(page):
    text = read(page)
    for script, rest in commands(text):
        assert set(FLAG.findall(rest)) <= known_flags(script), f'{script}{rest}'
    scripts = [f'{name}.py' for name in make_flags.SCRIPTS]
    files = os.listdir(os.path.join(REPOSITORY, 'benchmarks'))
    scripts += [f'benchmarks/{name}' for name in files if name.endswith('.py')]
    everywhere = set.union(TORCHRUN, VIEWERS, *map(known_flags, scripts))
    assert set(FLAG.findall(text)) <= everywhere

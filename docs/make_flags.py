"""Write docs/flags.md: the flags of all scripts, from their argparse parsers.

python docs/make_flags.py
"""

import argparse
import importlib
import os
import re
import sys

DOCS = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(DOCS))
from areir.files import write_text

SCRIPTS = ('data_utils', 'train', 'inference', 'evaluate', 'model')

HEADER = """# Flags

This page is written by `make docs` from the scripts themselves; do not edit it. Every
script prints the same list for `--help`.
"""

# a help text ends in '[default value is 8]'
DEFAULT = re.compile(r'\s*\[default value is (.*)\]$')


def row(parser, action):
    """Return one flag as a row of a Markdown table."""
    text = parser._get_formatter()._expand_help(action)
    stated = DEFAULT.search(text)
    default = ''
    if stated:
        text = text[: stated.start()]
        default = stated.group(1).replace("'", '')
        if action.default is not None:
            default = f'`{default}`'
    if action.choices:
        choices = ', '.join(f'`{choice}`' for choice in action.choices)
        text = f'{text} ({choices})'
    name = ', '.join(action.option_strings) or action.dest
    cells = [f'`{name}`', default, text]
    return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'


def section(script):
    """Return the section of a script: a table for each of its argument groups."""
    parser = importlib.import_module(script).get_parser()
    lines = [f'## {script}.py', '', parser.description]
    for group in parser._action_groups:
        actions = [
            action
            for action in group._group_actions
            if not isinstance(action, argparse._HelpAction)
        ]
        if actions:
            lines += ['', f'**{group.title}**', '']
            lines += ['| flag | default | meaning |', '|---|---|---|']
            lines += [row(parser, action) for action in actions]
    return '\n'.join(lines) + '\n'


def flags_page():
    """Return the text of docs/flags.md."""
    return '\n'.join([HEADER, *map(section, SCRIPTS)])


if __name__ == '__main__':
    write_text(os.path.join(DOCS, 'flags.md'), flags_page())

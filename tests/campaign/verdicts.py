"""What a call has led to, and how good that is for its user."""

import csv
import glob
import hashlib
import json
import os
import re

import torch

from areir.errors import UserError
from areir.files import load_tensors

RIGHT, UNKNOWABLE, CLEAR = 'right', 'unknowable', 'clear line'
NAMELESS, TRACEBACK, CRASH = 'nameless line', 'traceback', 'crash'
HANG, WRONG = 'hang', 'silently wrong'
OUTCOMES = [RIGHT, UNKNOWABLE, CLEAR, NAMELESS, TRACEBACK, CRASH, HANG, WRONG]
GOOD = (RIGHT, UNKNOWABLE, CLEAR)

# fields of files that differ between two equal runs
CHANGES = {'seconds', 'train_seconds', 'data_wait', 'waited', 'times', 'version'}
CHANGES |= {'command', 'commit', 'date', 'arguments', 'checksum', 'csv_checksum'}
NOISE = re.compile('Traceback|Exception ignored|Exception in thread|Warning: ')
LINE = re.compile(r'^(\w+(\.py)?: error: |interrupted; |usage: )', re.MULTILINE)
FLAG = re.compile(r'--[a-z]\w+')


def snapshot(case, patterns):
    """Return {name: what it says} of the files that patterns find below a folder."""
    found = {}
    for pattern in patterns:
        for path in glob.glob(str(case / pattern), recursive=True, include_hidden=True):
            found[os.path.relpath(path, case)] = digest(path)
    return found


def digest(path):
    """Return a hash of what a file says, or a note that it cannot be read."""
    try:
        if path.endswith('.pth'):
            content = plain(load_tensors(path))
        elif path.endswith('.json'):
            with open(path, encoding='utf-8') as file:
                content = plain(json.load(file))
        elif path.endswith('_results.csv'):
            with open(path, encoding='utf-8', newline='') as file:
                content = [plain(row) for row in csv.DictReader(file)]
        else:
            with open(path, 'rb') as file:
                content = file.read()
    except (UserError, ValueError, OSError, csv.Error) as error:
        return f'unreadable: {type(error).__name__}'
    return hashlib.sha256(repr(content).encode(errors='surrogatepass')).hexdigest()


def plain(value):
    """Return nested values without what changes, and with bytes in place of tensors."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in CHANGES}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, torch.Tensor):
        content = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), content
    return value


def judge(ended, same, names, news='', unknowable=False):
    """Return the outcome of a call.

    same: whether its result is that of the valid files; names: of what was damaged;
    news: what was printed and would not have been otherwise; unknowable: whether the
    damage cannot be known.
    """
    if ended.hung:
        return HANG
    if ended.code < 0:
        return CRASH
    if NOISE.search(ended.text):
        return TRACEBACK
    if ended.code:
        text = ended.errors.replace('\r', '\n')
        starts = [match.start() for match in LINE.finditer(text)]
        line = text[starts[-1] :] if starts else ''
        named = any(name in line for name in names) or FLAG.search(line)
        return CLEAR if line and named else NAMELESS
    if same:
        return RIGHT
    if any(name in news for name in names):
        return CLEAR
    return UNKNOWABLE if unknowable else WRONG

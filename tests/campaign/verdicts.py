"""What a call has led to, and how good that is for its user."""

import csv
import glob
import hashlib
import json
import os
import re

import numpy as np
import torch

from areir.errors import UserError
from areir.files import load_tensors

RIGHT, UNKNOWABLE, CLEAR = 'right', 'unknowable', 'clear line'
NAMELESS, TRACEBACK, CRASH = 'nameless line', 'traceback', 'crash'
HANG, WRONG = 'hang', 'silently wrong'
OUTCOMES = [RIGHT, UNKNOWABLE, CLEAR, NAMELESS, TRACEBACK, CRASH, HANG, WRONG]
GOOD = (RIGHT, UNKNOWABLE, CLEAR)

# what differs between two equal runs
TIMES = {'seconds', 'train_seconds', 'data_wait', 'waited', 'times'}
CHANCE = {'version', 'vectors', 'command', 'commit', 'arguments'}
CHANCE |= {'checksum', 'checksums', 'csv_checksum'}
NOISE = re.compile('Traceback|Exception ignored|Exception in thread|Warning: ')
LINE = re.compile(r'^(\w+(\.py)?: error: |interrupted; |usage: )', re.MULTILINE)
FLAG = re.compile(r'--[a-z]\w+')


# Results


def snapshot(case, patterns):
    """Return {name: digest} of the files that patterns find below a case's folder.

    Names and contents that are random or depend on the time are left out.
    """
    found = {}
    for pattern in patterns:
        for path in glob.glob(str(case / pattern), recursive=True, include_hidden=True):
            name = re.sub('_[0-9a-f]{16}', '_*', os.path.relpath(path, case))
            found[name] = digest(path)
    return found


def digest(path):
    """Return a hash of what a file says, or a note that it cannot be read."""
    if not os.path.isfile(path):
        return 'no file'
    try:
        if path.endswith('.pth'):
            content = repr(plain(load_tensors(path)))
        elif path.endswith('.json'):
            with open(path, encoding='utf-8') as file:
                content = repr(plain(json.load(file)))
        elif path.endswith('_results.csv'):
            with open(path, encoding='utf-8', newline='') as file:
                content = repr([plain(row) for row in csv.DictReader(file)])
        elif path.endswith('.f32'):
            content = repr(rounded(path))
        else:
            with open(path, 'rb') as file:
                content = repr(hashlib.sha256(file.read()).hexdigest())
    except (UserError, ValueError, OSError, RecursionError, csv.Error) as error:
        return f'unreadable: {type(error).__name__}'
    return hashlib.sha256(content.encode(errors='surrogatepass')).hexdigest()


def rounded(path):
    """Return the vectors of an index to 4 decimals.

    The last bits depend on which images were embedded together.
    """
    return (np.fromfile(path, np.float32).round(4) + 0.0).tolist()


def plain(value):
    """Return nested values without times and tokens, and hashes in place of tensors."""
    if isinstance(value, dict):
        left_out = TIMES | CHANCE
        return {k: plain(v) for k, v in value.items() if k not in left_out}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), bytes_of(value)
    return value


def bytes_of(tensor):
    if tensor.is_sparse:
        return repr(tensor)
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


def printed(ended):
    """Return the stdout of a call without times and tokens."""
    lines = re.sub(r'\b[0-9a-f]{8}\b', '*', ended.output).splitlines()
    return [line for line in lines if not line.startswith(('times:', 'index '))]


# Outcomes


def last_words(errors):
    """Return what a script has written last: its line, without progress bars."""
    text = errors.replace('\r', '\n')
    places = [match.start() for match in LINE.finditer(text)]
    return text[places[-1] :] if places else ''


def is_named(names, text):
    """Whether a text names the file, by one of its names, or a flag."""
    return any(name in text for name in names) or bool(FLAG.search(text))


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
        line = last_words(ended.errors)
        return CLEAR if line and is_named(names, line) else NAMELESS
    if same:
        return RIGHT
    if any(name in news for name in names):
        return CLEAR
    return UNKNOWABLE if unknowable else WRONG

"""Read and check the files of a finished run: its run.json and its CSV.

run.json holds a checksum of its own fields and, once the run is finished, one of the
CSV. Files of older versions hold neither.
"""

import io
import json
import math
import zlib

import pandas as pd

from areir.errors import UserError
from areir.files import is_special, refuse_special

AGAIN = 'to train the run again, leave out --resume'


def with_checksum(run):
    """Return the dict of a run.json with its checksum added or renewed."""
    return {**run, 'checksum': checksum(run)}


def checksum(run):
    """Return the CRC-32 of all fields of a run.json except `checksum`."""
    fields = {name: value for name, value in run.items() if name != 'checksum'}
    return zlib.crc32(json.dumps(fields).encode())


def read_run_json(path, advice=AGAIN):
    """Return the dict of a run.json.

    Raises OSError if it cannot be read, and UserError if it is damaged or no regular
    file. advice: what the message says to do.
    """
    refuse_special(path)
    try:
        # it holds names of files, which need not be valid UTF-8
        with open(path, encoding='utf-8', errors='surrogateescape') as file:
            run = json.load(file)
        if not isinstance(run, dict):
            raise ValueError('not a dict')
        has_checksum = 'checksum' in run or 'finished' in run
        if has_checksum and run.get('checksum') != checksum(run):
            raise ValueError('its checksum does not fit')
    except (ValueError, RecursionError) as error:
        raise damaged(path, advice) from error
    return run


def damaged(path, advice):
    """Return the UserError for a damaged run.json."""
    return UserError(f'{path} is damaged or no run.json of train.py; {advice}')


def saved_settings(run, path):
    """Return the settings in the dict of a run.json, in the form of `run_settings`.

    Raises UserError if one is missing.
    """
    try:
        settings = dict(run['arguments'], precision=run['precision'])
        settings['split_sha256'] = run['data']['split_sha256']
    except (ValueError, LookupError, TypeError) as error:
        raise damaged(path, AGAIN) from error
    return settings


def tested_epochs(run, path):
    """Return the epochs that the CSV of a finished run should hold.

    Returns None if run.json does not say that the run is finished, as in older
    versions. Raises UserError if the epochs are missing.
    """
    if run.get('finished') is not True:
        return None
    epochs = run.get('tested_epochs')
    if not isinstance(epochs, list):
        raise damaged(path, AGAIN)
    return epochs


def read_results(path, csv_checksum=None):
    """Return (the table of a run's CSV, None), or (None, what is wrong with the file).

    Whatever is not a finite number becomes NaN, and rows without an epoch are left out.
    csv_checksum: the CRC-32 of the file, if known.
    """
    if is_special(path):
        return None, 'is not a regular file'
    try:
        with open(path, 'rb') as file:
            content = file.read()
        text = content.decode()
        table = pd.read_csv(io.StringIO(text)).apply(pd.to_numeric, errors='coerce')
        table = table.replace([math.inf, -math.inf], math.nan).dropna(subset=['epoch'])
    except FileNotFoundError:
        return None, 'is missing'
    except OSError:  # a folder, for example
        return None, 'cannot be read'
    except (ValueError, LookupError, TypeError, OverflowError):
        return None, 'is damaged'
    if table.empty:
        return None, 'is damaged'
    if not text.endswith('\n'):
        return None, 'is damaged: its last line is cut off'
    if csv_checksum not in (None, zlib.crc32(content)):
        return None, 'is damaged: it has changed since the run ended'
    return table, None


def csv_problem(path, tested, num_epochs, csv_checksum=None):
    """Return what is wrong with the CSV of a finished run, or None.

    tested: the epochs that it should hold, or None if only the last one, num_epochs, is
    known; csv_checksum: see `read_results`.
    """
    table, problem = read_results(path, csv_checksum)
    if problem:
        return f'{path} {problem}'
    epochs = table['epoch'].tolist()
    if tested is not None and epochs != tested:
        return f'{path} is damaged: it should hold {len(tested)} tested epochs'
    if epochs[-1] != num_epochs:
        return f'{path} does not end with epoch {num_epochs}'
    return None

"""Rolling checkpoints: a folder with one file per part of the model.

    results/<run>_checkpoint/epoch_0003_batch_000120/
        {state,trunk,head_000,head_001,...}.pth

Each process writes the heads that it trains, and any number of processes can read them.
The folder is written under a temporary name and moved. The last two are kept.
"""

import os
import re
import shutil

import torch

from areir import processes
from areir.files import WriteError, load_tensors, remove_leftovers, temporary_name


def list_checkpoints(root):
    """Return the checkpoints below root, the newest first."""
    names = os.listdir(root) if os.path.isdir(root) else []
    names = [name for name in names if re.fullmatch(r'epoch_\d{4}_batch_\d{6,}', name)]
    return [os.path.join(root, name) for name in sorted(names, reverse=True)]


def write(root, epoch, batch, files):
    """Write {name: value} of every process into one checkpoint; return its folder.

    All processes call it together. Leftovers of an interrupted write and all but one
    of the older checkpoints are removed first. Raises OSError in every process if one
    of them cannot write; the older checkpoint is then still there.
    """
    folder = os.path.join(root, f'epoch_{epoch:04d}_batch_{batch:06d}')
    if processes.any_process(os.path.isdir(folder)):
        return folder
    first = processes.is_first()
    temporary = processes.from_first(temporary_name(folder) if first else None)
    try:
        together(make_room, root, temporary) if first else together()
        together(write_files, temporary, files)
        together(os.replace, temporary, folder) if first else together()
    except (OSError, RuntimeError) as error:
        if isinstance(error, ConnectionError):
            raise
        raise WriteError(folder, error) from error
    finally:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def together(function=None, *arguments):
    """Call a function, or none, and wait for the others.

    Raises what it raises, and OSError if another process has failed.
    """
    problem = None
    try:
        if function:
            function(*arguments)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        problem = error
    if processes.any_process(problem):
        raise problem or OSError('in another process')


def make_room(root, temporary):
    """Remove leftovers and all but the newest checkpoint; make the new folder."""
    os.makedirs(root, exist_ok=True)
    remove_leftovers(root, older_than=0)
    for older in list_checkpoints(root)[1:]:
        shutil.rmtree(older)
    os.makedirs(temporary)


def write_files(folder, files):
    """torch.save each of {name: value} as folder/<name>.pth."""
    for name, value in files.items():
        torch.save(value, os.path.join(folder, f'{name}.pth'))


def read_part(folder, name):
    """Load one file of a checkpoint. Raises UserError if it is missing or damaged."""
    return load_tensors(os.path.join(folder, f'{name}.pth'))


def part_names(ensemble_size):
    """Return {prefix of the model's weights: name of the checkpoint's file}."""
    heads = {f'heads.{head}.': f'head_{head:03d}' for head in range(ensemble_size)}
    return {'trunk.': 'trunk', **heads}


def model_weights(folder, ensemble_size):
    """Return the whole model's state dict, mapped from a checkpoint's files."""
    state_dict = {}
    for prefix, name in part_names(ensemble_size).items():
        saved = load_tensors(os.path.join(folder, f'{name}.pth'), mmap=True)
        for key, value in saved['weights'].items():
            state_dict[prefix + key] = value
    return state_dict

"""Rolling checkpoints: a folder with one file per part of the model.

    results/<run>_checkpoint/epoch_0003_batch_000120/
        {state,trunk,head_000,head_001,...}.pth

Each process writes the heads that it trains, and a run may be resumed by another number
of processes. The folder is written under a temporary name and then moved. The last two
checkpoints are kept.
"""

import contextlib
import os
import re
import shutil

from areir import processes
from areir.files import (
    WriteError,
    load_own,
    remove_leftovers,
    save_tensors,
    temporary_name,
)

PART = 'weights', 'optimizer', 'criterion'  # in the file of the trunk or of a head


def list_checkpoints(root):
    """Return the checkpoints below root, the newest first."""
    names = os.listdir(root) if os.path.isdir(root) else []
    names = [name for name in names if re.fullmatch(r'epoch_\d{4}_batch_\d{6,}', name)]
    return [os.path.join(root, name) for name in sorted(names, reverse=True)]


def write(root, epoch, batch, files):
    """Write the files {name: dict} of all processes as a checkpoint; return its folder.

    It first removes all but the newest checkpoint. If a process cannot write, OSError
    is raised in all of them, and the newest checkpoint remains.
    """
    folder = os.path.join(root, f'epoch_{epoch:04d}_batch_{batch:06d}')
    if processes.any_process(os.path.isdir(folder)):
        return folder
    temporary = processes.from_first(temporary_name(folder))
    first = processes.is_first()
    try:
        with together():
            if first:
                os.makedirs(root, exist_ok=True)
                remove_leftovers(root, older_than=0)
                for older in list_checkpoints(root)[1:]:
                    shutil.rmtree(older)
                os.makedirs(temporary)
        with together():
            for name, content in files.items():
                save_tensors(content, os.path.join(temporary, f'{name}.pth'))
        with together():
            if first:
                os.replace(temporary, folder)
    except ConnectionError:
        raise
    except (OSError, RuntimeError) as error:
        raise WriteError(folder, error) from error
    finally:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextlib.contextmanager
def together():
    """Wait for all processes at the end of the block.

    If it fails in one of them, all raise: that one its error, the others OSError.
    """
    problem = None
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        problem = error
    if processes.any_process(problem):
        raise problem or OSError('in another process')


def read(folder, name, needed=PART, mmap=False):
    """Return the dict in folder/<name>.pth. Raises UserError naming a damaged file."""
    path = os.path.join(folder, f'{name}.pth')
    return load_own(path, needed, 'start the run again', mmap=mmap)


def head_name(head):
    """Return the name of a head's file, from the head's number in the ensemble."""
    return f'head_{head:03d}'


def model_weights(folder, ensemble_size):
    """Return the whole model's state dict, mapped from a checkpoint's files."""
    names = {'trunk': 'trunk'}
    names |= {head_name(head): f'heads.{head}' for head in range(ensemble_size)}
    return {
        f'{prefix}.{key}': value
        for name, prefix in names.items()
        for key, value in read(folder, name, mmap=True)['weights'].items()
    }

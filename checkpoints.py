"""Rolling checkpoints: a folder of one file per part of the model, written beside the last one and moved.

    results/<run>_checkpoint/epoch_0003_batch_000120/{state,trunk,head_000,head_001,...}.pth

Each process writes the heads that it has, and any number of processes can read them again. The last two stand.
"""
import os
import re
import shutil

import torch

import utils


def found(root):
    """The checkpoints below root, the newest first."""
    names = os.listdir(root) if os.path.isdir(root) else []
    return [os.path.join(root, name) for name in sorted(names, reverse=True)
            if re.fullmatch(r'epoch_\d{4}_batch_\d{6,}', name)]


def write(root, epoch, batch, files, first):
    """Write {name: value} of every process into one checkpoint, and return its folder. All call it together;
    `first` is true in one of them. What an interrupted write left is removed, and all but one older checkpoint.

    Raises OSError in every process if one cannot write; the older checkpoint stands then.
    """
    folder, partial = os.path.join(root, f'epoch_{epoch:04d}_batch_{batch:06d}'), os.path.join(root, 'partial')
    if utils.anywhere(os.path.isdir(folder)):
        return folder
    problem = None
    if first:
        try:
            shutil.rmtree(partial, ignore_errors=True)
            for older in found(root)[1:]:
                shutil.rmtree(older)
            os.makedirs(partial)
        except OSError as error:
            problem = error
    if not utils.anywhere(problem):
        try:
            for name, value in files.items():
                torch.save(value, os.path.join(partial, name))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            problem = error
        if not utils.anywhere(problem):
            if first:
                os.replace(partial, folder)
            utils.anywhere(False)  # nobody goes on before it stands
            return folder
    if first:
        shutil.rmtree(partial, ignore_errors=True)
    reason = str(problem).splitlines()[0] if problem else 'in another process'
    raise OSError(f'{folder} cannot be written, is the disk full? ({reason})')


def read_part(folder, name):
    """One file of a checkpoint. Raises ValueError if it is missing or damaged."""
    return utils.load(os.path.join(folder, f'{name}.pth'))


def weights(folder, ensemble_size):
    """The state dict of the whole model, mapped from the files of a checkpoint, not held in memory."""
    parts = {'trunk.': 'trunk', **{f'heads.{head}.': f'head_{head:03d}' for head in range(ensemble_size)}}
    return {prefix + key: value for prefix, name in parts.items() for key, value in torch.load(
        os.path.join(folder, f'{name}.pth'), map_location='cpu', weights_only=True, mmap=True)['weights'].items()}

"""Rolling checkpoints: a folder with one file per part of the model.

    results/<run>_checkpoint/epoch_0003_batch_000120/
        {state,trunk,head_000,head_001,...}.pth

Each process writes the heads that it trains, and a run may be resumed by another number
of processes. The folder is written under a temporary name and then moved. The last two
checkpoints are kept.
"""

import os
import re
import shutil

from areir import processes
from areir.errors import UserError
from areir.files import (
    WriteError,
    load_tensors,
    remove_leftovers,
    save_tensors,
    temporary_name,
)
from areir.schemas import (
    find_problem,
    is_count,
    is_dict,
    is_list,
    is_natural,
    is_number,
    is_text,
)

# the fields of an EpochProgress
DONE = {'batches', 'loss', 'accuracy', 'seconds', 'waited'}


def is_done(value):
    """Whether a value is a dict of the numbers of an EpochProgress."""
    has_fields = is_dict(value) and value.keys() == DONE
    return has_fields and all(map(is_number, value.values()))


def is_row(value):
    """Whether a value is a row of a run's CSV."""
    return is_dict(value) and is_natural(value.get('epoch'))


# the schemas of state.pth, and of the files of trunk and heads
STATE = {
    'settings': lambda value: is_dict(value) and 'split_sha256' in value,
    'epoch': is_count,
    'done': is_done,
    'rows': lambda value: is_list(value, is_row),
    'best': is_number,
    'kept': is_text,
}
OPTIONAL = {'seconds': is_number}  # older files lack it
PART = dict.fromkeys(('weights', 'optimizer', 'criterion'), is_dict)


def list_checkpoints(root):
    """Return the checkpoints below root, the newest first."""
    names = os.listdir(root) if os.path.isdir(root) else []
    names = [name for name in names if re.fullmatch(r'epoch_\d{4}_batch_\d{6,}', name)]
    return [os.path.join(root, name) for name in sorted(names, reverse=True)]


def write(root, epoch, batch, files):
    """Write the files {name: dict} of all processes as a checkpoint; return its folder.

    All processes call this together. It first removes leftovers of interrupted writes
    and all but the newest checkpoint. If a process cannot write, OSError is raised in
    all of them, and the newest checkpoint remains.
    """
    folder = os.path.join(root, f'epoch_{epoch:04d}_batch_{batch:06d}')
    if processes.any_process(os.path.isdir(folder)):
        return folder
    temporary = processes.from_first(temporary_name(folder))
    try:
        in_first(make_room, root, temporary)
        in_each(write_files, temporary, os.path.basename(folder), files)
        in_first(os.replace, temporary, folder)
    except (OSError, RuntimeError) as error:
        if isinstance(error, ConnectionError):
            raise
        raise WriteError(folder, error) from error
    finally:
        if processes.is_first():
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def in_first(function, *arguments):
    """Call a function in rank 0 only; the others wait. Raises as `in_each` does."""
    in_each(function if processes.is_first() else lambda *_: None, *arguments)


def in_each(function, *arguments):
    """Call a function in every process, and wait until all have done so.

    Raises the function's own error, or OSError if it has failed in another process.
    """
    problem = None
    try:
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


def write_files(folder, final, files):
    """Save each of {name: dict} as folder/<name>.pth.

    final: the name that the folder will have. Each file holds its own name.
    """
    for name, value in files.items():
        value = value | {'file': f'{final}/{name}'}
        save_tensors(value, os.path.join(folder, f'{name}.pth'))


def remove_damaged(folders):
    """Remove checkpoints that cannot be read; all processes call this together.

    `write` would skip a new checkpoint whose folder is already there.
    """
    processes.wait_for_all()  # until all have tried to read them
    if processes.is_first():
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    processes.wait_for_all()


# Checked reads: callers may use the contents without further checks


def place_of(folder):
    """Return (epoch, batches done in it) of a checkpoint, from its name."""
    _, epoch, _, batch = os.path.basename(folder).split('_')
    return int(epoch), int(batch)


def read_file(folder, name):
    """Load folder/<name>.pth; return (path, content).

    Raises UserError if the file is missing, damaged, or a copy of another one.
    """
    path = os.path.join(folder, f'{name}.pth')
    content = load_tensors(path)
    if not isinstance(content, dict):
        raise UserError(f'{path} is damaged: it has no fields')
    own = f'{os.path.basename(folder)}/{name}'
    written = content.pop('file', own)  # older files do not hold it
    if written != own:
        raise UserError(f'{path} is damaged: it was written as {written}.pth')
    return path, content


def read_part(folder, name):
    """Load the weights and the optimizer of one part of the model.

    Raises UserError as `read_file` does.
    """
    path, part = read_file(folder, name)
    problem = find_problem(part, PART)
    if problem:
        raise UserError(f'{path} is damaged: {problem}')
    return part


def read_state(folder):
    """Load the progress and the settings of a run, as `Progress.to_state` gives them.

    Raises UserError as `read_file` does.
    """
    path, state = read_file(folder, 'state')
    problem = state_problem(state, *place_of(folder))
    if problem:
        raise UserError(f'{path} is damaged: {problem}')
    return state


def state_problem(state, epoch, batches):
    """Return what is wrong with the state of a checkpoint, or None."""
    problem = find_problem(state, STATE, OPTIONAL)
    if problem:
        return problem
    if (state['epoch'], state['done']['batches']) != (epoch, batches):
        return 'it is of another epoch or batch than its folder'
    if epoch > state['settings'].get('num_epochs', epoch):
        return f'the run has no epoch {epoch}'
    if any(row['epoch'] > epoch for row in state['rows']):
        return f'rows are of epochs after {epoch}'
    return None


def head_name(head):
    """Return the name of a head's file, from the head's number in the ensemble."""
    return f'head_{head:03d}'


def part_names(ensemble_size):
    """Return {prefix of weight names in the model: name of the checkpoint's file}."""
    heads = {f'heads.{head}.': head_name(head) for head in range(ensemble_size)}
    return {'trunk.': 'trunk', **heads}


def model_weights(folder, ensemble_size):
    """Return the whole model's state dict, mapped from a checkpoint's files."""
    state_dict = {}
    for prefix, name in part_names(ensemble_size).items():
        saved = load_tensors(os.path.join(folder, f'{name}.pth'), mmap=True)
        for key, value in saved['weights'].items():
            state_dict[prefix + key] = value
    return state_dict

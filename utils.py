"""Small helpers of both scripts: one-line errors, devices, the processes of torchrun, files whole or absent."""
import argparse
import atexit
import contextlib
import ctypes
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import timedelta

import torch
from torch import distributed


def end_workers():
    """End the loaders' processes: they leave SIGTERM to this one, which at its exit would wait for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()


def run(main):
    """Call main(); what it refuses becomes one line on stderr and exit code 2, an interruption one line and 130.

    Of several processes the first one speaks, and another only where it alone fails.
    """
    script = os.path.basename(sys.argv[0])
    others = int(os.environ.get('RANK', 0)) > 0
    held = io.StringIO()
    atexit.register(end_workers)
    try:
        with contextlib.redirect_stderr(held) if others else contextlib.nullcontext():
            main()
        return
    except (ValueError, OSError) as error:
        # an error from a loader's worker process carries that process's traceback: its last line says it
        text = str(error).strip()
        if 'Original Traceback' in text:
            text = text.split('\n')[-1].partition(': ')[2]
        line, code = f'{script}: error: {text}', 2
    except torch.OutOfMemoryError:
        line, code = (f'{script}: error: the GPU has not enough memory: take a smaller --batch_size, or divide the '
                      'heads among more GPUs with torchrun'), 2
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        line, code = f'{script}: error: a process that decodes images was killed; out of memory? ({error})', 2
    except KeyboardInterrupt as error:
        line, code = f'{script}: interrupted; {error or "what was finished before is in place"}', 130
    except SystemExit as error:  # argparse has written its line
        line, code = held.getvalue().strip(), error.code
    if others:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(3)  # torchrun ends this process meanwhile if the first one failed too
    if line:
        print(line, file=sys.stderr)
    sys.exit(code)


def positive(text):
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} is below 1')
    return value


def integers(text):
    """argparse type: '1,2,4' as [1, 2, 4], each once."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(',') if part.strip()))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of integers such as 1,2,4') from None


def choose_devices(gpu_ids):
    """(device, GPU ids in use) from the ids asked for; without one of them the CPU, with a notice.

    Of several processes on a machine each takes one GPU: that of its place in gpu_ids, if these suffice.
    Raises ValueError if there are GPUs, but not one for each.
    """
    count, processes = torch.cuda.device_count(), int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    if count and processes > 1:
        gpus = gpu_ids if len(gpu_ids) >= processes else list(range(processes))
        if max(gpus[:processes]) >= count:
            raise ValueError(f'torchrun started {processes} processes here, and there are {count} GPUs: one each is '
                             'needed (CUDA_VISIBLE_DEVICES= hides them all)')
        gpu_ids = [gpus[int(os.environ['LOCAL_RANK'])]]
    present = [gpu for gpu in gpu_ids if 0 <= gpu < count]
    if present != gpu_ids:
        print(f'notice: --gpu_ids {",".join(map(str, gpu_ids))}: {count} GPUs here, '
              f'running on {"GPU " + ",".join(map(str, present)) if present else "the CPU"}')
    return torch.device('cuda', present[0]) if present else torch.device('cpu'), present


def has_native_bf16(device):
    """Whether bfloat16 arithmetic is in the hardware, not emulated."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ('avx512_bf16', 'amx_bf16', 'bf16'))


def keep_freed_memory():
    """Tell glibc to keep freed memory for the next step instead of returning it: page faults cost a training step
    on a CPU up to a third. Does nothing where there is no glibc."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL('libc.so.6').mallopt
        for parameter, value in ((-4, 0), (-1, 2 ** 31 - 1), (-2, 2 ** 26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(parameter, value)


def note_signals():
    """A list that SIGTERM and Ctrl-C put their number into, so that who looks at it can end in good order."""
    stop = []

    def note(number, frame):
        if not stop and is_first():
            os.write(2, b'\nstopping after this batch, a checkpoint is written first\n')
        stop.append(number)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return stop


# The processes of torchrun


def join_processes(cores):
    """(rank, number of processes) as torchrun gives them, connected: nccl between GPUs, gloo between CPUs.

    (0, 1) without torchrun. Only the first process keeps its stdout.
    """
    world = int(os.environ.get('WORLD_SIZE', 1))
    if world == 1:
        return 0, 1
    rank, local = int(os.environ['RANK']), int(os.environ['LOCAL_WORLD_SIZE'])
    if rank:
        sys.stdout = open(os.devnull, 'w')
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']) % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, cores // local))  # torchrun says 1
    # the others wait while the first evaluates; one that dies is noticed at once, whatever the timeout
    distributed.init_process_group('cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo',
                                   timeout=timedelta(hours=4))
    return rank, world


@contextlib.contextmanager
def exchange():
    """What fails inside is another process's fault."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError('another process of this run has ended, its message says why; the same command '
                              'goes on from what was saved, that of train.py with --resume') from error


def own_place():
    """(rank, number of processes) of this process."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def is_first():
    """Whether this is the process that speaks and writes."""
    return own_place()[0] == 0


def leave_processes():
    """Wait for all others and disconnect."""
    if distributed.is_initialized():
        anywhere(False)
        distributed.destroy_process_group()


def add_up(tensor):
    """Sum a tensor over all processes, in place, and return it."""
    if distributed.is_initialized():
        with exchange():
            distributed.all_reduce(tensor)
    return tensor


def gather(tensor):
    """[tensor of process 0, of process 1, ...], all of one shape."""
    if not distributed.is_initialized():
        return [tensor]
    found = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    with exchange():
        distributed.all_gather(found, tensor)
    return found


def gather_values(value):
    """[value of process 0, of process 1, ...], plain Python."""
    if not distributed.is_initialized():
        return [value]
    found = [None] * distributed.get_world_size()
    with exchange():
        distributed.all_gather_object(found, value)
    return found


def from_first(value):
    """The value that the first process has, plain Python; all wait for it here."""
    if not distributed.is_initialized():
        return value
    values = [value]
    with exchange():
        distributed.broadcast_object_list(values)
    return values[0]


def anywhere(condition):
    """Whether it is true in any process; all wait for each other here."""
    return bool(add_up(torch.tensor(float(bool(condition)))))


# Files


def check_folder(folder):
    """Make a folder. Raises OSError if it cannot be written, or if it is not one and the same for all processes."""
    if is_first():
        os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) if is_first() else contextlib.nullcontext() as probe:
        if anywhere(not os.path.isdir(os.path.join(folder, from_first(os.path.basename(probe or ''))))):
            raise OSError(f'{folder} is not one folder for all processes: the nodes must share it')


def save(files):
    """torch.save each {path: value} under a temporary name, then move all: what stands under `path` is whole.

    Raises OSError naming the file that cannot be written.
    """
    for path, value in files.items():
        try:
            torch.save(value, path + '.part')
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            for left in files:
                if os.path.isfile(left + '.part'):
                    os.remove(left + '.part')
            raise OSError(f'{path} cannot be written, is the disk full? ({str(error).splitlines()[0]})') from error
    for path in files:
        os.replace(path + '.part', path)


def save_text(text, path):
    try:
        # file names need not be UTF-8, and are written as they are
        with open(path + '.part', 'w', encoding='utf-8', errors='surrogateescape', newline='') as file:
            file.write(text)
        os.replace(path + '.part', path)
    except OSError as error:
        if os.path.isfile(path + '.part'):
            os.remove(path + '.part')
        raise OSError(f'{path} cannot be written: {error.strerror}') from error


def save_json(value, path):
    save_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', path)


def load(path):
    """torch.load of plain tensors and containers, on the CPU; nothing in the file is executed.

    Raises ValueError naming the file if it is missing, damaged or holds anything else.
    """
    if not os.path.isfile(path):
        raise ValueError(f'{path}: no such file')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch warns of some files before it refuses them
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f'{path} is damaged or not a file of tensors ({type(error).__name__})') from error


def git_commit():
    """The commit of this code, with '+changes' if it was edited since; None outside a git checkout."""
    def git(*command):
        return subprocess.run(['git', '-C', os.path.dirname(os.path.abspath(__file__)), *command],
                              capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git('rev-parse', 'HEAD') + ('+changes' if git('status', '--porcelain', '--untracked-files=no') else '')
    except (OSError, subprocess.CalledProcessError):
        return None

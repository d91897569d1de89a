"""What this machine computes on: cores, GPUs, precision, and who shares them."""

import contextlib
import ctypes
import os
from typing import NamedTuple

import joblib
import torch

from areir.errors import UserError

FILES_IN_USE = 40  # by all but the workers of loaders, at most
M_MMAP_MAX, M_TOP_PAD, M_TRIM_THRESHOLD = -4, -2, -1  # of glibc's mallopt


def available_cores():
    """Return the cores that this process may use, a container's share of its host."""
    return joblib.cpu_count()


def limit_threads():
    """Compute with no more threads than there are cores for each process.

    More would wait for each other: torch sees the host's cores, not a container's.
    """
    processes = local_processes()
    cores = max(1, available_cores() // processes)
    if processes == 1:  # torchrun sets one thread for each of several
        cores = min(cores, torch.get_num_threads())
    torch.set_num_threads(cores)


def most_workers(loaders=1):
    """Return how many worker processes each of several loaders may have.

    A process may open a limited number of files (ulimit -n), and each worker takes 3.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 2**16
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 2**16
    return max(0, limit - FILES_IN_USE) // (3 * loaders)


def cpu_has_any(*instructions):
    """Whether the CPU has one of these instructions, named as torch names them."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in instructions)


def local_processes():
    """Return how many processes torchrun started on this machine."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', 1))


def check_device(kind):
    """Raise UserError if --device names a kind that is not here, or not usable."""
    if kind not in ('auto', 'cpu', 'cuda', 'mps'):
        raise UserError(f'device {kind}: choose auto, cpu, cuda or mps')
    present = {'cuda': torch.cuda.is_available, 'mps': torch.backends.mps.is_available}
    if kind in present and not present[kind]():
        raise UserError(
            f'--device {kind}: torch finds none on this machine; choose auto or cpu'
        )
    if kind == 'mps' and int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise UserError('--device mps: takes one process; start it without torchrun')


def local_device(kind='auto'):
    """Return the device of --device; for auto this process's GPU, else the CPU."""
    if kind in ('cpu', 'mps') or not torch.cuda.is_available():
        return torch.device('mps' if kind == 'mps' else 'cpu')
    local_rank = int(os.environ.get('LOCAL_RANK', 0))
    return torch.device('cuda', local_rank % torch.cuda.device_count())


class Hardware(NamedTuple):
    """What training runs on, and in which precision."""

    device: torch.device
    gpus: list  # their ids; empty on the CPU
    precision: str  # fp32 or bf16
    native_bf16: bool

    @property
    def name(self):
        """The GPU's name, or the number of the CPU's threads."""
        if self.gpus:
            return torch.cuda.get_device_name(self.device)
        if self.device.type == 'mps':
            return 'Apple GPU (mps)'
        return f'CPU, {torch.get_num_threads()} threads'

    @property
    def exact_device(self):
        """Where metrics are computed: in float64, which mps lacks."""
        return torch.device('cpu') if self.device.type == 'mps' else self.device


def choose_hardware(gpu_ids, precision, depthwise=False, kind='auto'):
    """Return the Hardware for --gpu_ids, --precision and --device, which is `kind`.

    depthwise: whether the network convolves each channel by itself, which CPUs train
    faster in fp32.
    """
    device, gpus = choose_devices(gpu_ids, kind)
    native = has_native_bf16(device)
    if precision == 'auto':
        slower = depthwise and device.type == 'cpu'
        precision = 'bf16' if native and not slower else 'fp32'
    if len(gpus) > 1:
        print(
            f'notice: nn.DataParallel copies every head to {len(gpus)} GPUs in every '
            f'step; torchrun --nproc_per_node {len(gpus)} train.py ... divides the '
            'heads instead, which is faster and takes less memory'
        )
    return Hardware(device, gpus, precision, native)


def choose_devices(gpu_ids, kind='auto'):
    """Return (device, ids of the GPUs in use).

    If gpu_ids are missing here, print a notice and use the others, or else the CPU.
    Several processes on a machine take one GPU each, in the order of gpu_ids if it has
    enough. kind: of --device. Raises UserError if there are GPUs, but not one for each
    process, or if --device cuda is left with none.
    """
    if kind in ('cpu', 'mps'):
        return torch.device(kind), []
    count, processes = torch.cuda.device_count(), local_processes()
    if count and processes > 1:
        gpus = gpu_ids if len(gpu_ids) >= processes else list(range(processes))
        if max(gpus[:processes]) >= count:
            raise UserError(
                f'torchrun started {processes} processes here, but there are {count} '
                'GPUs and each process needs one (CUDA_VISIBLE_DEVICES= hides them all)'
            )
        gpu_ids = [gpus[int(os.environ['LOCAL_RANK'])]]
    present = [gpu for gpu in gpu_ids if 0 <= gpu < count]
    if present != gpu_ids:
        asked = ','.join(map(str, gpu_ids))
        if kind == 'cuda' and not present:
            raise UserError(f'--gpu_ids {asked}: of the {count} GPUs here, name one')
        used = 'GPU ' + ','.join(map(str, present)) if present else 'the CPU'
        print(f'notice: --gpu_ids {asked}: {count} GPUs here, running on {used}')
    device = torch.device('cuda', present[0]) if present else torch.device('cpu')
    return device, present


def has_native_bf16(device):
    """Whether the hardware computes in bfloat16 instead of emulating it."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == 'cpu' and cpu_has_any('avx512_bf16', 'amx_bf16', 'bf16')


def memory_format(device):
    """Return the layout of images and kernels with which a device convolves.

    On mps, gradients of batch norm are wrong with channels last:
    https://github.com/pytorch/pytorch/issues/175189
    """
    return torch.contiguous_format if device.type == 'mps' else torch.channels_last


def keep_freed_memory():
    """Tell glibc to keep freed memory for the next step instead of returning it.

    Page faults cost a training step on a CPU up to a third of its time. Does nothing
    where there is no glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL('libc.so.6').mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**26)

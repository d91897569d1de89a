"""Small helpers of both scripts: device and precision, files that are whole or absent, one-line errors."""
import argparse
import json
import os
import subprocess
import sys
import warnings

import torch


def run(main):
    """Call main(); what it refuses becomes one line on stderr and exit code 2, Ctrl-C one line and 130."""
    script = os.path.basename(sys.argv[0])
    try:
        main()
    except (ValueError, OSError) as error:
        # an error from a loader's worker process carries that process's traceback: its last line says it
        text = str(error).strip()
        if 'Original Traceback' in text:
            text = text.split('\n')[-1].partition(': ')[2]
        print(f'{script}: error: {text}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f'{script}: interrupted; what was finished before is in place', file=sys.stderr)
        sys.exit(130)


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
    """(device, GPU ids in use) from the ids asked for; without one of them the CPU, with a notice."""
    present = [gpu for gpu in gpu_ids if 0 <= gpu < torch.cuda.device_count()]
    if present != gpu_ids:
        print(f'notice: --gpu_ids {",".join(map(str, gpu_ids))}: {torch.cuda.device_count()} GPUs here, '
              f'running on {"GPU " + ",".join(map(str, present)) if present else "the CPU"}')
    return torch.device('cuda', present[0]) if present else torch.device('cpu'), present


def has_native_bf16(device):
    """Whether bfloat16 arithmetic is in the hardware, not emulated."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ('avx512_bf16', 'amx_bf16', 'bf16'))


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
    with open(path + '.part', 'w', encoding='utf-8', newline='') as file:
        file.write(text)
    os.replace(path + '.part', path)


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

"""What the benchmarks share: measurements in processes of their own, and the machine.

Import this module first: it puts the repository on sys.path.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time

import torch

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if REPOSITORY not in sys.path:
    sys.path.insert(0, REPOSITORY)
from areir.data.loading import embed_files
from areir.errors import UserError

TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node')


# Measurements


def measure_apart(script, flags, processes=1):
    """Run a benchmark in a process of its own and return what it prints, as a dict.

    The last line of its output must be JSON. processes: more than 1 start it with
    torchrun. Raises UserError with the last line of its errors if it fails.
    """
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, script, *map(str, flags)]
    # keep the text of every error, as a last line that can be shown
    environment = {**os.environ, 'AREIR_DEBUG': '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        errors = done.stderr.strip().splitlines()
        raise UserError(
            errors[-1] if errors else f'exit code {done.returncode}, out of memory?'
        )
    return json.loads(done.stdout.splitlines()[-1])


def take_turns(ways, rounds, measure):
    """Return {way: [measure(way) of each round]}; in a round each way has its turn."""
    runs = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            runs[way].append(measure(way))
    return runs


def median(values):
    """Return the median; of an even number of values the upper of the middle two."""
    return sorted(values)[len(values) // 2]


def median_seconds(runs):
    """Return {way: median of its seconds} of what `take_turns` returns."""
    return {
        way: median([result['seconds'] for result in results])
        for way, results in runs.items()
    }


def highest(results, name):
    """Return the highest value of `name` in a list of dicts."""
    return max(result[name] for result in results)


# Arguments


def add_rounds(parser):
    """Add the flag --rounds and the hidden flag --measure, which a child is given."""
    parser.add_argument(
        '--rounds',
        type=int,
        default=3,
        help='number of measurements; their median is printed [default: %(default)s]',
    )
    parser.add_argument('--measure', help=argparse.SUPPRESS)


def flags_of(args, names):
    """Return the flags that pass the values of these names to another process."""
    return [f'--{name}={getattr(args, name)}' for name in names]


def get_run(description):
    """Return the only argument: the run, as the beginning of the names of its files."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        'run', help='for example results/sample_uncropped_resnet18_2_40'
    )
    return parser.parse_args().run


# The machine


def cpu_name():
    """Return the name of the CPU, or of its architecture."""
    with open('/proc/cpuinfo', encoding='utf-8') as file:
        for line in file:
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.machine()


def describe_machine(parallel=None):
    """Return the CPU, `parallel` (by default the number of threads), and torch."""
    parallel = parallel or f'{torch.get_num_threads()} threads'
    return f'{cpu_name()}, {parallel}, torch {torch.__version__}'


def memory(field):
    """Return a field of this process's memory in MB (Linux).

    VmRSS is what it has now, VmHWM its peak; RssAnon and RssFile are the anonymous and
    the mapped part of what it has now.
    """
    with open('/proc/self/status', encoding='ascii') as file:
        for line in file:
            if line.startswith(f'{field}:'):
                return int(line.split()[1]) / 1024
    raise KeyError(field)


def reset_peak():
    """Let the peak of this process's memory begin at what it has now (Linux)."""
    with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
        file.write('5')


class PeakMemory(threading.Thread):
    """Looks at the memory of this process every 5 ms inside a `with` block (Linux).

    peak: {'anonymous': MB, 'file': MB} beyond what there was before.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = {'anonymous': 0, 'file': 0}
        self.running = True

    def read(self):
        return {'anonymous': memory('RssAnon'), 'file': memory('RssFile')}

    def run(self):
        while self.running:
            for name, value in self.read().items():
                beyond = value - self.before[name]
                self.peak[name] = max(self.peak[name], beyond)
            time.sleep(0.005)

    def __enter__(self):
        self.before = self.read()
        self.start()
        return self

    def __exit__(self, *error):
        self.running = False
        self.join()


# Embeddings


def embed_all(paths, embedder):
    """Return the embeddings (N, D) of image files by an Embedder.

    Raises UserError naming a file that cannot be read.
    """
    embeddings = []
    batches = embed_files(paths, embedder.image_size, embedder, 'embedding')
    for _, vectors, problems in batches:
        for index, problem in problems.items():
            raise UserError(f'{paths[index]}: {problem}')
        embeddings.append(vectors)
    return torch.cat(embeddings)

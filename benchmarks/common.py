"""What the benchmarks share: measurements in processes of their own, and the machine.

Import this module first: it puts the repository on sys.path.
"""

import argparse
import os
import platform
import socket
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, set_start_method

import torch

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, REPOSITORY)
from areir.data.loading import embed_files
from areir.errors import UserError

# Measurements


def apart(function, *arguments, processes=1):
    """Call a function in a process of its own; return its result or raise its error.

    processes: more than 1 call it together, connected as by torchrun; the result is
    that of rank 0. A killed process raises a RuntimeError.
    """
    with socket.create_server(('localhost', 0)) as free:
        port = free.getsockname()[1]
    with ProcessPoolExecutor(processes, get_context('spawn')) as pool:
        calls = [
            pool.submit(call_as_rank, rank, processes, port, function, arguments)
            for rank in range(processes)
        ]
        return calls[0].result()


def call_as_rank(rank, processes, port, function, arguments):
    """Call a function where the environment is that of torchrun."""
    set_start_method('fork', force=True)  # of loaders' processes, as usual on Linux
    if processes > 1:
        names = 'RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_PORT'
        values = rank, rank, processes, processes, port
        os.environ.update(zip(names, map(str, values)), MASTER_ADDR='localhost')
    return function(*arguments)


def take_turns(ways, rounds, measure):
    """Return {way: [measure(way) of each round]}; in a round each way has its turn."""
    runs = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            runs[way].append(measure(way))
    return runs


def median_seconds(results):
    """Return the median of the seconds of a list of dicts."""
    return statistics.median(result['seconds'] for result in results)


def highest(results, name):
    """Return the highest value of `name` in a list of dicts."""
    return max(result[name] for result in results)


def print_table(rows):
    """Print {name: {column: text}} with aligned columns; a row may lack some."""
    import pandas as pd  # here, so that no process measures its memory

    table = pd.DataFrame(list(rows.values()), index=list(rows))
    print(table.fillna('').to_string(), flush=True)


def make_parser(description):
    """Return a parser whose help has the defaults."""
    return argparse.ArgumentParser(
        description=description.split('\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


# The machine


def cpu_name():
    """Return the name of the CPU, or of its architecture."""
    with open('/proc/cpuinfo', encoding='utf-8') as file:
        for line in file:
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.machine()


def describe_machine():
    """Return the CPU, the number of threads, and torch's version."""
    return f'{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}'


def memory(field, process='self'):
    """Return a field of a process's memory in MB (Linux); by default this process's.

    VmRSS is what it has now, VmHWM its peak; RssAnon and RssFile are the anonymous and
    the mapped part of what it has now.
    """
    with open(f'/proc/{process}/status', encoding='ascii') as file:
        for line in file:
            if line.startswith(f'{field}:'):
                return int(line.split()[1]) / 1024
    raise KeyError(field)


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
    batches = embed_files(paths, embedder.pixel_format, embedder, 'embedding')
    for _, vectors, problems in batches:
        for index, problem in problems.items():
            raise UserError(f'{paths[index]}: {problem}')
        embeddings.append(vectors)
    return torch.cat(embeddings)

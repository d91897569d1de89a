"""Measure inference.py --serve: answers per second of one client and of several.

    python benchmarks/server.py               # after `make demo`: 1 minute
    python benchmarks/server.py --gallery DIR --queries DIR --model NAME
    python benchmarks/server.py --minutes 10 --clients 16       # a soak

Clients are threads of this process. Each keeps a connection and sends a picture of
--queries to /api/search as soon as it has an answer. One client and --clients take
turns for --rounds; the ratio is the median of those of the rounds.

In a soak a tenth of the uploads are broken: a JPEG that is cut off, text, an empty
file, a picture of 10,000 million pixels, or a connection that is dropped. The memory is
the server's VmRSS. At the end the answers are compared with those that inference.py
writes for the same queries, which must name the same images in the same order.
"""

import csv
import http.client
import io
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict

import common
from PIL import Image

from areir.data.images import list_files
from areir.errors import UserError
from areir.scripts import utils

NEAREST = 8
BROKEN = 10  # of ten uploads of a soak, one is broken
WARM_UP = 30  # seconds of a soak


class Server:
    """inference.py --serve as a process, inside a `with` block."""

    def __init__(self, command):
        self.command = command

    def __enter__(self):
        self.process = subprocess.Popen(
            [*self.command, '--serve', '0'], stdout=subprocess.PIPE, text=True
        )
        for line in self.process.stdout:
            if line.startswith('search page: '):
                self.address = line.split('/')[2]
                return self
        raise UserError('the server has not started')

    def __exit__(self, *error):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def memory(self):
        """Return the resident memory of the process in MB (Linux)."""
        return common.memory('VmRSS', self.process.pid)


class Client:
    """A connection that is kept, and opened again if the server has closed it."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(address, timeout=300)

    def search(self, body):
        """Return (status, answer) of a search with a picture, given as bytes."""
        headers = {'Content-Type': 'image/jpeg'}
        path = f'/api/search?k={NEAREST}'
        try:
            self.connection.request('POST', path, body, headers)
            reply = self.connection.getresponse()
            return reply.status, json.loads(reply.read())
        except OSError:
            self.connection.close()
            raise

    def drop(self, body):
        """Send half of a picture and close the connection."""
        self.connection.putrequest('POST', '/api/search')
        self.connection.putheader('Content-Type', 'image/jpeg')
        self.connection.putheader('Content-Length', len(body))
        self.connection.endheaders(body[: len(body) // 2])
        self.connection.close()


def in_threads(count, function):
    """Call function(number) in threads, and return when all have ended."""
    threads = [threading.Thread(target=function, args=[n]) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Answers per second


def measure(address, pictures, clients, seconds):
    """Return {answers/s, median ms, 95 % ms} of clients that ask at the same time."""
    times = []
    started = time.perf_counter()

    def ask(number):
        client = Client(address)
        own = itertools.cycle(pictures[number::clients])
        while time.perf_counter() < started + seconds:
            before = time.perf_counter()
            status, answer = client.search(next(own))
            if status != 200:
                raise UserError(f'the server answers {status}: {answer["error"]}')
            times.append(time.perf_counter() - before)

    in_threads(clients, ask)
    elapsed = time.perf_counter() - started
    return {
        'answers/s': len(times) / elapsed,
        'median ms': 1000 * statistics.median(times),
        '95 % ms': 1000 * statistics.quantiles(times, n=20)[-1],
    }


def compare(args, address, pictures):
    """Let one client and several take turns, and print what they get."""

    def measure_clients(clients):
        return measure(address, pictures, clients, args.seconds)

    ways = (1, args.clients)
    for clients in ways:
        measure(address, pictures, clients, 2)  # warm up
    runs = common.take_turns(ways, args.rounds, measure_clients)
    common.print_table(
        {
            f'{clients} client{"s" if clients > 1 else ""}': {
                name: f'{statistics.median(run[name] for run in found):.1f}'
                for name in found[0]
            }
            for clients, found in runs.items()
        }
    )
    ratios = [
        many['answers/s'] / one['answers/s']
        for one, many in zip(*(runs[clients] for clients in ways))
    ]
    print(
        f'ratio of answers/s: {statistics.median(ratios):.2f}, in the rounds '
        f'{min(ratios):.2f} to {max(ratios):.2f}'
    )


# A soak


def huge_picture():
    """Return a small PNG whose header says 100,000 x 100,000 pixels."""
    buffer = io.BytesIO()
    Image.new('1', (1, 1)).save(buffer, 'PNG')
    content = bytearray(buffer.getvalue())
    content[16:24] = 2 * (100_000).to_bytes(4)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    return bytes(content)


def soak(args, server, files, pictures):
    """Search for --minutes, print errors and memory; return {file: its answers}."""
    huge, counts, answers = huge_picture(), Counter(), defaultdict(list)
    end = time.perf_counter() + 60 * args.minutes

    def ask(number):
        rng, client = random.Random(number), Client(server.address)
        while time.perf_counter() < end:
            place = rng.randrange(len(files))
            body = pictures[place]
            kind = rng.randrange(5 * BROKEN)
            try:
                if kind == 0:
                    client.drop(body)
                    counts['dropped'] += 1
                    continue
                broken = {1: body[: len(body) // 2], 2: b'text', 3: b'', 4: huge}
                status, answer = client.search(broken.get(kind, body))
            except (OSError, http.client.HTTPException, ValueError) as error:
                counts[f'UNEXPECTED {type(error).__name__}: {error}'] += 1
                continue
            if status != (400 if kind in broken else 200):
                counts[f'UNEXPECTED {status}: {answer}'] += 1
            elif kind in broken:
                counts['refused'] += 1
            else:
                counts['answered'] += 1
                if answer['results'] not in answers[files[place]]:
                    answers[files[place]].append(answer['results'])

    memory = {'at start': server.memory()}
    watch = threading.Thread(target=in_threads, args=[args.clients, ask])
    watch.start()
    while watch.is_alive():
        watch.join(WARM_UP)
        minutes = args.minutes - (end - time.perf_counter()) / 60
        memory[f'{minutes:.1f} min'] = server.memory()
    for name, count in sorted(counts.items()):
        print(f'{count:>8,} {name}')
    print('memory in MB: ' + ', '.join(f'{m:.0f} {name}' for name, m in memory.items()))
    return answers


def compare_answers(args, command, answers):
    """Compare answers with those of the command line, and print how they differ."""
    subprocess.run(
        [*command, '--query_img_name', args.queries, '--retrieval_num', str(NEAREST)],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    name = f'{os.path.basename(os.path.abspath(args.queries))}_answers'
    rows = defaultdict(list)
    with open(f'{args.results_root}/{name}/retrieved.csv', encoding='utf-8') as file:
        for row in csv.DictReader(file):
            rows[row['query']].append(row)
    others, largest = 0, 0.0
    for file, found in answers.items():
        for results in found:
            others += [row['path'] for row in rows[file]] != [
                r['path'] for r in results
            ]
            pairs = zip(rows[file], results)
            gaps = [abs(float(row['score']) - r['score']) for row, r in pairs]
            largest = max(largest, *gaps)
    print(
        f'{len(answers):,} pictures answered in {sum(map(len, answers.values())):,} '
        f'ways; {others:,} name other images than the command line; the scores differ '
        f'by at most {largest:.1e}'
    )


def get_args():
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add('--gallery', default='data/sample/train', help='folder to search')
    add('--queries', default='data/sample/test', help='folder of the pictures to send')
    add('--model', default='sample_uncropped_resnet18_1_40_model.pth')
    add('--results_root', default='results', help='of the index')
    add('--clients', type=int, default=8, help='that ask at the same time')
    add('--rounds', type=int, default=5)
    add('--seconds', type=float, default=5, help='of each measurement')
    add('--minutes', type=float, default=0, help='of a soak, instead')
    return parser.parse_args()


def main():
    args = get_args()
    command = [sys.executable, os.path.join(common.REPOSITORY, 'inference.py')]
    for flag in ('gallery', 'model', 'results_root'):
        command += [f'--{flag}', getattr(args, flag)]
    files = list_files(args.queries)
    pictures = []
    for name in files:
        with open(os.path.join(args.queries, name), 'rb') as file:
            pictures.append(file.read())
    print(common.describe_machine())
    with Server(command) as server:
        if not args.minutes:
            compare(args, server.address, pictures)
            return
        answers = soak(args, server, files, pictures)
    compare_answers(args, command, answers)


if __name__ == '__main__':
    utils.run_script(main)

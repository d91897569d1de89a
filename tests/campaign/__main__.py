"""Run the campaign from the command line: plan, report failures, print the table."""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
import torch
from slim import use_slim_backbone
from tqdm import tqdm

from campaign.cases import DamageCases
from campaign.events import EventCases, can_mount
from campaign.verdicts import GOOD, OUTCOMES
from campaign.world import World

# cases of an event, per damaged file
EVENTS = {'killed': 0.1, 'full disk': 0.05, 'at once': 0.03}


def get_args():
    parser = argparse.ArgumentParser(prog='campaign', description=__doc__)
    add = parser.add_argument
    add('--seed', type=int, default=0)
    add('--cases', type=int, default=500, help='damaged files; events in proportion')
    add('--only', default='', metavar='KIND', help='only kinds with this in the name')
    add('--case', type=int, help='try this case alone, and print its output')
    return parser.parse_args()


def main():
    args = get_args()
    # children fork and may be killed: no threads, no shared locks
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())
    use_slim_backbone()
    started, tried = time.perf_counter(), []
    # no TemporaryDirectory, which a forked child would remove when it exits
    base = Path(tempfile.mkdtemp(prefix='campaign_'))
    try:
        for _, run, numbers in plan(args, World(base)):
            for number in numbers:
                tried.append(run(number))
                report(tried[-1], args)
    finally:
        shutil.rmtree(base)
    print_table(tried)
    print(f'{len(tried):,} cases in {time.perf_counter() - started:.0f} s')
    return int(any(case.outcome not in GOOD for case in tried))


def plan(args, world):
    """Return [(kind, function that tries a case by its number, the numbers to try)]."""
    damaged = DamageCases(world, args.seed, args.only)
    events = EventCases(world, args.seed)
    kinds = {'killed': events.kill, 'full disk': events.fill, 'at once': events.pair}
    if not can_mount(world.base):
        print('full disk: skipped, because this process may not mount a disk')
        del kinds['full disk']
    found = [
        (kind, run, range(int(args.cases * EVENTS[kind])))
        for kind, run in kinds.items()
        if args.only in kind
    ]
    if damaged.targets:
        found.insert(0, ('damage', damaged.run, range(args.cases)))
    if args.case is not None:
        found = [(kind, run, [args.case]) for kind, run, _ in found[:1]]
    return found


def report(case, args):
    """Print a case that failed, or the only one, and its output."""
    if args.case is not None or case.outcome not in GOOD:
        print(f'{case.outcome}: {case.kind} {case.number}: {case.what}')
        print(*case.words)
        print(case.text)


def print_table(tried):
    """Print how often each kind had each outcome."""
    counts = Counter((case.kind, case.outcome) for case in tried)
    counts.update(('all', case.outcome) for case in tried)
    print(f'{"":<34}' + ''.join(f'{outcome:>15}' for outcome in OUTCOMES))
    for kind in [*sorted({case.kind for case in tried}), 'all']:
        numbers = [counts[kind, outcome] or '-' for outcome in OUTCOMES]
        print(f'{kind:<34}' + ''.join(f'{number:>15}' for number in numbers))


if __name__ == '__main__':
    sys.exit(main())

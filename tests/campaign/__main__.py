"""The command line of the campaign, its table, and what it keeps of failures."""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
import torch
from campaign.cases import DamageCases, attempt
from campaign.verdicts import GOOD, OUTCOMES
from campaign.world import World

import model
from slim import build_backbone


def get_args():
    parser = argparse.ArgumentParser(prog='campaign', description=__doc__)
    add = parser.add_argument
    add('--seed', type=int, default=0)
    add('--cases', type=int, default=2000, help='damaged files')
    add('--only', default='', metavar='KIND', help='only kinds with this in the name')
    add('--case', type=int, help='try this damage case alone, and print its output')
    add('--keep', default='campaign_failures', help='folder for what failed')
    return parser.parse_args()


def main():
    args = get_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    model.build_backbone = build_backbone
    started = time.perf_counter()
    base = Path(tempfile.mkdtemp(prefix='campaign_'))  # its children must not remove it
    try:
        tried = run(args, base)
    finally:
        shutil.rmtree(base)
    print_table(tried)
    print(f'{len(tried):,} cases in {time.perf_counter() - started:.0f} s')
    return int(any(case.outcome not in GOOD for case in tried))


def run(args, base):
    cases = DamageCases(World(base), args.seed, args.only)
    numbers = [args.case] if args.case is not None else range(args.cases)
    tried = []
    for number in numbers:
        case = attempt(cases.run, number, 'damage')
        report(case, args, number)
        tried.append(case)
    return tried


def report(case, args, number):
    """Print a case that failed, and keep its file, command and output."""
    if args.case is not None:
        print(*map(str, case.words), case.text, sep='\n')
    if case.outcome in GOOD:
        return
    print(f'{case.outcome:<14} {case.kind} {case.number}: {case.what}', flush=True)
    print(*case.text.strip().splitlines()[-1:], flush=True)
    name = f'{args.seed}_{case.kind}_{number}'.replace(' ', '_')
    folder = Path(args.keep) / case.outcome.replace(' ', '_') / name
    folder.mkdir(parents=True, exist_ok=True)
    command = ' '.join(map(str, case.words))
    (folder / 'output').write_text(f'{case.what}\n{command}\n{case.text}')
    if case.damaged and case.damaged.exists():
        shutil.copy(case.damaged, folder / 'damaged')


def print_table(tried):
    """Print how often each kind had each outcome."""
    outcomes = [*OUTCOMES, 'error']
    counts = Counter((case.kind, case.outcome) for case in tried)
    kinds = sorted({case.kind for case in tried})
    print(f'{"":<34}' + ''.join(f'{outcome:>15}' for outcome in outcomes))
    for kind in [*kinds, 'all']:
        row = [
            sum(n for (k, o), n in counts.items() if k == kind and o == outcome)
            for outcome in outcomes
        ]
        if kind == 'all':
            row = [sum(case.outcome == outcome for case in tried) for outcome in outcomes]
        print(f'{kind:<34}' + ''.join(f'{number or "-":>15}' for number in row))


if __name__ == '__main__':
    sys.exit(main())

"""Kills at random moments, full disks, and two of everything at once."""

import contextlib
import shutil
import subprocess
import time
from typing import NamedTuple

from campaign.calls import Call, call
from campaign.cases import Case, generator
from campaign.targets import PREPARED, RUN_FILES, below
from campaign.verdicts import CLEAR, NAMELESS, RIGHT, judge, snapshot
from campaign.world import CAR, PLAIN, search

TRAINING = [*PLAIN, '--results_root', 'out']


class Job(NamedTuple):
    """Work that can be interrupted and done again.

    areas: of the world; words, again: of the first call and of the next ones; root: the
    folder that it writes to; outputs: patterns of its result there.
    """

    kind: str
    areas: list
    words: list
    again: list
    root: str
    outputs: list


def jobs():
    index, answer = search('out'), ['out/*/retrieved.csv']
    resume, run = [*TRAINING, '--resume'], below('out', RUN_FILES)
    prepared = below('crops/car', PREPARED)
    return [
        Job('training', ['data'], TRAINING, resume, 'out', run),
        Job('indexing', ['photos', 'results'], index, index, 'out', answer),
        Job('preparation', ['crops'], CAR, CAR, 'crops/car', prepared),
    ]


class EventCases:
    """Tries kills, full disks and pairs in a World."""

    def __init__(self, world, seed):
        self.world, self.seed = world, seed
        self.jobs, self.references = jobs(), {}

    def begin(self, number, event):
        """Lay out the world of a case; return its job, reference and random generator.

        A reference is (result, seconds) of an undisturbed call.
        """
        job = self.jobs[number % len(self.jobs)]
        self.lay_out(job)
        if job.kind not in self.references:
            started = time.monotonic()
            ended = call(job.words, self.world.case)
            assert not ended.code, ended.text
            seconds = time.monotonic() - started
            self.references[job.kind] = self.result(job), seconds
            self.lay_out(job)
        rng = generator(self.seed, event, number)
        return job, *self.references[job.kind], rng

    def lay_out(self, job):
        self.world.lay_out(job.areas)
        if job.kind == 'preparation':  # the area is prepared already
            car = self.world.case / 'crops/car'
            for path in car.glob('*.pth'):
                path.unlink()
            for name in ('cropped', 'uncropped'):
                shutil.rmtree(car / name)

    def result(self, job):
        return snapshot(self.world.case, job.outputs)

    def close(self, job, number, event, what, earlier):
        """Do the work to its end; return the Case."""
        ended = call(job.again, self.world.case)
        reference, _ = self.references[job.kind]
        outcome = judge(ended, self.result(job) == reference, ())
        kind, text = f'{event}, {job.kind}', earlier + ended.text
        return Case(kind, number, what, outcome, job.again, text)

    def kill(self, number):
        """Kill a job at a random moment, sometimes twice, and do it again."""
        job, _, seconds, rng = self.begin(number, 'kill')
        moments = [rng.uniform(0, 1.2 * seconds) for _ in range(rng.choice([1, 2]))]
        words = job.words
        for moment in moments:
            ended = Call(words, self.world.case).wait(moment)
            words = job.again
        what = f'killed after {", ".join(f"{m:.2f} s" for m in moments)}'
        return self.close(job, number, 'killed', what, ended.text)

    def fill(self, number):
        """Work on a disk of a random size, then do it again on a larger one."""
        job, reference, _, rng = self.begin(number, 'fill')
        size = rng.randrange(5, 260)
        with small_disk(self.world.case / job.root, size) as disk:
            ended = call(job.words, self.world.case)
            same = self.result(job) == reference
            outcome = judge(ended, same, (job.root,), ended.text)
            kind, what = f'full disk, {job.kind}', f'a disk with {size} KB'
            if outcome not in (RIGHT, CLEAR):
                return Case(kind, number, what, outcome, job.words, ended.text)
            mount(disk, 'remount,size=100m')
            return self.close(job, number, 'full disk', what, ended.text)

    def pair(self, number):
        """Start a job twice; one may refuse, and what is there is right."""
        job, reference, seconds, rng = self.begin(number, 'pair')
        first, delay = Call(job.words, self.world.case), rng.uniform(0, seconds)
        time.sleep(delay)
        second = Call(job.words, self.world.case)
        ended = [first.wait(), second.wait()]
        same = self.result(job) == reference
        outcomes = [judge(one, same, (job.root,), one.text) for one in ended]
        bad = [outcome for outcome in outcomes if outcome not in (RIGHT, CLEAR)]
        if outcomes == [CLEAR, CLEAR]:  # each has stopped the other
            bad = [NAMELESS]
        kind, what = f'at once, {job.kind}', f'{delay:.2f} s apart'
        text = ''.join(one.text for one in ended)
        return Case(kind, number, what, bad[0] if bad else RIGHT, job.words, text)


def mount(folder, options):
    """Mount a file system in memory at a folder."""
    words = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder]
    subprocess.run(words, check=True, capture_output=True)


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a disk with `size` free KB at a folder, with what the folder holds.

    Yields the folder.
    """
    aside = folder.with_name('aside')
    folder.mkdir(exist_ok=True)
    folder.rename(aside)
    folder.mkdir()
    used = sum(-(-path.lstat().st_size // 4096) * 4 for path in aside.rglob('*'))
    mount(folder, f'size={used + size}k')
    try:
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
        yield folder
    finally:
        subprocess.run(['umount', '-l', folder], check=True)


def can_mount(folder):
    """Whether this process may mount a disk."""
    try:
        with small_disk(folder / 'probe', 64):
            return True
    except (subprocess.CalledProcessError, OSError):
        return False

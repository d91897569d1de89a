"""Kills at random moments, full disks, and two of everything at once."""

import contextlib
import subprocess
import time

from campaign.calls import Call, call
from campaign.cases import Case, generator
from campaign.targets import RUN_FILES, Target, below
from campaign.verdicts import CLEAR, NAMELESS, RIGHT, judge, snapshot
from campaign.world import PLAIN, PREPARE, search

OUT = ['--results_root', 'out']


def jobs():
    """Return work that can be interrupted and done again by the same command.

    All of it writes to the folder out.
    """
    index, train = search('out'), [*PLAIN, *OUT, '--resume']
    own = [*PREPARE, '--data_path', 'photos', '--data_name', 'own', '--image_size', 32]
    own += ['--data_root', 'out']
    run = below('out', RUN_FILES)
    return [
        Target('training', ['data'], [], train, run),
        Target('indexing', ['photos', 'results'], [], index, ['out/*/retrieved.csv']),
        Target('preparation', ['photos'], [], own, ['out/own/*_data_dicts.pth']),
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
        self.world.lay_out(job.areas)
        if job.kind not in self.references:
            started = time.monotonic()
            ended = call(job.words, self.world.case)
            assert not ended.code, ended.text
            seconds = time.monotonic() - started
            self.references[job.kind] = self.result(job), seconds
            self.world.lay_out(job.areas)
        rng = generator(self.seed, event, number)
        return job, *self.references[job.kind], rng

    def result(self, job):
        return snapshot(self.world.case, job.outputs)

    def close(self, job, number, event, what, earlier):
        """Do the work to its end; return the Case."""
        ended = call(job.words, self.world.case)
        reference, _ = self.references[job.kind]
        outcome = judge(ended, self.result(job) == reference, ())
        kind, text = f'{event}, {job.kind}', earlier + ended.text
        return Case(kind, number, what, outcome, job.words, text)

    def kill(self, number):
        """Kill a job at a random moment, sometimes twice, and do it again."""
        job, _, seconds, rng = self.begin(number, 'kill')
        moments = [rng.uniform(0, 1.2 * seconds) for _ in range(rng.choice([1, 2]))]
        for moment in moments:
            ended = Call(job.words, self.world.case).wait(moment)
        what = f'killed after {", ".join(f"{m:.2f} s" for m in moments)}'
        return self.close(job, number, 'killed', what, ended.text)

    def fill(self, number):
        """Work on a disk of a random size, then do it again on a larger one."""
        job, reference, _, rng = self.begin(number, 'fill')
        size = rng.randrange(5, 260)
        with small_disk(self.world.case / 'out', size) as disk:
            ended = call(job.words, self.world.case)
            same = self.result(job) == reference
            outcome = judge(ended, same, ('out',), ended.text)
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
        outcomes = [judge(one, same, ('out',), one.text) for one in ended]
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
    """Mount a disk of `size` KB at a new folder; yield the folder."""
    folder.mkdir()
    mount(folder, f'size={size}k')
    try:
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

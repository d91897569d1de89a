"""Kills at random moments, full disks, and two of everything at once."""

import contextlib
import resource
import shutil
import subprocess
import time

from campaign import damages, hooks
from campaign.calls import Call, call
from campaign.cases import Case
from campaign.targets import INDEX, PREPARED, RUN_FILES, below
from campaign.verdicts import CLEAR, NAMELESS, RIGHT, judge, snapshot
from campaign.world import PLAIN, TRAINED, search

CAR = ['data_utils.py', '--data_root', 'crops', '--data_name', 'car']
CAR += ['--num_workers', 1]


class Job:
    """Work that can be interrupted and done again.

    areas: of the world; first, again: words of the first call and of the next ones;
    outputs: patterns of its result; root: the folder that it writes to; before: a hook.
    """

    def __init__(self, kind, areas, words, again, root, patterns, before=None):
        self.kind, self.areas, self.words, self.again = kind, areas, words, again
        self.root, self.outputs, self.before = root, below(root, patterns), before
        self.reference, self.seconds = None, 0


def jobs():
    train = [*PLAIN, '--results_root', 'out']
    return [
        Job('training', ['data'], train, [*train, '--resume'], 'out', RUN_FILES),
        Job(
            'indexing',
            ['photos', 'results'],
            search('out', *TRAINED),
            search('out', *TRAINED),
            'out',
            INDEX,
            hooks.small_steps,
        ),
        Job('preparation', ['crops'], CAR, CAR, 'crops/car', PREPARED),
    ]


class EventCases:
    """Tries kills, full disks and pairs in a World."""

    def __init__(self, world, seed):
        self.world, self.seed = world, seed
        self.jobs = jobs()

    def lay_out(self, job):
        """Lay out the world of a job; make its reference if there is none."""
        if job.reference is None:
            self.clean(job)
            started = time.monotonic()
            ended = call(job.words, self.world.case, job.before)
            assert not ended.code, ended.text
            job.seconds = time.monotonic() - started
            job.reference = snapshot(self.world.case, job.outputs)
        self.clean(job)

    def clean(self, job):
        self.world.lay_out(job.areas)
        if job.kind == 'preparation':  # the area is prepared already
            car = self.world.case / 'crops/car'
            for path in car.glob('*.pth'):
                path.unlink()
            for name in ('cropped', 'uncropped'):
                shutil.rmtree(car / name)

    def start(self, job, words=None, before=None):
        return Call(words or job.words, self.world.case, before or job.before)

    def close(self, job, number, kind, what, earlier=''):
        """Do the work to its end; return the Case."""
        ended = call(job.again, self.world.case, job.before)
        same = snapshot(self.world.case, job.outputs) == job.reference
        outcome = judge(ended, same, ())
        text = earlier + ended.text
        return Case(f'{kind} {job.kind}', number, what, outcome, job.again, text)

    def kill(self, number):
        """Kill a job at a random moment, sometimes twice, and do it again."""
        rng = damages.generator(self.seed, 'kill', number)
        job = self.jobs[number % len(self.jobs)]
        self.lay_out(job)
        moments = [rng.uniform(0, 1.2 * job.seconds) for _ in range(rng.choice([1, 2]))]
        words = job.words
        for moment in moments:
            running = self.start(job, words)
            time.sleep(moment)
            ended = running.wait(0)
            words = job.again
        what = f'killed after {", ".join(f"{m:.2f} s" for m in moments)}'
        return self.close(job, number, 'killed', what, ended.text)

    def limit(self, number):
        """Let no file grow beyond a size, then do the work without the limit."""
        rng = damages.generator(self.seed, 'limit', number)
        job = self.jobs[number % len(self.jobs)]
        self.lay_out(job)
        size = int(10 ** rng.uniform(2, 5.5))
        ended = self.start(job, before=Limited(job.before, size)).wait()
        what = f'files of at most {size} bytes'
        return self.after_full(job, number, what, ended)

    def fill(self, number):
        """Work on a disk of a random size, then do it again on a larger one."""
        rng = damages.generator(self.seed, 'fill', number)
        job = self.jobs[number % len(self.jobs)]
        self.lay_out(job)
        folder = self.world.case / job.root
        with small_disk(folder, rng.randrange(5, 260)) as disk:
            ended = self.start(job).wait()
            what = f'a disk of {disk.size} KB'
            disk.grow()
            return self.after_full(job, number, what, ended)

    def after_full(self, job, number, what, ended):
        """Judge a call that a full disk may have ended, and do the work again."""
        same = snapshot(self.world.case, job.outputs) == job.reference
        outcome = judge(ended, same, (job.root,), ended.text)
        if outcome not in (RIGHT, CLEAR):
            kind = f'full disk, {job.kind}'
            return Case(kind, number, what, outcome, job.words, ended.text)
        return self.close(job, number, 'full disk,', what, ended.text)

    def pair(self, number):
        """Run a job and another call at once; both must end well."""
        rng = damages.generator(self.seed, 'pair', number)
        kinds = [*[(job, job.words) for job in self.jobs], (self.jobs[0], REPORT)]
        job, other = kinds[number % len(kinds)]
        self.lay_out(job)
        if other is REPORT:  # a result must be there before
            call(job.words, self.world.case)
        first = self.start(job)
        delay = rng.uniform(0, job.seconds)
        time.sleep(delay)
        second = self.start(job, other)
        ended = [first.wait(), second.wait()]
        same = snapshot(self.world.case, job.outputs) == job.reference
        names = ('out', job.root)
        outcomes = [judge(one, same, names, one.text) for one in ended]
        bad = [o for o in outcomes if o not in (RIGHT, CLEAR)]
        if outcomes == [CLEAR, CLEAR]:  # each has stopped the other
            bad = [NAMELESS]
        text = ''.join(one.text for one in ended)
        what = f'with {other[0]}, {delay:.2f} s later'
        outcome = bad[0] if bad else RIGHT
        return Case(f'at once, {job.kind}', number, what, outcome, other, text)


DATABASE = 'out/small_uncropped_resnet18_2_2_2019_data_base.pth'
REPORT = ['inference.py', '--data_base', DATABASE, '--results_root', 'out']
REPORT += ['--report', '--query_img_name', 'data/small/test/figure_6/figure_6_01.png']


class Limited:
    """A hook that limits the size of each file that a call writes."""

    def __init__(self, before, size):
        self.before, self.size = before, size

    def __call__(self):
        if self.before:
            self.before()
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


class Disk:
    """A file system in memory."""

    def __init__(self, folder, size):
        self.folder, self.size = folder, size

    def mount(self, *options):
        words = ['mount', '-t', 'tmpfs', '-o', ','.join(options), 'tmpfs', self.folder]
        subprocess.run(words, check=True, capture_output=True)

    def grow(self):
        self.mount('remount', 'size=100m')


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a disk of `size` KB at a folder, with what the folder holds."""
    aside = folder.with_name('aside')
    folder.mkdir(exist_ok=True)
    folder.rename(aside)
    folder.mkdir()
    used = sum(-(-path.lstat().st_size // 4096) * 4 for path in aside.rglob('*'))
    disk = Disk(folder, used + size)
    disk.mount(f'size={disk.size}k')
    try:
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
        yield disk
    finally:
        subprocess.run(['umount', '-l', folder], check=True)


def can_mount(folder):
    """Whether this process may mount a disk."""
    try:
        with small_disk(folder / 'probe', 64):
            return True
    except (subprocess.CalledProcessError, OSError):
        return False

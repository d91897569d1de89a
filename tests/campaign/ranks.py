"""torchrun with a process that is killed; these are real processes, not forked ones."""

import os
import shutil
import signal
import subprocess
import time

import train_runs
from conftest import Project, draw_small
from slim import OVERRIDE

from campaign import damages
from campaign.cases import Case
from campaign.verdicts import HANG, NAMELESS, RIGHT, WRONG

SECONDS = 120  # within which the others must notice
LINE = 'another process of this run has ended'


class RankCases:
    """Kills one of two processes of torchrun and resumes the run."""

    def __init__(self, world, seed):
        self.seed, self.base = seed, world.base / 'ranks'
        self.project = None

    def prepare(self):
        """Make a project with a slim network, and an uninterrupted run."""
        if self.project:
            return
        self.base.mkdir()
        self.project = Project(self.base / 'project')
        draw_small(self.project)
        tests = os.path.dirname(os.path.abspath(train_runs.__file__))
        with open(self.project.root / 'model.py', 'a') as file:
            file.write(OVERRIDE.format(tests=tests))
        train_runs.finish(self.start('reference'))

    def start(self, results, *flags):
        flags = [*train_runs.EVERY_BATCH, *flags]
        return train_runs.start(self.project, self.base / results, *flags, processes=2)

    def run(self, number):
        """Try the case of a number; return a Case."""
        self.prepare()
        rng = damages.generator(self.seed, 'rank', number)
        shutil.rmtree(self.base / 'out', ignore_errors=True)
        process = self.start('out')
        train_runs.wait_for_checkpoint(process, self.base / 'out')
        moment, rank = rng.uniform(0, 0.5), rng.randrange(2)
        time.sleep(moment)
        workers = train_runs.children(process)
        if rank < len(workers):  # it has not ended yet
            os.kill(workers[rank], signal.SIGKILL)
        what = f'one of {len(workers)} killed {moment:.2f} s after a checkpoint'
        try:
            _, text = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            train_runs.kill_run(process)
            return Case('torchrun', number, what, HANG, process.args, '')
        outcome = RIGHT if LINE in text or not process.returncode else NAMELESS
        again = self.start('out', '--resume')
        output, errors = again.communicate(timeout=SECONDS)
        text += output + errors
        try:
            assert not again.returncode, errors
            train_runs.assert_same_run(self.base / 'reference', self.base / 'out')
        except AssertionError as error:
            outcome, text = WRONG, f'{text}\n{error}'
        return Case('torchrun', number, what, outcome, again.args, text)

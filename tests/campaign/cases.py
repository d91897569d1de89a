"""Damage cases: one file of the world, one damage, one call, one outcome."""

import os
import re
import shutil
import traceback
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from campaign import damages
from campaign.calls import call
from campaign.searches import evaluation, indexes, searching
from campaign.targets import preparation, training
from campaign.verdicts import RIGHT, WRONG, judge, printed, snapshot


@dataclass
class Case:
    """A case that has been tried. what: its damage or event, in words."""

    kind: str
    number: object
    what: str
    outcome: str
    words: list
    text: str  # of the console
    damaged: Path | None = None  # the file, while it is there


def all_targets():
    """Return the targets, without those whose optional package is not installed."""
    found = [*preparation(), *training(), *searching(), *indexes(), *evaluation()]
    return [target for target in found if not target.needs or find_spec(target.needs)]


@dataclass
class Reference:
    """What a call on valid files has led to, and the lines that it printed."""

    result: tuple
    lines: set

    def news(self, text):
        """Return the lines of another call that are not among them."""
        lines = text.splitlines()
        return '\n'.join(line for line in lines if line not in self.lines)


def deal(targets):
    """Return the targets in the order in which cases take turns."""
    return [target for target in targets for _ in range(target.weight)]


class DamageCases:
    """Tries damage cases in a World.

    only: a part of the kinds that are tried; damage: the only one, or ''.
    """

    def __init__(self, world, seed, only='', damage=''):
        self.world, self.seed, self.damage = world, seed, damage
        found = [target for target in all_targets() if only in target.kind]
        self.turns = deal(found)
        self.references = {}

    def run(self, number):
        """Try the case of a number; return a Case."""
        target = self.turns[number % len(self.turns)]
        rng = damages.generator(self.seed, number)
        self.world.lay_out(target.areas)
        path = self.draw_file(target, rng)
        name = str(path.relative_to(self.world.case))
        words = [name if word == '{file}' else word for word in target.words]
        reference = self.reference(target, words)
        self.world.lay_out(target.areas)
        choice = damages.damages_for(path, target.is_sent)
        damage = self.damage or rng.choice(sorted(choice))
        before = snapshot(self.world.case, target.outputs)
        damages.apply(choice[damage], path, rng)
        kept = keep(path, self.world.base / 'damaged')
        ended = call(words, self.world.case, target.before)
        outcome = self.judge(target, ended, reference, (path, damage))
        if ended.code and lost(before, self.world.case, target, name):
            outcome = WRONG
        what = f'{name}: {damage}'
        return Case(target.kind, number, what, outcome, words, ended.text, kept)

    def judge(self, target, ended, reference, harm):
        path, damage = harm
        names = (path.name, *target.names)
        same = self.result(target, ended) == reference.result
        news = reference.news(ended.text) + complaints(self.world.case, target.says)
        return judge(ended, same, names, news, damage in target.unknowable)

    def result(self, target, ended):
        """Return what a call has led to, to be compared."""
        text = printed(ended) if target.printed else None
        return snapshot(self.world.case, target.outputs), text

    def draw_file(self, target, rng):
        """Return the path of the file that a case damages."""
        found = set()
        for pattern in target.files:
            found |= set(self.world.case.glob(pattern))
        files = [path for path in found if path.is_file() and not path.is_symlink()]
        assert files, f'{target.kind}: no such files'
        # a kind of file with many members must not hide the others
        suffix = rng.choice(sorted({path.suffix for path in files}))
        return rng.choice(sorted(path for path in files if path.suffix == suffix))

    def reference(self, target, words):
        """Return the Reference of a call on valid files, which is made once."""
        key = (target.kind, *map(str, words))
        if key not in self.references:
            ended = call(words, self.world.case, target.before)
            result = self.result(target, ended)
            outcome = judge(ended, True, ())
            assert outcome == RIGHT and any(result), (target.kind, ended.text)
            self.references[key] = Reference(result, set(ended.text.splitlines()))
        return self.references[key]


def keep(path, copy):
    """Copy a damaged file; return the copy, or None if it is no file."""
    if copy.exists():
        os.remove(copy)
    if os.path.isfile(path) and not os.path.islink(path):
        return shutil.copyfile(path, copy)
    return None


def complaints(case, patterns):
    """Return what the files that patterns find say about damaged files."""
    paths = [path for pattern in patterns for path in case.glob(pattern)]
    text = ''.join(path.read_text() for path in paths)
    complaint = r'\S+ (?:is damaged|is missing|is not a regular file|cannot be read)'
    return ''.join(re.findall(complaint, text))


def lost(before, case, target, damaged):
    """Whether a refused call has changed files that were there and not damaged."""
    after = snapshot(case, target.outputs)
    return any(
        after.get(name) != content
        for name, content in before.items()
        if name != damaged and '*' not in name
    )


def attempt(run, number, kind):
    """Return the Case of run(number); an error of the campaign itself is one, too."""
    try:
        return run(number)
    except Exception:
        return Case(
            kind, number, 'the campaign itself', 'error', [], traceback.format_exc()
        )

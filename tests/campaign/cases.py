"""Damage cases: one file of the world, one damage, one call, one outcome."""

import os
import random
from dataclasses import dataclass

from campaign.calls import call
from campaign.targets import NAMES, UNKNOWABLE, all_targets
from campaign.verdicts import RIGHT, WRONG, judge, snapshot

TEXTS = ('.csv', '.json', '.txt')  # read as text: no single bit is flipped


@dataclass
class Case:
    """A case that has been tried. what: its damage or event, in words."""

    kind: str
    number: object
    what: str
    outcome: str
    words: list
    text: str  # of the console


def generator(*words):
    """Return the random generator of some words, such as the seed and a number."""
    return random.Random('/'.join(map(str, words)))


# What happens to the bytes of a file


def cut(data, rng):
    return data[: rng.randrange(len(data))]


def empty(data, rng):
    return b''


def flip(data, rng):
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def other(data, rng):
    """Return the content of another kind of file."""
    return rng.choice([b'path,label\na.png,1\n', b'\x89PNG\r\n\x1a\n' + bytes(99)])


DAMAGES = {function.__name__: function for function in (cut, empty, flip, other)}


class DamageCases:
    """Tries damage cases in a World; only: a part of the kinds that are tried."""

    def __init__(self, world, seed, only=''):
        self.world, self.seed = world, seed
        self.targets = [target for target in all_targets() if only in target.kind]
        self.references = {}

    def run(self, number):
        """Try the case of a number; return a Case."""
        target = self.targets[number % len(self.targets)]
        result, lines = self.reference(target)
        rng = generator(self.seed, number)
        self.world.lay_out(target.areas)
        path = self.draw_file(target, rng)
        text = path.suffix in TEXTS
        choice = [name for name in DAMAGES if not (text and name == 'flip')]
        damage = rng.choice(choice)
        before = snapshot(self.world.case, target.outputs)
        stat = path.stat()
        path.write_bytes(DAMAGES[damage](path.read_bytes(), rng))
        # its time of change stays, as when a disk fails
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        ended = call(target.words, self.world.case)
        same = self.result(target, ended) == result
        news = '\n'.join(set(ended.text.splitlines()) - lines)
        names = path.name, NAMES.get(target.kind, path.name)
        unknowable = damage in UNKNOWABLE.get(target.kind, ())
        outcome = judge(ended, same, names, news, unknowable)
        name = str(path.relative_to(self.world.case))
        after = snapshot(self.world.case, target.outputs)
        before.pop(name, None)
        if ended.code and not before.items() <= after.items():
            outcome = WRONG  # it has changed other files than the damaged one
        words, what = target.words, f'{name}: {damage}'
        return Case(target.kind, number, what, outcome, words, ended.text)

    def reference(self, target):
        """Return what the call leads to on valid files, and the lines it prints."""
        if target.kind not in self.references:
            self.world.lay_out(target.areas)
            ended = call(target.words, self.world.case)
            result = self.result(target, ended)
            assert judge(ended, True, ()) == RIGHT and result, (target.kind, ended.text)
            self.references[target.kind] = result, set(ended.text.splitlines())
        return self.references[target.kind]

    def result(self, target, ended):
        """Return what a call has led to, to be compared."""
        return snapshot(self.world.case, target.outputs) or ended.output

    def draw_file(self, target, rng):
        """Return the path of the file that a case damages."""
        found = {path for name in target.files for path in self.world.case.glob(name)}
        files = [path for path in found if path.is_file() and path.stat().st_size]
        assert files, f'{target.kind}: no such files'
        # a kind of file with many members must not hide the others
        suffix = rng.choice(sorted({path.suffix for path in files}))
        return rng.choice(sorted(path for path in files if path.suffix == suffix))

"""What the page shows of an answer."""

import os
from dataclasses import dataclass

from areir.output.answers import Answer, verdict

MOST = 100  # images that the page shows at most


@dataclass
class Tile:
    """An image that was retrieved."""

    index: int  # its number in the collection
    rank: int
    score: float
    label: str | None
    name: str  # of its file
    matched: bool | None  # None without a threshold

    @property
    def description(self):
        """A description of the image for people who cannot see it."""
        parts = [f'image {self.rank}', f'score {self.score:.3f}']
        if self.label is not None:
            parts.insert(1, str(self.label))
        if self.matched is not None:
            parts.append('a match' if self.matched else 'no match')
        return ', '.join([*parts, f'file {self.name}'])


@dataclass
class AnswerView:
    """An answer as the page shows it."""

    token: str  # of the generation
    answer: Answer
    tiles: list
    verdict: str | None  # None without a threshold


def view_answer(answer, indices, generation):
    """Return the AnswerView of an Answer; indices: the numbers of its images."""
    table, tiles = answer.table, []
    matches = table['match'] if 'match' in table else [None] * len(table)
    columns = table['rank'], table['score'], answer.labels, table['path'], matches
    for index, rank, score, label, path, matched in zip(indices, *columns):
        name = os.path.basename(path)
        matched = None if matched is None else bool(matched)
        tiles.append(Tile(index, rank, score, label, name, matched))
    collection = generation.collection
    sentence = None
    if collection.calibration:
        sentence = verdict(answer, collection).partition(': ')[2]
        sentence = sentence[0].upper() + sentence[1:]
    return AnswerView(generation.token, answer, tiles, sentence)

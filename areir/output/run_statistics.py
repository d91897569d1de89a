"""What the page of a run shows, computed from its database."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from areir.bars import progress_bar
from areir.evaluation.intervals import confidence_intervals
from areir.evaluation.metrics import (
    label_images,
    measures,
    query_indices,
    rank_positives,
)
from areir.evaluation.ranking import search
from areir.evaluation.scores import BestScores, score_blocks

SCORE_BINS = 100  # of the histograms of scores, from -1 to 1
SCORED_QUERIES = 2000  # queries whose pairs the histograms count
ROWS_AT_ONCE = 128  # queries whose scores are held at a time
SHOWN_QUERIES = 8  # worst queries and best queries on the page
SHOWN_PER_CLASS = 2  # of these queries
SHOWN_CLASSES = 10  # classes of lowest recall@1


class SearchedImages:
    """The queries and the gallery of a database, a dict as train.py writes it.

    Without a gallery of their own the queries search each other (leave_one_out).
    Distractors do not query.
    """

    def __init__(self, database):
        self.leave_one_out = 'query_embeddings' not in database
        prefix = '' if self.leave_one_out else 'query_'
        vectors, labels = database[f'{prefix}embeddings'], database[f'{prefix}labels']
        names = database[f'{prefix}images']
        queries = query_indices(labels)
        self.query = vectors[queries]  # (Q, D) unit vectors
        self.query_labels = labels[queries]  # (Q,)
        self.query_images = [names[query] for query in queries.tolist()]  # (Q,) paths
        self.gallery = database['embeddings']  # (N, D)
        self.labels = database['labels']  # (N,)
        self.images = database['images']  # (N,)
        # (Q,) index of each query in the gallery, or -1
        self.own = queries if self.leave_one_out else torch.full_like(queries, -1)
        self.available = len(self.images) - self.leave_one_out  # to each query
        marks, searched = {}, (self.gallery, self.labels)
        for name in {'groups', 'files'} & database.keys():
            marks[name] = database[f'{prefix}{name}']
            marks[f'gallery_{name}'] = database[name]
        # with distractors and with the columns of all heads
        self.everything = (vectors, labels), marks
        self.is_ignored = None  # or a function of `score_blocks`
        if marks:
            images = label_images(vectors, labels, *searched, **marks)
            self.is_ignored = lambda rows, columns: images.is_ignored(
                queries[rows], columns
            )

    def rank(self, columns):
        """Return the ranks of `metrics.rank_positives` by some of the columns."""
        (vectors, labels), marks = self.everything
        searched = () if self.leave_one_out else (self.gallery[:, columns], self.labels)
        return rank_positives(vectors[:, columns], labels, *searched, **marks)

    def blocks(self):
        """Return the `score_blocks` of ROWS_AT_ONCE queries each."""
        images = self.query, self.query_labels, self.gallery, self.labels
        return score_blocks(*images, self.own, ROWS_AT_ONCE, self.is_ignored)

    def nearest(self, k):
        """Return (scores, indices), (Q, k), of the nearest images not ignored."""
        if not self.is_ignored:
            return search(self.query, self.gallery, k, self.own)
        found = []
        for part in self.blocks():
            kept = part.right | part.wrong
            found.append(torch.where(kept, part.scores, -torch.inf).topk(k))
        return tuple(torch.cat(parts) for parts in zip(*found))


class Estimate(NamedTuple):
    """A mean over queries with its 95 % interval, NaN or None if it has none."""

    name: str
    value: float
    low: float
    high: float


def estimate(name, values, labels):
    """Return the Estimate of values (Q,) of queries with labels (Q,)."""
    low, high = confidence_intervals({name: values}, labels)[name]
    return Estimate(name, values.mean().item(), low, high)


def rank_heads(images, ensemble_size):
    """Rank by the first 1, 2, 4, ... and by all heads.

    Returns ([Estimate] of recall@1, each named by its number of heads, and the ranks of
    all heads as of `metrics.rank_positives`).
    """
    size = images.query.shape[1] // ensemble_size
    powers = [2**power for power in range(ensemble_size.bit_length())]
    recalls = []
    for heads in sorted({*powers, ensemble_size}):
        ranks = images.rank(slice(0, heads * size))
        recall = measures(ranks, [1])['recall@1']
        recalls.append(estimate(str(heads), recall, images.query_labels))
    return recalls, ranks


class ScoreStatistics(NamedTuple):
    """How right and wrong images score. Histograms are {'wrong', 'right': shares}."""

    best: BestScores
    margin: torch.Tensor  # (Q,) by which the best right image outscores the best wrong
    pair_shares: dict  # histograms of the sampled queries' scores with all images
    best_shares: dict  # histograms of each query's best scores
    sampled: int  # queries


def score_statistics(images):
    """Return the ScoreStatistics of SearchedImages."""
    count = len(images.query_labels)
    generator = torch.Generator().manual_seed(0)
    sampled = torch.zeros(count, dtype=torch.bool)
    sampled[torch.randperm(count, generator=generator)[:SCORED_QUERIES]] = True
    best = BestScores(count)
    pairs = {'wrong': np.zeros(SCORE_BINS), 'right': np.zeros(SCORE_BINS)}
    total = -(-count // ROWS_AT_ONCE)
    for part in progress_bar(images.blocks(), 'scores', total, leave=False, delay=3):
        best.add(part)
        chosen = sampled[part.rows]
        scores = part.scores[chosen]
        pairs['wrong'] += histogram(scores[part.wrong[chosen]])
        pairs['right'] += histogram(scores[part.right[chosen]])
    bests = {'wrong': histogram(best.best_wrong), 'right': histogram(best.best_right)}
    for counts in (*pairs.values(), *bests.values()):
        counts /= max(1, counts.sum())
    margin = best.best_right - best.best_wrong
    return ScoreStatistics(best, margin, pairs, bests, min(SCORED_QUERIES, count))


def histogram(scores):
    """Count the scores (n,) in each of SCORE_BINS equal bins from -1 to 1.

    Scores just outside, from rounding, count in the outer bins, and -inf in none.
    """
    scores = scores[scores > -torch.inf].clamp(-1, 1)
    return torch.histc(scores, SCORE_BINS, -1, 1).double().numpy()


class ClassRecall(NamedTuple):
    """A class whose queries are often answered by another class."""

    label: int
    queries: int  # that have a right image
    recall: float  # recall@1 of these
    confusions: list  # [(label of a wrong nearest image, queries)], by frequency
    example: int  # the query with the highest score for an image of the first of these


def lowest_classes(labels, rank, nearest_labels, nearest_scores):
    """Return a ClassRecall for the SHOWN_CLASSES of lowest recall@1 below 1.

    All (Q,): the queries' labels, the ranks of their nearest right images (0 without
    one, and then the query does not count), labels and scores of their nearest images.
    """
    rows = []
    for label in labels[rank > 1].unique().tolist():
        own = ((labels == label) & (rank > 0)).nonzero().flatten()
        missed = own[rank[own] > 1]
        confusions = Counter(nearest_labels[missed].tolist()).most_common()
        alike = missed[nearest_labels[missed] == confusions[0][0]]
        example = int(alike[nearest_scores[alike].argmax()])
        recall = 1 - len(missed) / len(own)
        rows.append(ClassRecall(label, len(own), recall, confusions, example))
    rows.sort(key=lambda row: (row.recall, -row.queries))
    return rows[:SHOWN_CLASSES]


def pick(values, labels, wanted, count=SHOWN_QUERIES, per_class=SHOWN_PER_CLASS):
    """Return the `count` queries of highest value, at most `per_class` of a class.

    values, labels (Q,); wanted (Q,) bool: the queries to pick from.
    """
    table = pd.DataFrame({'value': values.numpy(), 'label': labels.numpy()})
    table = table[wanted.numpy()].sort_values('value', ascending=False, kind='stable')
    return table.groupby('label').head(per_class).index[:count].tolist()

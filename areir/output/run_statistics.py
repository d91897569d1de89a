"""What the page of a run shows, computed from its database.

Which classes and queries the model answers well or badly, what each number of heads
retrieves, and how right and wrong images score.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from tqdm import tqdm

from areir.evaluation.intervals import confidence_intervals
from areir.evaluation.metrics import measures, rank_positives
from areir.evaluation.scores import BestScores, score_blocks

SCORE_BINS = 100  # of the histograms of scores, from -1 to 1
SCORED_QUERIES = 2000  # queries whose pairs the histograms count
ROWS_AT_ONCE = 128  # queries whose scores are held at a time
SHOWN_QUERIES = 8  # worst queries and best queries on the page
SHOWN_PER_CLASS = 2  # of these queries
SHOWN_CLASSES = 10  # classes of lowest recall@1


@dataclass(eq=False)
class SearchedImages:
    """The queries and the gallery of a database.

    Without a gallery of their own the queries search each other (leave_one_out), and
    the gallery is the queries.
    """

    query: torch.Tensor  # (Q, D) unit vectors
    query_labels: torch.Tensor  # (Q,)
    query_images: list  # (Q,) paths
    gallery: torch.Tensor  # (N, D)
    labels: torch.Tensor  # (N,)
    images: list  # (N,)
    own: torch.Tensor  # (Q,) index of each query in the gallery, or -1
    leave_one_out: bool

    @property
    def available(self):
        """The number of images that a query can retrieve."""
        return len(self.labels) - self.leave_one_out

    @property
    def classes(self):
        """The number of classes of the queries."""
        return len(self.query_labels.unique())


def query_and_gallery(database):
    """Return the SearchedImages of a database, a dict as train.py writes it."""
    leave_one_out = 'query_embeddings' not in database
    prefix = '' if leave_one_out else 'query_'
    count = len(database[f'{prefix}labels'])
    own = torch.arange(count) if leave_one_out else torch.full((count,), -1)
    return SearchedImages(
        query=database[f'{prefix}embeddings'],
        query_labels=database[f'{prefix}labels'],
        query_images=database[f'{prefix}images'],
        gallery=database['embeddings'],
        labels=database['labels'],
        images=database['images'],
        own=own,
        leave_one_out=leave_one_out,
    )


# Heads


@dataclass
class HeadsRecall:
    """Recall@1 of the first `heads` heads with its 95 % interval, NaN if unknown."""

    heads: int
    recall: float
    low: float
    high: float


def numbers_of_heads(ensemble_size):
    """Return [1, 2, 4, ..., ensemble_size]."""
    counts = []
    count = 1
    while count < ensemble_size:
        counts.append(count)
        count *= 2
    return [*counts, ensemble_size]


def rank_heads(images, ensemble_size, progress=False):
    """Rank by the first 1, 2, 4, ... and by all heads.

    Returns ([HeadsRecall], the ranks of all heads as of `metrics.rank_positives`).
    """
    size = images.query.shape[1] // ensemble_size
    recalls, ranks = [], None
    for heads in tqdm(
        numbers_of_heads(ensemble_size),
        desc='ranking by the first heads',
        disable=not progress,
        leave=False,
    ):
        columns = slice(0, heads * size)
        arguments = [images.query[:, columns], images.query_labels]
        if not images.leave_one_out:
            arguments += [images.gallery[:, columns], images.labels]
        ranks = rank_positives(*arguments)
        values = {'recall@1': measures(ranks, [1])['recall@1']}
        low, high = confidence_intervals(values, images.query_labels)['recall@1']
        recall = values['recall@1'].mean().item()
        recalls.append(HeadsRecall(heads, recall, low, high))
    return recalls, ranks


# Scores


@dataclass(eq=False)
class ScoreStatistics:
    """How right and wrong images score.

    best: each query's best scores; right_counts, wrong_counts (SCORE_BINS,): histograms
    of the scores that a random sample of `sampled` queries have with all images.
    """

    best: BestScores
    right_counts: torch.Tensor
    wrong_counts: torch.Tensor
    sampled: int

    @property
    def margin(self):
        """By how much each query's best right image outscores the best wrong one."""
        return self.best.best_right - self.best.best_wrong

    @property
    def best_right_counts(self):
        """Histogram (SCORE_BINS,) of each query's best right score."""
        return finite_histogram(self.best.best_right)

    @property
    def best_wrong_counts(self):
        """Histogram (SCORE_BINS,) of each query's best wrong score."""
        return finite_histogram(self.best.best_wrong)


def score_statistics(images, progress=False, sample=SCORED_QUERIES, block=ROWS_AT_ONCE):
    """Return the ScoreStatistics of SearchedImages.

    sample: the most queries whose pairs are counted; block: queries whose scores are
    held at a time.
    """
    count = len(images.query_labels)
    generator = torch.Generator().manual_seed(0)
    sampled = torch.zeros(count, dtype=torch.bool)
    sampled[torch.randperm(count, generator=generator)[:sample]] = True
    best = BestScores(count)
    right = torch.zeros(SCORE_BINS, dtype=torch.int64)
    wrong = torch.zeros(SCORE_BINS, dtype=torch.int64)
    blocks = score_blocks(
        images.query,
        images.query_labels,
        images.gallery,
        images.labels,
        images.own,
        block,
    )
    total = -(-count // block)
    for part in tqdm(
        blocks, desc='scores', total=total, disable=not progress, leave=False
    ):
        best.add(part)
        chosen = sampled[part.rows]
        scores = part.scores[chosen]
        right += histogram(scores[part.right[chosen]])
        wrong += histogram(scores[part.wrong[chosen]])
    return ScoreStatistics(best, right, wrong, int(sampled.sum()))


def histogram(scores):
    """Count the scores (n,) in each of SCORE_BINS equal bins from -1 to 1."""
    bins = ((scores + 1) * (SCORE_BINS / 2)).long()
    return torch.bincount(bins.clamp(0, SCORE_BINS - 1), minlength=SCORE_BINS)


def finite_histogram(scores):
    """Return the histogram of the scores that are not -inf."""
    return histogram(scores[scores > -torch.inf])


def bin_edges():
    """Return the SCORE_BINS + 1 edges of the bins."""
    return [place * 2 / SCORE_BINS - 1 for place in range(SCORE_BINS + 1)]


# Classes and queries


@dataclass
class ClassRecall:
    """A class whose queries are often answered by another class.

    label: its number; queries: its queries that have a right image; recall: recall@1 of
    these; confusions: [(label, queries)] of the classes of the wrong nearest images,
    the most frequent first; example: the query with the highest score for an image of
    the most frequent of these classes.
    """

    label: int
    queries: int
    recall: float
    confusions: list
    example: int


def lowest_classes(labels, rank, nearest_labels, nearest_scores, count=SHOWN_CLASSES):
    """Return a ClassRecall for the `count` classes of lowest recall@1 below 1.

    All arguments are (Q,): the queries' labels, the ranks of their nearest right images
    (0 without one, and then the query does not count), and the labels and scores of
    their nearest images.
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
    return sorted(rows, key=lambda row: (row.recall, -row.queries))[:count]


def pick(values, labels, wanted, count=SHOWN_QUERIES, per_class=SHOWN_PER_CLASS):
    """Return the `count` queries of highest value, at most `per_class` of a class.

    values, labels (Q,); wanted (Q,) bool: the queries to pick from. Of equal values the
    first comes first.
    """
    values = values.masked_fill(~wanted, -torch.inf)
    order = values.argsort(descending=True, stable=True)
    order = order[: int(wanted.sum())].tolist()
    picked, seen = [], Counter()
    for query in order:
        label = int(labels[query])
        seen[label] += 1
        if seen[label] <= per_class:
            picked.append(query)
        if len(picked) == count:
            break
    return picked

"""One pass over all scores: each query's best right and best wrong image.

An image is right for a query if it has the same label and is not the query itself, and
wrong if it has another label. Calibration and the report of a run both use this pass.
"""

from typing import NamedTuple

import torch

from areir.evaluation.scores import full_precision


class ScoreBlock(NamedTuple):
    """The scores of n queries with all N images of a gallery.

    rows (n,): indices of the queries; scores (n, N): float32; right (n, N), wrong
    (n, N): bool, which images are right or wrong for the query.
    """

    rows: torch.Tensor
    scores: torch.Tensor
    right: torch.Tensor
    wrong: torch.Tensor


def score_blocks(query, query_labels, gallery, gallery_labels, own, block):
    """Yield a ScoreBlock for every `block` queries.

    query (Q, D), gallery (N, D): unit vectors; query_labels (Q,), gallery_labels (N,);
    own (Q,): each query's index in the gallery, or -1. All are on one device.
    """
    images = gallery.float().T
    device = query.device
    for rows in torch.arange(len(query), device=device).split(block):
        with full_precision(device):
            scores = query[rows].float() @ images
        wrong = query_labels[rows, None] != gallery_labels
        right = ~wrong
        inside = (own[rows] >= 0).nonzero().flatten()
        right[inside, own[rows[inside]]] = False
        yield ScoreBlock(rows, scores, right, wrong)


class BestScores:
    """Collects each query's best scores from the blocks given to `add`.

    best_right, best_wrong (Q,): the highest score of a right and of a wrong image,
    -inf where there is none. nearest_right (Q,): the index of the former, 0 where
    there is none.
    """

    def __init__(self, count, device='cpu'):
        """count: Q; device: of the results; blocks may be on another one."""
        self.device = device
        none = torch.full((count,), -torch.inf, device=device)
        self.best_right = none
        self.best_wrong = none.clone()
        self.nearest_right = torch.zeros_like(none, dtype=torch.int64)

    def add(self, block):
        """Take over the best scores of a ScoreBlock."""
        rows = block.rows.to(self.device)
        scores = block.scores
        right = torch.where(block.right, scores, -torch.inf)
        best, nearest = right.max(dim=1)
        self.best_right[rows] = best.to(self.device)
        self.nearest_right[rows] = nearest.to(self.device)
        wrong = torch.where(block.wrong, scores, -torch.inf)
        best = wrong.amax(dim=1)
        self.best_wrong[rows] = best.to(self.device)

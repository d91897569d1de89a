"""The result of an epoch: its metrics, its score, and the threshold of a match."""

from functools import cached_property

import torch

from areir.evaluation.intervals import confidence_intervals
from areir.evaluation.metrics import measures, rank_positives, summary
from areir.matching.calibration import calibrate


class Result:
    """The metrics of an epoch on the test classes, and the score for `--select`.

    embeddings: {part: (N, D)} of all parts of the split but train; projection: the
    Projection that shortened them, or None. metrics: of the test classes; val_metrics:
    recall@1, map@r, ... of the classes that --select val holds out, else empty.
    """

    def __init__(self, experiment, epoch, embeddings, projection=None):
        self.split, self.recalls = experiment.split, experiment.recalls
        self.select = experiment.args.select
        self.false_match_rate = experiment.args.false_match_rate
        self.device = experiment.hardware.device
        self.epoch, self.embeddings = epoch, embeddings
        self.projection = projection
        self.ranks = self.rank(self.split.test_parts)
        self.metrics = summary(self.ranks, self.recalls)
        self.queries_without_positive = self.metrics.pop('queries_without_positive')
        self.val_metrics = {}
        if self.select == 'val':
            self.val_metrics = summary(self.rank(['val']), [1])
            del self.val_metrics['queries_without_positive']

    def on_device(self, names, dtype=None):
        """Return embeddings and labels of one part, or of the query and the gallery."""
        tensors = []
        for name in names:
            tensors.append(self.embeddings[name].to(self.device, dtype))
            tensors.append(self.split.parts[name].labels.to(self.device))
        return tensors

    def rank(self, names):
        """Rank the images of one part, or the queries in the gallery."""
        return rank_positives(*self.on_device(names))

    @property
    def score(self):
        """The epoch with the highest score is kept.

        For --select last, the score is the number of the epoch.
        """
        if self.select == 'val':
            return self.val_metrics['recall@1']
        if self.select == 'test':
            return summary(self.ranks, [1])['recall@1']
        return self.epoch

    @cached_property
    def intervals(self):
        """95 % intervals of the metrics."""
        values = measures(self.ranks, self.recalls)
        return confidence_intervals(values, self.split.query.labels)

    @cached_property
    def calibration(self):
        """The threshold of a match, set on classes that were not trained on.

        These are the classes held out by --select val, else the test classes.
        """
        names = ['val'] if self.select == 'val' else self.split.test_parts
        tensors = self.on_device(names, torch.float32)
        return calibrate(*tensors, false_match_rate=self.false_match_rate)

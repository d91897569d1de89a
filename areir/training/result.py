"""After an epoch: embed the test images, measure, record, and keep the best epoch."""

import time
from functools import cached_property, partial

import numpy as np
import torch
from torch.nn import functional as F

from areir.bars import progress_bar
from areir.data.splits import common_labels, join_marks
from areir.evaluation.intervals import confidence_intervals
from areir.evaluation.metrics import (
    measures,
    number_files,
    query_indices,
    rank_positives,
    summary,
)
from areir.matching.calibration import calibrate
from areir.networks.projection import fit_whitening
from areir.processes import gather, is_first, rank_and_count, until_signal
from areir.training import record
from areir.training.batches import compute_batches, parts_to_embed
from areir.training.checkpoints import model_weights

BLOCK = 256  # embeddings that are projected at once


def embed_parts(net, loaders, split, args, signals):
    """Embed the test images, and with --whole_gallery those of training.

    loaders: of `parts_to_embed`. Returns ({part: (N, D)}, Projection or None) in rank
    0; in other ranks the tensors are empty, and there is no Projection. It is fitted to
    the images of part 'fit'.
    """
    dtype = torch.float16 if args.store == 'fp16' else torch.float32
    embeddings, projection = {}, None
    if args.dimensions or args.whitening:
        text, loader = 'embedding to whiten', loaders['fit']
        vectors = embed_part(net, loader, torch.float32, signals, text)
        if is_first():
            labels = parts_to_embed(split, args)['fit'].labels
            labels = labels.unique(return_inverse=True)[1]
            shape = args.dimensions, args.whitening
            projection = fit_whitening(vectors, labels, *shape)
            if args.whole_gallery == 'yes':
                blocks = vectors.split(BLOCK)
                fitted = [projection(block).to(dtype) for block in blocks]
                embeddings['fit'] = torch.cat(fitted)
        del vectors  # they may take much memory
    for name, loader in loaders.items():
        if name not in ('train', 'fit'):
            text = f'embedding {name}'
            embeddings[name] = embed_part(net, loader, dtype, signals, text, projection)
    return embeddings, projection


def embed_part(net, loader, dtype, signals, description, projection=None):
    """Embed the images of a loader, all processes together.

    Each embeds a share of every batch if it has all heads, else all with its heads.
    dtype: of the result; projection: applied to the embeddings, or None. Returns
    (images, D) in rank 0, an empty tensor elsewhere.
    Raises KeyboardInterrupt once `signals` is not empty.
    """
    count = len(loader.dataset)
    embeddings = torch.empty(0, dtype=dtype)
    has_all = len(net.heads) == net.ensemble_size
    embed = net.embed if has_all else partial(embed_with_all_heads, net)
    device = next(net.trunk.parameters()).device
    batches = compute_batches(loader, embed, device, divides_images=has_all)
    batches = until_signal(batches, signals, 'the trained epoch is saved')
    options = {'unit': 'img', 'delay': 1, 'leave': False}
    with progress_bar(None, description, count, **options) as bar:
        for indices, vectors in batches:
            if is_first():
                vectors = vectors.float().cpu()
                if projection:
                    vectors = projection(vectors)
                if not len(embeddings):
                    embeddings = torch.empty(count, vectors.shape[1], dtype=dtype)
                embeddings[indices] = vectors.to(dtype)
            bar.update(len(indices))
    return embeddings


def embed_with_all_heads(net, images):
    """Return the embeddings (N, D) of normalised images, in every process.

    Each process embeds with its heads, rank r with heads r, r + processes, ...
    """
    _, processes = rank_and_count()
    own = net.embed(images)
    own = own.unflatten(1, (len(net.heads), -1))  # (N, heads here, D / E)
    most = -(-net.ensemble_size // processes)
    # some ranks have a head less, but `gather` takes tensors of one shape
    padded = F.pad(own, (0, 0, 0, most - own.shape[1])).contiguous()
    whole = own.new_empty(len(own), net.ensemble_size, own.shape[2])
    for rank, share in enumerate(gather(padded)):
        heads = len(range(rank, net.ensemble_size, processes))
        whole[:, rank::processes] = share[:, :heads]
    return whole.flatten(1)


class Result:
    """The metrics of an epoch, and the score for `--select`.

    embeddings: {part: (N, D)} of `parts_to_embed`, of training only with
    --whole_gallery; projection: the Projection that shortened them, or None.
    metrics: of the test classes among themselves, empty without a test; val_metrics:
    recall@1, map@r, ... of the classes that --select val holds out, else empty;
    all_metrics: recall@1 of trained and of new classes in the whole gallery, empty
    without --whole_gallery.
    """

    def __init__(self, experiment, epoch, embeddings, projection=None):
        self.experiment, self.split = experiment, experiment.split
        self.select = experiment.args.select
        self.epoch, self.embeddings = epoch, embeddings
        self.parts = parts_to_embed(self.split, experiment.args)
        self.projection = projection
        # the parts of 'train'
        self.trained = [name for name in ('fit', 'rest') if name in self.parts]
        self.metrics, self.val_metrics = {}, {}
        if self.split.test_parts:
            self.ranks, self.labels = self.rank(self.split.test_parts)
            self.metrics = summary(self.ranks, experiment.recalls)
        self.queries_without_positive = self.metrics.pop('queries_without_positive', 0)
        if self.select == 'val':
            self.val_metrics = summary(self.rank(['val'])[0], [1])
            del self.val_metrics['queries_without_positive']
        self.all_hits = {}
        if experiment.args.whole_gallery == 'yes':
            self.all_hits = self.search_whole_gallery()
        self.all_metrics = {
            name: hits.mean().item() for name, (hits, _) in self.all_hits.items()
        }

    def rank(self, names):
        """Rank the queries of one part, or those of the first in the second.

        Returns (ranks, labels (Q,)) without distractors.
        """
        query, gallery = (self.split.parts[name] for name in (names[0], names[-1]))
        others = {f'gallery_{name}': mark for name, mark in gallery.marks.items()}
        device, tensors = self.experiment.hardware.exact_device, []
        for name in names:
            pair = self.embeddings[name], self.parts[name].labels
            tensors += [tensor.to(device) for tensor in pair]
        ranks = rank_positives(*tensors, **query.marks, **others)
        return ranks, query.labels[query_indices(query.labels)]

    def join(self, names, dtype=None):
        """Return embeddings and labels of several parts, one after the other."""
        device = self.experiment.hardware.exact_device
        embeddings = torch.cat([self.embeddings[name] for name in names])
        labels = common_labels([self.parts[name] for name in names])
        return embeddings.to(device, dtype), labels.to(device)

    def search_whole_gallery(self):
        """Search each image of all parts among all others.

        Returns {metric: (hits (Q,), labels (Q,))} of trained and of new classes; a hit
        is 1 if the nearest image is of the query's class, else 0.
        """
        embeddings, labels = self.join(self.parts)
        ranks = rank_positives(embeddings, labels, **join_marks(self.parts.values()))
        hits = measures(ranks, [1])['recall@1']
        labels = labels[query_indices(labels)]
        trained = len(self.split.train)  # they come first, classes held out last
        tests = self.split.test_parts
        found = {'all_recall@1_trained': (hits[:trained], labels[:trained])}
        if tests:
            parts = [query_indices(self.parts[name].labels) for name in tests]
            new = slice(trained, trained + sum(map(len, parts)))
            found['all_recall@1_new'] = hits[new], labels[new]
        return found

    @property
    def score(self):
        """The epoch with the highest score is kept; --select last scores by epoch."""
        if self.select == 'val':
            return self.val_metrics['recall@1']
        if self.select == 'test':
            return summary(self.ranks, [1])['recall@1']
        return self.epoch

    @property
    def values(self):
        """The measures (Q,) of each query of the test classes."""
        return measures(self.ranks, self.experiment.recalls)

    @cached_property
    def intervals(self):
        """95 % intervals of the metrics."""
        intervals = {}
        if self.metrics:
            intervals = confidence_intervals(self.values, self.labels)
        for name, (hits, labels) in self.all_hits.items():
            intervals |= confidence_intervals({name: hits}, labels)
        return intervals

    @cached_property
    def calibration(self):
        """The threshold of a match, set on held-out classes, else the test classes.

        With --whole_gallery they are searched among trained classes, too. None without
        either, unless --threshold_from gives one, and, as it takes many seconds, before
        the last epoch if that is the one to keep.
        """
        args = self.experiment.args
        names = ['val'] if self.select == 'val' else self.split.test_parts
        if self.experiment.calibration or not names:
            return self.experiment.calibration
        if self.select == 'last' and self.epoch < args.num_epochs:
            return None
        searched = [*names, *self.trained] if self.all_hits else names
        vectors, labels = self.join(searched, torch.float32)
        files = join_marks(self.parts[name] for name in searched).get('files')
        separate = not self.all_hits and len(names) == 2  # queries and their gallery
        asked = sum(len(self.parts[name]) for name in names[: 1 if separate else 2])
        if files is not None:  # copies would set the threshold: each file counts once
            once = np.unique(number_files(files).numpy(), return_index=True)[1]
            once = torch.from_numpy(np.sort(once)).to(labels.device)
            vectors, labels = vectors[once], labels[once]
            asked = int((once < asked).sum())
        rows = query_indices(labels[:asked])
        own, first = (None, asked) if separate else (rows, 0)
        pairs = vectors[rows], labels[rows], vectors[first:], labels[first:]
        return calibrate(*pairs, args.false_match_rate, own)


def record_epoch(experiment, run, progress, result, checkpoint, lr, started):
    """Print and record an epoch's Result, and keep the epoch if it is the best so far.

    checkpoint: the folder that holds its weights; started: when embedding began.
    """
    tested = time.perf_counter() - started
    progress.tested += tested
    seconds = tested + (progress.seconds if result.epoch else 0)  # 0 is not trained
    row = record.csv_row(experiment, progress, result, lr, seconds)
    progress.rows.append(row)
    print(record.epoch_line(experiment, row, result))
    run.write_csv(progress)
    if result.score <= progress.best:
        return
    progress.best = result.score
    state_dict = model_weights(checkpoint, experiment.args.ensemble_size)
    files = record.result_files(experiment, result, state_dict, run.name)
    run.keep(*files, record.provenance(experiment, result))

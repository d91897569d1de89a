"""After an epoch: embed the test images, measure, record, and keep the best epoch."""

import time
from functools import cached_property, partial

import torch
from torch.nn import functional as F

from areir.data.loading import embed_batches
from areir.evaluation.intervals import confidence_intervals, describe_interval
from areir.evaluation.metrics import measures, rank_positives, summary
from areir.matching.calibration import calibrate
from areir.networks.projection import fit_projection
from areir.processes import gather, is_first, rank_and_count, until_signal
from areir.training import record
from areir.training.batches import to_images, whole_batches
from areir.training.checkpoints import model_weights


def embed_parts(net, loaders, args, info, signals):
    """Embed all images except those of training.

    Returns ({part: (N, D)}, Projection or None) in rank 0; in other ranks the tensors
    are empty, and there is no Projection. It is fitted to the images of part 'fit'.
    """
    dtype = torch.float16 if args.store == 'fp16' else torch.float32
    projection = None
    if args.dimensions:
        vectors = embed_part(
            net, loaders['fit'], info, torch.float32, signals, 'embedding for PCA'
        )
        if is_first():
            projection = fit_projection(vectors, args.dimensions, args.whitening)
        del vectors  # they may take much memory
    embeddings = {
        name: embed_part(
            net, loader, info, dtype, signals, f'embedding {name}', projection
        )
        for name, loader in loaders.items()
        if name not in ('train', 'fit')
    }
    return embeddings, projection


def embed_part(net, loader, info, dtype, signals, description, projection=None):
    """Embed the images of a loader with the heads of all processes.

    dtype: of the result; projection: applied to the embeddings, or None. Returns
    (images, D) in rank 0, an empty tensor elsewhere.
    Raises KeyboardInterrupt once `signals` is not empty.
    """
    count = len(loader.dataset)
    embeddings = torch.empty(0, dtype=dtype)
    batches = whole_batches(loader, next(net.trunk.parameters()).device)
    embed = partial(embed_with_all_heads, net, info)
    embedded = embed_batches(batches, embed, count, description)
    saved = 'the trained epoch is saved'
    for indices, vectors, _ in until_signal(embedded, signals, saved):
        if is_first():
            if projection:
                vectors = projection(vectors)
            if not len(embeddings):
                embeddings = torch.empty(count, vectors.shape[1], dtype=dtype)
            embeddings[indices] = vectors.to(dtype)
    return embeddings


def embed_with_all_heads(net, info, pixels):
    """Return the embeddings (N, D) of uint8 pixels, in every process.

    Each process embeds with its heads, rank r with heads r, r + processes, ...
    """
    _, processes = rank_and_count()
    own = net.embed(to_images(pixels, info))
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
    """The metrics of an epoch on the test classes, and the score for `--select`.

    embeddings: {part: (N, D)} of all parts of the split but train; projection: the
    Projection that shortened them, or None. metrics: of the test classes; val_metrics:
    recall@1, map@r, ... of the classes that --select val holds out, else empty.
    """

    def __init__(self, experiment, epoch, embeddings, projection=None):
        self.experiment, self.split = experiment, experiment.split
        self.select = experiment.args.select
        self.epoch, self.embeddings = epoch, embeddings
        self.projection = projection
        self.ranks = rank_positives(*self.on_device(self.split.test_parts))
        self.metrics = summary(self.ranks, experiment.recalls)
        self.queries_without_positive = self.metrics.pop('queries_without_positive')
        self.val_metrics = {}
        if self.select == 'val':
            self.val_metrics = summary(rank_positives(*self.on_device(['val'])), [1])
            del self.val_metrics['queries_without_positive']

    def on_device(self, names, dtype=None):
        """Return embeddings and labels of one part, or of queries and gallery."""
        tensors, device = [], self.experiment.hardware.device
        for name in names:
            tensors.append(self.embeddings[name].to(device, dtype))
            tensors.append(self.split.parts[name].labels.to(device))
        return tensors

    @property
    def score(self):
        """The epoch with the highest score is kept; --select last scores by epoch."""
        if self.select == 'val':
            return self.val_metrics['recall@1']
        if self.select == 'test':
            return summary(self.ranks, [1])['recall@1']
        return self.epoch

    @cached_property
    def intervals(self):
        """95 % intervals of the metrics."""
        values = measures(self.ranks, self.experiment.recalls)
        return confidence_intervals(values, self.split.query.labels)

    @cached_property
    def calibration(self):
        """The threshold of a match, set on held-out classes, else the test classes."""
        names = ['val'] if self.select == 'val' else self.split.test_parts
        tensors = self.on_device(names, torch.float32)
        rate = self.experiment.args.false_match_rate
        return calibrate(*tensors, false_match_rate=rate)


def record_epoch(experiment, run, progress, result, checkpoint, lr, started):
    """Print and record an epoch's Result, and keep the epoch if it is the best so far.

    checkpoint: the folder that holds its weights; started: when embedding began.
    """
    trained = progress.seconds if result.epoch else 0  # epoch 0 is not trained
    seconds = trained + time.perf_counter() - started
    row = record.csv_row(experiment, progress, result, lr, seconds)
    progress.rows.append(row)
    print(record.epoch_line(experiment, row, result))
    run.write_csv(progress)
    if result.score <= progress.best:
        return
    progress.best = result.score
    name = f'recall@{experiment.recalls[0]}'
    interval = describe_interval(*result.intervals[name])
    progress.kept = (
        f'kept epoch {result.epoch}, {record.KEPT_EPOCH[result.select]}: '
        f'R@{experiment.recalls[0]} {result.metrics[name]:.2%}, {interval}'
    )
    state_dict = model_weights(checkpoint, experiment.args.ensemble_size)
    files = record.result_files(experiment, result, state_dict, run.name)
    run.keep(*files, record.provenance(experiment, result))

"""After an epoch: embed the test images, evaluate, record, and keep the best epoch."""

import time

import torch

from areir.networks.projection import fit_projection
from areir.processes import is_first
from areir.training import record
from areir.training.checkpoints import model_weights
from areir.training.loaders import embed_part

PRINTED = 5  # seconds of PCA from which its time is printed


def embed_parts(net, loaders, args, info, signals):
    """Embed all images except those of training.

    Returns ({part: (N, D)}, Projection or None) in rank 0, without the vectors
    elsewhere. The projection is fitted to the part 'fit' of the training images.
    """
    dtype = torch.float16 if args.store == 'fp16' else torch.float32
    projection = None
    if args.dimensions:
        vectors = embed_part(
            net, loaders['fit'], info, torch.float32, signals, 'embedding for PCA'
        )
        if is_first():
            projection = fit_and_print(vectors, args.dimensions, args.whitening)
        del vectors  # they may be long
    embeddings = {
        name: embed_part(
            net, loader, info, dtype, signals, f'embedding {name}', projection
        )
        for name, loader in loaders.items()
        if name not in ('train', 'fit')
    }
    return embeddings, projection


def fit_and_print(vectors, dimensions, whitening):
    """Fit a Projection to vectors (N, L); print its time if it is long."""
    started = time.perf_counter()
    projection = fit_projection(vectors, dimensions, whitening)
    seconds = time.perf_counter() - started
    if seconds >= PRINTED:
        images, length = vectors.shape
        print(
            f'PCA        {projection.matrix.shape[1]} components of {length:,} numbers '
            f'by {images:,} images: {seconds:.0f} s, {vectors.nbytes / 1e9:.1f} GB'
        )
    return projection


def record_epoch(experiment, run, progress, result, checkpoint, lr, started):
    """Print and record an epoch's Result, and keep the epoch if it is the best so far.

    checkpoint: the folder that holds its weights; started: when embedding began.
    """
    args = experiment.args
    trained = progress.done.seconds if result.epoch else 0
    seconds = trained + time.perf_counter() - started
    row = record.csv_row(experiment, progress, result, lr, seconds)
    progress.rows.append(row)
    print(record.epoch_line(experiment, row, result))
    run.write_csv(progress)
    if result.score <= progress.best:
        return
    progress.best = result.score
    progress.kept = record.kept_line(result)
    state_dict = model_weights(checkpoint, args.ensemble_size)
    common = record.common_fields(args, result)
    run.keep(
        record.model_file(common, experiment, result, state_dict),
        record.database_file(common, experiment, result.embeddings, run.name),
        record.provenance(experiment, result),
    )

"""Shorten embeddings: principal components (PCA), partly or wholly whitened."""

import torch
from torch import nn
from torch.nn import functional as F

from areir.errors import UserError

LEAST_VARIANCE = 1e-10  # of the largest: components below are rounding


class Projection(nn.Module):
    """Maps embeddings to shorter unit vectors.

    mean (L,) is subtracted from vectors of L numbers, and the matrix (L, D) maps what
    remains to D numbers.
    """

    def __init__(self, mean, matrix):
        super().__init__()
        self.register_buffer('mean', mean, persistent=False)
        self.register_buffer('matrix', matrix, persistent=False)

    def forward(self, vectors):
        """Return unit vectors (N, D) for vectors (N, L)."""
        return F.normalize((vectors.float() - self.mean) @ self.matrix, dim=1)

    def to_state(self):
        """Return the tensors that rebuild it: Projection(**state)."""
        return {'mean': self.mean, 'matrix': self.matrix}


def fit_projection(vectors, dimensions, whitening):
    """Fit a Projection to vectors (N, L) by their principal components.

    Each component is divided by its standard deviation to the power of `whitening`: 0
    keeps the deviations (PCA), 1 makes them equal (whitening). If N is below L, the
    components come from the matrix of dot products (N, N) instead of the covariance
    (L, L). If the vectors span fewer dimensions, the Projection has only those.
    Raises UserError if vectors are too few to span any.
    """
    mean = vectors.double().mean(dim=0)
    centred = vectors.double() - mean
    count, length = centred.shape
    if count < 2:
        raise UserError(f'{count} images are too few for principal components')
    if count >= length:
        variances, components = torch.linalg.eigh(centred.T @ centred / count)
    else:
        variances, weights = torch.linalg.eigh(centred @ centred.T / count)
        norms = (variances.clamp(min=LEAST_VARIANCE * variances.max()) * count).sqrt()
        components = centred.T @ (weights / norms)
    # eigh sorts by ascending variance
    kept = variances > LEAST_VARIANCE * variances.max()
    variances = variances[kept].flip(0)[:dimensions]
    components = components[:, kept].flip(1)[:, :dimensions]
    # the sign of a component is arbitrary: make its largest number positive
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    matrix = components * largest.sign() * variances.pow(-whitening / 2)
    return Projection(mean.float(), matrix.float())

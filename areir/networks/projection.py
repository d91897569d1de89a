"""Projections of embeddings: whitened within classes, or by principal components."""

import torch
from torch import nn
from torch.nn import functional as F

from areir.errors import UserError

# components of a variance below these are rounding
LEAST_VARIANCE = 1e-10  # of the largest variance
LEAST_SPREAD = 1e-12  # of the mean squared norm
MOST_NUMBERS = 8192  # of whitened embeddings; their matrix is as wide
TOTAL = 0.1  # largest share of the total covariance when whitening


class Projection(nn.Module):
    """Maps embeddings to shorter unit vectors.

    mean (L,) is subtracted from vectors of L numbers, and the matrix (L, D) maps what
    remains to D numbers. Its `named_buffers` rebuild it.
    """

    def __init__(self, mean, matrix):
        super().__init__()
        self.register_buffer('mean', mean, persistent=False)
        self.register_buffer('matrix', matrix, persistent=False)

    def forward(self, vectors):
        """Return unit vectors (N, D) for vectors (N, L)."""
        return F.normalize((vectors.float() - self.mean) @ self.matrix, dim=1)


def fit_whitening(vectors, labels, dimensions, whitening):
    """Fit a Projection that shrinks the directions in which images of a class differ.

    vectors (N, L); labels (N,): classes 0 to C - 1, each with images. W is the
    covariance within classes, estimated with N - C degrees of freedom, and T that of
    all vectors. A small share of T keeps directions that differ between the trained
    classes from dominating. The mixture is regularised by its mean variance t, as in
    regularised discriminant analysis (Friedman, JASA 84(405), 1989):

        V = (1 - a) * W + a * T, with a = TOTAL * whitening ** 2
        S = whitening * V + (1 - whitening) * t * I, with t = trace(V) / L

    Centred vectors are multiplied by S ** -0.5. `whitening` is from 0 to below 1; 0
    only centres them. If `dimensions` is below L, the principal components of the
    result are kept, which are at most N - 1; 0 keeps all numbers, up to MOST_NUMBERS.
    Raises UserError for vectors that are not finite or span nothing.
    """
    centred, mean = centre(vectors)
    count, length = centred.shape
    dimensions = dimensions or min(length, MOST_NUMBERS)
    basis = None  # of what the vectors span, (L, r)
    if count < length and dimensions < length:
        variances, left = by_variance(centred @ centred.T)
        left = left[:, variances > LEAST_VARIANCE * variances[0]]
        scales = variances[: left.shape[1]].sqrt()
        basis = centred.T @ (left / scales)
        centred = left * scales
    sizes = torch.bincount(labels)
    means = F.one_hot(labels).double().T @ centred / sizes[:, None]
    differences = centred - means[labels]
    freedom = count - len(sizes)
    whitening = whitening if freedom else 0  # each class has one image
    within = differences.T @ differences / max(1, freedom)
    share = TOTAL * whitening**2
    covariance = (1 - share) * within + share * centred.T @ centred / count
    shift = (1 - whitening) * covariance.trace() / length
    if not whitening or shift <= LEAST_VARIANCE * centred.square().mean():
        whitening, shift = 0, 1  # only centre
    variances, axes = by_variance(whitening * covariance)
    matrix = axes * (variances.clamp(min=0) + shift).rsqrt() @ axes.T
    if dimensions < length:
        whitened = centred @ matrix
        variances, components = by_variance(whitened.T @ whitened)
        kept = int((variances > LEAST_VARIANCE * variances[0]).sum())
        matrix = matrix @ components[:, : min(kept, dimensions)]
        if basis is not None:
            matrix = basis @ matrix
    return Projection(mean.float(), with_signs(matrix).float())


def centre(vectors):
    """Return vectors (N, L) minus their mean, and the mean (L,), in float64.

    Raises UserError for vectors that are not finite or equal.
    """
    vectors = vectors.double()
    mean = vectors.mean(dim=0)
    if not torch.isfinite(mean).all():
        raise UserError('embeddings are not finite: a smaller --lr may help')
    centred = vectors - mean
    if centred.square().sum() <= LEAST_SPREAD * vectors.square().sum():
        raise UserError(f'{len(vectors)} embeddings are equal: nothing to tell apart')
    return centred, mean


def with_signs(matrix):
    """Make the largest number of each column positive: signs are arbitrary."""
    places = matrix.abs().argmax(dim=0, keepdim=True)
    return matrix * matrix.gather(0, places).sign()


def fit_projection(vectors, dimensions, whitening):
    """Fit a Projection to vectors (N, L) by their principal components.

    Each component is divided by its standard deviation to the power of `whitening`: 0
    keeps the deviations (PCA), 1 makes them equal (whitening). If N is below L, the
    components come from the matrix of dot products (N, N) instead of the covariance
    (L, L). If the vectors span fewer dimensions, the Projection has only those. Raises
    UserError for vectors that are not finite or span none.
    """
    centred, mean = centre(vectors)
    count, length = centred.shape
    rows = centred if count < length else centred.T
    variances, components = by_variance(rows @ rows.T / count)
    kept = int((variances > LEAST_VARIANCE * variances[0]).sum())
    kept = min(kept, dimensions)
    variances, components = variances[:kept], components[:, :kept]
    if count < length:
        components = centred.T @ (components / (variances * count).sqrt())
    matrix = with_signs(components) * variances.pow(-whitening / 2)
    return Projection(mean.float(), matrix.float())


def by_variance(products):
    """Return eigenvalues (n,), the largest first, and eigenvectors, columns of (n, n).

    LAPACK's fastest way may fail for a matrix of low rank, as that of a network with
    dead channels. QR does not.
    """
    try:
        values, columns = torch.linalg.eigh(products)
    except torch.linalg.LinAlgError:
        from scipy import linalg

        pair = linalg.eigh(products.numpy(), driver='ev')
        values, columns = map(torch.from_numpy, pair)
    return values.flip(0), columns.flip(1)

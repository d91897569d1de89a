"""Whitening within classes, against its definition and by its properties."""

import pytest
import torch

from areir.errors import UserError
from areir.networks.projection import fit_whitening


def draw(count, length, seed=0):
    """Return vectors (count, length) of 5 classes, whose numbers differ in scale."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 5
    means = 4 * torch.randn(5, length, generator=generator)
    scales = torch.arange(1, length + 1) ** 0.5
    return means[labels] + torch.randn(
        count, length, generator=generator
    ) * scales, labels


def whiten(vectors, labels, whitening):
    """Return the centred vectors times S ** -0.5, by the definition."""
    centred = vectors.double() - vectors.double().mean(dim=0)
    within = torch.zeros(centred.shape[1], centred.shape[1]).double()
    for label in range(5):
        own = centred[labels == label]
        within += (own - own.mean(dim=0)).T @ (own - own.mean(dim=0))
    within /= len(vectors) - 5
    share = 0.1 * whitening**2
    mixed = (1 - share) * within + share * centred.T @ centred / len(centred)
    shift = mixed.trace() / len(mixed) * torch.eye(len(mixed)).double()
    values, axes = torch.linalg.eigh(whitening * mixed + (1 - whitening) * shift)
    return centred @ (axes * values**-0.5) @ axes.T


@pytest.mark.parametrize('shape', [(50, 8), (20, 40)])
@pytest.mark.parametrize('dimensions', [3, 100, 0])
def test_dot_products_are_those_of_the_definition(shape, dimensions):
    vectors, labels = draw(*shape)
    projection = fit_whitening(vectors, labels, dimensions, 0.7)
    own = (vectors - projection.mean) @ projection.matrix
    wanted = whiten(vectors, labels, 0.7)
    if 0 < dimensions < shape[1]:
        left, values, _ = torch.linalg.svd(wanted, full_matrices=False)
        wanted = left[:, :dimensions] * values[:dimensions]
    torch.testing.assert_close(
        own @ own.T, (wanted @ wanted.T).float(), atol=1e-4, rtol=0
    )


def test_by_hand():
    """Variances: 2 and 0 within classes, 1 and 1 in total, 1 on average."""
    vectors = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    projection = fit_whitening(vectors, torch.tensor([0, 0, 1, 1]), 2, 0.5)
    # a = 0.025, V = diag(1.975, 0.025), t = 1, S = diag(1.4875, 0.5125)
    wanted = torch.tensor([[1.4875**-0.5, 0.0], [0.0, 0.5125**-0.5]])
    torch.testing.assert_close(projection.matrix.abs(), wanted)
    assert projection(vectors).norm(dim=1).tolist() == pytest.approx([1] * 4)


def test_few_images_span_few_components():
    vectors, labels = draw(20, 40)
    assert fit_whitening(vectors, labels, 30, 0.5).matrix.shape == (40, 19)
    assert fit_whitening(vectors, labels, 40, 0.5).matrix.shape == (40, 40)


@pytest.mark.parametrize(
    ('labels', 'whitening'), [(torch.arange(6), 0.9), (torch.arange(6) % 2, 0)]
)
def test_without_variance_or_whitening_vectors_are_only_centred(labels, whitening):
    vectors, _ = draw(6, 4)
    projection = fit_whitening(vectors, labels, 4, whitening)
    assert torch.allclose(projection.matrix.abs(), torch.eye(4), atol=1e-6)


def test_what_cannot_be_whitened_is_refused():
    vectors, labels = draw(10, 4)
    with pytest.raises(UserError, match='equal'):
        fit_whitening(torch.full((10, 4), 0.3), labels, 2, 0.5)
    vectors[3, 2] = torch.nan
    with pytest.raises(UserError, match='not finite'):
        fit_whitening(vectors, labels, 2, 0.5)

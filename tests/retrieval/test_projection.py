"""Principal components and whitening, against numpy and by their properties."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from areir.errors import UserError
from areir.retrieval.projection import Projection, fit_projection


def draw(count, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, length + 1) ** 0.5
    return torch.randn(count, length, generator=generator) * scales + 3


def project(vectors, projection):
    """Return the projected vectors before they are normalised."""
    return (vectors - projection.mean) @ projection.matrix


def test_two_dimensions_by_hand():
    vectors = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 4.0], [2.0, 6.0]])
    vectors = (vectors - torch.tensor([2.0, 5.0])) * torch.tensor([4.0, 1.0])
    projection = fit_projection(vectors, 1, whitening=0)
    assert torch.allclose(projection.matrix.abs(), torch.tensor([[1.0], [0.0]]))
    whole = fit_projection(vectors, 2, whitening=1)
    # deviations 8 ** 0.5 and 0.5 ** 0.5
    assert torch.allclose(whole.matrix.norm(dim=0) ** -2, torch.tensor([8.0, 0.5]))


@pytest.mark.parametrize('shape', [(50, 8), (6, 20)])
def test_components_are_those_of_numpy(shape):
    vectors = draw(*shape)
    projection = fit_projection(vectors, 4, whitening=0)
    centred = (vectors - vectors.mean(dim=0)).double().numpy()
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    cosines = (components[:4] * projection.matrix.T.double().numpy()).sum(axis=1)
    assert np.allclose(abs(cosines), 1, atol=1e-5)


@pytest.mark.parametrize('shape', [(50, 8), (6, 20)])
def test_whitened_vectors_have_the_identity_as_covariance(shape):
    vectors = draw(*shape)
    whitened = project(vectors, fit_projection(vectors, 4, whitening=1))
    covariance = whitened.T @ whitened / len(vectors)
    assert torch.allclose(covariance, torch.eye(4), atol=1e-4)


def test_half_whitening_leaves_the_root_of_the_deviations():
    vectors = draw(60, 5)
    plain, half = (
        project(vectors, fit_projection(vectors, 5, power)).pow(2).mean(dim=0).sqrt()
        for power in (0, 0.5)
    )
    assert torch.allclose(half, plain.sqrt(), rtol=1e-4)


def test_few_vectors_span_few_dimensions():
    assert fit_projection(draw(5, 20), 10, 0.5).matrix.shape == (20, 4)
    assert fit_projection(draw(30, 6), 10, 0.5).matrix.shape == (6, 6)
    with pytest.raises(UserError, match='1 images'):
        fit_projection(draw(1, 6), 2, 0.5)


def test_projected_vectors_are_unit_vectors_and_repeatable():
    vectors = draw(30, 6)
    projection = fit_projection(vectors, 3, 0.75)
    result = projection(vectors)
    assert torch.allclose(result.norm(dim=1), torch.ones(30), atol=1e-6)
    assert torch.equal(result, fit_projection(vectors, 3, 0.75)(vectors))
    assert torch.equal(result, F.normalize(project(vectors, projection), dim=1))
    again = Projection(**projection.to_state())
    assert torch.equal(again(vectors), result)
    # the sign is fixed: the largest number of each component is positive
    places = projection.matrix.abs().argmax(dim=0)
    assert (projection.matrix[places, range(3)] > 0).all()

"""Principal components and whitening, against numpy and by their properties."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from areir.errors import UserError
from areir.networks.projection import Projection, fit_projection


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


def test_few_vectors_span_few_dimensions():
    assert fit_projection(draw(5, 20), 10, 0.5).matrix.shape == (20, 4)
    assert fit_projection(draw(30, 6), 10, 0.5).matrix.shape == (6, 6)


def test_projected_vectors_are_unit_vectors_and_repeatable():
    vectors = draw(30, 6)
    projection = fit_projection(vectors, 3, 0.75)
    result = projection(vectors)
    assert torch.allclose(result.norm(dim=1), torch.ones(30), atol=1e-6)
    assert torch.equal(result, fit_projection(vectors, 3, 0.75)(vectors))
    assert torch.equal(result, F.normalize(project(vectors, projection), dim=1))
    again = Projection(**dict(projection.named_buffers()))
    assert torch.equal(again(vectors), result)
    # the sign is fixed: the largest number of each component is positive
    places = projection.matrix.abs().argmax(dim=0)
    assert (projection.matrix[places, range(3)] > 0).all()


@pytest.mark.parametrize('shape', [(50, 8), (6, 20), (20, 20)])
@pytest.mark.parametrize('whitening', [0, 0.75, 1])
def test_vectors_are_those_of_a_singular_value_decomposition(shape, whitening):
    """Each singular value is the deviation of a component times sqrt(N)."""
    vectors = draw(*shape)
    own = project(vectors, fit_projection(vectors, 4, whitening)).double().numpy()
    centred = vectors.double().numpy()
    centred = centred - centred.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    deviations = values[:4] / np.sqrt(len(vectors))
    wanted = left[:, :4] * values[:4] / deviations**whitening
    signs = np.sign((own * wanted).sum(axis=0))
    assert np.allclose(own, wanted * signs, atol=1e-4 * abs(wanted).max())


@pytest.mark.parametrize('count', [10, 100])
def test_directions_without_variance_are_left_out(count):
    """They are rounding, which whitening would blow up."""
    basis = draw(3, 40, seed=1)
    vectors = draw(count, 3) @ basis
    projection = fit_projection(vectors, 40, whitening=1)
    assert projection.matrix.shape == (40, 3)
    assert projection(vectors).isfinite().all()
    constant = torch.cat([draw(count, 4), torch.full((count, 2), 7.0)], dim=1)
    assert fit_projection(constant, 6, 1).matrix.shape == (6, 4)


@pytest.mark.parametrize('shape', [(5, 3), (3, 5), (2, 2)])
def test_equal_vectors_span_nothing(shape):
    """As embeddings of copies of one image do."""
    with pytest.raises(UserError):
        fit_projection(torch.full(shape, 0.3), 2, 0.5)


@pytest.mark.parametrize('shape', [(50, 8), (6, 20)])
def test_where_lapack_fails_another_way_is_taken(monkeypatch, shape):
    wanted = fit_projection(draw(*shape), 4, 0.75)

    def fail(matrix):
        raise torch.linalg.LinAlgError('failed to converge')

    monkeypatch.setattr(torch.linalg, 'eigh', fail)
    projection = fit_projection(draw(*shape), 4, 0.75)
    torch.testing.assert_close(projection.matrix, wanted.matrix)


def test_vectors_that_are_not_finite_are_refused():
    vectors = draw(30, 6)
    vectors[3, 2] = torch.nan
    with pytest.raises(UserError, match='not finite'):
        fit_projection(vectors, 3, 0.5)

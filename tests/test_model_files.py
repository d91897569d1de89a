"""Model files with components and other arguments: read, damaged, or older."""

import pytest
import torch
from torch.nn import functional as F
from trained import MEAN, MODEL_ARGS, SIDE, STD, save_model

from areir.data.images import normalise
from areir.errors import UserError
from areir.networks.projection import fit_projection
from areir.training.run import MODEL_ARGS_BEFORE
from model import EnsembleModel, TrainedModel

ARGUMENTS = {
    **MODEL_ARGS,
    'shared_stages': 2,
    'embedding': 'features',
    'mirror': True,
    'neutral_se': True,
}
with torch.device('meta'):
    LENGTH = EnsembleModel(**ARGUMENTS).dimensions
CPU = torch.device('cpu')


def random_pixels(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = count, 3, SIDE, SIDE
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


@pytest.fixture(scope='module')
def model():
    """A network of the current recipe with components of 9 images."""
    model = EnsembleModel(**ARGUMENTS, seed=4).eval()
    vectors = model.embed(normalise(random_pixels(9, seed=1), MEAN, STD))
    model.projection = fit_projection(vectors, 5, whitening=0.75)
    return model


@pytest.fixture(scope='module')
def changed(model):
    """What its model file holds that that of `trained.save_model` does not."""
    projection = model.projection.to_state()
    state_dict = model.state_dict()
    return {
        'state_dict': state_dict,
        'model_args': ARGUMENTS,
        'projection': projection,
        'ensemble_size': 1,
    }


def test_a_model_file_holds_the_components(tmp_path, model, changed):
    assert not any('projection' in name for name in changed['state_dict'])
    save_model(tmp_path / 'run_model.pth', **changed)
    trained = TrainedModel(str(tmp_path / 'run_model.pth'))
    assert trained.dimensions == 5
    pixels = random_pixels(4)
    embeddings = trained.embedder(CPU)(pixels)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(4), atol=1e-5)
    wanted = model.embed(normalise(pixels, MEAN, STD))
    assert F.cosine_similarity(embeddings, wanted).min() > 0.99
    torch.testing.assert_close(
        trained.model.embed(normalise(pixels, MEAN, STD)), wanted
    )


def test_without_components_the_whole_embedding_is_returned(tmp_path, changed):
    save_model(tmp_path / 'run_model.pth', **{**changed, 'projection': None})
    trained = TrainedModel(str(tmp_path / 'run_model.pth'))
    assert trained.dimensions == LENGTH
    assert trained.embedder(CPU)(random_pixels(2)).shape == (2, LENGTH)


def test_a_file_from_before_the_recipes_is_that_of_2019(tmp_path):
    """It has neither the newer arguments nor components."""
    older = save_model(tmp_path / 'older_model.pth')
    assert not older['model_args'].keys() & MODEL_ARGS_BEFORE.keys()
    newer = {'model_args': {**MODEL_ARGS, **MODEL_ARGS_BEFORE}, 'projection': None}
    save_model(tmp_path / 'newer_model.pth', **newer)
    paths = [str(tmp_path / f'{name}_model.pth') for name in ('older', 'newer')]
    first, second = map(TrainedModel, paths)
    assert first.dimensions == second.dimensions == 6
    pixels = random_pixels(3)
    assert torch.equal(first.embedder(CPU)(pixels), second.embedder(CPU)(pixels))


def components(length, dimensions):
    return {'mean': torch.zeros(length), 'matrix': torch.zeros(length, dimensions)}


DAMAGED = {
    'components of other embeddings': {'projection': components(LENGTH - 1, 5)},
    'a matrix of another length': {
        'projection': {
            'mean': torch.zeros(LENGTH),
            'matrix': torch.zeros(LENGTH + 1, 5),
        }
    },
    'no matrix': {'projection': {'mean': torch.zeros(LENGTH)}},
    'a vector': {
        'projection': {'mean': torch.zeros(LENGTH), 'matrix': torch.zeros(LENGTH)}
    },
    'no components': {'projection': components(LENGTH, 0)},
    'text': {'projection': 'text'},
    'texts': {'projection': {'mean': 'text', 'matrix': 'text'}},
    'another trunk': {'model_args': {**ARGUMENTS, 'shared_stages': 3}},
    'no trunk': {'model_args': {**ARGUMENTS, 'shared_stages': 0}},
    'many stages': {'model_args': {**ARGUMENTS, 'shared_stages': 4}},
    'another embedding': {'model_args': {**ARGUMENTS, 'embedding': 'pixels'}},
    'another family': {'model_args': {**ARGUMENTS, 'model_type': 'swin_t'}},
}


@pytest.mark.parametrize('kind', DAMAGED)
def test_damaged_files_are_refused_by_name(tmp_path, changed, kind):
    save_model(tmp_path / 'bad_model.pth', **{**changed, **DAMAGED[kind]})
    with pytest.raises(UserError, match=r'bad_model\.pth: .*train\.py') as refused:
        TrainedModel(str(tmp_path / 'bad_model.pth'))
    assert '\n' not in str(refused.value)

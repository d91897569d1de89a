"""Heat maps: where the heat is, and the sheet of pairs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from trained import SAMPLE_RUN, save_model

from areir.data.images import normalise
from areir.data.sample import draw_image, random_figure
from areir.output.heat_maps import draw_heat_maps, overlay, similarity_maps
from areir.output.sheets import THUMBNAIL
from model import EnsembleModel, TrainedModel

SIDE = 64


@pytest.mark.parametrize(('side', 'cells'), [(64, 8), (256, 8), (16, 4)])
def test_heat_has_the_cells_of_the_last_layer_with_enough(side, cells):
    """layer2 for 64 pixels, layer4 for 256; the trunk if no layer has enough."""
    model = EnsembleModel('resnet18', 2, 3)
    heat = similarity_maps(model, torch.randn(2, 3, side, side))
    assert heat.shape == (2, cells, cells) and not heat.requires_grad
    assert heat.min() >= 0
    assert heat.amax(dim=(1, 2)).tolist() == pytest.approx([1, 1])


def test_an_overlay_dims_what_is_cold():
    image = Image.new('RGB', (40, 40), (100, 100, 100))
    heat = np.zeros((2, 2))
    heat[:, 1] = 1
    colours = np.asarray(overlay(image, heat), int)
    cold, hot = colours[20, 2], colours[20, 37]
    assert cold.max() < 80 and hot[0] > 130 and hot[2] < hot[0] - 30


def test_a_sheet_of_pairs(tmp_path):
    save_model(tmp_path / 'toy_model.pth')
    trained = TrainedModel(str(tmp_path / 'toy_model.pth'))
    images = [Image.effect_noise((50, 40), 90).convert('RGB') for _ in range(4)]
    captions = [(f'{rank}: 0.5', 'name') for rank in (1, 2, 3)]
    picture = draw_heat_maps(images, captions, trained)
    assert picture.width > 4 * THUMBNAIL and picture.height > 2 * THUMBNAIL


def draw_pair(index):
    """Draw two images (2, 3, S, S) of a figure, and where the figure is (2, S, S).

    The same picture drawn in other colours tells the figure from the ground.
    """
    figure = random_figure(np.random.default_rng([0, index]))
    inverted = tuple(255 - colour for colour in figure.colours)
    images, places = [], []
    for number in range(2):
        image, other = (
            np.array(draw_image(drawn, SIDE, np.random.default_rng([1, index, number])))
            for drawn in (figure, replace(figure, colours=inverted))
        )
        images.append(torch.from_numpy(image).permute(2, 0, 1))
        places.append(torch.from_numpy((image != other).any(axis=2)))
    return torch.stack(images), torch.stack(places)


@pytest.mark.slow
def test_heat_lies_on_the_figure_and_not_on_the_ground(trained_sample):
    """Of figures that training never saw."""
    path = trained_sample.root / f'results/{SAMPLE_RUN}_model.pth'
    trained = TrainedModel(str(path))
    hot, area, peaks = [], [], []
    for index in range(200, 230):
        images, places = draw_pair(index)
        pixels = normalise(images, trained.mean, trained.std)
        heat = similarity_maps(trained.model, pixels)
        heat = F.interpolate(heat[:, None], (SIDE, SIDE), mode='bilinear')[:, 0]
        for one, inside in zip(heat, places):
            hot.append((one[inside].sum() / one.sum()).item())
            area.append(inside.double().mean().item())
            peaks.append(float(inside.flatten()[one.argmax()]))
    hot, area, peaks = np.mean(hot), np.mean(area), np.mean(peaks)
    # a figure takes 30 % of its picture
    assert hot / area > 1.5 * (1 - hot) / (1 - area), (hot, area)
    assert peaks > area + 0.25, (peaks, area)

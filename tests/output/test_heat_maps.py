"""Heat maps: their cells, the overlay, and the sheet of pairs."""

import numpy as np
import pytest
import torch
from PIL import Image
from trained import save_model

from areir.output.heat_maps import draw_heat_maps, overlay, similarity_maps
from areir.output.sheets import THUMBNAIL
from model import EnsembleModel, TrainedModel


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

"""Heat maps: the regions that make two images similar."""

import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from areir.networks.layers import run_stages
from areir.output.sheets import sheet, thumbnail

CELLS = 7  # least cells per side of the features that are used
TILES = 4  # thumbnails in a row: two pairs


def similarity_maps(model, images):
    """Return what each region of two images adds to their similarity.

    images: a pair, normalised (2, 3, H, W); model: an EnsembleModel. Returns heat
    (2, h, w) from 0 to 1, summed over heads.

    Take the gradient of the embeddings' dot product with respect to the features of
    each head, multiply it by the features, sum over channels and keep what is positive:
    Grad-CAM (arXiv 1610.02391) on the similarity. The gradient is not averaged over the
    picture first, which makes no difference in the last stage and keeps the map
    faithful before it (HiResCAM, arXiv 2011.08891). The features are those of the last
    stage with at least CELLS cells per side: of a ResNet layer4 for images of 256
    pixels, layer2 for those of 64. Where the class token alone describes an image, they
    are those before the last stage, in which it attends to the patches. Parts of the
    embedding that come before them are left out.
    """
    model = model.eval()
    with torch.no_grad():
        parts = model.describe(images)
        features = model.trunk(images)
    parts = [part.requires_grad_() for part in parts]
    query, retrieved = model.combine(parts)
    gradients = torch.autograd.grad(query @ retrieved, parts)
    per_head = len(parts) // len(model.heads)
    heat = 0
    for number, head in enumerate(model.heads):
        own = gradients[number * per_head : (number + 1) * per_head]
        heat += head_heat(head, features, model.embedding, own)
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def head_heat(head, features, embedding, gradients):
    """Return the heat (2, h, w) of one head.

    features: of the trunk, for two images; gradients: for the head's parts of the
    embedding, which may begin with those of the trunk's earlier stages.
    """
    first = features.detach().requires_grad_()
    outputs = [first, *run_stages(head.stages, first)]
    layouts = head.layouts[-len(outputs) :]
    if embedding == 'logits':
        parts = [head.logits(outputs[-1])]
    else:
        parts = head.pooled(outputs)[-len(gradients) :]
    own = gradients[-len(parts) :]
    for seen, layout in reversed(list(zip(outputs, layouts))):
        if layout.maps(seen).shape[2] < CELLS and seen is not first:
            continue
        (gradient,) = torch.autograd.grad(parts, seen, own, retain_graph=True)
        if layout.maps(gradient).any():
            break
    heat = layout.maps(gradient * seen).sum(dim=1)
    return F.relu(heat).detach()


def overlay(image, heat):
    """Colour an RGB image from red to yellow with its heat; dim it where heat is low.

    heat: an array (h, w) from 0 to 1.
    """
    heat = Image.fromarray((heat * 255).astype('uint8'))
    heat = heat.resize(image.size, Image.Resampling.BICUBIC)
    glow = ImageOps.colorize(heat, 'black', 'yellow', (220, 30, 30))
    black = Image.new('RGB', image.size, 'black')
    dimmed = Image.blend(image.convert('L').convert('RGB'), black, 0.35)
    mask = heat.point(lambda value: min(255, 2 * value))
    return Image.composite(Image.blend(image, glow, 0.4), dimmed, mask)


def pair_heat(images, trained):
    """Return the `similarity_maps` of a pair of RGB images, an array (2, h, w)."""
    pixels = [trained.pixel_format.to_pixels(image) for image in images]
    pair = trained.pixel_format.normalise(torch.stack(pixels))
    return similarity_maps(trained.model, pair).numpy()


def draw_heat_maps(images, captions, trained):
    """Draw a sheet of pairs: the query and a retrieved image, each under its heat.

    images: RGB, the query first; captions: of the others; trained: a TrainedModel.
    """
    tiles, texts = [], []
    for number in range(1, len(images)):
        pair = images[0], images[number]
        for image, heat in zip(pair, pair_heat(pair, trained)):
            tiles.append(thumbnail(overlay(image, heat), 'black', 1))
        texts += [('query', ''), captions[number - 1]]
    return sheet(tiles, texts, min(len(tiles), TILES))

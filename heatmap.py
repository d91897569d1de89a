"""Why do two images match? The regions that make the heads see them as similar."""
import torch
from torch.nn import functional as F

CELLS = 7  # a side, at least, of the features that are looked at


def similarity_maps(model, images):
    """What each region of two images adds to their similarity: heat (2, h, w) from 0 to 1, averaged over heads.

    images: a pair, normalised (2, 3, H, W); model: an EnsembleModel. For each head, the gradient of the cosine of the
    two images' logits with respect to the features of each, times the features, summed over channels, where positive:
    Grad-CAM (arXiv 1610.02391) on the similarity. The gradient is not averaged over the picture first, which on layer4
    changes nothing and before it keeps the map faithful (HiResCAM, arXiv 2011.08891). The features are those of the
    last layer with CELLS cells a side: layer4 for images of 256 pixels, layer2 for those of 64.
    """
    model = model.eval()
    with torch.no_grad():
        features = model.trunk(images)
    heat = 0
    with torch.enable_grad():
        for head in model.heads:
            layers = [features.detach().requires_grad_()]
            for part in (lambda x, head=head: head.se(head.layer2(x)), head.layer3, head.layer4):
                layers.append(part(layers[-1]))
            logits = head.fc(layers[-1].mean(dim=(2, 3)))
            seen = next((layer for layer in reversed(layers) if min(layer.shape[2:]) >= CELLS), layers[0])
            gradient, = torch.autograd.grad(F.cosine_similarity(logits[0], logits[1], dim=0), seen)
            heat += F.relu((gradient * seen).sum(dim=1)).detach() / len(model.heads)          # (2, h, w)
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)

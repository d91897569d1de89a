"""Layers that torch does not have: a chain of named blocks, and mean pooling."""

import torch
from torch import nn


class Chain(nn.Module):
    """Runs blocks one after the other. blocks: {dotted name: module}.

    Weights are named as in the network that the blocks are from.
    """

    def __init__(self, blocks):
        super().__init__()
        self.order = list(blocks)
        for path, block in blocks.items():
            *parents, name = path.split('.')
            home = self
            for parent in parents:
                if not hasattr(home, parent):
                    home.add_module(parent, nn.Module())
                home = home.get_submodule(parent)
            home.add_module(name, block)

    def run(self, names, features):
        """Run the blocks with these names."""
        for name in names:
            features = self.get_submodule(name)(features)
        return features

    def forward(self, features):
        return self.run(self.order, features)


class MeanPool(nn.Module):
    """Means over space, in float32 at least."""

    def forward(self, features):  # (N, C, H, W)
        dtype = torch.promote_types(features.dtype, torch.float32)
        return features.mean(dim=(2, 3), keepdim=True, dtype=dtype)  # (N, C, 1, 1)

"""The protocol of the tables that came with the method, to compare with them and to measure what it adds.

There each head's input was multiplied by a weight from softmax(uniform noise), drawn anew for every batch, at test
time too. Test batches are of 8 images in the order of the classes, so the images of a batch, mostly of one class,
share a signature that they can be recognised by. `train.py --protocol published` does this, and keeps the
best epoch by test recall. Nothing else uses this file: figures obtained so say little about the model.
"""
from functools import partial

import torch

from model import EnsembleModel

TEST_BATCH = 8


class PublishedModel(EnsembleModel):
    """An EnsembleModel whose logits and embeddings depend on the batch: one random weight per head and batch."""

    def __init__(self, *args, seed=0, **kwargs):
        super().__init__(*args, seed=seed, **kwargs)
        self.noise = torch.Generator().manual_seed(seed)
        self.trunk.register_forward_hook(self.draw)
        for member, head in zip(self.members, self.heads):
            head.register_forward_pre_hook(partial(self.weigh, member))

    def draw(self, trunk, inputs, features):
        self.weights = torch.rand(self.ensemble_size, generator=self.noise).softmax(dim=0)

    def weigh(self, member, head, inputs):
        return inputs[0] * self.weights[member].to(inputs[0])

"""The protocol of the published tables, kept apart from everything else.

The code released with these tables multiplied each head's input by a random weight from
softmax(uniform noise), drawn for every batch, at test time too. Test batches held 8
images in the order of the classes. The images of a batch, mostly of one class, then
share a signature by which they can be recognised, whatever they show.
`train.py --protocol published` does this to compare with these tables, and keeps the
epoch with the best test recall. Its figures say little about the model.
"""

from functools import partial

import torch


class RandomWeights:
    """Makes a model's logits and embeddings depend on the batch.

    Registers hooks on the trunk and the heads of an EnsembleModel: the trunk's draws
    one weight per head, each head's multiplies its input by its own.
    """

    def __init__(self, model, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.ensemble_size = model.ensemble_size
        model.trunk.register_forward_hook(self.draw)
        for member, head in zip(model.members, model.heads):
            head.register_forward_pre_hook(partial(self.weigh, member))

    def draw(self, trunk, inputs, features):
        """Draw the weights of a batch, after its pass through the trunk."""
        noise = torch.rand(self.ensemble_size, generator=self.generator)
        self.weights = noise.softmax(dim=0)

    def weigh(self, member, head, inputs):
        """Return the input of a head, multiplied by the head's weight."""
        return inputs[0] * self.weights[member].to(inputs[0])

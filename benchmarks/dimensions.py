"""Measure Recall@1 and MAP@R of a run by the length of its embeddings and whitening.

    python train.py --data_name sample --num_epochs 40 --dimensions 4096 --store fp32
    python benchmarks/dimensions.py results/sample_uncropped_resnet18_2_40

Nothing is trained or embedded again: the stored embeddings are principal components, so
shorter ones are their first numbers, and another whitening is a factor for each number.
To see every component, train with a --dimensions beyond their number. It takes seconds.
"""

import common
import torch
from torch.nn import functional as F

import utils
from areir.errors import UserError
from areir.files import load_tensors
from areir.retrieval.embeddings_file import read_embeddings
from areir.retrieval.metrics import evaluate
from areir.training.finished import read_run_json

DIMENSIONS = (16, 32, 64, 128, 256, 512)
WHITENINGS = (0, 0.25, 0.5, 0.75, 1)


def component_deviations(matrix, whitening):
    """Return the standard deviations (D,) of components from a matrix (L, D).

    matrix: of a Projection, each column a unit vector divided by its component's
    deviation to the power of `whitening`, which is above 0.
    """
    norms = torch.linalg.vector_norm(matrix.double(), dim=0)
    return (norms ** (-1 / whitening)).float()


def read_projection(run):
    """Return (deviations (D,), whitening) of a run's principal components."""
    whitening = read_run_json(f'{run}_run.json')['arguments'].get('whitening')
    state = load_tensors(f'{run}_model.pth').get('projection')
    if not state or not whitening:
        raise UserError(f'{run}: train with --dimensions and a --whitening above 0')
    return component_deviations(state['matrix'], whitening), whitening


def measure(run):
    """Return {dimensions: {whitening: metrics}} of a run's test images."""
    deviations, stored = read_projection(run)
    images = read_embeddings(f'{run}_data_base.pth').query
    embeddings = images.embeddings.float()
    lengths = [length for length in DIMENSIONS if length < len(deviations)]
    lengths.append(len(deviations))
    table = {length: {} for length in lengths}
    for whitening in WHITENINGS:
        factors = deviations ** (stored - whitening)
        for length in lengths:
            vectors = F.normalize((embeddings * factors)[:, :length], dim=1)
            table[length][whitening] = evaluate(vectors, images.labels, [1])
    return table


def main():
    table = measure(common.get_run(__doc__.split('\n')[0]))
    print('Recall@1 (MAP@R) by dimensions and --whitening')
    print(f'{"":>6}' + ''.join(f'{whitening:>14}' for whitening in WHITENINGS))
    for length, metrics in table.items():
        cells = (f'{m["recall@1"]:.1%} ({m["map@r"]:.1%})' for m in metrics.values())
        print(f'{length:>6}' + ''.join(f'{cell:>14}' for cell in cells))


if __name__ == '__main__':
    utils.run_script(main)

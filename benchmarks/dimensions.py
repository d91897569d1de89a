"""Measure Recall@1 and MAP@R of a run by the length and whitening of its embeddings.

    python data_utils.py --data_name sample --image_size 64
    python train.py --data_name sample --weights none --image_size 64 --num_epochs 8 \
        --dimensions 4096
    python benchmarks/dimensions.py results/sample_uncropped_resnet18_2_40

Nothing is trained or embedded again: the stored embeddings are principal components, so
shorter ones are their first numbers, and another whitening is a factor for each number.
--dimensions 4096 is more than there are components, so the run keeps them all. This
script takes seconds.
"""

import common
import torch
from torch.nn import functional as F

import utils
from areir.errors import UserError
from areir.evaluation.embeddings_file import read_embeddings
from areir.evaluation.metrics import evaluate
from areir.files import load_tensors
from areir.networks.projection import is_state
from areir.schemas import find_problem
from areir.training.run import read_run_json

DIMENSIONS = (16, 32, 64, 128, 256, 512)
WHITENINGS = (0, 0.25, 0.5, 0.75, 1)


def component_deviations(matrix, whitening):
    """Return the standard deviation of each component, (D,).

    matrix (L, D): of a Projection. Each column is a unit vector divided by the
    component's deviation to the power of `whitening`, which is above 0.
    """
    norms = torch.linalg.vector_norm(matrix.double(), dim=0)
    return (norms ** (-1 / whitening)).float()


def read_projection(run):
    """Return (deviations (D,), whitening) of a run's principal components."""
    arguments = read_run_json(f'{run}_run.json').get('arguments', {})
    path = f'{run}_model.pth'
    model = load_tensors(path)
    problem = find_problem(model, {}, {'projection': is_state})
    if problem:
        raise UserError(f'{path}: {problem}')
    state, whitening = model.get('projection'), arguments.get('whitening')
    if not state or not whitening:
        raise UserError(f'{run}: train with --dimensions and a --whitening above 0')
    return component_deviations(state['matrix'], whitening), whitening


def read_sides(run, length):
    """Return the ImageSets of a run: the queries and, if separate, the gallery.

    Raises UserError unless their embeddings have this length.
    """
    path = f'{run}_data_base.pth'
    file = read_embeddings(path)
    sides = [file.query] + ([file.gallery] if file.gallery else [])
    for side in sides:
        if side.embeddings.shape[1:] != (length,):
            raise UserError(f'{path}: its embeddings do not fit {run}_model.pth')
    return sides


def evaluate_scaled(sides, factors):
    """Return the metrics of ImageSets, their first D numbers times factors (D,)."""
    arguments = []
    for side in sides:
        vectors = side.embeddings[:, : len(factors)].float() * factors
        arguments += [F.normalize(vectors, dim=1), side.labels]
    query, query_labels, *gallery = arguments
    return evaluate(query, query_labels, [1], *gallery)


def measure(run):
    """Return {dimensions: {whitening: metrics}} of a run's test images."""
    deviations, stored = read_projection(run)
    sides = read_sides(run, len(deviations))
    lengths = [length for length in DIMENSIONS if length < len(deviations)]
    lengths.append(len(deviations))
    table = {length: {} for length in lengths}
    for whitening in WHITENINGS:
        factors = deviations ** (stored - whitening)
        for length in lengths:
            table[length][whitening] = evaluate_scaled(sides, factors[:length])
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

"""Measure whether confidences hold: of the classes given at 90 %, are 90 % right?

    python benchmarks/confidence.py results/<run>_data_base.pth
    python benchmarks/confidence.py vectors.npy --labels images.csv

FILE holds embeddings and labels of unseen classes; evaluate.py reads the same files.
One half of the classes sets threshold and confidence, as training and --calibrate do.
Of the other half's images, half are the gallery and half the queries. The answers of
DRAWS such splits are pooled.
"""

import argparse
from itertools import pairwise

import common  # noqa: F401  puts the repository on sys.path
import torch
from torch.nn import functional as F

import utils
from areir.errors import UserError
from areir.evaluation.embeddings_file import read_embeddings
from areir.evaluation.ranking import search
from areir.matching.calibration import calibrate
from areir.matching.thresholds import threshold_for
from areir.matching.votes import VOTERS, confidence_of, vote

DRAWS = 30
EDGES = (0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)  # of the bins of confidence


def draw_answers(embeddings, labels, false_match_rate, generator):
    """Return ([(confidence, whether the class is right)], queries) of one split.

    A query below the threshold gets no class and is not in the list.
    """
    classes = labels.unique()
    order = torch.randperm(len(classes), generator=generator)
    inside = torch.isin(labels, classes[order[: len(classes) // 2]])
    calibration = calibrate(
        embeddings[inside], labels[inside], false_match_rate=false_match_rate
    )
    if not calibration or not calibration['confidence']:
        return [], 0
    others, other_labels = embeddings[~inside], labels[~inside]
    is_query = torch.rand(len(others), generator=generator) < 0.5
    gallery, gallery_labels = others[~is_query], other_labels[~is_query]
    threshold, _ = threshold_for(calibration, len(gallery))
    k = min(VOTERS, len(gallery))
    scores, indices = search(others[is_query], gallery, k)
    answers = []
    for wanted, row, nearest in zip(other_labels[is_query].tolist(), scores, indices):
        result = vote(row.tolist(), gallery_labels[nearest].tolist(), threshold)
        if result.label is not None:
            confidence = confidence_of(result, calibration['confidence'])
            answers.append((confidence, result.label == wanted))
    return answers, int(is_query.sum())


def reliability(answers):
    """Return [(low, high, count, mean confidence, share that is right)] of each bin.

    answers: as `draw_answers` returns them.
    """
    confidence, right = torch.tensor(answers, dtype=torch.float64).T
    lines = []
    for low, high in pairwise(EDGES):
        inside = (confidence >= low) & (confidence < high + (high == 1))
        if inside.any():
            means = confidence[inside].mean().item(), right[inside].mean().item()
            lines.append((low, high, int(inside.sum()), *means))
    return lines


def get_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('file', metavar='FILE', help='embeddings and labels, see evaluate.py')
    add('--labels', metavar='CSV', help='of a .npy file, see evaluate.py')
    add('--false_match_rate', type=float, default=0.01, help='[default: %(default)s]')
    return parser.parse_args()


def main():
    args = get_args()
    images = read_embeddings(args.file, args.labels).query
    embeddings = F.normalize(images.embeddings.float(), dim=1)
    generator = torch.Generator().manual_seed(0)
    answers, queries = [], 0
    for _ in range(DRAWS):
        of_split, queries_of_split = draw_answers(
            embeddings, images.labels, args.false_match_rate, generator
        )
        answers += of_split
        queries += queries_of_split
    if not answers:
        raise UserError(f'{args.file}: no query reaches the threshold')
    right = sum(is_right for _, is_right in answers) / len(answers)
    print(f'{len(answers) / queries:.1%} of {queries:,} queries get a class')
    print(f'{right:.1%} of these classes are right')
    print(f'{"confidence":<14}{"answers":>9}{"mean confidence":>18}{"right":>9}')
    for low, high, count, mean, share in reliability(answers):
        name = f'{low:.0%} to {high:.0%}'
        print(f'{name:<14}{count:>9,}{mean:>18.1%}{share:>9.1%}')


if __name__ == '__main__':
    utils.run_script(main)

"""Check what is claimed: strict figures, false-match rates, confidences.

    python benchmarks/claims.py noise                                 # some minutes
    python benchmarks/claims.py false_matches results/<run>           # 3 minutes
    python benchmarks/claims.py confidence results/<run>_data_base.pth
    python benchmarks/claims.py confidence vectors.npy --labels images.csv

noise: one network, trained for a few steps on noise, embeds other noise in four ways.
If a protocol reports more than chance, it does not read the class from the picture. It
reads it from the other images of the batch.

false_matches: the threshold is set on the test classes of a run of `make demo`, as in
training. Its rate is measured on 240 figures drawn for this purpose: 40 of these
classes against each other (780 wrong images), and galleries of 50 and 5 images.

confidence: of the classes given at 90 %, are 90 % right? The file holds embeddings and
labels of unseen classes, as evaluate.py reads them. One half of the classes sets
threshold and confidence. Of the other half's images, half are the gallery and half the
queries.

The last two are means over 30 draws. Times are estimates for 2 cores.
"""

import os
import tempfile
from itertools import pairwise

import common
import torch
from torch.nn import functional as F

from areir.data.images import list_files
from areir.data.loading import Embedder
from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.evaluation.embeddings_file import read_embeddings
from areir.evaluation.intervals import confidence_intervals
from areir.evaluation.metrics import measures, rank_positives
from areir.evaluation.ranking import search
from areir.matching.calibration import calibrate
from areir.matching.thresholds import threshold_for
from areir.matching.votes import VOTERS, confidence_of, vote
from areir.scripts import utils
from areir.scripts.model import (
    EnsembleLoss,
    EnsembleModel,
    TrainedModel,
    assign_meta_classes,
    folded,
)
from areir.training import batches
from areir.training.published import RandomWeights

TEST_BATCH = batches.TEST_BATCH['published']
DRAWS = 30

# Noise


def train_on_noise(model, images, meta_labels, steps, generator):
    """Make some steps on random batches of images with their meta_labels (N, E)."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    loss = EnsembleLoss(torch.nn.CrossEntropyLoss(), meta_labels.shape[1])
    for _ in range(steps):
        batch = torch.randint(len(images), (TEST_BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(model(images[batch]), meta_labels[batch]).backward()
        optimizer.step()


def recall(model, images, labels, order):
    """Return (Recall@1, its 95 % interval) of images embedded in the given order."""
    embeddings = torch.cat([model.embed(b) for b in images[order].split(TEST_BATCH)])
    values = measures(rank_positives(embeddings, labels[order]), [1])['recall@1']
    intervals = confidence_intervals({'recall@1': values}, labels[order])
    return values.mean().item(), intervals['recall@1']


def noise_floor(
    classes=20,
    images_per_class=40,
    ensemble_size=48,
    meta_class_size=12,
    image_size=64,
    steps=20,
):
    """Return ({(protocol, order): (Recall@1, (low, high))}, the recall of chance).

    The test images are noise, and so are the training images.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(images_per_class)
    shape = 2, len(labels), 3, image_size, image_size
    train, test = torch.randn(shape, generator=generator)
    partition = assign_meta_classes(classes, meta_class_size, ensemble_size, seed=0)

    published = EnsembleModel('resnet18', ensemble_size, meta_class_size)
    RandomWeights(published, seed=0)
    train_on_noise(published, train, partition[:, labels].T, steps, generator)
    strict = EnsembleModel('resnet18', ensemble_size, meta_class_size)
    strict.load_state_dict(published.state_dict())

    shuffled = torch.randperm(len(labels), generator=generator)
    orders = {'in class order': torch.arange(len(labels)), 'shuffled': shuffled}
    results = {}
    for protocol, model in (('strict', strict), ('published', published)):
        for name, order in orders.items():
            results[protocol, name] = recall(model, test, labels, order)
    return results, (images_per_class - 1) / (len(labels) - 1)


def print_noise():
    results, chance = noise_floor()
    print(f'20 classes of 40 noise images, 48 heads; chance {chance:.1%}')
    for names, (value, (low, high)) in results.items():
        name = ', '.join(names)
        print(f'{name:<28}Recall@1 {value:.1%}, interval {low:.1%} to {high:.1%}')


# False matches

RATES = (0.01, 0.05, 0.1)
CLASSES = 40  # drawn to be compared with each other
SMALL = (50, 5)  # sizes of the other galleries
SEEDS = (1, 2, 3)  # of the new figures; the run's own have 0


def new_figures(trained, seeds=SEEDS, **sizes):
    """Return embeddings (N, D) and labels (N,) of one sample for each seed.

    sizes: arguments of `draw_sample`.
    """
    net = folded(trained.model, torch.float32)
    embedder = Embedder(net, trained.pixel_format)
    embeddings, names = [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = os.path.join(temporary, 'sample')
            draw_sample(folder, seed=seed, **sizes)
            images = list_files(folder)
            paths = [os.path.join(folder, image) for image in images]
            embeddings.append(common.embed_all(paths, embedder))
        names += [f'{seed}/{image.split("/")[1]}' for image in images]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return torch.cat(embeddings), torch.tensor([numbers[name] for name in names])


def false_match_rate(query, query_labels, gallery, gallery_labels, threshold):
    """Return the share of the queries whose best wrong image reaches the threshold."""
    same = query_labels[:, None] == gallery_labels
    scores = (query @ gallery.T).masked_fill(same, -1)
    return (scores.amax(dim=1) >= threshold).double().mean()


def measure_draw(embeddings, labels, calibration, generator):
    """Return the false-match rates of one draw of classes and one of each gallery."""
    classes = torch.randperm(int(labels.max()) + 1, generator=generator)[:CLASSES]
    drawn = torch.isin(labels, classes)
    sides = embeddings[drawn], labels[drawn]
    rates = [false_match_rate(*sides, *sides, calibration['threshold'])]
    for size in SMALL:
        drawn = torch.randperm(len(labels), generator=generator)[:size]
        threshold, _ = threshold_for(calibration, size)
        gallery = embeddings[drawn], labels[drawn]
        rates.append(false_match_rate(embeddings, labels, *gallery, threshold))
    return torch.stack(rates)


def calibrate_among(embeddings, labels, rate):
    """Return the calibration of images that are searched among themselves."""
    own = torch.arange(len(labels))
    return calibrate(embeddings, labels, embeddings, labels, rate, own)


def print_false_matches(run):
    """Print how often false matches happen in a run of the sample."""
    images = read_embeddings(f'{run}_data_base.pth').query
    embeddings, labels = new_figures(TrainedModel(f'{run}_model.pth'))
    generator = torch.Generator().manual_seed(0)
    rows = {}
    for rate in RATES:
        calibration = calibrate_among(images.embeddings, images.labels, rate)
        measured = [
            measure_draw(embeddings, labels, calibration, generator)
            for _ in range(DRAWS)
        ]
        draws = torch.stack(measured)  # (DRAWS, galleries)
        realised, low, high = (
            calibration[f'realised{end}'] for end in ('', '_low', '_high')
        )
        row = {'other classes': f'{realised:.2%} ({low:.2%} to {high:.2%})'}
        names = ['780 images', *(f'{size} images' for size in SMALL)]
        for name, mean, deviation in zip(names, draws.mean(dim=0), draws.std(dim=0)):
            row[name] = f'{mean:.2%} ± {deviation:.2%}'
        rows[f'{rate:.0%}'] = {**row, 'found': f'{calibration["found"]:.1%}'}
    common.print_table(rows)


# Confidence

EDGES = (0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)  # of the bins of confidence


def draw_answers(embeddings, labels, rate, generator):
    """Return ([(confidence, whether the class is right)], queries) of one split.

    rate: of false matches. A query below the threshold gets no class and is not in the
    list.
    """
    classes = labels.unique()
    order = torch.randperm(len(classes), generator=generator)
    inside = torch.isin(labels, classes[order[: len(classes) // 2]])
    calibration = calibrate_among(embeddings[inside], labels[inside], rate)
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
    """Return {bin of confidence: (count, mean confidence, share that is right)}.

    answers: as `draw_answers` returns them.
    """
    confidence, right = torch.tensor(answers, dtype=torch.float64).T
    bins = {}
    for low, high in pairwise(EDGES):
        inside = (confidence >= low) & (confidence < high + (high == 1))
        if inside.any():
            means = confidence[inside].mean().item(), right[inside].mean().item()
            bins[low, high] = int(inside.sum()), *means
    return bins


def print_confidence(file, labels_file, rate):
    """Print whether confidences hold for the embeddings in a file."""
    images = read_embeddings(file, labels_file).query
    embeddings = F.normalize(images.embeddings.float(), dim=1)
    generator = torch.Generator().manual_seed(0)
    answers, queries = [], 0
    for _ in range(DRAWS):
        drawn, count = draw_answers(embeddings, images.labels, rate, generator)
        answers += drawn
        queries += count
    if not answers:
        raise UserError(f'{file}: no query reaches the threshold')
    right = sum(is_right for _, is_right in answers) / len(answers)
    print(f'{len(answers) / queries:.1%} of {queries:,} queries get a class')
    print(f'{right:.1%} of these classes are right')
    common.print_table(
        {
            f'{low:.0%} to {high:.0%}': {
                'answers': f'{count:,}',
                'mean confidence': f'{mean:.1%}',
                'right': f'{share:.1%}',
            }
            for (low, high), (count, mean, share) in reliability(answers).items()
        }
    )


def main():
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add('claim', choices=['noise', 'false_matches', 'confidence'])
    add(
        'file',
        nargs='?',
        help='results/<run>, or for confidence what evaluate.py reads',
    )
    add('--labels', metavar='CSV', help='of a .npy file, see evaluate.py')
    add('--false_match_rate', type=float, default=0.01, help='for confidence')
    args = parser.parse_args()
    if args.claim == 'noise':
        print_noise()
    elif not args.file:
        parser.error(f'{args.claim} needs a file')
    elif args.claim == 'false_matches':
        print_false_matches(args.file)
    else:
        print_confidence(args.file, args.labels, args.false_match_rate)


if __name__ == '__main__':
    utils.run_script(main)

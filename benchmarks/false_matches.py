"""Measure the false-match rate on figures that neither trained nor set the threshold.

    python benchmarks/false_matches.py results/sample_uncropped_resnet18_2_40

Run `make demo` before. The threshold is set on the 40 test classes of the run, as in
training. It is measured on 240 figures drawn for this purpose. Means and deviations are
over 30 draws: of 40 of these classes against each other (780 wrong images), and of
galleries of 50 and 5 images. Takes 3 minutes on 2 cores.
"""

import os
import tempfile

import torch
from common import embed_all, get_run

import utils
from areir.data.images import list_files
from areir.data.loading import Embedder
from areir.data.sample import draw_sample
from areir.errors import UserError
from areir.evaluation.intervals import LEAST_CLASSES
from areir.gallery.databases import load_database
from areir.matching.calibration import calibrate
from areir.matching.thresholds import threshold_for
from model import TrainedModel, folded

RATES = (0.01, 0.05, 0.1)
DRAWS = 30
CLASSES = 40  # drawn to be compared with each other
SMALL = (50, 5)  # sizes of the other galleries
SEEDS = (1, 2, 3)  # of the new figures; the run's own have 0


def new_figures(trained, seeds=SEEDS, **sizes):
    """Return embeddings (N, D) and labels (N,) of one sample for each seed.

    sizes: arguments of `draw_sample`.
    """
    net = folded(trained.model, torch.float32)
    embedder = Embedder(net, trained.mean, trained.std, trained.image_size)
    embeddings, names = [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = os.path.join(temporary, 'sample')
            draw_sample(folder, seed=seed, **sizes)
            images = list_files(folder)
            paths = [os.path.join(folder, image) for image in images]
            embeddings.append(embed_all(paths, embedder))
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
    query, query_labels = embeddings[drawn], labels[drawn]
    threshold = calibration['threshold']
    rates = [false_match_rate(query, query_labels, query, query_labels, threshold)]
    for size in SMALL:
        drawn = torch.randperm(len(labels), generator=generator)[:size]
        threshold = threshold_for(calibration, size)[0]
        gallery, gallery_labels = embeddings[drawn], labels[drawn]
        rates.append(
            false_match_rate(embeddings, labels, gallery, gallery_labels, threshold)
        )
    return torch.stack(rates)


def print_header():
    columns = ['780 images', *(f'{size} images' for size in SMALL)]
    cells = ''.join(f'{column:>18}' for column in columns)
    print(f'{"asked for":<10}{"other classes in training":>28}{cells}{"found":>8}')


def print_row(rate, calibration, draws):
    """draws: the rates (draws, 3) of `measure_draw`."""
    low, high = calibration['realised_low'], calibration['realised_high']
    realised = f'{calibration["realised"]:.2%} ({low:.2%} to {high:.2%})'
    cells = ''
    for mean, deviation in zip(draws.mean(dim=0), draws.std(dim=0)):
        cells += f'{mean:.2%} ± {deviation:.2%}'.rjust(18)
    print(f'{rate:<10.0%}{realised:>28}{cells}{calibration["found"]:>8.1%}')


def main():
    run = get_run(__doc__.split('\n')[0])
    path = f'{run}_data_base.pth'
    database, _ = load_database(path, os.path.dirname(path))
    trained = TrainedModel(f'{run}_model.pth')
    if len(database['labels'].unique()) < LEAST_CLASSES:
        raise UserError(f'{path}: needs at least {LEAST_CLASSES} classes')
    embeddings, labels = new_figures(trained)
    generator = torch.Generator().manual_seed(0)
    print_header()
    for rate in RATES:
        calibration = calibrate(
            database['embeddings'],
            database['labels'],
            false_match_rate=rate,
        )
        draws = []
        for _ in range(DRAWS):
            draws.append(measure_draw(embeddings, labels, calibration, generator))
        print_row(rate, calibration, torch.stack(draws))


if __name__ == '__main__':
    utils.run_script(main)

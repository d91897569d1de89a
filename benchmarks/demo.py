"""Measure the figures of raw pixels, of the untrained and of the trained network.

    python benchmarks/demo.py results/sample_uncropped_resnet18_2_40

Run `make demo` before. All three embed the same images at the same size and are
evaluated alike; figures.py says what the figures are. Takes 20 seconds on 2 cores.
"""

import json
import os

import common
import figures
import torch
from torch.nn import functional as F

import utils
from areir.data.loading import Embedder
from areir.data.splits import load_split
from areir.files import load_tensors
from areir.gallery.databases import image_folder, load_database
from model import EnsembleModel, TrainedModel


class RawPixels:
    """Embeds images (N, 3, H, W) by their pixels, as unit vectors."""

    def embed(self, images):
        return F.normalize(images.flatten(1), dim=1)


def untrained_model(run):
    """Return the EnsembleModel that a run from scratch began with."""
    with open(f'{run}_run.json', encoding='utf-8') as file:
        arguments = json.load(file)['arguments']
    model_args = load_tensors(f'{run}_model.pth')['model_args']
    return EnsembleModel(**model_args, seed=arguments['seed'])


def main():
    parser = common.make_parser(__doc__)
    parser.add_argument('run', help='results/<run>, as the names of its files begin')
    run = parser.parse_args().run
    path = f'{run}_data_base.pth'
    database, path = load_database(path, os.path.dirname(path))
    folder = os.path.abspath(image_folder(database, path, None))
    split = load_split(*os.path.split(folder), database['crop_type'])
    trained = TrainedModel(f'{run}_model.pth')
    settings = trained.mean, trained.std, trained.image_size
    embedders = {
        'raw pixels': Embedder(RawPixels(), *settings),
        'untrained network': Embedder(untrained_model(run), *settings),
        'trained network': trained.embedder(torch.device('cpu')),
    }
    labels = {part: split.parts[part].labels for part in ('train', 'test')}
    print()
    for name, part in (('trained', 'train'), ('new', 'test')):
        classes = len(labels[part].unique())
        print(f'{len(labels[part]):,} images of {classes} {name} classes')
    for name, embedder in embedders.items():
        vectors = {}
        for part in labels:
            paths = [os.path.join(folder, image) for image in split.parts[part].images]
            vectors[part] = common.embed_all(paths, embedder)
        values = figures.values_per_query(vectors, labels)
        recalls = [
            f'{figure} {figures.mean(values[figure]):.2%}'
            for figure in (figures.NEW, figures.TRAINED, figures.NEW_IN_ALL)
        ]
        print(f'{name:<20}{", ".join(recalls)}')


if __name__ == '__main__':
    utils.run_script(main)

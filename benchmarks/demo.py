"""Measure Recall@1 on unseen classes: by raw pixels, untrained and trained network.

    python benchmarks/demo.py results/sample_uncropped_resnet18_2_40

Run `make demo` before. All three embed the same test images at the same size and are
evaluated alike. Takes 10 seconds on 2 cores.
"""

import json
import os

import common
from torch.nn import functional as F

import utils
from areir.data.loading import Embedder
from areir.files import load_tensors
from areir.gallery.databases import image_folder, load_database
from areir.retrieval import evaluate
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
    folder = image_folder(database, path, None)
    paths = [os.path.join(folder, image) for image in database['images']]
    trained = TrainedModel(f'{run}_model.pth')
    settings = trained.mean, trained.std, trained.image_size
    pixels = Embedder(RawPixels(), *settings)
    untrained = Embedder(untrained_model(run), *settings)
    embeddings = {
        'raw pixels': common.embed_all(paths, pixels),
        'untrained network': common.embed_all(paths, untrained),
        'trained network': database['embeddings'],
    }
    labels = database['labels']
    classes = len(labels.unique())
    print(f'\n{len(labels):,} images of {classes} classes that training never saw')
    for name, vectors in embeddings.items():
        recall = evaluate(vectors, labels, [1])['recall@1']
        print(f'{name:<20}Recall@1 {recall:>8.2%}')


if __name__ == '__main__':
    utils.run_script(main)

"""Measure the figures of raw pixels, of the untrained and of the trained network.

    python benchmarks/demo.py results/sample_uncropped_resnet18_1_40

Run `make demo` before. All three embed the same images at the same size and are
evaluated alike; figures.py says what the figures are. Takes 20 seconds on 2 cores.
"""

import json
import os

import common
import figures
import methods
import peers

from areir.data.splits import load_split
from areir.files import load_tensors
from areir.gallery.databases import image_folder, load_database
from areir.scripts import utils
from areir.scripts.model import EnsembleModel, TrainedModel


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
    root = os.path.dirname(os.path.abspath(image_folder(database, path, None)))
    trained = TrainedModel(f'{run}_model.pth')
    name = database['data_name']
    split = load_split(root, name)
    dataset = methods.Dataset(root, name, split, trained.pixel_format)
    vectors = {
        'raw pixels': methods.Pixels().train(dataset, None, 0, 0).outputs['embedding'],
        'untrained network': peers.read(untrained_model(run), dataset),
        'trained network': peers.read(trained.model, dataset),
    }
    labels = dataset.all_labels
    print()
    for part, kind in zip(methods.PARTS, ('trained', 'new')):
        classes = len(labels[part].unique())
        print(f'{len(labels[part]):,} images of {classes} {kind} classes')
    for name in vectors:
        values = figures.values_per_query(vectors[name], labels)
        recalls = [
            f'{figure} {figures.mean(values[figure]):.2%}'
            for figure in (figures.NEW, figures.TRAINED, figures.NEW_IN_ALL)
        ]
        print(f'{name:<20}{", ".join(recalls)}')


if __name__ == '__main__':
    utils.run_script(main)

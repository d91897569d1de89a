"""Recall@1 on a run's unseen classes by raw pixels, by the untrained network and by the trained one.

    python benchmarks/demo.py results/sample_uncropped_resnet18_4_16

All three embed the same test images at the same size and go through the same evaluation.
"""
import json
import os
import sys

import torch
from torch.nn import functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
import data_utils
import utils
from model import EnsembleModel
from retrieval import evaluate


def main():
    if len(sys.argv) != 2:
        raise ValueError('give the run, for example results/sample_uncropped_resnet18_4_16')
    database, saved = (utils.load(f'{sys.argv[1]}_{part}.pth') for part in ('data_base', 'model'))
    with open(f'{sys.argv[1]}_run.json', encoding='utf-8') as file:
        arguments = json.load(file)['arguments']
    folder = os.path.join(os.path.dirname(sys.argv[1]), database['data_root'], database['data_name'])
    untrained = EnsembleModel(**saved['model_args'], seed=arguments['seed'])

    pixels, embeddings = [], []
    dataset = data_utils.ImageDataset([os.path.join(folder, image) for image in database['images']],
                                      saved['image_size'])
    for batch, _ in torch.utils.data.DataLoader(dataset, batch_size=64):
        images = data_utils.normalise(batch, saved['mean'], saved['std'])
        pixels.append(F.normalize(images.flatten(1), dim=1))
        embeddings.append(untrained.embed(images))
    classes = len(database['labels'].unique())
    print(f'\n{len(database["labels"]):,} images of {classes} classes that training never saw')
    for name, vectors in (('raw pixels', torch.cat(pixels)), ('untrained network', torch.cat(embeddings)),
                          ('trained network', database['embeddings'])):
        recall = evaluate(vectors, database['labels'], [1])['recall@1']
        print(f'{name:<20}Recall@1 {recall:>8.2%}')


if __name__ == '__main__':
    utils.run(main)

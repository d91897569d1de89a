"""How near to the rate asked for are false matches on figures that were neither trained nor calibrated with?

    python benchmarks/false_matches.py results/sample_uncropped_resnet18_4_16      # after `make demo`

The threshold is set on the 40 test classes of the run, as training sets it, and measured on 240 figures that are drawn
for it: means and deviations over 30 draws, of 40 of these classes against each other (780 wrong images), and of
galleries of 50 and 5 images.
"""
import os
import sys
import tempfile

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
import calibration
import data_utils
import gallery
import utils
from inference import load_model
from model import folded
from sample_data import draw_sample

RATES, DRAWS, SMALL = (0.01, 0.05, 0.1), 30, (50, 5)


def new_figures(model, saved):
    """Embeddings (4800, D) and labels of three samples of other seeds."""
    net = folded(model, torch.float32)
    found, labels = [], []
    for seed in (1, 2, 3):
        with tempfile.TemporaryDirectory() as folder:
            draw_sample(f'{folder}/sample', seed=seed)
            paths = data_utils.list_files(f'{folder}/sample')
            for _, vectors, _ in gallery.embed_files(f'{folder}/sample', paths, saved['image_size'], lambda pixels:
                                                     net.embed(data_utils.normalise(pixels, saved['mean'],
                                                                                    saved['std'])), 'embedding'):
                found.append(torch.from_numpy(vectors))
        labels += [f'{seed}/{path.split("/")[1]}' for path in paths]
    names = sorted(set(labels))
    return torch.cat(found), torch.tensor([names.index(label) for label in labels])


def false_match_rate(query, query_labels, images, labels, threshold):
    scores = (query @ images.T).masked_fill(query_labels[:, None] == labels, -1)
    return (scores.amax(dim=1) >= threshold).double().mean()


def main():
    run = sys.argv[1]
    database = utils.load(f'{run}_data_base.pth')
    embeddings, labels = new_figures(*load_model(f'{run}_model.pth'))
    generator = torch.Generator().manual_seed(0)
    columns = ['780 images', *(f'{size} images' for size in SMALL)]
    print(f'{"asked for":<10}{"other classes in training":>28}' + ''.join(f'{column:>18}' for column in columns)
          + f'{"found":>8}')
    for rate in RATES:
        found = calibration.calibrate(database['embeddings'], database['labels'], false_match_rate=rate)
        realised = []
        for _ in range(DRAWS):
            chosen = torch.isin(labels, torch.randperm(240, generator=generator)[:40])
            row = [false_match_rate(embeddings[chosen], labels[chosen], embeddings[chosen], labels[chosen],
                                    found['threshold'])]
            for size in SMALL:
                drawn = torch.randperm(len(labels), generator=generator)[:size]
                row.append(false_match_rate(embeddings, labels, embeddings[drawn], labels[drawn],
                                            calibration.threshold_for(found, size)[0]))
            realised.append(torch.stack(row))
        realised = torch.stack(realised)
        print(f'{rate:<10.0%}' + f'{found["realised"]:.2%} ({found["realised_low"]:.2%} to '
              f'{found["realised_high"]:.2%})'.rjust(28)
              + ''.join(f'{mean:.2%} ± {deviation:.2%}'.rjust(18)
                        for mean, deviation in zip(realised.mean(dim=0), realised.std(dim=0)))
              + f'{found["found"]:>8.1%}')


if __name__ == '__main__':
    main()

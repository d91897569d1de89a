"""The valid files that cases start from: data, runs, indexes, embeddings.

The world consists of areas, folders that are built when a case first needs them. All
work happens at one path, so that what the files say about paths holds in every case.
"""

import shutil

import numpy as np
import official
import torch
from slim import SlimBackbone

from areir.data.sample import draw_sample
from campaign.calls import Call, call

RUN = 'small_uncropped_resnet18_2_2_2019'
MODEL = f'results/{RUN}_model.pth'
DATABASE = f'results/{RUN}_data_base.pth'
QUERY = 'photos/figure_1/figure_1_01.png'
STORED = 'data/small/test/figure_6/figure_6_01.png'
TRAIN = [
    *('train.py', '--data_name', 'small', '--image_size', 32, '--batch_size', 8),
    *('--ensemble_size', 2, '--meta_class_size', 2, '--num_epochs', 2),
    *('--num_workers', 0, '--recalls', '1,2', '--precision', 'fp32'),
    *('--checkpoint_minutes', 1e-9),
]
PLAIN = [*TRAIN, '--weights', 'none', '--recipe', '2019']
FREEZE = [*TRAIN, '--weights', 'files/slim.pth', '--recipe', 'current']
FREEZE += ['--frozen_stages', 3, '--dimensions', 0]
PREPARE = ['data_utils.py', '--num_workers', 1]
CAR = [*PREPARE, '--data_root', 'crops', '--data_name', 'car']


def search(root, *flags, model=MODEL):
    """Return the words that search the folder photos; root: of the results."""
    words = ['inference.py', '--gallery', 'photos', '--results_root', root]
    words += ['--model', model, '--query_img_name', QUERY, '--retrieval_num', 40]
    return [*words, *flags]


class World:
    """The areas below a folder, built at first use.

    case: the folder in which everything happens.
    """

    def __init__(self, base):
        self.base, self.case = base, base / 'case'
        self.pristine = base / 'pristine'
        self.pristine.mkdir(parents=True, exist_ok=True)

    def lay_out(self, areas):
        """Replace the folder of the case with a new one that holds these areas."""
        for area in areas:
            self.build(area)
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()
        for area in areas:
            source, target = self.pristine / area, self.case / area
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)

    def build(self, area):
        """Build an area, and those that it needs, unless it is there."""
        if (self.pristine / area).exists():
            return
        needed, make = AREAS[area]
        self.lay_out(needed)
        make(self, self.case / area)
        shutil.copytree(self.case / area, self.pristine / area, symlinks=True)

    def run(self, words):
        """Run a script that must end as it should."""
        ended = call(words, self.case)
        assert not ended.code, ended.text

    def kill(self, words, pattern):
        """Run a script, and kill it once there is something by a pattern of paths."""

        def begun():
            return any(path.stat().st_size for path in self.case.glob(pattern))

        ended = Call(words, self.case).wait(until=begun)
        assert begun(), ended.text


# The builders of areas


def make_data(world, folder):
    draw_sample(str(folder / 'small'), 4, 3, 4, side=32)
    world.run([*PREPARE, '--data_name', 'small', '--image_size', 32])


def make_photos(world, folder):
    drawn = folder.with_name('drawn')
    draw_sample(str(drawn), 0, 6, 15, side=32)  # the last two are not trained
    (drawn / 'test').rename(folder)
    official.write_image(folder / 'figure_1/it.jpg', official.noise((40, 30), 9))


def make_files(world, folder):
    """Write weights, and embeddings in all forms that evaluate.py reads."""
    folder.mkdir()
    torch.manual_seed(0)
    weights = SlimBackbone().state_dict()
    for name in ('slim.pth', 'resnet18-slim.pth'):
        torch.save(weights, folder / name)
    labels = torch.arange(5).repeat_interleave(4)
    embeddings = torch.randn(5, 8)[labels] + torch.randn(20, 8)
    torch.save({'embeddings': embeddings, 'labels': labels}, folder / 'it.pt')
    arrays = {'embeddings': embeddings.numpy(), 'labels': labels.numpy()}
    np.savez(folder / 'it.npz', **arrays)
    np.save(folder / 'it.npy', arrays['embeddings'])
    official.write_lines(folder / 'it.csv', ['label', *map(str, labels.tolist())])


def make_resume(world, folder):
    words = [*PLAIN, '--results_root', 'resume']
    world.kill(words, 'resume/*_checkpoint/epoch_0002*')


def make_frozen(world, folder):
    words = [*FREEZE, '--results_root', 'frozen']
    world.kill(words, 'frozen/*_checkpoint/epoch_0002*')


def make_index(world, folder):
    world.run(search('index', '--calibrate', '--index', 'faiss'))


def make_begun(world, folder):
    world.kill(search('begun'), 'begun/*_index/*.f32')


def make_crops(world, folder):
    """Prepare CARS196 with its crops."""
    official.write_car_folder(folder, official.many_cars(8))
    world.run(CAR)


AREAS = {
    'data': ([], make_data),
    'photos': ([], make_photos),
    'files': ([], make_files),
    'results': (['data'], lambda world, folder: world.run(PLAIN)),
    'resume': (['data'], make_resume),
    'frozen': (['data', 'files'], make_frozen),
    'index': (['photos', 'results'], make_index),
    'begun': (['photos', 'results'], make_begun),
    'crops': ([], make_crops),
}

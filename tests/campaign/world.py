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
from campaign import hooks
from campaign.calls import call

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
FREEZE += ['--freeze_trunk', 'yes', '--dimensions', 0]


def gallery(root, *flags):
    """Return the flags of the folder photos; root: of the results."""
    return ['--gallery', 'photos', '--results_root', root, *flags]


def search(root, *flags):
    """Return the words that search the folder photos."""
    words = ['--query_img_name', QUERY, '--retrieval_num', 4]
    return ['inference.py', *gallery(root, *flags), *words]


TRAINED = ['--model', MODEL]
NETWORK = ['--model', 'files/resnet18-slim.pth']


EXPORT = ['inference.py', *gallery('out', *TRAINED), '--export', 'exports']


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
        (self.pristine / area).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.case / area, self.pristine / area, symlinks=True)

    def run(self, words, before=None, code=0):
        """Run a script that must end as it should."""
        ended = call(words, self.case, before)
        assert ended.code == code, ended.text
        return ended


# The builders of areas


def make_data(world, folder):
    draw_sample(str(folder / 'small'), 4, 3, 4, side=32)
    world.run(['data_utils.py', '--data_name', 'small', '--image_size', 32])


def make_photos(world, folder):
    drawn = folder.with_name('drawn')
    draw_sample(str(drawn), 0, 3, 4, side=32)
    (drawn / 'test').rename(folder)
    official.write_image(folder / 'figure_1/it.jpg', official.noise((40, 30), 9))
    official.write_image(folder / 'photo.bmp', official.noise((30, 40), 8))


def make_files(world, folder):
    """Write weights, and embeddings in all forms that evaluate.py reads."""
    folder.mkdir()
    torch.manual_seed(0)
    weights = SlimBackbone(5).state_dict()
    for name in ('slim.pth', 'resnet18-slim.pth'):
        torch.save(weights, folder / name)
    labels = torch.arange(5).repeat_interleave(4)
    embeddings = torch.randn(5, 8)[labels] + torch.randn(20, 8)
    images = [f'{number}.png' for number in range(20)]
    entries = {'embeddings': embeddings, 'labels': labels}
    torch.save({**entries, 'images': images}, folder / 'it.pt')
    arrays = {name: value.numpy() for name, value in entries.items()}
    np.savez(folder / 'it.npz', **arrays, images=images)
    np.save(folder / 'it.npy', arrays['embeddings'])
    rows = [f'{name},{label}' for name, label in zip(images, labels.tolist())]
    official.write_lines(folder / 'it.csv', ['path,label', *rows])


def make_results(world, folder):
    world.run(PLAIN)


def make_resume(world, folder):
    world.run([*PLAIN, '--results_root', 'resume'], hooks.stop_training, hooks.STOPPED)


def make_frozen(world, folder):
    before = hooks.stop_training
    world.run([*FREEZE, '--results_root', 'frozen'], before, hooks.STOPPED)


def make_index(world, folder):
    world.run(search('index', *TRAINED, '--calibrate'), hooks.small_steps)


def make_unfinished(world, folder):
    before = hooks.stop_indexing
    world.run(search('unfinished', *TRAINED), before, hooks.STOPPED)


def make_short(world, folder):
    world.run(search('short', *NETWORK), hooks.small_steps)


def make_faiss(world, folder):
    world.run(search('faiss', *TRAINED, '--index', 'faiss'), hooks.small_steps)


def make_answers(world, folder):
    words = ['inference.py', '--data_base', DATABASE, '--results_root', 'answers']
    world.run([*words, '--query_img_name', STORED])
    world.run([*words, '--query_img_name', 'photos'])


def make_exports(world, folder):
    world.run(EXPORT)


LAYOUTS = {
    'car_folder': official.write_car_folder,
    'car_devkit': official.write_car_devkit,
    'car_csv': official.write_car_csv,
    'cub': lambda folder: official.write_cub(folder / 'cub'),
    'sop': lambda folder: official.write_sop(folder / 'sop'),
    'isc': lambda folder: official.write_isc(folder / 'isc'),
}


def make_layout(world, folder):
    LAYOUTS[folder.name](folder)


def make_crops(world, folder):
    """Prepare CARS196 with its crops."""
    official.write_car_folder(folder, official.many_cars(8))
    words = ['data_utils.py', '--data_root', 'crops', '--data_name', 'car']
    world.run([*words, '--num_workers', 1])


def make_table(world, folder):
    """Write a dataset that a CSV describes."""
    official.write_classes(folder, images=2)
    lines = ['path,label,split,is_query,is_gallery,x_1,x_2,y_1,y_2']
    for number, path in enumerate(sorted(folder.glob('*/*.png'))):
        name, label = path.relative_to(folder), path.parent.name
        split = 'train' if label in 'ab' else 'validation'
        first = number % 2 == 0
        lines.append(f'{name},{label},{split},{first},{not first},2,20,3,15')
    official.write_lines(folder / 'shoes.csv', lines)


AREAS = {
    'data': ([], make_data),
    'photos': ([], make_photos),
    'files': ([], make_files),
    'results': (['data'], make_results),
    'resume': (['data'], make_resume),
    'frozen': (['data', 'files'], make_frozen),
    'index': (['photos', 'results'], make_index),
    'unfinished': (['photos', 'results'], make_unfinished),
    'short': (['photos', 'files'], make_short),
    'faiss': (['photos', 'results'], make_faiss),
    'answers': (['data', 'photos', 'results'], make_answers),
    'exports': (['photos', 'results'], make_exports),
    'crops': ([], make_crops),
    'table': ([], make_table),
    **{f'layouts/{name}': ([], make_layout) for name in LAYOUTS},
}

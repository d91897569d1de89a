"""The flags of data_utils.py."""

from areir.cli import make_parser
from areir.cli.types import image_size, number, path, positive, seed

DATASETS = ('car', 'cub', 'sop', 'isc')  # as in areir.data.layouts


def get_parser():
    parser = make_parser('Prepare datasets for train.py.')
    known = ', '.join(DATASETS)
    add = parser.add_argument_group('data').add_argument
    flag = add('--data_name')
    flag.help = (
        f'dataset to prepare: {known}, sample, or a name that you choose '
        f'[default value is those of {known} that are in --data_root]'
    )
    add('--data_root', type=path, default='data', help='folder of the datasets')
    flag = add('--data_path', type=path)
    flag.help = (
        'your own images, a folder for each class, to prepare under --data_name; '
        'they stay where they are'
    )
    flag = add('--class_level', type=positive)
    flag.help = (
        'which folder is the class, in a folder of your own images: 1 is the first (in '
        'train/ and test/, if there are such) [default value is 1 if that is clear]'
    )
    flag = add('--csv', metavar='FILE', type=path)
    flag.help = (
        'your own images, listed in a CSV with the columns path, label and optionally '
        'split, is_query, is_gallery, group, x_1, x_2, y_1, y_2, or other usual names; '
        'paths start from its folder, or from --data_path; '
        'they stay where they are'
    )
    add = parser.add_argument_group('preparation').add_argument
    flag = add('--image_size', type=image_size, default=256)
    flag.help = (
        'pixels per side at which the mean and standard deviation of your own dataset '
        'are computed'
    )
    flag = add('--seed', type=seed, default=0)
    flag.help = 'seed that draws the test classes of your own dataset'
    flag = add('--test_share', type=number(float, 0, 0.999))
    flag.help = (
        'share of the classes of your own dataset that is held out for the test, if it '
        'has no split of its own; 0 trains on all of them [default value is 0.5]'
    )
    flag = add('--skip_broken', action='store_true')
    flag.help = 'leave out images that are missing or cannot be read, and list them'
    flag = add('--num_workers', type=number(int, 1, 256))
    flag.help = 'processes that read images [default value is the number of cores]'
    return parser

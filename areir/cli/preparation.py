"""The flags of data_utils.py."""

import argparse

from areir.cli.types import image_size, integer, path

DATASETS = ('car', 'cub', 'sop', 'isc')  # as in areir.data.layouts


def get_parser():
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description='Prepare datasets for train.py.'
    )
    known = ', '.join(DATASETS)
    add = parser.add_argument_group('data').add_argument
    add(
        '--data_name',
        help=f'dataset to prepare: {known}, sample, or a name that you choose '
        f'[default is those of {known} that are in --data_root]',
    )
    add(
        '--data_root',
        type=path,
        default='data',
        help="folder of the datasets [default value is '%(default)s']",
    )
    add(
        '--data_path',
        type=path,
        help='your own images, a folder for each class, to prepare under --data_name; '
        'they stay there',
    )
    add(
        '--csv',
        metavar='FILE',
        type=path,
        help='your own images, listed in a CSV with the columns path, label and '
        'optionally split, is_query, is_gallery, x_1, x_2, y_1, y_2; they stay where '
        'they are',
    )
    add = parser.add_argument_group('preparation').add_argument
    add(
        '--image_size',
        type=image_size,
        default=256,
        help='pixels per side at which the mean and standard deviation of your own '
        'dataset are computed [default value is %(default)s]',
    )
    add(
        '--seed',
        type=integer(0, 2**63 - 1),
        default=0,
        help='seed that draws the training half of your own dataset '
        '[default value is %(default)s]',
    )
    add(
        '--num_workers',
        type=integer(1, 256),
        help='processes that read images [default is the number of cores]',
    )
    return parser

"""The flags of inference.py."""

import argparse

from areir.cli.types import path, positive

DEFAULT_NETWORK = 'resnet18'  # with ImageNet weights, if there is no trained model
DEFAULT_DATABASE = 'car_uncropped_resnet18_48_12_data_base.pth'
DEFAULT_QUERY = 'data/car/uncropped/008055.jpg'
DEFAULT_NUMBER = 8


def get_parser():
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description='Retrieve the images that are nearest to a query.',
    )
    add_query_flags(parser.add_argument_group('query').add_argument)
    add_gallery_flags(parser.add_argument_group('what is searched').add_argument)
    add_page_flags(parser.add_argument_group('search page').add_argument)
    add_output_flags(parser.add_argument_group('what is written').add_argument)
    return parser


def add_query_flags(add):
    add(
        '--query_img_name',
        type=path,
        help='an image file or an image of the database; a folder of images, each a '
        'query; or the folder of --gallery, to compare its images with each other '
        f"[default value is '{DEFAULT_QUERY}', without --gallery]",
    )
    add(
        '--retrieval_num',
        type=positive,
        help=f'number of images to retrieve [default value is {DEFAULT_NUMBER}]',
    )


def add_gallery_flags(add):
    add(
        '--data_base',
        type=path,
        default=DEFAULT_DATABASE,
        help='database to search: a file, or a name below --results_root '
        "[default value is '%(default)s']",
    )
    add(
        '--gallery',
        metavar='DIR',
        type=path,
        help='search the images of this folder and its subfolders instead',
    )
    add(
        '--model',
        metavar='NAME',
        type=path,
        help='model for --gallery and --export_model: a file, a name below '
        '--results_root, or a network of torchvision with its ImageNet weights '
        f'[default is the newest in --results_root, or {DEFAULT_NETWORK} if none]',
    )
    add(
        '--calibrate',
        action='store_true',
        help='set the threshold of a match by the class folders of --gallery',
    )
    add(
        '--false_match_rate',
        type=float,
        help='share of the queries without a true match that --calibrate lets pass '
        '[default value is 0.01]',
    )
    add(
        '--index',
        default='exact',
        choices=['exact', 'faiss'],
        help='faiss, if installed, searches approximately and prints its recall '
        '[default value is %(default)s]',
    )
    add(
        '--data_root',
        type=path,
        help='folder of the datasets, if they have moved since training',
    )


def add_page_flags(add):
    add(
        '--serve',
        metavar='PORT',
        nargs='?',
        const=8000,
        type=int,
        help='serve a page that searches --gallery, by default at port 8000',
    )
    add(
        '--host',
        default='127.0.0.1',
        help='address to serve at; with 0.0.0.0 other machines can see the images '
        '[default: %(default)s]',
    )


def add_output_flags(add):
    add(
        '--heat_maps',
        action='store_true',
        help='draw the regions that make a query and its answers similar',
    )
    add(
        '--export',
        metavar='DIR',
        type=path,
        help='write vectors (.npy), paths and classes (CSV) of what is searched',
    )
    add(
        '--export_model',
        metavar='FILE',
        type=path,
        help='write the network of --model, from pixels to vectors, to FILE: .onnx, '
        'or .pt2 for torch.export',
    )
    add(
        '--report',
        action='store_true',
        help='write an HTML page about the run of --data_base',
    )
    add(
        '--results_root',
        type=path,
        default='results',
        help="folder to write to [default value is '%(default)s']",
    )

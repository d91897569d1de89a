"""The flags of evaluate.py."""

import argparse

from areir.cli.types import RECALLS, listed_integers, path


def get_parser():
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description='Evaluate embeddings exactly, with 95 % intervals over classes.',
    )
    parser.add_argument(
        'file',
        type=path,
        help='a database of train.py or of the original code; a .npz or .pt file that '
        'holds embeddings and labels and, if the queries are not the gallery, also '
        'query_embeddings and query_labels; or a .npy file of embeddings',
    )
    measured = parser.add_argument_group('what is measured')
    measured.add_argument(
        '--labels',
        metavar='CSV',
        type=path,
        help='labels of a .npy file, one row for each embedding, with the columns '
        'label (or class, as inference.py --export writes) and optionally path, '
        'is_query, is_gallery',
    )
    measured.add_argument(
        '--recalls',
        type=listed_integers,
        help='K of Recall@K [default value is '
        f"'{','.join(map(str, RECALLS))}', up to the number of images]",
    )
    measured.add_argument(
        '--compare',
        metavar='OTHER',
        type=path,
        help='a second file with embeddings of the same images, to compare with',
    )
    measured.add_argument(
        '--evaluate_heads',
        type=listed_integers,
        default=[],
        metavar='1,2,4',
        help='also report Recall@1 of the first 1, 2, 4 heads, of a database of '
        'train.py --dimensions 0',
    )
    output = parser.add_argument_group('output and device')
    output.add_argument('--json', action='store_true', help='print the report as JSON')
    output.add_argument(
        '--device',
        help='cpu or cuda [default value is cuda if there is a GPU, else cpu]',
    )
    return parser
